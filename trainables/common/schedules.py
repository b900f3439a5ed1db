"""Learning-rate timelines of language-model training, each a pure function of its numbers (arXiv:2410.05192).

All rise linearly over `warmup` steps to `peak`; `low` is where decays and cosines end. Steps are absolute and counted
from 0; a budget counts the warm-up in. Decays may be given one per budget, in steps.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from trainables.common.timeline import Segment, Timeline, ramp, segment

Accounting = Literal["family", "budget"]
Basis = Literal["cumulative", "period"]


def decay_steps(budgets: Sequence[int], fractions: Sequence[float], basis: Basis) -> list[int]:
    """Length of each budget's decay: a share of the whole budget so far, or of the period since the last one.

    max(1, round(fraction * basis)): the one rounding there is.

    >>> decay_steps([12500, 25000, 50000], [0.1, 0.1, 0.1], "cumulative")
    [1250, 2500, 5000]
    >>> decay_steps([12500, 25000, 50000], [0.1, 0.1, 0.1], "period")
    [1250, 1250, 2500]
    """
    before = [0, *budgets[:-1]] if basis == "period" else [0] * len(budgets)
    return [
        max(1, round(fraction * (budget - start)))
        for budget, start, fraction in zip(budgets, before, fractions, strict=True)
    ]


def constant(budget: int, peak: float, warmup: int) -> Timeline:
    """Warm-up, then the peak rate to the end."""
    _need(budget - warmup >= 0, f"warmup <= budget, got {warmup} > {budget}; lower warmup_steps or raise the budget")
    return segment(warmup, lr=ramp(0.0, peak)), segment(budget - warmup, lr=peak)


def cosine(budget: int, peak: float, low: float, warmup: int) -> Timeline:
    """Warm-up, then one half-wave of cosine from peak to low over the rest of the budget."""
    _need(budget - warmup > 0, f"warmup < budget, got {warmup} >= {budget}; lower warmup_steps or raise the budget")
    return segment(warmup, lr=ramp(0.0, peak)), segment(budget - warmup, lr=ramp(peak, low, "cosine"))


def warmup_stable_decay(budget: int, decay: int, peak: float, low: float, warmup: int, shape: str) -> Timeline:
    """WSD: warm-up, the peak rate, and a decay over the last `decay` steps of the budget.

    >>> [part.steps for part in warmup_stable_decay(12500, 1250, 1e-3, 1e-4, 2000, "linear")]
    [2000, 9250, 1250]
    """
    stable = budget - decay - warmup
    _need(
        stable >= 0,
        f"warmup + decay <= budget, got {warmup} + {decay} > {budget}; lower decay_fraction or raise the budget",
    )
    return segment(warmup, lr=ramp(0.0, peak)), segment(stable, lr=peak), segment(decay, lr=ramp(peak, low, shape))


def wsd_s(
    budgets: Sequence[int],
    decays: Sequence[int],
    peak: float,
    low: float,
    warmup: int,
    shape: str,
    *,
    accounting: Accounting,
    rewarmup: int = 0,
) -> Timeline:
    """WSD-S: one run that decays at each budget and goes on, from the decayed state, at the peak rate.

    accounting "family": the stable steps add up to those of WSD, so that the run costs what WSD's family costs, and
    checkpoint i lies at budget i plus the earlier decays. "budget": checkpoint i lies at budget i exactly.
    The rate jumps back to the peak, or climbs over `rewarmup` steps.

    >>> parts = wsd_s([12500, 25000], [1250, 2500], 1e-3, 1e-4, 2000, "linear", accounting="family")
    >>> [part.steps for part in parts], sum(part.steps for part in parts)
    ([2000, 9250, 1250, 0, 11250, 2500], 26250)
    """
    if accounting == "family":
        until = [budget - decay for budget, decay in zip(budgets, decays, strict=True)]
        stable = [stop - start for start, stop in zip([0, *until[:-1]], until, strict=True)]
    else:
        starts = [0, *budgets[:-1]]
        stable = [stop - decay - start for start, stop, decay in zip(starts, budgets, decays, strict=True)]
    parts: list[Segment] = []
    for index, (steps, decay) in enumerate(zip(stable, decays, strict=True)):
        climb, origin = (rewarmup, low) if index else (warmup, 0.0)
        _need(
            steps >= climb,
            f"{'re-warm-up' if index else 'warmup'} + decay to fit between budgets {[0, *budgets][index]} and "
            f"{budgets[index]}, got {climb} + {decay}; lower decay_fraction or spread the budgets",
        )
        parts += [segment(climb, lr=ramp(origin, peak)), segment(steps - climb, lr=peak)]
        parts += [segment(decay, lr=ramp(peak, low, shape))]
    return tuple(parts)


def cyclic_cosine(budgets: Sequence[int], peak: float, low: float, warmup: int, rewarmup: int) -> Timeline:
    """A cosine to each budget in turn; after each the rate climbs back over `rewarmup` steps of the next period.

    >>> [part.steps for part in cyclic_cosine([12500, 25000], 1e-3, 1e-4, 2000, 2000)]
    [2000, 10500, 2000, 10500]
    """
    parts: list[Segment] = []
    for index, (start, stop) in enumerate(zip([0, *budgets[:-1]], budgets, strict=True)):
        climb, origin = (rewarmup, low) if index else (warmup, 0.0)
        _need(
            stop - start > climb,
            f"a warm-up shorter than each period, got {climb} steps between {start} and {stop}; "
            "lower warmup_steps or rewarmup_steps, or spread the budgets",
        )
        parts += [segment(climb, lr=ramp(origin, peak))]
        parts += [segment(stop - start - climb, lr=ramp(peak, low, "cosine"))]
    return tuple(parts)


def boundaries(timeline: Timeline) -> list[int]:
    """Absolute steps at which non-empty segments end."""
    return list(accumulate(part.steps for part in timeline if part.steps))


def _need(holds: bool, words: str) -> None:
    if not holds:
        raise ValueError("this schedule needs " + words)
