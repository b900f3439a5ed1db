"""Fused sweeps through the engine against each lane trained alone, against themselves after a break, and the bill."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from sweeps.engine import packs, worker
from sweeps.engine.jobs import lane_shares
from sweeps.engine.records import Recorder
from sweeps.engine.store import Store
from sweeps.engine.worker import Place, run_job
from tests.sweeps.engine_cases import open_sweep, run_shuffled, run_sweep, toy_spec
from trainables.pack import train_pack
from trainables.study import LocalRun, Stopped
from trainables.toys import LANES
from trainables.walk import train

RATES = (0.05, 0.1, 0.2, 0.3)


def spec_of(results, study=LANES, **how):
    return toy_spec(results, study, **{"rates": RATES, "budgets": (20, 40), "tuning": 3, "fresh": 2, **how})


def test_every_lane_ends_as_a_trial_with_the_numbers_it_has_alone(tmp_path):
    sweep = run_sweep(spec_of(tmp_path))
    assert {entry.status for entry in sweep.entries} == {"complete"}
    assert len(sweep.entries) == 4 * 2 * 3 + 2 * 2  # rates x budgets x tuning seeds, chosen x fresh seeds
    for entry in sweep.entries[::5]:
        alone = train(LANES, entry.trial.config).rows
        assert [(row.key, row.step, row.full) for row in entry.rows] == [(row.key, row.step, row.full) for row in alone]
        for ours, theirs in zip(entry.rows, alone, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=LANES.agreement)


def test_lanes_of_one_shape_share_a_job_and_shapes_do_not_mix(tmp_path):
    sweep = run_sweep(spec_of(tmp_path, fresh=0), slots=2)
    for job in sweep.told.jobs:
        assert len({item.shape for item, _ in job.items}) == 1
    assert sum(len(job.items) for job in sweep.told.jobs) == len(sweep.entries)
    assert len(sweep.told.jobs) <= 4


def test_shares_balance_the_steps_of_the_slots():
    class Lane:
        def __init__(self, shape, steps):
            self.shape, self.steps = shape, steps

    one = [Lane("a", 10)] * 9
    assert lane_shares(one, 2) == {"a": 5}
    doubling = [Lane(steps, steps) for steps in (1, 2, 4, 8, 16) for _ in range(12)]
    shares = lane_shares(doubling, 2)
    assert shares == {1: 12, 2: 12, 4: 12, 8: 12, 16: 6}
    assert lane_shares([], 2) == {}


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_ends_and_words_gives_the_same(tmp_path, seed):
    plain = run_sweep(spec_of(tmp_path / "plain")).results()
    mixed = run_shuffled(spec_of(tmp_path / "mixed"), random.Random(seed)).results()
    assert plain.keys() == mixed.keys()
    for config, (status, rows) in plain.items():
        other_status, other_rows = mixed[config]
        assert status == other_status
        for ours, theirs in zip(rows, other_rows, strict=True):
            assert ours[2] == pytest.approx(theirs[2], rel=LANES.agreement)


def test_the_same_command_again_trains_nothing_and_a_new_seed_only_its_own(tmp_path):
    first = run_sweep(spec_of(tmp_path, fresh=0))
    again = run_sweep(spec_of(tmp_path, fresh=0))
    assert again.executed == 0 and again.results() == first.results()
    more = run_sweep(spec_of(tmp_path, fresh=0, tuning=4))
    assert more.executed == first.executed // 3


def test_a_stopped_pack_keeps_what_had_ended_and_the_rest_is_trained_later(tmp_path):
    spec = spec_of(tmp_path, budgets=(40,), target=[1.0, 0.0], fresh=0)
    sweep = open_sweep(spec, slots=1)
    job = sweep.driver.next_job()
    asked = iter(range(1000))
    whole = replace(sweep.place, pack=64)  # nothing is measured first
    with pytest.raises(Stopped):
        run_job(job, whole, LocalRun(stop=lambda: next(asked) > 5), sweep.driver.heard)
    sweep.tuning.close()
    early = [entry for entry in sweep.entries if entry.status == "complete"]
    assert early and all(entry.rows[-1].step < 40 for entry in early)
    rest = run_sweep(spec)
    assert {entry.status for entry in rest.entries} == {"complete"}
    assert {c.root_key for c in rest.told.commits}.isdisjoint({entry.trial.root_key for entry in early})


def test_a_diverged_lane_is_a_result_and_leaves_its_neighbours_alone(tmp_path):
    spec = spec_of(tmp_path, rates=(0.1, 1e30), budgets=(20,), fresh=0)
    sweep = run_sweep(spec)
    by_rate = {entry.trial.config.learning_rate: entry for entry in sweep.entries}
    assert by_rate[1e30].status == "diverged" and by_rate[0.1].status == "complete"
    alone = train(LANES, by_rate[0.1].trial.config).rows[-1].metrics
    assert by_rate[0.1].rows[-1].metrics == pytest.approx(alone, rel=LANES.agreement)
    assert run_sweep(spec).executed == 0  # divergence stays


def test_a_lane_that_raises_fails_alone_and_is_tried_again_next_time(tmp_path):
    def broken(configs, run):
        if any(config.learning_rate == 0.3 for config in configs):
            raise ValueError("no such rate")
        LANES.train(configs, run)

    sweep = run_sweep(spec_of(tmp_path, replace(LANES, train=broken), budgets=(20,), fresh=0))
    statuses = {entry.trial.config.learning_rate: entry.status for entry in sweep.entries}
    assert statuses == {0.05: "complete", 0.1: "complete", 0.2: "complete", 0.3: "failed"}
    assert "no such rate" in next(entry.error for entry in sweep.entries if entry.error)
    again = run_sweep(spec_of(tmp_path, budgets=(20,), fresh=0))
    assert {entry.status for entry in again.entries} == {"complete"} and again.executed == 3 * 20


def test_a_study_that_forgets_a_lane_is_told_so(tmp_path):
    sweep = run_sweep(spec_of(tmp_path, replace(LANES, train=lambda configs, run: None), budgets=(20,), fresh=0))
    assert all("returned before lanes 0 ended" in entry.error for entry in sweep.entries)


def test_seconds_are_a_lanes_own_only_when_it_trained_alone(tmp_path):
    for pack in (None, 1):
        sweep = open_sweep(spec_of(tmp_path / str(pack), fresh=0), slots=1)
        place = replace(sweep.place, pack=pack)
        while (job := sweep.driver.next_job()) is not None:
            run_job(job, place, LocalRun(), sweep.driver.heard)
            sweep.driver.ended(job.name)
        sweep.tuning.close()
        rows = Recorder(sweep.spec, sweep.entries, "cpu").tables(sweep.driver.index).trials.to_pylist()
        assert all(row["device_seconds_attributed"] > 0 for row in rows)
        assert {row["lanes"] for row in rows} == ({12} if pack is None else {1})
        assert all((row["device_seconds_alone"] is None) == (pack is None) for row in rows)


def lanes_ending_at(steps_of, *, pause=0.0, raises=None):
    """A study whose lane i ends after the report number `steps_of(config)`; the others report on."""

    def train(configs, run):
        for step in range(1, 21):
            time.sleep(pause)
            if raises is not None:
                raises(configs, step)
            for lane, config in enumerate(configs):
                if step <= steps_of(config):
                    full = step == steps_of(config)
                    report = {"report/loss": 0.0} if full else {}
                    run.report(lane=lane, step=step, full=full, **{"select/loss": 0.0}, **report)
            if run.should_stop():
                return

    return replace(LANES, train=train)


def test_lanes_that_ended_are_written_while_a_straggler_trains_on(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "TOGETHER_SECONDS", 0.05)
    written = []

    def look(configs, step):
        written.append(len(list((tmp_path / "store" / "stages").glob("*/*.json"))))

    study = lanes_ending_at(lambda config: 20 if config.learning_rate == 0.3 else 1, pause=0.02, raises=look)
    run_sweep(spec_of(tmp_path, study, budgets=(20,), fresh=0, tuning=1))
    assert 0 in written and 1 in written  # the others' manifest was there before the straggler's end


def test_what_a_dead_process_had_committed_is_taken_in_before_its_items_are_tried_again(tmp_path):
    sweep = open_sweep(spec_of(tmp_path, budgets=(20,), fresh=0), slots=1)
    job = sweep.driver.next_job()
    run_job(job, sweep.place, LocalRun(), lambda told: None)  # nobody hears it
    sweep.driver.ended(job.name, "killed")
    sweep.tuning.close()
    assert {entry.status for entry in sweep.entries} == {"complete"} and sweep.driver.next_job() is None


def test_a_lane_that_kills_its_process_does_not_take_the_others_with_it(tmp_path):
    sweep = open_sweep(spec_of(tmp_path, budgets=(20,), fresh=0), slots=1)
    jobs = 0
    while (job := sweep.driver.next_job()) is not None:
        jobs += 1
        if any(item.root.learning_rate == 0.3 and item.root.seed == 0 for item, _ in job.items):
            sweep.driver.ended(job.name, "killed")
        else:
            run_job(job, sweep.place, LocalRun(), sweep.driver.heard)
            sweep.driver.ended(job.name)
    sweep.tuning.close()
    lost = [entry.trial.config for entry in sweep.entries if entry.status != "complete"]
    assert [(config.learning_rate, config.seed) for config in lost] == [(0.3, 0)] and jobs < 30


def test_a_fault_in_taking_in_a_lane_is_not_the_lanes(tmp_path):
    trained = []

    def train(configs, run):
        trained.append(len(configs))
        LANES.train(configs, run)

    def commit(lane, stage):
        raise KeyError("the driver's own fault")

    configs = [replace(LANES.tiny, seed=seed) for seed in range(3)]
    with pytest.raises(KeyError, match="the driver's own fault"):
        train_pack(replace(LANES, train=train), configs, LocalRun(), commit=commit)
    assert trained == [3]


def test_a_disk_that_fills_up_between_two_ends_blames_no_lane(tmp_path, monkeypatch):
    """What had ended is written at the next report of another lane: an error there passes through the study's code."""
    monkeypatch.setattr(worker, "TOGETHER_SECONDS", 0.05)
    study = lanes_ending_at(lambda config: 20 if config.learning_rate == 0.3 else 1, pause=0.02)
    sweep = open_sweep(spec_of(tmp_path, study, budgets=(20,), fresh=0, tuning=1), slots=1)
    job = sweep.driver.next_job()

    def full(*arguments, **words):
        raise OSError("no space left")

    monkeypatch.setattr(Store, "commit_lanes", full)
    with pytest.raises(OSError, match="cannot write to"):
        run_job(job, replace(sweep.place, pack=8), LocalRun(), sweep.driver.heard)
    sweep.tuning.close()
    with pytest.raises(OSError, match="no space left"):  # nor does a lane of the pack
        train_pack(study, [LANES.tiny] * 2, LocalRun(), commit=lambda *ended: None, heed=full)


