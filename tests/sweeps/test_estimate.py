"""Estimates against the jobs, bytes and seconds of sweeps that were really run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeps.engine.estimate import ASSUMED_FLOPS_PER_SECOND, count_jobs, estimate, measured_speed
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
    # Branches become ready in turn, so a few more jobs may be needed than a packing of all of them at once.
    assert expected.jobs <= len(ran.told.jobs) <= expected.jobs + 4


def test_seconds_follow_the_assumed_speed_until_one_was_measured(tmp_path):
    study = replace(toys.QUADRATIC, units=lambda root: {"tokens": 1, "flops": 1e9, "parameters": 4})
    sweep = run_sweep(toy_spec(tmp_path, study, **SHAPE))
    plan = sweep.driver.current_plan(known=Index())
    assumed = estimate(plan, Index(), 2, "cpu")
    assert not assumed.measured
    assert assumed.seconds == pytest.approx(plan.steps_shared * 1e9 / ASSUMED_FLOPS_PER_SECOND["cpu"] / 2)
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


def test_packing_counts_jobs():
    class Sized:
        def __init__(self, steps):
            self.steps = steps

    assert count_jobs([Sized(n) for n in (60, 50, 40, 30, 20)], 100) == 2
    assert count_jobs([Sized(500), Sized(10)], 100) == 2
    assert count_jobs([], 100) == 0
