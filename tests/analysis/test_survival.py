"""Censored times against curves by hand, textbook numbers, plain statistics without censoring, and made shapes."""

import numpy as np
import pytest
from scipy import stats

from analysis.survival import logrank_p, median_time, restricted_log_mean, restricted_ratio, shape_aic

# Remission of 21 patients under 6-MP (Freireich et al. 1963), in weeks: + is censored in most textbooks
TIMES = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
SEEN = [True] * 9 + [False] * 12
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def survival(times, seen):
    """Kaplan and Meier by hand: [(time, S, Greenwood's sum)] at the events."""
    rows, alive, spread = [], 1.0, 0.0
    for time in sorted({t for t, event in zip(times, seen, strict=True) if event}):
        risk = sum(t >= time for t in times)
        events = sum(t == time and event for t, event in zip(times, seen, strict=True))
        alive *= 1 - events / risk
        spread += events / (risk * (risk - events)) if risk > events else np.inf
        rows.append((time, alive, spread))
    return rows


def test_the_median_and_its_interval_are_those_of_the_curve_by_hand():
    rows = survival(TIMES, SEEN)
    assert rows[3][1] == pytest.approx(0.6902, abs=1e-4) and rows[-1][1] == pytest.approx(0.4482, abs=1e-4)  # textbook
    close = [
        time for time, alive, spread in rows
        if abs(np.log(-np.log(alive)) - np.log(-np.log(0.5))) <= 1.959964 * spread**0.5 / -np.log(alive)
    ]  # fmt: skip
    found = median_time(TIMES, SEEN)
    assert found.value == next(time for time, alive, _ in rows if alive <= 0.5) == 23
    assert found.low == min(close) and found.high == np.inf  # the curve ends before it leaves the limits


def test_without_censoring_the_median_is_the_middle_value():
    times = np.random.default_rng(0).exponential(size=101)
    found = median_time(times, [True] * 101)
    assert found.value == np.median(times) and found.low < found.value < found.high
    ranks = np.searchsorted(np.sort(times), [found.low, found.high])
    assert stats.binom.cdf(ranks[0], 101, 0.5) < 0.06 and stats.binom.sf(ranks[1] - 1, 101, 0.5) < 0.06


@pytest.mark.parametrize("count", range(4, 41, 2))
def test_of_two_middle_times_the_later_is_the_median(count):
    assert median_time(np.arange(1.0, count + 1), [True] * count).value == count // 2 + 1


def test_medians_beyond_the_last_event_are_open_and_few_times_have_no_interval():
    assert median_time([5.0, 6.0, 6.0], [False] * 3) == (np.inf, 5.0, np.inf)
    assert median_time([1.0, 6.0, 6.0], [True, False, False])[0] == np.inf
    two = median_time([2.0, 3.0], [True, True])
    assert two.value == 3.0 and np.isnan([two.low, two.high]).all()


def test_a_restricted_mean_censored_at_its_horizon_alone_is_the_plain_mean():
    logs = np.random.default_rng(1).normal(3, 1, size=40)
    for horizon in (1e9, 10**3.2):
        times, seen = np.minimum(10**logs, horizon), 10**logs < horizon
        plain = np.minimum(logs, np.log10(horizon))
        found = restricted_log_mean(times, seen, horizon)
        assert found.value == pytest.approx(plain.mean())
        correction = seen.sum() / (seen.sum() - 1) * (39 / 40)
        assert found.error == pytest.approx(stats.sem(plain) * correction**0.5)
    with pytest.raises(ValueError, match="censored before the horizon"):
        restricted_log_mean([10.0, 100.0], [True, False], 1000.0)


def test_a_restricted_mean_under_censoring_is_the_area_by_hand():
    found = restricted_log_mean([10.0, 100.0, 1000.0, 1e5], [True, False, True, False], 1e5)
    assert found.value == pytest.approx(1 + 2 * 0.75 + 2 * 0.375)
    variance = (2 * 0.75 + 2 * 0.375) ** 2 / (4 * 3) + (2 * 0.375) ** 2 / (2 * 1)
    assert found.error == pytest.approx((2 * variance) ** 0.5)


def test_log_rank_is_the_hypergeometric_sum_by_hand():
    both = TIMES + PLACEBO
    seen = SEEN + [True] * 21
    excess = variance = 0.0
    for time in sorted({t for t, event in zip(both, seen, strict=True) if event}):
        risk, mine = sum(t >= time for t in both), sum(t >= time for t in TIMES)
        events = sum(t == time and event for t, event in zip(both, seen, strict=True))
        own = sum(t == time and event for t, event in zip(TIMES, SEEN, strict=True))
        excess += own - events * mine / risk
        if risk > 1:
            variance += events * mine * (risk - mine) * (risk - events) / (risk**2 * (risk - 1))
    groups = (TIMES, SEEN), (PLACEBO, [True] * 21)
    assert excess**2 / variance == pytest.approx(16.79, abs=0.01)  # textbook
    assert logrank_p(*groups) == pytest.approx(stats.chi2.sf(excess**2 / variance, 1), rel=1e-9)
    assert logrank_p(([5.0], [False]), ([5.0], [False])) == 1 == logrank_p(([5.0], [True]), ([5.0], [True]))


def test_a_ratio_is_of_geometric_means_and_a_bound_where_the_first_group_is_censored():
    first, second = ([80.0, 100.0, 125.0], [True] * 3), ([8.0, 10.0, 12.5], [True] * 3)
    found = restricted_ratio(first, second, 125.0)
    error = np.hypot(*(stats.sem(np.log10(times)) for times, _ in (first, second)))
    assert found.value == pytest.approx(10)
    assert np.log10(found.interval.high) == pytest.approx(1 + stats.t.ppf(0.975, 2) * error)
    assert restricted_ratio((first[0], [True, False, False]), second, 100.0).value < 10


def test_the_shape_that_made_the_times_wins_and_four_sizes_decide_nothing():
    sizes, noise = np.repeat(np.arange(1, 7), 3), np.tile([-0.03, 0.0, 0.03], 6)
    made = {"flat": 0 * sizes, "polynomial": 3 * np.log10(sizes), "exponential": 0.6 * sizes}
    for shape, logs in made.items():
        found = shape_aic(sizes, 10 ** (logs + noise))
        assert min(found, key=found.get) == shape
    assert shape_aic([1, 2, 3, 4, 4], [1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_the_criterion_is_that_of_a_normal_model_by_its_likelihood():
    sizes, times = np.array([1.0, 2, 3, 4, 5, 6]), np.array([3.0, 5, 6, 17, 30, 70])
    logs = np.log10(times)
    slope, cut = np.polyfit(sizes, logs, 1)
    rest = logs - cut - slope * sizes
    likelihood = stats.norm(0, np.sqrt((rest**2).mean())).logpdf(rest).sum()
    assert shape_aic(sizes, times)["exponential"] == pytest.approx(2 * 3 - 2 * likelihood + 2 * 3 * 4 / (6 - 3 - 1))