def test_a_study_that_raises_after_its_last_lane_is_not_swallowed():
    def train(configs, run):
        LANES.train(configs, run)
        raise ValueError("too late")

    ended = []
    with pytest.raises(ValueError, match="too late"):
        train_pack(replace(LANES, train=train), [LANES.tiny], LocalRun(), commit=lambda *one: ended.append(one))
    assert len(ended) == 1


def test_lanes_that_end_while_they_are_measured_charge_that_to_evaluation():
    def train(configs, run):
        with run.measuring():
            time.sleep(0.2)
            for lane in range(len(configs)):
                run.report(lane=lane, step=20, full=True, **{"select/loss": 0.0, "report/loss": 0.0})

    costs = []
    configs = [replace(LANES.tiny, seed=seed) for seed in range(2)]
    began = time.perf_counter()
    train_pack(replace(LANES, train=train), configs, LocalRun(), commit=lambda lane, stage: costs.append(stage.cost))
    evaluation = sum(cost.evaluation_seconds for cost in costs)
    assert 0.2 <= evaluation <= time.perf_counter() - began  # a busy machine sleeps too long
    assert sum(cost.train_seconds for cost in costs) < evaluation / 4


def test_a_stand_in_that_raises_measures_nothing(tmp_path):
    def train(configs, run):
        raise ValueError("a bug")

    configs = [replace(LANES.tiny, budget_steps=2000, seed=seed) for seed in range(8)]
    assert packs.pack_size(tmp_path, replace(LANES, train=train), configs, LocalRun()) == 8
    assert not list(tmp_path.glob("*.json"))


