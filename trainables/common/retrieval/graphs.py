"""Graphs that are trees, or nearly so, in the two ways of arXiv:2402.18510: half of them trees, or about.

An edge is its larger node, then its smaller one. A graph is E places for edges in random order; a place that holds no
edge is (-1, -1), and these come first.
"""

# P lanes, B graphs, N nodes, E places for edges

import torch

from trainables.common.streams import Streams

ABSENT = -1


def binary(streams: Streams, counter: int | torch.Tensor, count: int, nodes: int) -> torch.Tensor:
    """Two stars and one more edge between two of their leaves, [P, B, N - 1, 2].

    A fair coin hangs each node that is no hub on one of the hubs. The leaves that the last edge joins are neighbours in
    a random order: on different hubs they make a tree, on the same hub a triangle, and the other star is cut off.
    """
    draws = streams.uniform(counter, count, 3 * nodes, dtype=torch.float64)
    order, coin, edge_order = draws.split([nodes, nodes, nodes], 2)
    names = order.argsort(2)
    hubs = names[..., :2].gather(2, (coin[..., 2:] < 0.5).long())
    leaf = 2 + (coin[..., :1] * (nodes - 3)).long()
    last = torch.cat([names.gather(2, leaf), names.gather(2, leaf + 1)], 2)
    edges = torch.cat([torch.stack([hubs, names[..., 2:]], 3), last[..., None, :]], 2)
    return _written(edges, edge_order[..., : nodes - 1])


def random(streams: Streams, counter: int | torch.Tensor, count: int, nodes: int) -> torch.Tensor:
    """A random recursive tree, or by a fair coin a graph drawn edge by edge that is seldom one, [P, B, N, 2].

    The second kind: every node but one is joined to a node drawn from all (a loop or an edge that is there already
    counts for nothing), then two nodes that are not joined yet, neither of which has as its number the place of that
    one in the random order (so the author). The number of edges varies, and trees have N - 1: edges alone say much.
    """
    draws = streams.uniform(counter, count, 3 * nodes + 3, dtype=torch.float64)
    order, father, edge_order, rest = draws.split([nodes, nodes, nodes, 3], 2)
    names = order.argsort(2)
    place = torch.arange(nodes, device=streams.device)
    recursive = rest[..., :1] < 0.5
    fathers = (father * torch.where(recursive, place, nodes)).long()
    # The first node of a recursive tree has no father; of the other kind, one of the later ones has none.
    free = 1 + (rest[..., 1:2] * (nodes - 1)).long()
    root = torch.where(recursive, 0, free)
    mothers, children = names.gather(2, fathers), names.expand_as(fathers)
    pairs = torch.stack([torch.maximum(mothers, children), torch.minimum(mothers, children)], 3)
    joined = (place != root) & (mothers != children)
    codes = torch.where(joined, pairs[..., 0] * nodes + pairs[..., 1], nodes * nodes)
    repeated = (codes[..., :, None] == codes[..., None, :]).tril(-1).any(3)
    last = _unjoined_pair(torch.where(repeated, nodes * nodes, codes), free, rest[..., 2:], nodes)
    # Of a recursive tree, place 0 has no edge; of the other kind, the root's place takes the last edge.
    pairs = torch.where((place == root)[..., None] & ~recursive[..., None], last[..., None, :], pairs)
    kept = torch.where(place == root, ~recursive, joined & ~repeated)
    return _written(torch.where(kept[..., None], pairs, ABSENT), edge_order)


KINDS = {"binary": (binary, 4), "random": (random, 5)}  # and the fewest nodes they are defined for


def _unjoined_pair(codes: torch.Tensor, spared: torch.Tensor, draw: torch.Tensor, nodes: int) -> torch.Tensor:
    """A uniform pair (larger, smaller) of nodes other than `spared` that no code larger * N + smaller names."""
    number = torch.arange(nodes * nodes, device=codes.device)
    larger, smaller = number // nodes, number % nodes
    allowed = (larger > smaller) & (larger != spared) & (smaller != spared)
    spare = torch.ones_like(allowed[..., :1])  # where codes that name no pair go
    allowed = torch.cat([allowed, spare], 2).scatter(2, codes, False)[..., :-1]
    rank = allowed.cumsum(2)
    chosen = (rank <= (draw * rank[..., -1:]).long()).sum(2, keepdim=True)
    return torch.cat([chosen // nodes, chosen % nodes], 2)


def _written(edges: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Edges with the larger node first, in the order of `order`; places without one come first."""
    edges = edges.sort(3, descending=True).values
    order = torch.where(edges[..., 0] == ABSENT, ABSENT, order).argsort(2)
    return edges.gather(2, order[..., None].expand_as(edges))


def are_trees(edges_PBE2: torch.Tensor, nodes: int) -> torch.Tensor:
    """Which graphs are trees: N - 1 edges, none of which closes a cycle; [P, B].

    >>> are_trees(torch.tensor([[[[1, 0], [2, 1]], [[1, 0], [-1, -1]]]]), 3)
    tensor([[ True, False]])
    """
    there = edges_PBE2[..., 0] != ABSENT
    tree = there.sum(2) == nodes - 1
    part = torch.arange(nodes, device=edges_PBE2.device).expand(*edges_PBE2.shape[:2], nodes)
    for place in range(edges_PBE2.shape[2]):
        one, other = part.gather(2, edges_PBE2[:, :, place].clamp_min(0)).split(1, 2)
        exists = there[:, :, place]
        tree = tree & ((one != other)[..., 0] | ~exists)
        part = torch.where((part == one) & exists[..., None], other, part)
    return tree
