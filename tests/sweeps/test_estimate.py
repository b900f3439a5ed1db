"""Estimates against the jobs, bytes and seconds of sweeps that were really run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeps.engine.estimate import ASSUMED_FLOPS_PER_SECOND, estimate, measured_speed
from sweeps.engine.store import Index
from tests.sweeps.engine_cases import open_sweep, run_sweep, toy_spec
from trainables import toys

SHAPE = dict(rates=(0.1, 0.2), budgets=(40, 80, 160, 320), decay_fraction=[0.1, 0.25, 0.5])


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_jobs_and_steps_are_those_that_run(tmp_path, slots):
    sweep = open_sweep(toy_spec(tmp_path / "plan", **SHAPE), slots=slots)
    sweep.tuning.close()
    plan = sweep.driver.current_plan()
    expected = estimate(plan, sweep.driver.index, slots, "cpu")
    ran = run_sweep(toy_spec(tmp_path / "run", **SHAPE), slots=slots)
    assert expected.steps_to_run == ran.executed
    assert expected.trials == len(ran.entries) == 24
    assert expected.saving == pytest.approx(expected.steps_alone / ran.executed)
    # One after another in this process, jobs end in another order than side by side, and small ones may share less.
    assert abs(len(ran.told.jobs) - expected.jobs) <= 4
    if slots == 1:
        assert len(ran.told.jobs) == expected.jobs


def test_seconds_follow_the_assumed_speed_until_one_was_measured(tmp_path):
    study = replace(toys.QUADRATIC, units=lambda root: {"tokens": 1, "flops": 1e9, "parameters": 4})
    sweep = run_sweep(toy_spec(tmp_path, study, **SHAPE))
    plan = sweep.driver.current_plan(known=Index())
    assumed = estimate(plan, Index(), 2, "cpu")
    assert not assumed.measured
    each = 1e9 / ASSUMED_FLOPS_PER_SECOND["cpu"]
    alone = estimate(plan, Index(), 1, "cpu").seconds
    assert alone == pytest.approx(plan.steps_shared * each)
    assert alone / 2 <= assumed.seconds < 1.1 * alone / 2  # two trunks of equal length, and small branches
    assert assumed.critical_seconds == pytest.approx(320 * each)
    assert estimate(plan, Index(), 100, "cpu").seconds == pytest.approx(320 * each)
    index = sweep.driver.index
    measured = estimate(plan, index, 2, "cpu")
    speeds = sorted(1e9 * commit.executed_steps / commit.train_seconds for commit in index.commits.values())
    assert measured.measured and speeds[0] <= measured_speed(plan, index) <= speeds[-1]
    assert estimate(sweep.driver.current_plan(), index, 2, "cpu").seconds == 0


def test_the_disk_estimate_bounds_the_kept_states_of_a_model_of_some_size(tmp_path):
    sweep = open_sweep(toy_spec(tmp_path, **SHAPE), slots=2)
    sweep.tuning.close()
    plan = sweep.driver.current_plan()
    kept = {node.key for tree in plan.trees for node in tree.nodes() if node.keep}
    expected = estimate(plan, sweep.driver.index, 2, "cpu")
    assert expected.disk_bytes >= 12 * 4 * len(kept)


def test_a_study_that_does_not_say_what_a_step_costs_has_no_estimate_of_seconds(tmp_path):
    sweep = open_sweep(toy_spec(tmp_path, replace(toys.QUADRATIC, units=lambda root: {}), **SHAPE))
    sweep.tuning.close()
    expected = estimate(sweep.driver.current_plan(), Index(), 2, "cpu")
    assert expected.seconds == 0 and expected.jobs > 1
