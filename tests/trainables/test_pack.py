"""Packs of a fused study against its lanes trained alone, and against what was asked of each lane."""

from dataclasses import replace

import pytest
import torch

from trainables.pack import train_pack
from trainables.study import Diverged, LocalRun, Stopped
from trainables.toys import LANES, LaneConfig, train_lanes
from trainables.walk import train

CONFIGS = [LaneConfig(learning_rate=rate, seed=seed) for seed, rate in enumerate((0.05, 0.1, 0.3, 0.6))]


def packed(configs, study=LANES, run=None):
    """Stages by lane; each lane ends exactly once."""
    stages = {}

    def commit(lane, stage):
        assert lane not in stages
        stages[lane] = stage

    train_pack(study, configs, run or LocalRun(), commit=commit)
    return stages


def same(one, other, tolerance=LANES.agreement):
    assert [(row.step, row.full, row.key) for row in one] == [(row.step, row.full, row.key) for row in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.metrics == pytest.approx(theirs.metrics, rel=tolerance)


def test_a_lane_alone_is_the_lane_in_a_pack():
    stages = packed(CONFIGS)
    for lane, config in enumerate(CONFIGS):
        alone = train(LANES, config)
        same(stages[lane].rows, alone.rows)
        assert stages[lane].branch == alone.branch and stages[lane].executed_steps == config.budget_steps
        assert stages[lane].rows[-1].full and stages[lane].rows[-1].key == alone.branch.key


def test_the_order_of_the_lanes_does_not_matter():
    forward, backward = packed(CONFIGS), packed(CONFIGS[::-1])
    for lane in range(4):
        same(forward[lane].rows, backward[3 - lane].rows)


def test_a_lane_that_diverges_ends_alone_and_touches_no_other():
    wild = replace(CONFIGS[1], learning_rate=1e30)
    stages = packed([CONFIGS[0], wild, *CONFIGS[2:]])
    assert stages[1].status == "diverged" and "diverged: at step" in stages[1].error
    assert stages[1].executed_steps == stages[1].rows[-1].step < wild.budget_steps
    clean = packed([CONFIGS[0], *CONFIGS[2:]])
    for with_it, without in ((0, 0), (2, 1), (3, 2)):
        assert stages[with_it].status == "complete"
        same(stages[with_it].rows, clean[without].rows)
    with pytest.raises(Diverged):
        train(LANES, wild)


def test_a_lane_that_reaches_its_target_ends_early_and_the_rest_go_on():
    easy = replace(CONFIGS[2], target=1e6)
    stages = packed([CONFIGS[0], easy, CONFIGS[3]])
    assert stages[1].executed_steps == easy.measure_every and stages[1].rows[-1].full
    assert "report/loss" in stages[1].rows[-1].metrics
    same(stages[2].rows, train(LANES, CONFIGS[3]).rows)


def failing(seed, after=0):
    """The toy, but it raises when a lane of this seed is in the pack, after `after` lanes have ended."""

    def broken(configs, run):
        ended = []

        class Watched:
            device, should_stop, measuring = run.device, run.should_stop, run.measuring

            def report(self, *, lane, step, full=False, **metrics):
                run.report(lane=lane, step=step, full=full, **metrics)
                ended.extend([lane] if full else [])
                if len(ended) > after and any(config.seed == seed for config in configs):
                    raise ArithmeticError(f"seed {seed} cannot be trained")

        if after == 0 and any(config.seed == seed for config in configs):
            raise ArithmeticError(f"seed {seed} cannot be trained")
        train_lanes(configs, Watched())

    return replace(LANES, train=broken)


def test_a_lane_that_raises_is_found_and_fails_alone():
    stages = packed(CONFIGS, failing(seed=2))
    assert [stages[lane].status for lane in range(4)] == ["complete", "complete", "failed", "complete"]
    assert "ArithmeticError: seed 2 cannot be trained" in stages[2].error and not stages[2].rows
    for lane in (0, 1, 3):
        same(stages[lane].rows, train(LANES, CONFIGS[lane]).rows)


def test_lanes_that_ended_before_the_pack_raised_are_not_trained_again():
    stages = packed(CONFIGS, failing(seed=2, after=1))
    assert sorted(stages) == [0, 1, 2, 3]  # `packed` refuses a second end of a lane
    assert stages[0].status == stages[1].status == "complete"


def test_a_study_that_returns_before_its_lanes_ended_is_told_so():
    lazy = replace(LANES, train=lambda configs, run: None)
    stage = packed(CONFIGS[:1], lazy)[0]
    assert stage.status == "failed" and "returned before lanes 0 ended" in stage.error


def test_reports_after_a_lane_ended_are_ignored():
    def chatty(configs, run):
        train_lanes(configs, run)
        run.report(lane=0, step=999, **{"select/loss": 0.0})

    assert packed(CONFIGS[:2], replace(LANES, train=chatty))[0].rows[-1].step == CONFIGS[0].budget_steps


def test_a_pack_that_is_stopped_commits_only_what_ended():
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 2

    easy = replace(CONFIGS[0], target=1e6)
    stages = {}
    with pytest.raises(Stopped, match="1 of 2 lanes"):
        train_pack(LANES, [easy, CONFIGS[1]], LocalRun(stop=stop), commit=stages.__setitem__)
    assert list(stages) == [0]


def test_attributed_seconds_add_up_to_the_packs(monkeypatch):
    """Against a clock that the study itself moves: 1 s a step, 10 s a measurement."""
    clock = [0.0]
    monkeypatch.setattr("trainables.pack.time.perf_counter", lambda: clock[0])

    def timed(configs, run):
        ends = [config.budget_steps for config in configs]
        for step in range(1, max(ends) + 1):
            clock[0] += 1
            done = [lane for lane, end in enumerate(ends) if end == step]
            with run.measuring():
                clock[0] += 10 if done else 0
            for lane in done:
                run.report(lane=lane, step=step, full=True, **{"select/loss": 1.0, "report/loss": 1.0})

    study = replace(LANES, train=timed, shape=lambda config: "one")
    stages = packed([LaneConfig(budget_steps=steps) for steps in (4, 10, 10)], study)
    costs = [stages[lane].cost for lane in range(3)]
    assert sum(cost.train_seconds for cost in costs) == pytest.approx(10)
    assert sum(cost.evaluation_seconds for cost in costs) == pytest.approx(20)
    assert costs[0].train_seconds == pytest.approx(4 / 3)  # a third of four seconds
    assert costs[2].train_seconds == pytest.approx(4 / 3 + 6 / 2)


def test_a_pack_of_two_shapes_is_refused():
    with pytest.raises(ValueError, match="needs configs of one shape"):
        packed([CONFIGS[0], replace(CONFIGS[1], dimension=9)])


def test_rows_go_to_the_run_with_their_lanes():
    run = LocalRun()
    packed(CONFIGS[:2], run=run)
    assert {row["lane"] for row in run.rows} == {0, 1} and all(isinstance(row["key"], str) for row in run.rows)
    assert torch.device(run.device) == torch.device("cpu")
