"""The driver over the toy: against each trial trained alone, its own plan, and other orders of events."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from math import isfinite

import pytest

from sweeps.engine.driver import measured_rows
from sweeps.engine.items import worth_keeping
from sweeps.engine.spec import Search
from sweeps.engine.store import Store
from sweeps.engine.worker import run_job
from sweeps.nodes.groups import NodeDied, Raylet
from tests.sweeps.engine_cases import open_sweep, run_shuffled, run_sweep, toy_spec
from trainables import toys
from trainables.study import LocalRun, Stopped, alone
from trainables.walk import walk

GRID = dict(budgets=(20, 40, 80), decay_fraction=[0.1, 0.25, 0.5])


def rows_alone(study, config):
    """What a trial measures when nothing else is in the world."""
    stages = []
    root, branch = alone(study, config)
    walk(study, root, [branch], LocalRun(), commit=stages.append)
    return stages[0].status, [row[1:] for row in stages[0].rows]


@pytest.mark.parametrize("checkpoint_every", [None, 7, 30])
def test_trials_of_a_sweep_measure_what_they_measure_alone_to_the_bit(tmp_path, checkpoint_every):
    sweep = run_sweep(toy_spec(tmp_path, **GRID, tuning=2), checkpoint_every=checkpoint_every)
    assert len(sweep.entries) == 3 * 3 * 3 * 2
    for entry in sweep.entries:
        assert (entry.status, [row[1:] for row in entry.rows]) == rows_alone(toys.QUADRATIC, entry.trial.config)


@pytest.mark.parametrize("checkpoint_every", [None, 7])
@pytest.mark.parametrize("slots", [1, 4])
def test_the_bill_is_the_plan_to_the_step(tmp_path, checkpoint_every, slots):
    sweep = run_sweep(toy_spec(tmp_path, **GRID), checkpoint_every=checkpoint_every, slots=slots)
    assert sweep.executed == sweep.told.plans[0].steps_to_run == sweep.told.plans[0].steps_shared
    stages = Counter((commit.key, commit.start) for commit in sweep.told.commits)
    assert set(stages.values()) == {1}


def test_the_same_command_again_runs_nothing_and_tells_the_same(tmp_path):
    spec = toy_spec(tmp_path, **GRID, fresh=2)
    first, again = run_sweep(spec), run_sweep(spec)
    assert again.executed == 0 and not again.told.jobs
    assert again.results() == first.results()


@pytest.mark.parametrize(
    ("more", "again"),
    [
        (dict(search=Search(proposals=3)), 0),
        (dict(budgets=(20, 40, 80, 160)), 0),
        (dict(tuning=2), 0),
        (dict(fresh=1), 0),
        # Two trunks fork at step 5 now, whose state nobody had kept; at 10 and 20 there are states.
        (dict(decay_fraction=[0.1, 0.25, 0.5, 0.75]), 2 * 5),
    ],
)
def test_a_larger_sweep_runs_only_what_is_missing(tmp_path, more, again):
    small = dict(**GRID, search=Search(proposals=2))
    first = run_sweep(toy_spec(tmp_path / "one", **small))
    run_sweep(toy_spec(tmp_path / "two", **{**small, **more}))
    second = run_sweep(toy_spec(tmp_path / "one", **{**small, **more}))
    fresh = run_sweep(toy_spec(tmp_path / "three", **{**small, **more}))
    assert second.results() == fresh.results()
    assert second.executed > 0
    assert first.executed + second.executed == fresh.executed + again
    assert second.told.plans[0].steps_retrained == again


def test_the_order_in_which_jobs_end_changes_nothing(tmp_path):
    spec = toy_spec(tmp_path / "calm", **GRID, fresh=1, tuning=2)
    calm = run_sweep(spec)
    for seed in range(4):
        shuffled = run_shuffled(replace(spec, results=tmp_path / str(seed)), random.Random(seed))
        assert shuffled.results() == calm.results()
        assert Counter((c.key, c.start) for c in shuffled.told.commits).most_common(1)[0][1] == 1
        assert shuffled.executed == calm.executed


def test_a_trials_rows_do_not_depend_on_what_else_is_in_the_sweep(tmp_path):
    many = run_sweep(toy_spec(tmp_path / "many", **GRID)).results()
    for (phase, config), result in list(many.items())[::5]:
        lone = toy_spec(
            tmp_path / f"{config.budget_steps}-{config.decay_fraction}-{config.learning_rate}",
            rates=(config.learning_rate, 7.0),
            search=Search(proposals=1),
            budgets=(config.budget_steps,),
            decay_fraction=config.decay_fraction,
        )
        found = run_sweep(lone).results()
        if (phase, config) in found:
            assert found[(phase, config)] == result


# Divergence


DIVERGING = dict(rates=(0.1, 1e25), **GRID)


def test_a_diverged_trial_ends_there_and_the_others_go_on(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, **DIVERGING))
    statuses = {entry.trial.config.learning_rate: set() for entry in sweep.entries}
    for entry in sweep.entries:
        statuses[entry.trial.config.learning_rate].add(entry.status)
        assert ("not finite" in (entry.error or "")) == (entry.status == "diverged")
    assert statuses == {0.1: {"complete"}, 1e25: {"diverged"}}
    outcomes = [outcome.state for cell in sweep.tuning.cells for _, outcome in cell.proposals.outcomes()]
    assert sorted(outcomes) == ["complete", "pruned"]


def test_rows_of_diverged_trials_are_those_of_the_trial_alone(tmp_path):
    """Also where a sibling's measurement, at a step that is not one of the trial's own, was the first to see it."""
    spec = toy_spec(tmp_path, rates=(0.1, 17.3), budgets=(20, 40, 80), decay_fraction=[0.15, 0.3])
    sweep = run_sweep(spec)
    seen = {entry.trial.config.learning_rate: entry.status for entry in sweep.entries}
    assert seen[17.3] == "diverged"
    for entry in sweep.entries:
        status, rows = rows_alone(toys.QUADRATIC, entry.trial.config)
        assert entry.status == status
        finite = [row for row in rows if all(isfinite(value) for value in row[2].values())]
        assert [row[1:] for row in entry.rows if all(isfinite(v) for v in row.metrics.values())] == finite


def test_divergence_stays_known_and_is_not_trained_again(tmp_path):
    spec = toy_spec(tmp_path, **DIVERGING)
    first, again = run_sweep(spec), run_sweep(spec)
    assert again.executed == 0
    assert {key: status for key, (status, _) in again.results().items()} == {
        key: status for key, (status, _) in first.results().items()
    }


def test_a_trunk_that_diverges_between_two_measurements_goes_back_no_further_than_its_last_fork(tmp_path):
    """It is first seen at step 17, which only one trial measures; the others see it at 20, as they would alone."""
    sweep = run_sweep(toy_spec(tmp_path, rates=(17.3, 0.1), budgets=(20, 40, 80), decay_fraction=[0.15, 0.3]))
    diverged = [commit for commit in sweep.told.commits if commit.status == "diverged"]
    assert {commit.start for commit in diverged} == {14} and len(diverged) == 3
    assert sweep.executed < sweep.told.plans[0].steps_to_run
    assert max(Counter((commit.key, commit.start) for commit in sweep.told.commits).values()) == 1


# Failure


def failing(at_step, *, rate=0.1, error="a cable came loose", times=10**9):
    """The toy, of which one rate raises when it passes a step."""
    left = [times]

    def advance(state, placed, span, run):
        here = placed.segment.constant and placed.at(span.start)["lr"] == rate
        if here and span.start <= at_step < span.stop and left[0] > 0:
            left[0] -= 1
            raise RuntimeError(error)
        toys.advance(state, placed, span, run)

    return replace(toys.QUADRATIC, advance=advance)


def test_an_exception_becomes_a_row_with_its_traceback_and_the_others_go_on(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, failing(32), **GRID))
    for entry in sweep.entries:
        config = entry.trial.config
        reaches = config.learning_rate == 0.1 and config.budget_steps * (1 - config.decay_fraction) > 32
        assert entry.status == ("failed" if reaches else "complete"), config
        if reaches:
            assert "a cable came loose" in entry.error and "Traceback" in entry.error
            reached = [point.step for point in entry.trial.points if point.step <= 32]
            assert [row.step for row in entry.rows] == reached[: len(entry.rows)]
        else:
            assert (entry.status, [row[1:] for row in entry.rows]) == rows_alone(toys.QUADRATIC, config)


def test_what_failed_is_tried_again_by_the_same_command_and_then_told_apart(tmp_path):
    broken = run_sweep(toy_spec(tmp_path, failing(32), **GRID))
    assert Counter(entry.status for entry in broken.entries)["failed"] > 0
    mended = run_sweep(toy_spec(tmp_path, **GRID))
    assert {entry.status for entry in mended.entries} == {"complete"}
    assert mended.executed < sum(commit.executed_steps for commit in broken.told.commits) + mended.executed


def test_a_study_that_keeps_failing_and_is_then_mended_completes(tmp_path):
    for _ in range(4):  # more often than a proposal is handed out again
        run_sweep(toy_spec(tmp_path, failing(0), **GRID))
    mended = run_sweep(toy_spec(tmp_path, **GRID))
    assert {entry.status for entry in mended.entries} == {"complete"}


def test_results_that_moved_a_little_do_not_stop_a_sweep_whose_journal_knows_others(tmp_path):
    """On a GPU a stage that is trained again, after its rows were damaged, may differ in the last digits."""
    spec = toy_spec(tmp_path, **GRID)
    run_sweep(spec)
    for path in (tmp_path / "store" / "rows").glob("*.json"):
        path.unlink()

    def measure(state, run, full):
        return {name: value * (1 + 1e-9) for name, value in toys.measure(state, run, full).items()}

    again = run_sweep(replace(spec, study=replace(toys.QUADRATIC, measure=measure)))
    assert {entry.status for entry in again.entries} == {"complete"}


def test_a_sweep_in_which_every_trial_failed_ends_with_all_its_rows(tmp_path):
    def start(root, run):
        raise MemoryError("no room for the model")

    sweep = run_sweep(toy_spec(tmp_path, replace(toys.QUADRATIC, start=start), **GRID, fresh=1))
    assert {entry.status for entry in sweep.entries} == {"failed"} and len(sweep.entries) == 27
    assert all("no room for the model" in entry.error for entry in sweep.entries)


def test_a_failing_branch_leaves_its_siblings_as_they_would_be_alone(tmp_path):
    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        if placed.segment.falling and span.stop > 38:
            state.position.fill_(float("nan"))
            raise RuntimeError("after it had spoilt the state")

    study = replace(toys.QUADRATIC, advance=advance)
    sweep = run_sweep(toy_spec(tmp_path, study, rates=(0.1, 0.2), budgets=(20, 40), decay_fraction=[0.1, 0.25, 0.5]))
    for entry in sweep.entries:
        if entry.trial.config.budget_steps == 20:
            assert (entry.status, [row[1:] for row in entry.rows]) == rows_alone(toys.QUADRATIC, entry.trial.config)
        else:
            assert entry.status == "failed"


# Deaths of processes


def test_an_item_whose_process_dies_is_tried_twice_more_and_then_given_up(tmp_path):
    sweep = open_sweep(toy_spec(tmp_path, **GRID), slots=1)
    died = 0
    while not sweep.driver.finished:
        job = sweep.driver.next_job()
        assert job is not None, sweep.driver.waits_for()
        if any(item.branch.start == 0 and item.branch.placed[0].at(0)["lr"] == 0.1 for item, _ in job.items):
            died += 1
            sweep.driver.ended(job.name, "signal 9")
            continue
        run_job(job, sweep.place, LocalRun(), sweep.driver.heard)
        sweep.driver.ended(job.name)
    assert died == 3
    for entry in sweep.entries:
        assert entry.status == ("failed" if entry.trial.config.learning_rate == 0.1 else "complete")
        assert entry.status == "complete" or entry.error == "signal 9"


def killed_where(sweep, deadly):
    """Run a sweep in one process; a job dies when it is to commit a stage that is deadly."""
    while not sweep.driver.finished:
        job = sweep.driver.next_job()
        assert job is not None, sweep.driver.waits_for()
        run = LocalRun()
        study = job.items[0][0].study

        def advance(state, placed, span, run):
            if deadly(placed, span):
                raise Died("signal 9")
            toys.advance(state, placed, span, run)

        items = tuple((replace(item, study=replace(study, advance=advance)), start) for item, start in job.items)
        try:
            run_job(replace(job, items=items), sweep.place, run, sweep.driver.heard)
        except Died:
            sweep.driver.ended(job.name, "signal 9")
        else:
            sweep.driver.ended(job.name)
    sweep.tuning.close()


class Died(BaseException):
    """Not for a study to be blamed for, as the end of a process."""


RATES, DECAYS = (0.1, 0.15, 0.2, 0.25, 0.3), [0.1, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("deadly", RATES)
def test_what_kills_its_process_takes_no_other_trial_of_its_job_with_it(tmp_path, deadly, slots):
    sweep = open_sweep(toy_spec(tmp_path, rates=RATES, budgets=(20,)), slots=slots)
    killed_where(sweep, lambda placed, span: placed.start == 0 and placed.at(0)["lr"] == deadly)
    statuses = {entry.trial.config.learning_rate: entry.status for entry in sweep.entries}
    assert statuses == {rate: "failed" if rate == deadly else "complete" for rate in RATES}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("deadly", DECAYS)
def test_nor_another_branch_of_its_trunk(tmp_path, deadly, slots):
    sweep = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(40,), decay_fraction=DECAYS), slots=slots)
    killed_where(sweep, lambda placed, span: placed.segment.falling and placed.start == 40 - round(40 * deadly))
    for entry in sweep.entries:
        assert entry.status == ("failed" if entry.trial.config.decay_fraction == deadly else "complete")


@pytest.mark.parametrize("looks", range(1, 8))
def test_a_job_that_is_stopped_before_a_full_measurement_of_a_state_measured_lightly_is_planned_again(tmp_path, looks):
    flat = dict(rates=(0.1, 0.2), decay_fraction=0.0, fixed={})
    run_sweep(toy_spec(tmp_path, budgets=(40,), **flat))
    sweep = open_sweep(toy_spec(tmp_path, budgets=(20, 40), **flat), slots=1)
    asked = iter(range(10**6))
    job = sweep.driver.next_job()
    with pytest.raises(Stopped):
        run_job(job, sweep.place, LocalRun(stop=lambda: next(asked) >= looks), sweep.driver.heard)
    sweep.driver.ended(job.name)
    while not sweep.driver.finished:
        again = sweep.driver.next_job()
        assert again is not None and not sweep.driver.stuck
        run_job(again, sweep.place, LocalRun(), sweep.driver.heard)
        sweep.driver.ended(again.name)
    sweep.tuning.close()
    assert {entry.status for entry in sweep.entries} == {"complete"}


@pytest.mark.parametrize("fault", ["nan", "raises"])
def test_a_sweep_whose_last_stage_is_lost_keeps_no_forks_either(tmp_path, fault):
    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        if span.stop > 38:
            state.position.fill_(float("nan"))
            if fault == "raises":
                raise RuntimeError("lost")

    study = replace(toys.QUADRATIC, advance=advance)
    spec = toy_spec(tmp_path, study, rates=(0.1, 0.2), budgets=(40,), decay_fraction=0.25)
    sweep = run_sweep(spec, checkpoint_every=5)
    assert {entry.status for entry in sweep.entries} == {"diverged" if fault == "nan" else "failed"}
    assert len(list((tmp_path / "store" / "states").iterdir())) <= 2  # the ends of the two stable stretches


@pytest.mark.parametrize("study", [toys.QUADRATIC, toys.LANES])
def test_a_job_whose_node_died_writes_nothing_more(tmp_path, monkeypatch, study):
    """The raylet goes while the second stage is trained; what its job wrote after that, its retry would write too."""
    spec = toy_spec(tmp_path, study, **(GRID if study is toys.QUADRATIC else {"budgets": (20, 40)}))
    sweep = open_sweep(spec, slots=1)
    job, raylet = sweep.driver.next_job(), Raylet()
    place = replace(sweep.place, pack=1)
    committed = []

    def tell(told):
        committed.extend(told.committed)
        if told.committed:
            monkeypatch.setattr(os, "getppid", lambda: 1)  # as for every orphan

    with pytest.raises(NodeDied, match="has died"):
        run_job(job, place, LocalRun(), tell, before_commit=raylet.must_live)
    assert len(committed) == 1 and len(Store(tmp_path).scan().commits) == 1
    sweep.driver.ended(job.name, "node died")
    sweep.tuning.close()
    run_sweep(spec)
    keys = [(commit.key, commit.start) for commit in Store(tmp_path).scan().commits.values()]
    assert len(keys) == len(set(keys)) > 2


def test_commits_of_a_job_that_died_unheard_are_not_run_again(tmp_path):
    spec = toy_spec(tmp_path, **GRID)
    sweep = open_sweep(spec, slots=1)
    job = sweep.driver.next_job()
    run_job(job, sweep.place, LocalRun(), lambda told: None)  # it committed all, and nobody heard
    sweep.tuning.close()
    there = sum(commit.executed_steps for commit in Store(tmp_path).scan().commits.values())
    again = run_sweep(spec)
    assert again.executed + there == again.driver.current_plan().steps_shared


def test_a_job_that_died_after_a_light_measurement_where_a_full_one_is_wanted_is_not_tried_for_ever(tmp_path):
    run_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(40,), decay_fraction=0.25))  # step 15 is measured lightly
    sweep = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(15, 40), decay_fraction=0.0, fixed={}), slots=1)
    deaths = 0
    while not sweep.driver.finished and deaths < 50:
        job = sweep.driver.next_job()
        assert job is not None, sweep.driver.waits_for()
        sweep.driver.ended(job.name, "signal 9")
        deaths += 1
    assert sweep.driver.finished and deaths < 50


class Killed(Exception):
    pass


def run_in_chaos(spec, draw, *, checkpoint_every):
    """Jobs die after any of their commits, heard or not; states vanish or are damaged at any time."""
    sweep = open_sweep(spec, slots=3, checkpoint_every=checkpoint_every)
    driver, deaths, open_jobs = sweep.driver, 0, []
    while not driver.finished:
        states = sorted((spec.results / "store" / "states").glob("*.safetensors"))
        if states and draw.random() < 0.3:
            victim = draw.choice(states)
            victim.unlink() if draw.random() < 0.5 else victim.write_bytes(b"damaged")
        while len(open_jobs) < 3 and (job := driver.next_job()) is not None:
            commits, told = draw.randrange(1, 6), []
            mortal = deaths < 4 and draw.random() < 0.4

            def tell(word, told=told, commits=commits, mortal=mortal):
                told.append(word)
                if mortal and len(told) == commits:
                    raise Killed

            try:
                run_job(job, sweep.place, LocalRun(), tell)
                open_jobs.append((job, told, None))
            except Killed:
                deaths += 1
                open_jobs.append((job, told[: draw.randrange(len(told) + 1)], "signal 9"))
        assert open_jobs, driver.waits_for()
        job, told, error = open_jobs.pop(draw.randrange(len(open_jobs)))
        for word in told:
            driver.heard(word)
        driver.ended(job.name, error)
    sweep.tuning.close()
    return sweep


@pytest.mark.parametrize("seed", range(6))
def test_chaos_changes_no_result(tmp_path, seed):
    spec = toy_spec(tmp_path / "calm", **GRID, fresh=1)
    calm = run_sweep(spec)
    chaos = run_in_chaos(
        replace(spec, results=tmp_path / "chaos"), random.Random(seed), checkpoint_every=[None, 7][seed % 2]
    )
    assert chaos.results() == calm.results()
    assert not Store(tmp_path / "chaos").scan().damaged


# Kept states


def states_on_disk(results):
    return {path.stem for path in (results / "store" / "states").glob("*.safetensors")}


def test_forks_are_dropped_once_their_last_branch_is_in_and_trunk_ends_stay(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), **GRID, tuning=1), slots=8)
    trees = sweep.driver.current_plan().trees
    wanted = {node.key for tree in trees for node in tree.nodes() if worth_keeping(node)} | sweep.driver.keep
    index = Store(tmp_path).scan()
    kept = {key for states in index.states.values() for key in states}
    assert kept <= wanted
    assert len(states_on_disk(tmp_path)) == len(kept)


def test_nothing_is_left_behind_where_no_state_is_wanted(tmp_path):
    """Seeds after the first keep no states but those of trunk ends, where a larger budget goes on."""
    spec = toy_spec(tmp_path, **GRID, tuning=2)
    sweep = run_sweep(spec, slots=6, checkpoint_every=9)
    trees = sweep.driver.current_plan().trees
    wanted = {node.key for tree in trees for node in tree.nodes() if worth_keeping(node)} | sweep.driver.keep
    kept = {key for states in Store(tmp_path).scan().states.values() for key in states}
    assert kept <= wanted


def test_forks_are_dropped_also_when_the_last_job_fails(tmp_path):
    def advance(state, placed, span, run):
        if placed.segment.falling and span.stop > 70:
            raise RuntimeError("the last branch")
        toys.advance(state, placed, span, run)

    study = replace(toys.QUADRATIC, advance=advance)
    sweep = run_sweep(toy_spec(tmp_path, study, **GRID, tuning=2), slots=6, checkpoint_every=9)
    trees = sweep.driver.current_plan().trees
    wanted = {node.key for tree in trees for node in tree.nodes() if worth_keeping(node)} | sweep.driver.keep
    kept = {key for states in Store(tmp_path).scan().states.values() for key in states}
    assert kept <= wanted


def test_a_damaged_state_is_trained_again_from_its_nearest_ancestor(tmp_path):
    small, large = (toy_spec(tmp_path, rates=(0.1, 0.2), budgets=b, decay_fraction=0.25) for b in ((40,), (40, 80)))
    run_sweep(small)
    for path in (tmp_path / "store" / "states").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    sweep = run_sweep(large)
    assert {entry.status for entry in sweep.entries} == {"complete"}
    for entry in sweep.entries:
        assert (entry.status, [row[1:] for row in entry.rows]) == rows_alone(toys.QUADRATIC, entry.trial.config)


def test_rows_lost_from_the_store_are_trained_again_and_nothing_is_stuck(tmp_path):
    """Any one rows file missing: a stage without its measurements between stages that have them."""
    spec = toy_spec(tmp_path / "whole", rates=(0.1, 0.2), **GRID)
    whole = run_sweep(spec)
    names = sorted(path.name for path in (tmp_path / "whole" / "store" / "rows").glob("*.json"))
    for name in names[::3]:
        path = tmp_path / "whole" / "store" / "rows" / name
        path.unlink()
        again = run_sweep(spec)
        assert again.results() == whole.results()
        assert again.executed > 0


def test_measured_rows_show_only_what_a_light_measurement_would_carry(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), **GRID))
    for entry in sweep.entries:
        rows = measured_rows(entry.trial, sweep.driver.index)
        assert [(row.step, row.full) for row in rows] == [(point.step, point.full) for point in entry.trial.points]
        assert all(("report/loss" in row.metrics) == row.full for row in rows)
