"""Answers the searches that a text asks for, from the text alone: edges in its prompt, fathers on record in its body.

    STARTSEARCH v - ENDSEARCH      the first neighbour of v in the order of the edges
    STARTSEARCH v - p ENDSEARCH    the neighbour after p
    STARTSEARCH u ~ ENDSEARCH      the father of u: v where the text has written "u ~ v", the last time it did

What matches nothing and what is not of these forms is answered FAILED (arXiv:2402.18510).
"""

# P lanes, B rows, T positions, E places for edges, R rows that ask

from dataclasses import dataclass

import torch

from trainables.common.retrieval.bodies import DASH, END, FAILED, FIRST_NODE, PARENT, START


@dataclass(frozen=True)
class GraphRetriever:
    """For rows of IsTree: a prompt of BOS, `edges` places for edges of three tokens each, and EOS."""

    edges: int

    def __call__(self, text_PBT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows end with ENDSEARCH, and what answers them (FAILED for the others); both [P, B]."""
        called = text_PBT[..., -1] == END
        answers = torch.full_like(text_PBT[..., -1], FAILED)
        if called.any():
            answers[called] = self.answered(text_PBT[called])
        return called, answers

    def answered(self, text: torch.Tensor) -> torch.Tensor:
        """Answers for texts [R, T] that all end with ENDSEARCH; [R]."""
        prompt = 3 * self.edges + 2
        asked = torch.where(text[:, -4] == START, text[:, -3], text[:, -4])  # the node of a short or long search
        short = (text[:, -4] == START) & (asked >= FIRST_NODE)
        long = (text[:, -5] == START) & (asked >= FIRST_NODE) & (text[:, -2] >= FIRST_NODE)
        sign = torch.where(short, text[:, -2], text[:, -3])
        answers = torch.full_like(asked, FAILED)
        answers = torch.where(short & (sign == PARENT), _father(text[:, prompt - 2 :], asked), answers)
        after = torch.where(short, FAILED, text[:, -2])
        edges = text[:, 1 : prompt - 1].view(len(text), self.edges, 3)
        return torch.where((short | long) & (sign == DASH), _neighbour(edges, asked, after), answers)


def _father(body: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    """v of the last "node ~ v" in each body (at least three tokens); FAILED where there is none."""
    child, sign, father = body[:, :-2], body[:, 1:-1], body[:, 2:]
    record = (child == node[:, None]) & (sign == PARENT) & (father >= FIRST_NODE)
    place = torch.where(record, torch.arange(1, record.shape[1] + 1, device=body.device), 0).amax(1)
    found = father.gather(1, (place - 1).clamp_min(0)[:, None])[:, 0]
    return torch.where(place > 0, found, FAILED)


def _neighbour(edges: torch.Tensor, node: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The neighbour of each node after the neighbour `after`, or the first where that is FAILED."""
    larger, sign, smaller = edges.unbind(2)
    owns_larger = larger == node[:, None]
    joined = (owns_larger | (smaller == node[:, None])) & (sign == DASH)
    other = torch.where(owns_larger, smaller, larger)
    there = joined & (other == after[:, None])
    from_start = (after == FAILED)[:, None]
    later = joined & (from_start | (there.cumsum(1) - there.long() > 0))
    found = other.gather(1, later.long().argmax(1)[:, None])[:, 0]
    return torch.where(later.any(1), found, FAILED)
