"""Is a graph a tree? The task of arXiv:2402.18510, answered at once, after a search, or by searches in the text.

A row is BOS, the edges (u - v), EOS, then, unless there is no body, the body and EOS, then TRUE or FALSE. Where a graph
has fewer edges than places (random graphs), PAD fills the first places, so that all prompts are equally long.
"""

# P lanes, B rows, T positions, N nodes, E places for edges

from dataclasses import dataclass
from functools import cache
from math import log2

import torch

from trainables.common.retrieval.bodies import BODIES, BOS, DASH, END, EOS, FALSE, FIRST_NODE, PAD, TRUE, compact
from trainables.common.retrieval.graphs import ABSENT, KINDS, are_trees
from trainables.common.retrieval.retriever import GraphRetriever
from trainables.common.retrieval.tasks import Retriever, Rows
from trainables.common.streams import Streams

CHANCE_GRAPHS = 20_000


@dataclass(frozen=True)
class IsTree:
    nodes: int  # N
    graph: str = "binary"  # or "random", see graphs.py
    body: str = "cot"  # or "none", "retrieval", see bodies.py

    def __post_init__(self) -> None:
        for name, value, known in (("graph", self.graph, KINDS), ("body", self.body, BODIES)):
            if value not in known:
                raise ValueError(f"no {name} {value!r}; there are {', '.join(known)}")
        fewest = KINDS[self.graph][1]
        if self.nodes < fewest:
            raise ValueError(f"{self.graph} graphs need at least {fewest} nodes, got {self.nodes}")

    @property
    def name(self) -> str:
        return "istree"

    @property
    def vocabulary(self) -> int:
        """16 specials and nodes 0 .. N; the author's vocabulary has one node too many."""
        return FIRST_NODE + self.nodes + 1

    @property
    def edges(self) -> int:
        """Places for edges in the prompt."""
        return self.nodes - 1 if self.graph == "binary" else self.nodes

    @property
    def prompt(self) -> int:
        return 3 * self.edges + 2

    @property
    def longest_body(self) -> int:
        """Tokens between prompt and label, EOS included; every tree has the longest.

        A search of a tree stands at 2 N - 1 nodes. With searches each of these takes 11 tokens, 1 more after each
        of N - 1 returns, and per edge 6 to skip the father and 8 to go down.
        """
        return {"none": 0, "cot": 2 * self.nodes, "retrieval": 37 * self.nodes - 25}[self.body]

    @property
    def length(self) -> int:
        return self.prompt + self.longest_body + 1

    @property
    def labels(self) -> tuple[int, int]:
        return TRUE, FALSE

    @property
    def features(self) -> int | None:
        return None

    @property
    def required_bits(self) -> float:
        """A lower bound: what tells apart the graphs that one more edge, whichever it is, makes a tree or not.

        Binary: to which hub each leaf belongs, up to a swap of the hubs: 2^(N-3) cases. Random: the two parts of the
        nodes that a tree less one edge leaves: 2^(N-1) - 1 cases. Where the text is searched, only the node at hand.
        """
        if self.body == "retrieval":
            return log2(self.nodes)
        return self.nodes - 3.0 if self.graph == "binary" else log2(2 ** (self.nodes - 1) - 1)

    @property
    def chance(self) -> float:
        """Binary graphs are trees by a fair coin; of random graphs the share of trees is estimated."""
        return 0.5 if self.graph == "binary" else _commoner_label(self)

    def graphs(self, streams: Streams, counter: int | torch.Tensor, count: int) -> torch.Tensor:
        """Edges of `count` graphs of each lane, [P, B, E, 2]."""
        return KINDS[self.graph][0](streams, counter, count, self.nodes)

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        return self.written(self.graphs(streams, counter, count))

    def written(self, edges_PBE2: torch.Tensor) -> Rows:
        """The rows of given graphs."""
        there = edges_PBE2[..., :1] != ABSENT
        larger, smaller = (FIRST_NODE + edges_PBE2).split(1, 3)
        written = torch.cat([larger, torch.full_like(larger, DASH), smaller], 3)
        edges = torch.where(there, written, PAD).flatten(2)
        begin, end = torch.full_like(edges[..., :1], BOS), torch.full_like(edges[..., :1], EOS)
        label = torch.where(are_trees(edges_PBE2, self.nodes), TRUE, FALSE)
        body = BODIES[self.body](edges_PBE2, self.nodes)
        rest = compact(torch.cat([body, label[..., None]], 2), self.length - self.prompt)
        tokens = torch.cat([begin, edges, end, rest], 2)
        counted = tokens != PAD
        counted[..., : self.prompt] = False
        counted[..., 1:] &= tokens[..., :-1] != END  # the retriever's answer
        return Rows(tokens, counted, label)

    def inputs(self, tokens_PBT: torch.Tensor) -> torch.Tensor:
        return tokens_PBT

    def retriever(self) -> Retriever | None:
        return GraphRetriever(self.edges) if self.body == "retrieval" else None


@cache
def _commoner_label(task: IsTree) -> float:
    trees = are_trees(task.graphs(Streams([0], "chance"), 0, CHANCE_GRAPHS), task.nodes).float().mean().item()
    return max(trees, 1 - trees)