def costly_alone(lanes: int) -> object:
    """A study whose step costs one unit beside what each lane costs, and much more beyond `lanes` lanes."""

    def train(configs, run):
        work = 20_000 + 200 * len(configs) * (1 if len(configs) <= lanes else 200)
        for _ in range(work):
            pass
        for lane in range(len(configs)):
            run.report(lane=lane, step=20, full=True, **{"select/loss": 0.0, "report/loss": 0.0})

    return replace(LANES, train=train)


def test_the_pack_that_pays_is_found_stored_and_reused(tmp_path):
    study, run = costly_alone(16), LocalRun()
    configs = [replace(LANES.tiny, budget_steps=2000, seed=seed) for seed in range(64)]
    size = packs.pack_size(tmp_path, study, configs, run)
    assert size == 16
    stored = list(tmp_path.glob("*.json"))
    assert len(stored) == 1
    never = replace(study, train=lambda configs, run: pytest.fail("measured again"))
    assert packs.pack_size(tmp_path, never, configs, run) == 16
    stored[0].write_text("{ damaged")
    assert packs.pack_size(tmp_path, study, configs, run) == 16


def test_a_size_found_with_few_lanes_is_measured_again_with_many(tmp_path):
    study, run = costly_alone(1000), LocalRun()
    few, many = ([replace(LANES.tiny, budget_steps=2000, seed=seed) for seed in range(lanes)] for lanes in (4, 64))
    assert packs.pack_size(tmp_path, study, few, run) == 4
    never = replace(study, train=lambda configs, run: pytest.fail("measured again"))
    assert packs.pack_size(tmp_path, never, few * 2, run) == 8  # not many more: they go together
    assert packs.pack_size(tmp_path, study, many, run) == 64


