"""Intervals, tests and corrections over roots: a thin layer over scipy.

The unit of resampling is the root (one per seed), never the branch or the budget: every function here takes one number
per root. The interval is Student's t interval: a sweep has 3 to 10 roots, where the percentile bootstrap is too narrow
(three values have ten distinct resamples). `bootstrap_interval` is there for large samples such as documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

MIN_ROOTS = 3  # below this there are points only: no interval, no decision
NEAR_BEST_NATS = 3e-3  # nats per token; losses closer than this are not told apart
Direction = Literal["less", "greater", "equal"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval `[low, high]` at confidence `level`."""

    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """`values` as a float array without what is not finite."""
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def t_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean, `mean ± t(n-1) * s / sqrt(n)`; None below three values.

    >>> t_interval([1.0, 2.0, 3.0])
    Interval(low=-0.48413771175033027, high=4.48413771175033, level=0.95)
    >>> t_interval([1.0, 2.0]) is None
    True
    """
    sample = finite(values)
    if len(sample) < MIN_ROOTS:
        return None
    mean, error = sample.mean(), stats.sem(sample)
    reach = stats.t.ppf(0.5 + level / 2, len(sample) - 1) * error
    return Interval(float(mean - reach), float(mean + reach), level)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, generator: np.random.Generator, level: float = 0.95, resamples: int = 4000
) -> Interval | None:
    """Percentile bootstrap interval of the mean; None below three values. Too narrow below about twenty."""
    sample = finite(values)
    if len(sample) < MIN_ROOTS:
        return None
    means = generator.choice(sample, size=(resamples, len(sample))).mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high), level)


def one_sided_p(values: Sequence[float] | np.ndarray, bound: float, side: Literal["less", "greater"]) -> float:
    """p value of "the mean is `side` than `bound`" by a one-sample t test; 1 below three values.

    A sample without spread (bit-equal differences) is decided by its value: 0 beyond the bound, else 1.
    """
    sample = finite(values)
    if len(sample) < MIN_ROOTS:
        return 1.0
    if np.ptp(sample) == 0:
        beyond = sample[0] < bound if side == "less" else sample[0] > bound
        return 0.0 if beyond else 1.0
    return float(stats.ttest_1samp(sample, bound, alternative=side).pvalue)


def equality_p(values: Sequence[float] | np.ndarray, margin: float) -> float:
    """p value of "-margin < mean < margin" by two one-sided t tests (the larger of the two)."""
    if margin <= 0:
        raise ValueError(f"equality needs a margin above 0, got {margin}; declare how large a difference still counts")
    return max(one_sided_p(values, -margin, "greater"), one_sided_p(values, margin, "less"))


def claim_p(values: Sequence[float] | np.ndarray, direction: Direction, margin: float) -> tuple[float, float]:
    """(p for the claim, p against it): is the mean on the claimed side of `margin`, or on the other one?

    `less` claims mean < margin, `greater` claims mean > margin, `equal` claims |mean| < margin.
    """
    if direction == "equal":
        outside = min(one_sided_p(values, margin, "greater"), one_sided_p(values, -margin, "less"))
        return equality_p(values, margin), min(1.0, 2 * outside)
    other: Literal["less", "greater"] = "greater" if direction == "less" else "less"
    return one_sided_p(values, margin, direction), one_sided_p(values, margin, other)


def rate_p(values: Sequence[float] | np.ndarray, direction: Direction, margin: float) -> tuple[float, float]:
    """`claim_p` for the rate of ones among `values` of 0 and 1, by the exact binomial test; 1 below three values.

    >>> rate_p([1, 1, 1], "greater", 0.5)
    (0.125, 1.0)
    """
    if direction == "equal":
        raise ValueError("a rate is claimed to be less or greater than its margin, not equal to 0")
    sample = finite(values)
    if len(sample) < MIN_ROOTS:
        return 1.0, 1.0
    found = int(sample.sum())
    less, greater = (
        float(stats.binomtest(found, len(sample), margin, alternative=side).pvalue) for side in ("less", "greater")
    )
    return (less, greater) if direction == "less" else (greater, less)


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's 95 % interval for a proportion.

    >>> print(wilson(9, 10))
    [0.5958, 0.9821]
    """
    ends = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(float(ends.low), float(ends.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: the i-th smallest of m, times m - i, and never falling.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p_values, dtype=float)
    order = raw.argsort(kind="stable")
    corrected = np.empty(len(raw))
    corrected[order] = np.minimum(1, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    return [float(p) for p in corrected]


def frontier_area(budgets: Sequence[float], losses: Sequence[float]) -> float:
    """Mean loss over log budget: the area under a frontier (trapezoids in log budget) by the width of its range.

    In the unit of the loss, so 1e-3 nats mean the same for any set of budgets. One budget: its loss. A missing or
    diverged loss makes the area infinite: a trunk that lacks a budget is incomplete, not averaged over fewer.

    >>> frontier_area([500, 1000, 2000], [3.0, 2.0, 1.0])
    2.0
    """
    x, y = np.log(np.asarray(budgets, dtype=float)), np.asarray(losses, dtype=float)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"frontier_area needs one loss per budget, got {len(x)} budgets and {len(y)} losses")
    if not np.isfinite(y).all():
        return float("inf")
    if len(x) == 1:
        return float(y[0])
    if (np.diff(x) <= 0).any():
        raise ValueError(f"frontier_area needs increasing budgets, got {list(budgets)}")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def near_best(losses: Sequence[float] | np.ndarray, seed_sigma: float | None = None) -> np.ndarray:
    """Mask of what cannot be told from the best: within 3e-3 nats, or within two standard deviations over seeds.

    >>> near_best([2.000, 2.002, 2.010]).tolist()
    [True, True, False]
    """
    array = np.asarray(losses, dtype=float)
    if not np.isfinite(array).any():
        return np.zeros(array.shape, dtype=bool)
    reach = max(NEAR_BEST_NATS, 2 * seed_sigma if seed_sigma is not None and np.isfinite(seed_sigma) else 0.0)
    return array <= np.nanmin(array) + reach


def best_of_k(select: Sequence[float], value: Sequence[float]) -> np.ndarray:
    """Expected `value` of the config with the lowest `select` among k drawn from n, for k = 1 .. n: shape `[n]`.

    Without replacement: the i-th best is the lowest of k draws with chance C(n-i, k-1) / C(n, k), i from 1.

    >>> best_of_k([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).round(4).tolist()
    [2.0, 1.3333, 1.0]
    """
    order = np.argsort(np.asarray(select, dtype=float), kind="stable")
    ranked = np.asarray(value, dtype=float)[order]
    n = len(ranked)
    expected = np.empty(n)
    place = np.arange(1, n)  # neighbouring chances have the ratio (n - i - k + 1) / (n - i): no large factorials
    for k in range(1, n + 1):
        ratios = np.maximum(n - place - k + 1, 0) / (n - place)
        expected[k - 1] = k / n * np.concatenate([[1.0], np.cumprod(ratios)]) @ ranked
    return expected


def cost_to_reach(loss: float, costs: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    """Cost at which the curve `(costs, losses)` first reaches `loss`: (cost, "=" | ">" | "<").

    Straight lines in log cost and log loss (in loss itself where some are not positive). Below the lowest loss the
    answer is the bound (largest cost, ">"), above the loss at the smallest cost (smallest cost, "<"): never an
    extrapolation. A curve that rises again is read at its first crossing.

    >>> cost_to_reach(2.0, [1.0, 4.0], [4.0, 1.0])
    (2.0, '=')
    >>> cost_to_reach(0.5, [1.0, 4.0], [4.0, 1.0])
    (4.0, '>')
    """
    order = np.argsort(np.asarray(costs, dtype=float), kind="stable")
    cost, curve = np.asarray(costs, dtype=float)[order], np.asarray(losses, dtype=float)[order]
    if loss > curve[0]:
        return float(cost[0]), "<"
    reached = np.flatnonzero(curve <= loss)
    if not len(reached):
        return float(cost[-1]), ">"
    at = reached[0]
    if at == 0 or curve[at] == loss:
        return float(cost[at]), "="
    heights = np.array([curve[at - 1], curve[at], loss])
    if (heights > 0).all():
        heights = np.log(heights)
    share = (heights[0] - heights[2]) / (heights[0] - heights[1])
    return float(cost[at - 1] * (cost[at] / cost[at - 1]) ** share), "="


def loss_at_cost(cost: float, costs: Sequence[float], losses: Sequence[float]) -> float:
    """Loss of the curve `(costs, losses)` at `cost`, straight in log cost and log loss; nan outside its range."""
    order = np.argsort(np.asarray(costs, dtype=float), kind="stable")
    x, y = np.log(np.asarray(costs, dtype=float)[order]), np.asarray(losses, dtype=float)[order]
    inside = x[0] - 1e-12 <= np.log(cost) <= x[-1] + 1e-12
    if not inside:
        return float("nan")
    if (y > 0).all():
        return float(np.exp(np.interp(np.log(cost), x, np.log(y))))
    return float(np.interp(np.log(cost), x, y))
