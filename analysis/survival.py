"""Times to an event of which some are censored: medians, restricted means, ratios, and how they grow with a size.

A thin layer over scipy and statsmodels. `times` are positive; where `observed` is false the event had not come by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight

from analysis.stats import MIN_ROOTS, Interval

MIN_POINTS = 5  # sizes without a censored time that a verdict on a shape needs
DECISIVE_AIC = 2.0  # differences below it do not tell models apart (Burnham and Anderson 2002)
Numbers = Sequence[float] | np.ndarray | pd.Series
Flags = Sequence[bool] | np.ndarray | pd.Series


class Median(NamedTuple):
    """A median time with its 95 % interval, inf where the events seen do not reach so far; nan without an interval."""

    value: float
    low: float
    high: float


def median_time(times: Numbers, observed: Flags) -> Median:
    """Kaplan and Meier's median; interval by log(-log) limits of the survival function (Brookmeyer and Crowley 1982).

    The median is the first time past which less than half is left, so of two middle times the later. No interval below
    three times; one that reaches below the first time ends there.

    >>> median_time([1.0, 2.0, 3.0, 4.0, 5.0], [True, True, False, True, False])
    Median(value=4.0, low=1.0, high=inf)
    """
    at, seen = np.asarray(times, dtype=float), np.asarray(observed, dtype=bool)
    few, least = len(at) < MIN_ROOTS, float(at.min())
    if not seen.any():
        return Median(np.inf, np.nan if few else least, np.nan if few else np.inf)
    curve = SurvfuncRight(at, seen.astype(int))
    with np.errstate(divide="ignore", invalid="ignore"):  # log(-log 0) where all events are in
        low, high = curve.quantile_ci(0.5)
    past = np.flatnonzero(curve.surv_prob < 0.5 - 1e-9)  # one half itself is met up to rounding only
    value = curve.surv_times[past[0]] if len(past) else np.inf
    ends = (np.nan, np.nan) if few else (max(float(low), least), float(high))
    return Median(float(value), *ends)


class Mean(NamedTuple):
    """A mean with its standard error."""

    value: float
    error: float


def restricted_log_mean(times: Numbers, observed: Flags, horizon: float) -> Mean:
    """Mean of log10 min(time, horizon): the area under Kaplan and Meier's curve of log10 times up to log10 horizon.

    Its variance (Klein and Moeschberger 2003, 4.5.2) is m/(m-1) sum_i A_i^2 d_i / (Y_i (Y_i - d_i)), A_i the area
    beyond event i, Y_i the number at risk, m the number of events.

    >>> mean = restricted_log_mean([10.0, 1000.0, 100.0], [True, True, True], 1e6)
    >>> round(mean.value, 6), round(mean.error * 3**0.5, 6)
    (2.0, 1.0)
    """
    at, end = np.log10(np.asarray(times, dtype=float)), np.log10(horizon)
    seen = np.asarray(observed, dtype=bool) & (at <= end)
    last = at == at.max()
    if at.max() < end - 1e-9 and not seen[last].all():
        raise ValueError(f"the largest time {10 ** at.max():g} is censored before the horizon {horizon:g}; lower it")
    at = np.minimum(at, end)
    if not seen.any():
        return Mean(float(end), 0.0)
    curve = stats.ecdf(stats.CensoredData(uncensored=at[seen], right=at[~seen])).sf
    knots = np.append(curve.quantiles, end)
    steps = np.diff(knots) * curve.probabilities
    beyond = np.cumsum(steps[::-1])[::-1]
    events = np.array([(at[seen] == knot).sum() for knot in curve.quantiles])
    risk = np.array([(at >= knot).sum() for knot in curve.quantiles])
    left = risk > events
    variance = (beyond[left] ** 2 * events[left] / (risk[left] * (risk[left] - events[left]))).sum()
    count = int(seen.sum())
    correction = count / (count - 1) if count > 1 else 1.0
    return Mean(float(knots[0] + steps.sum()), float(np.sqrt(correction * variance)))


class Ratio(NamedTuple):
    """Restricted geometric mean of the first times over that of the second, with a 95 % interval where there is one."""

    value: float
    interval: Interval | None
    p_value: float  # log-rank, two-sided


def restricted_ratio(first: tuple[Numbers, Flags], second: tuple[Numbers, Flags], horizon: float) -> Ratio:
    """The ratio up to a horizon: of geometric means, with Student's t, unless censoring leaves no spread to judge by.

    Times beyond the horizon count as the horizon: where only the first group is censored, a lower bound of the ratio.
    """
    means = [restricted_log_mean(*group, horizon) for group in (first, second)]
    difference, error = means[0].value - means[1].value, float(np.hypot(means[0].error, means[1].error))
    sizes = [len(group[0]) for group in (first, second)]
    interval = None
    if min(sizes) >= MIN_ROOTS and error > 0:
        reach = stats.t.ppf(0.975, min(sizes) - 1) * error
        interval = Interval(float(10 ** (difference - reach)), float(10 ** (difference + reach)))
    return Ratio(float(10**difference), interval, logrank_p(first, second))


def logrank_p(first: tuple[Numbers, Flags], second: tuple[Numbers, Flags]) -> float:
    """Two-sided p value that both groups have the same survival function; 1 where the events tell nothing."""
    if not (np.any(first[1]) or np.any(second[1])):
        return 1.0
    groups = [_censored(*group) for group in (first, second)]
    with np.errstate(invalid="ignore"):  # all events at once: the statistic is 0 / 0
        p_value = float(stats.logrank(*groups).pvalue)
    return p_value if np.isfinite(p_value) else 1.0


def _censored(times: Numbers, observed: Flags) -> stats.CensoredData:
    at, seen = np.asarray(times, dtype=float), np.asarray(observed, dtype=bool)
    return stats.CensoredData(uncensored=at[seen], right=at[~seen])


SHAPES: Mapping[str, tuple[str, ...]] = {"flat": (), "polynomial": ("log size",), "exponential": ("size",)}
"""What log time is linear in: nothing; log size, time ~ size^a; size, time ~ a^size."""


def shape_aic(sizes: Numbers, times: Numbers) -> dict[str, float] | None:
    """Akaike's criterion, with its correction for few points, of each shape; None below five different sizes.

    Least squares of log10 time. Only observed times belong here: a censored one has no place in a fit.

    >>> found = shape_aic([1, 2, 3, 4, 5], [2.0, 4.1, 8.0, 15.8, 32.0])
    >>> min(found, key=found.get)
    'exponential'
    """
    size, log_time = np.asarray(sizes, dtype=float), np.log10(np.asarray(times, dtype=float))
    if len(np.unique(size)) < MIN_POINTS:
        return None
    columns = {"size": size, "log size": np.log10(size)}
    found = {}
    for shape, names in SHAPES.items():
        design = np.column_stack([np.ones_like(size), *(columns[name] for name in names)])
        found[shape] = float(sm.OLS(log_time, design).fit().info_criteria("aicc", dk_params=1))
    return found
