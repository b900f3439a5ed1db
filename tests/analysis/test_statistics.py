"""Intervals, tests, Holm, best-of-k and cost inversion against statsmodels, scipy, brute force and closed forms."""

from itertools import combinations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from analysis import stats

SAMPLE = np.array([0.011, 0.004, 0.019, -0.002, 0.009])


def test_t_interval_is_that_of_statsmodels():
    low, high = DescrStatsW(SAMPLE).tconfint_mean(alpha=0.1)
    ends = stats.t_interval(SAMPLE, level=0.9)
    assert ends is not None
    assert (ends.low, ends.high) == pytest.approx((low, high))


def test_two_values_have_no_interval_and_no_p():
    assert stats.t_interval([1.0, 2.0]) is None
    assert stats.claim_p([-5.0, -5.1], "less", 0.0) == (1.0, 1.0)


def test_equality_is_the_two_one_sided_tests_of_statsmodels():
    p, *_ = DescrStatsW(SAMPLE).ttost_mean(-0.02, 0.02)
    assert stats.equality_p(SAMPLE, 0.02) == pytest.approx(p)
    assert stats.claim_p(SAMPLE, "equal", 0.02)[0] == pytest.approx(p)


def test_equality_without_a_margin_is_refused():
    with pytest.raises(ValueError, match="margin above 0"):
        stats.equality_p(SAMPLE, 0.0)


def test_claimed_and_opposite_side_add_to_one():
    for direction in ("less", "greater"):
        assert sum(stats.claim_p(SAMPLE, direction, 0.005)) == pytest.approx(1)


def test_bit_equal_differences_are_decided_by_their_value():
    assert stats.claim_p([0.0, 0.0, 0.0], "less", 0.0) == (1.0, 1.0)
    assert stats.claim_p([-0.1, -0.1, -0.1], "less", 0.0) == (0.0, 1.0)
    assert stats.claim_p([0.0, 0.0, 0.0], "equal", 1e-3)[0] == 0.0


def test_holm_is_that_of_statsmodels():
    generator = np.random.default_rng(0)
    for size in (1, 2, 7):
        p_values = generator.uniform(size=size) ** 3
        assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert stats.holm([]) == []


def test_best_of_k_against_all_subsets():
    select, report = [0.3, 0.1, 0.5, 0.2, 0.4], [3.0, 1.5, 5.0, 1.0, 2.0]
    for k, expected in enumerate(stats.best_of_k(select, report), start=1):
        brute = [report[min(subset, key=lambda i: select[i])] for subset in combinations(range(5), k)]
        assert expected == pytest.approx(np.mean(brute))


def test_best_of_many_configs_stays_finite():
    losses = np.linspace(2, 3, 2000)
    curve = stats.best_of_k(losses, losses)
    assert curve[0] == pytest.approx(2.5)
    assert curve[-1] == pytest.approx(2)
    assert (np.diff(curve) <= 1e-12).all()


def test_area_of_a_straight_frontier_is_its_middle():
    budgets = [100, 200, 400, 800]
    assert stats.frontier_area(budgets, [4.0, 3.0, 2.0, 1.0]) == pytest.approx(2.5)
    assert stats.frontier_area([100], [4.0]) == 4.0
    assert stats.frontier_area(budgets, [4.0, np.nan, 2.0, 1.0]) == np.inf
    with pytest.raises(ValueError, match="increasing"):
        stats.frontier_area([200, 100], [1.0, 2.0])


def test_inverse_of_a_power_law_is_exact_between_its_points():
    costs = np.array([1e9, 4e9, 3e10])
    for cost in (1e9, 2.5e9, 2e10, 3e10):
        loss = 7 * cost**-0.2
        assert stats.cost_to_reach(loss, costs, 7 * costs**-0.2) == (pytest.approx(cost), "=")
        assert stats.loss_at_cost(cost, costs, 7 * costs**-0.2) == pytest.approx(loss)


def test_outside_its_range_a_curve_only_bounds():
    assert stats.cost_to_reach(0.1, [1.0, 2.0], [3.0, 2.0]) == (2.0, ">")
    assert stats.cost_to_reach(9.0, [1.0, 2.0], [3.0, 2.0]) == (1.0, "<")
    assert np.isnan(stats.loss_at_cost(4.0, [1.0, 2.0], [3.0, 2.0]))


def test_a_curve_that_rises_again_is_read_at_its_first_crossing():
    assert stats.cost_to_reach(2.0, [1.0, 2.0, 4.0, 8.0], [3.0, 2.0, 2.5, 1.0]) == (2.0, "=")


def test_near_best_takes_the_wider_of_nats_and_sigmas():
    losses = [2.0, 2.0029, 2.02, np.inf]
    assert stats.near_best(losses).tolist() == [True, True, False, False]
    assert stats.near_best(losses, seed_sigma=0.01).tolist() == [True, True, True, False]
    assert not stats.near_best([np.nan, np.nan]).any()


def test_bootstrap_and_t_interval_agree_on_many_values():
    values = np.random.default_rng(0).normal(1.0, 0.1, 400)
    ends, reference = stats.bootstrap_interval(values, np.random.default_rng(1)), stats.t_interval(values)
    assert ends is not None and reference is not None
    assert (ends.low, ends.high) == pytest.approx((reference.low, reference.high), abs=2e-3)