def test_lanes_that_do_not_pay_train_one_at_a_time(tmp_path):
    configs = [replace(LANES.tiny, budget_steps=2000, seed=seed) for seed in range(8)]
    assert packs.pack_size(tmp_path, costly_alone(1), configs, LocalRun()) == 1


def test_little_work_is_not_worth_a_measurement(tmp_path):
    configs = [replace(LANES.tiny, seed=seed) for seed in range(4)]
    never = replace(LANES, train=lambda configs, run: pytest.fail("measured"))
    assert packs.pack_size(tmp_path, never, configs, LocalRun()) == 4
    assert not list(tmp_path.glob("*.json"))


def test_a_full_disk_stops_the_job_and_blames_no_lane(tmp_path, monkeypatch):
    sweep = open_sweep(spec_of(tmp_path, budgets=(20,), fresh=0), slots=1)
    job = sweep.driver.next_job()

    def full(*arguments, **words):
        raise OSError("no space left")

    monkeypatch.setattr(Store, "commit_lanes", full)
    with pytest.raises(OSError, match="cannot write to"):
        run_job(job, Place(str(tmp_path), str(tmp_path / "stop")), LocalRun(), sweep.driver.heard)
    monkeypatch.undo()
    sweep.driver.ended(job.name, "no space left")
    sweep.tuning.close()
    assert {entry.status for entry in run_sweep(sweep.spec).entries} == {"complete"}
