"""Schedules against learning rates written out step by step, the author's boundaries and closed-form costs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.common import schedules
from trainables.common.timeline import SHAPES, knobs_at, total_steps


def rates(timeline):
    return [knobs_at(timeline, step)["lr"] for step in range(total_steps(timeline))]


def test_wsd_written_out():
    timeline = schedules.warmup_stable_decay(8, decay=4, peak=0.8, low=0.4, warmup=2, shape="linear")
    assert rates(timeline) == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5])


def test_cosine_written_out():
    assert rates(schedules.cosine(6, 0.8, 0.2, warmup=2)) == pytest.approx(
        [0.4, 0.8, 0.8, 0.2 + 0.3 * (1 + 2**-0.5), 0.5, 0.2 + 0.3 * (1 - 2**-0.5)]
    )


def test_constant_written_out():
    assert rates(schedules.constant(5, 0.6, warmup=3)) == pytest.approx([0.2, 0.4, 0.6, 0.6, 0.6])
    assert rates(schedules.constant(2, 0.6, warmup=2)) == pytest.approx([0.3, 0.6])


def test_wsd_s_jumps_back_to_the_peak_from_the_decayed_state():
    shared = dict(peak=0.8, low=0.4, warmup=1, shape="linear")
    family = schedules.wsd_s([4, 8], [2, 2], accounting="family", **shared)
    assert rates(family) == pytest.approx([0.8, 0.8, 0.8, 0.6, *[0.8] * 4, 0.8, 0.6])
    budget = schedules.wsd_s([4, 8], [2, 2], accounting="budget", **shared)
    assert rates(budget) == pytest.approx([0.8, 0.8, 0.8, 0.6, 0.8, 0.8, 0.8, 0.6])


def test_wsd_s_climbs_back_where_it_is_told_to():
    timeline = schedules.wsd_s([4, 8], [2, 2], 0.8, 0.4, 1, "linear", accounting="budget", rewarmup=2)
    assert rates(timeline) == pytest.approx([0.8, 0.8, 0.8, 0.6, 0.6, 0.8, 0.8, 0.6])


def test_cyclic_cosine_written_out():
    timeline = schedules.cyclic_cosine([3, 7], 0.8, 0.4, warmup=1, rewarmup=2)
    assert rates(timeline) == pytest.approx([0.8, 0.8, 0.6, 0.6, 0.8, 0.8, 0.6])


@pytest.mark.parametrize("shape", list(SHAPES))
def test_all_rates_are_positive_and_below_the_peak(shape):
    low = 0.0 if shape not in ("inverse", "exponential") else 1e-9
    timeline = schedules.warmup_stable_decay(40, decay=30, peak=3e-3, low=low, warmup=10, shape=shape)
    assert all(0 < rate <= 3e-3 * (1 + 1e-12) for rate in rates(timeline))


@given(st.floats(0.01, 0.9), st.integers(1, 60))
def test_the_inverse_shape_interpolates_one_over_the_rate(ratio, decay):
    timeline = schedules.warmup_stable_decay(decay, decay, peak=2.0, low=2.0 * ratio, warmup=0, shape="inverse")
    a, b = 2.0, 2.0 * ratio
    for step, rate in enumerate(rates(timeline)):
        tau = step / decay
        assert rate == pytest.approx(a / ((a / b - 1) * tau + 1), rel=1e-12)  # the form that Levanter writes


BUDGETS = [12_500, 25_000, 50_000]


def ends(timeline, warmup=2_000):
    """Segment ends as the author lists them: constant (warm-up included) and falling segments in turn."""
    return [step for step in schedules.boundaries(timeline) if step != warmup]


def wsd_s(budgets, fractions, accounting):
    decays = schedules.decay_steps(budgets, fractions, "cumulative")
    return schedules.wsd_s(budgets, decays, 1e-3, 1e-4, 2_000, "linear", accounting=accounting)


AUTHORS_ROWS = {
    "wsds": (wsd_s(BUDGETS, [0.1] * 3, "family"), [11_250, 12_500, 23_750, 26_250, 48_750, 53_750]),
    "wsds_25": (wsd_s(BUDGETS[:2], [0.1] * 2, "family"), [11_250, 12_500, 23_750, 26_250]),
    "wsds_25_lr": (wsd_s(BUDGETS[:2], [0.1] * 2, "budget"), [11_250, 12_500, 22_500, 25_000]),
    "decay_longer": (wsd_s(BUDGETS[:2], [0.1, 0.14], "budget"), [11_250, 12_500, 21_500, 25_000]),
    "wsds_lr4e-3": (wsd_s(BUDGETS, [0.1, 0.2, 0.3], "family"), [11_250, 12_500, 21_250, 26_250, 41_250, 56_250]),
    "wsd_12": (schedules.warmup_stable_decay(12_500, 1_250, 1e-3, 1e-4, 2_000, "linear"), [11_250, 12_500]),
    "wsd_25": (schedules.warmup_stable_decay(25_000, 2_500, 1e-3, 1e-4, 2_000, "linear"), [22_500, 25_000]),
    "cosine_12k_re": (schedules.cyclic_cosine(BUDGETS[:2], 1e-3, 1e-4, 2_000, 2_000), [12_500, 14_500, 25_000]),
    "constant": (schedules.constant(50_000, 4e-3, 2_000), [50_000]),
    "constant_cooldown": (schedules.warmup_stable_decay(50_000, 20_000, 4e-3, 0.0, 2_000, "linear"), [30_000, 50_000]),
}


@pytest.mark.parametrize("row", list(AUTHORS_ROWS))
def test_the_authors_boundaries_come_out_exactly(row):
    timeline, expected = AUTHORS_ROWS[row]
    assert ends(timeline) == expected


def test_decay_lengths_are_shares_of_the_budget_or_of_the_period():
    assert schedules.decay_steps(BUDGETS, [0.1] * 3, "cumulative") == [1_250, 2_500, 5_000]
    assert schedules.decay_steps(BUDGETS, [0.1] * 3, "period") == [1_250, 1_250, 2_500]
    assert schedules.decay_steps([4], [0.01], "cumulative") == [1]  # the one rounding: never zero steps


@given(
    st.lists(st.integers(20, 400), min_size=1, max_size=4, unique=True).map(sorted),
    st.sampled_from([0.05, 0.1, 0.2]),
)
def test_wsd_s_under_family_accounting_costs_what_the_wsd_family_costs(budgets, fraction):
    decays = schedules.decay_steps(budgets, [fraction] * len(budgets), "cumulative")
    stable = [budget - decay for budget, decay in zip(budgets, decays, strict=True)]
    if any(later < earlier for earlier, later in itertools.pairwise(stable)):
        return
    timeline = schedules.wsd_s(budgets, decays, 1.0, 0.1, 0, "linear", accounting="family")
    assert total_steps(timeline) == max(stable) + sum(decays)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: schedules.warmup_stable_decay(1000, 900, 1.0, 0.1, 200, "linear"),
            r"warmup \+ decay <= budget, got 200 \+ 900 > 1000; lower decay_fraction or raise the budget",
        ),
        (lambda: schedules.constant(10, 1.0, 11), "warmup <= budget, got 11 > 10"),
        (lambda: schedules.cosine(10, 1.0, 0.1, 10), "warmup < budget, got 10 >= 10"),
        (lambda: schedules.cyclic_cosine([10, 20], 1.0, 0.1, 2, 10), "got 10 steps between 10 and 20"),
        (
            lambda: schedules.wsd_s([10, 12], [2, 4], 1.0, 0.1, 2, "linear", accounting="budget"),
            "between budgets 10 and 12, got 0 \\+ 4; lower decay_fraction or spread the budgets",
        ),
        (
            lambda: schedules.wsd_s([10, 20], [9, 2], 1.0, 0.1, 2, "linear", accounting="budget"),
            "warmup \\+ decay to fit between budgets 0 and 10",
        ),
    ],
)
def test_schedules_that_do_not_fit_are_refused_with_their_values(make, words):
    with pytest.raises(ValueError, match=words):
        make()
