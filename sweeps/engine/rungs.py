"""Synchronous halving: which proposals of a bracket go on to the next budget. Pure functions.

A rung is a budget, judged by the loss after its own decay. A bracket of proposals trains to the first budget; when all
of them are there, the best 1 / eta go on, and so on to the last budget. Nothing is decided before a rung is whole, so
the order in which trials finish does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True)
class Rung:
    """One stop of a bracket: so many proposals train to this budget, and so many of them go on."""

    budget: int
    proposals: int
    keep: int  # 0 at the last rung: nothing follows


def rungs(proposals: int, budgets: Sequence[int], eta: int = 2) -> tuple[Rung, ...]:
    """The rungs of a bracket: floor(proposals / eta**k), at least one, reach the k-th budget.

    >>> [(rung.budget, rung.proposals, rung.keep) for rung in rungs(9, (400, 800, 1600), eta=3)]
    [(400, 9, 3), (800, 3, 1), (1600, 1, 0)]

    Raises ValueError for fewer than two budgets, budgets that do not increase, eta < 2 or fewer than two proposals.
    """
    if len(budgets) < 2:
        raise ValueError(
            f"halving needs at least two rungs, got budgets {list(budgets)}; add a budget or drop the rungs"
        )
    if any(later <= earlier for earlier, later in pairwise(budgets)) or budgets[0] < 1:
        raise ValueError(f"the budgets of rungs must be positive and increase, got {list(budgets)}; sort them")
    if eta < 2:
        raise ValueError(f"halving keeps one in eta with eta >= 2, got eta={eta}")
    if proposals < 2:
        raise ValueError(f"a bracket needs at least two proposals to choose from, got {proposals}; raise proposals")
    counts = [max(1, proposals // eta**k) for k in range(len(budgets))]
    return tuple(Rung(*stop) for stop in zip(budgets, counts, [*counts[1:], 0], strict=True))


def survivors(scores: Mapping[int, float | None], keep: int, goal: Literal["min", "max"] = "min") -> list[int]:
    """Indices of the `keep` best proposals of a whole rung, in ascending order; ties go to the lower index.

    A score of None is a lost proposal (diverged, failed or without all its branches): it never goes on, so fewer than
    `keep` may survive.

    >>> survivors({0: 3.1, 1: None, 2: 2.9, 3: 2.9}, keep=1)
    [2]
    """
    if keep < 1:
        raise ValueError(
            f"a rung keeps at least one proposal, got keep={keep}; the last rung keeps none and is not cut"
        )
    finite = {index: score for index, score in scores.items() if score is not None}
    for index, score in finite.items():
        if not math.isfinite(score):
            raise ValueError(f"the score of proposal {index} is {score}; a diverged proposal has the score None")
    sign = 1.0 if goal == "min" else -1.0
    return sorted(sorted(finite, key=lambda index: (sign * finite[index], index))[:keep])


def brackets(proposals: int, size: int) -> list[range]:
    """The proposals of each bracket. Brackets are whole, so that more proposals never change an earlier bracket.

    >>> brackets(8, 4)
    [range(0, 4), range(4, 8)]
    """
    if size < 2:
        raise ValueError(f"a bracket needs at least two proposals, got {size}")
    if proposals < size or proposals % size:
        upper = max(size, math.ceil(proposals / size) * size)
        raise ValueError(f"proposals must fill brackets of {size}, got {proposals}; take proposals={upper}")
    return [range(start, start + size) for start in range(0, proposals, size)]


def steps(plan: Sequence[Rung]) -> int:
    """Optimizer steps of a bracket without its decays: nobody trains a step twice, each rung adds the difference.

    >>> steps(rungs(9, (400, 800, 1600), eta=3))
    5600
    """
    reached = [0, *(rung.budget for rung in plan)]
    return sum(rung.proposals * (rung.budget - before) for rung, before in zip(plan, reached, strict=False))
