"""What a model writes before it says whether a graph is a tree: a depth-first search, as such or with searches.

Both bodies follow one search from node 0. It takes a node's neighbours in the order of the edges, returns where none is
left, and ends where it meets a node it has seen that is not the one it came from (arXiv:2402.18510).
"""

# P lanes, B rows, N nodes, E places for edges, S steps of the search, K tokens, R = P * B

from typing import NamedTuple

import torch

from trainables.common.retrieval.graphs import ABSENT

# The author's 16 specials are [ ] , - PAD EOS TRUE FALSE space newline UNK BOS STARTSEARCH ENDSEARCH FAILED ~
DASH, PAD, EOS, TRUE, FALSE, BOS, START, END, FAILED, PARENT = 3, 4, 5, 6, 7, 11, 12, 13, 14, 15
FIRST_NODE = 16  # the token of node 0


class Search(NamedTuple):
    """A depth-first search step by step, [R, S]: where it stands, and whom it asks for. ABSENT: there is none."""

    active: torch.Tensor  # the search still goes on
    node: torch.Tensor
    father: torch.Tensor  # of the node
    after: torch.Tensor  # the neighbour it returned from; ABSENT where it has just come down
    first: torch.Tensor  # the neighbour after that one
    second: torch.Tensor  # the one after the first, asked for where the first is the father
    following: torch.Tensor  # the first or second: what the search goes on to
    recorded: torch.Tensor  # father of the following node where it has been seen (ABSENT for node 0)
    seen: torch.Tensor  # the following node has been seen: a cycle


def search(edges_PBE2: torch.Tensor, nodes: int) -> Search:
    """Depth-first search over each graph, at most 2 N - 1 steps."""
    edges = edges_PBE2.flatten(0, 1)
    owner, neighbour, pointer = _neighbours(edges, nodes)
    rows = len(edges)
    father_of = edges.new_full((rows, nodes), ABSENT)
    seen_before = torch.zeros_like(father_of, dtype=torch.bool)
    seen_before[:, 0] = True
    node, after = edges.new_zeros(rows, 1), edges.new_full((rows, 1), ABSENT)
    active = torch.ones_like(node, dtype=torch.bool)
    steps = []
    for _ in range(2 * nodes - 1):
        father, place = father_of.gather(1, node), pointer.gather(1, node)
        first = torch.where(owner.gather(1, place) == node, neighbour.gather(1, place), ABSENT)
        is_father = (first == father) & (first != ABSENT)
        beyond = place + is_father
        second = torch.where(owner.gather(1, beyond) == node, neighbour.gather(1, beyond), ABSENT)
        following = torch.where(is_father, second, first)
        exists, target = following != ABSENT, following.clamp_min(0)
        seen = exists & seen_before.gather(1, target)
        recorded = torch.where(seen, father_of.gather(1, target), ABSENT)
        steps.append(Search(active, node, father, after, first, second, following, recorded, seen))
        down = active & exists & ~seen
        up = active & ~exists & (father != ABSENT)
        pointer.scatter_(1, node, beyond + down)  # a node is asked again only after its last answer
        father_of.scatter_(1, target, torch.where(down, node, father_of.gather(1, target)))
        seen_before.scatter_(1, target, down | seen_before.gather(1, target))
        after = torch.where(up, node, ABSENT)
        node = torch.where(down, target, torch.where(up, father, node))
        active = down | up
    return Search(*(torch.cat(values, 1) for values in zip(*steps, strict=True)))


def _neighbours(edges: torch.Tensor, nodes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each node's neighbours in edge order, one node after the other: owners, neighbours, and where each node begins.

    Two places at the end belong to no node, so that one may look past a node's last neighbour.
    """
    owner, neighbour = edges.flatten(1), edges.flip(2).flatten(1)
    owner = torch.where(owner == ABSENT, nodes, owner)
    owner, order = torch.nn.functional.pad(owner, (0, 2), value=nodes).sort(dim=1, stable=True)
    neighbour = torch.nn.functional.pad(neighbour, (0, 2), value=ABSENT).gather(1, order)
    begins = torch.arange(nodes, device=edges.device).expand(len(edges), nodes).contiguous()
    return owner, neighbour, torch.searchsorted(owner, begins)


def none(edges_PBE2: torch.Tensor, nodes: int) -> torch.Tensor:
    """No body: the label follows the graph."""
    return edges_PBE2.new_zeros(*edges_PBE2.shape[:2], 0)


def cot(edges_PBE2: torch.Tensor, nodes: int) -> torch.Tensor:
    """The nodes where the search stands (the Euler tour of a tree), then EOS; [P, B, K] with PAD where none is."""
    found = search(edges_PBE2, nodes)
    tokens = torch.where(found.active, FIRST_NODE + found.node, PAD)
    return _with_end(tokens).view(*edges_PBE2.shape[:2], -1)


def retrieval(edges_PBE2: torch.Tensor, nodes: int) -> torch.Tensor:
    """The search by searches in the text, then EOS; [P, B, K] with PAD where there is no token.

    At a node v: v, the search for its recorded father (v ~), the search for its first neighbour, or the one after p
    (v - p). Where that is the father, the one after it. A neighbour u is looked up (u ~): where it has no father on
    record, this is written (u ~ v) and the search goes down to u. An answer without a node is FAILED.
    """
    found = search(edges_PBE2, nodes)
    everywhere = torch.ones_like(found.active)
    to_father = (found.first == found.father) & (found.first != ABSENT)
    goes_on = found.following != ABSENT
    new = goes_on & ~found.seen
    node, following, first = (_node(value) for value in (found.node, found.following, found.first))
    pieces: list[tuple[torch.Tensor, list[torch.Tensor | int]]] = [
        (everywhere, [node, START, node, PARENT, END, _node(found.father), START, node, DASH]),
        (found.after != ABSENT, [_node(found.after)]),
        (everywhere, [END, first]),
        (to_father, [START, node, DASH, first, END, _node(found.second)]),
        (goes_on, [START, following, PARENT, END, _node(found.recorded)]),
        (new, [following, PARENT, node]),
    ]
    tokens = [torch.where(where & found.active, token, PAD) for where, piece in pieces for token in piece]
    return _with_end(torch.stack(tokens, 2).flatten(1)).view(*edges_PBE2.shape[:2], -1)


def _node(nodes: torch.Tensor) -> torch.Tensor:
    """Tokens of nodes; FAILED for none."""
    return torch.where(nodes == ABSENT, FAILED, FIRST_NODE + nodes)


def _with_end(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(tokens, (0, 1), value=EOS)


def compact(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Tokens moved to the left over PAD, cut or padded to `length`.

    >>> compact(torch.tensor([[PAD, 7, PAD, 6]]), 3)
    tensor([[7, 6, 4]])
    """
    kept = tokens != PAD
    place = torch.where(kept, kept.cumsum(-1) - 1, length).clamp_max(length)  # what is over goes to a spare place
    padded = tokens.new_full((*tokens.shape[:-1], length + 1), PAD)
    return padded.scatter(-1, place, torch.where(kept, tokens, PAD))[..., :length]


BODIES = {"none": none, "cot": cot, "retrieval": retrieval}
