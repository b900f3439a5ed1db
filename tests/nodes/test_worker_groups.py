"""Sweeps in worker groups of changing size against the same sweep in one process; what groups of dead jobs leave."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console

from sweeps.engine.launch import Question, sweep
from sweeps.engine.search import run_on_ray
from sweeps.engine.store import Store
from sweeps.engine.words import Refused
from sweeps.nodes import groups
from sweeps.nodes.groups import now_and_then, worker_counts, workers_now
from sweeps.nodes.joining import Slots
from tests.faults.kills import waited
from tests.sweeps.engine_cases import open_sweep, run_sweep, toy_spec
from trainables import wsd
from trainables.common.data.batches import worker_rows
from trainables.registry import STUDIES
from trainables.toys import LANES, QUADRATIC

ROUNDING = 2e-5  # nats; workers add the same numbers in another order, some tens of steps long
WORDS = [
    *("scale=tiny", "tracking=none", "seeds=0"),
    *("space.method=[wsd]", "space.peak_lr=5e-3", "study.batch_size=4"),
]
MEASURED = ("select/loss", "train/loss", "report/loss", "report/bits_per_byte")


@pytest.fixture(scope="module")
def two_cpus():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        try:
            yield
        finally:
            ray.shutdown()


def ran(results, *words) -> None:
    console = Console(file=io.StringIO(), width=200)
    sweep(Question("wsd_budget", wsd.STUDY, ""), [*WORDS, f"results={results}", *words], console)


def measured(results) -> dict:
    """(trial, step) -> what was measured there."""
    (file,) = (results / "sweeps").glob("*/measurements.parquet")
    rows = pq.read_table(file).to_pylist()
    return {(row["trial"], row["step"]): {name: row[name] for name in MEASURED if name in row} for row in rows}


def difference(one: dict, other: dict) -> float:
    """The largest difference of any number between two sweeps, which measured the same trials at the same steps."""
    assert one.keys() == other.keys() and len(one) > 10
    largest = 0.0
    for place, values in one.items():
        assert {name for name, value in values.items() if value is not None} == {
            name for name, value in other[place].items() if value is not None
        }
        largest = max(
            [largest, *(abs(value - other[place][name]) for name, value in values.items() if value is not None)]
        )
    return largest


@pytest.mark.timeout(600)
def test_a_sweep_changes_its_workers_and_how_they_share_the_model_and_measures_the_same(two_cpus, tmp_path):
    """One worker at the first budget, two under DDP at a larger one, two under FSDP at the next, and one at the last:
    each goes on from the trunk that the one before has kept."""
    budgets = [40, 60, 80, 100]
    ran(tmp_path / "one", "executor=local", f"space.budget_steps={budgets}")
    many = ["executor=ray", "resources.workers=2", "slots=1", "resources.parallel=ddp"]
    ways = [["executor=local"], many, [*many[:-1], "resources.parallel=fsdp"], ["executor=local"]]
    for count, way in enumerate(ways, start=1):
        ran(tmp_path / "two", *way, f"space.budget_steps={budgets[:count]}")
    alone, shared = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert 0 < difference(alone, shared) < ROUNDING
    commits = Store(tmp_path / "two").scan().commits.values()
    assert max(Counter((commit.key, commit.start) for commit in commits).values()) == 1
    executed = {
        folder: sum(commit.executed_steps for commit in Store(tmp_path / folder).scan().commits.values())
        for folder in ("one", "two")
    }
    assert executed["two"] == executed["one"]  # nothing that was kept by other workers was trained again


def test_a_batch_that_the_workers_cannot_share_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(Refused, match="batch_size must be a multiple of the workers, got 4 sequences for 3"):
        ran(tmp_path, "executor=ray", "resources.workers=3")
    assert not (tmp_path / "store").exists()
    with pytest.raises(Refused, match=r"min_workers must lie in 1 \.\. workers = 2, got 3"):
        ran(tmp_path, "executor=ray", "resources.workers=2", "resources.min_workers=3")


@pytest.mark.parametrize("name", ["wsd", "masked_lm", "sam_net", "benign"])
def test_the_studies_that_deal_their_batch_out_refuse_other_numbers_of_workers(name):
    """What would raise in a worker's first step must be refused in the plan: see `worker_rows`."""
    root = replace(STUDIES[name].root(STUDIES[name].tiny), batch_size=6)
    if hasattr(root, "norm"):
        root = replace(root, norm="none")
    for workers in (1, 2, 3, 6):
        STUDIES[name].check_workers(root, workers)
        worker_rows(6, 0, workers)
    for workers in (4, 5, 7):
        with pytest.raises(ValueError, match=f"multiple of the workers, got 6 sequences for {workers}"):
            STUDIES[name].check_workers(root, workers)


@pytest.mark.parametrize("name", ["sam_net", "benign"])
def test_running_statistics_of_batches_take_one_worker(name):
    study = STUDIES[name]
    root = replace(
        study.root(study.tiny), norm="batch", batch_size=4, **{"model": "resnet"} if name == "benign" else {}
    )
    study.check_workers(root, 1)
    with pytest.raises(ValueError, match="norm=batch"):
        study.check_workers(root, 2)


def test_a_job_gets_the_most_workers_that_share_its_batch_and_fit():
    class Root:
        batch_size = 12

    def counts(least):
        return worker_counts(wsd.STUDY, [Root], Slots(1, workers=6, min_workers=least))

    assert counts(1) == [1, 2, 3, 4, 6] and counts(3) == [3, 4, 6] and counts(None) == [6]
    with pytest.raises(ValueError, match="12 sequences for 5"):
        worker_counts(wsd.STUDY, [Root], Slots(1, workers=5))
    assert worker_counts(QUADRATIC, [], Slots(1, workers=3, min_workers=2)) == [2, 3]
    assert worker_counts(LANES, [], Slots(8)) == [1]
    elastic = Slots(2, workers=6, min_workers=1)
    assert [workers_now(elastic, [1, 2, 3, 4, 6], there) for there in (20, 12, 11, 9, 7, 5, 2, 1, 0)] == [
        *(6, 6, 4, 4, 3, 2, 1, 1, 1)
    ]


def slow_advance(state, placed, span, run):
    time.sleep(0.02 * (span.stop - span.start))
    QUADRATIC.advance(state, placed, span, run)


def held() -> list[str]:
    return [group["state"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def test_a_group_asks_for_what_the_autoscaler_may_bring_until_a_node_was_lost(monkeypatch):
    nodes = [{"Alive": True, "NodeID": "head", "Resources": {"CPU": 3.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(groups, "leaving_nodes", lambda: set())
    elastic = Slots(1, workers=8, min_workers=1)
    assert [groups.room(elastic, may_come) for may_come in (0, 2, 8)] == [3, 3, 8]
    nodes.append({"Alive": False, "NodeID": "taken", "Resources": {}})
    assert groups.room(elastic, 8) == 3
    assert groups.room(elastic, 8, lost_before=1) == 8  # it had gone before this sweep began


@pytest.mark.timeout(600)
def test_the_group_of_a_killed_actor_is_freed_and_its_job_done_by_another(two_cpus, tmp_path):
    """Without the reaper the dead group would hold both CPUs, and the next one would wait for them for ever."""
    slow = replace(QUADRATIC, advance=slow_advance)
    axes = dict(rates=(0.1, 0.2), budgets=(100,))
    unbroken = run_sweep(toy_spec(tmp_path / "unbroken", **axes), checkpoint_every=20)
    going_on = open_sweep(toy_spec(tmp_path / "broken", slow, **axes), checkpoint_every=20)
    killed = []

    def kill_the_tune_actor():
        while not list((tmp_path / "broken" / "store" / "stages").glob("*/*.json")):
            time.sleep(0.05)
        actors = ray._private.state.actors().values()
        (actor,) = [one for one in actors if one["State"] == "ALIVE" and "ImplicitFunc" in one["ActorClassName"]]
        os.kill(actor["Pid"], signal.SIGKILL)
        killed.append(actor["Pid"])

    thread = threading.Thread(target=kill_the_tune_actor, daemon=True)
    thread.start()
    try:
        run_on_ray(going_on.driver, going_on.place, Slots(1, cpus=1, workers=2), address=None)
    finally:
        going_on.tuning.close()
    assert killed and going_on.told.errors
    assert going_on.results() == unbroken.results()
    waited(lambda: not held(), 60)  # the sweep's own reaper has done it, Ray tells a little later
    assert held() == []


def test_now_and_then_waits_its_time():
    calls = []
    often, seldom = now_and_then(lambda: calls.append("often"), 0), now_and_then(lambda: calls.append("seldom"), 60)
    for _ in range(3):
        often()
        seldom()
    assert calls == ["often"] * 3
