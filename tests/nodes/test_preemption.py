"""Sweeps whose jobs are stopped, told to leave or killed with their node, against the same sweep unbroken."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from sweeps.engine.driver import Driver, Entry
from sweeps.engine.local import run_here
from sweeps.engine.plan import make_trial
from sweeps.engine.search import run_on_ray
from sweeps.engine.store import Store
from sweeps.engine.worker import Place
from sweeps.nodes.groups import lost_nodes, own_node
from sweeps.nodes.joining import Slots
from tests.faults.clusters import add
from tests.faults.kills import waited
from tests.sweeps.engine_cases import open_sweep, run_sweep, toy_spec
from trainables import toys, wsd
from trainables.study import Stopped
from trainables.walk import train

EVERY = 60  # steps between checkpoints
NOTICE_SECONDS = 10.0  # from the notice until the node is gone
HEAD = {  # a node counts as dead after eight seconds of silence
    "num_cpus": 0,
    "include_dashboard": False,
    "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 8},
}


def spec_of(results, study, budget=240):
    return toy_spec(results, study, rates=(0.05, 0.1), budgets=(budget,), decay_fraction=0.25)


def slow(study, log: Path, seconds: float):
    """A study that takes so long for a step, starts when two processes have come to it, and writes down from which step
    to which a span went and when it ended, in a file of each node, process, rank and number of workers."""
    log.mkdir()

    def advance(state, placed, span, run):
        with open(log / f"{own_node()}-{os.getpid()}-rank{run.rank}-of-{run.workers}", "a") as file:
            while len(list(log.iterdir())) < 2:
                time.sleep(0.02)
            time.sleep(seconds * (span.stop - span.start))
            study.advance(state, placed, span, run)
            file.write(f"{span.start} {span.stop} {time.time()}\n")

    return replace(study, advance=advance)


def spans(log: Path, files="*-rank0-*") -> list[tuple[int, int, float]]:
    """(from, to, when it ended) of the spans that were trained, in the order of their ends."""
    lines = [line.split() for file in log.glob(files) for line in file.read_text().splitlines(keepends=True)]
    ended = [(int(line[0]), int(line[1]), float(line[2])) for line in lines if len(line) == 3]
    return sorted(ended, key=lambda span: span[2])


def trained(log: Path) -> int:
    return sum(stop - start for start, stop, _ in spans(log))


def committed(results) -> int:
    """Steps of all committed stages; none of them was committed twice."""
    commits = Store(results).scan().commits.values()
    assert max(Counter((commit.key, commit.start) for commit in commits).values()) == 1
    return sum(commit.executed_steps for commit in commits)


# In this process


@pytest.mark.parametrize("checkpoint_every", [None, 12])
@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_stopped_again_and_again_loses_no_step(tmp_path, checkpoint_every, seed):
    """Each stop leaves a stage that ends where nobody had planned it; the bill stays that of the unbroken sweep."""
    draw, count = random.Random(seed), [10]
    stop = tmp_path / "broken" / "stop"

    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        count[0] -= 1
        if count[0] == 0:
            stop.touch()

    more = dict(budgets=(20, 40, 80), decay_fraction=[0.1, 0.25], fresh=2)
    unbroken = run_sweep(toy_spec(tmp_path / "unbroken", **more), checkpoint_every=checkpoint_every)
    stops = 0
    while True:
        sweep = open_sweep(
            toy_spec(tmp_path / "broken", replace(toys.QUADRATIC, advance=advance), **more),
            checkpoint_every=checkpoint_every,
        )
        try:
            run_here(sweep.driver, sweep.place)
            break
        except Stopped:
            stops += 1
            stop.unlink()
            count[0] = draw.randrange(5, 40)
        finally:
            sweep.tuning.close()
    assert stops > 3
    assert sweep.results() == unbroken.results()
    assert committed(tmp_path / "broken") == committed(tmp_path / "unbroken")
    edges = {commit.stop for commit in Store(tmp_path / "broken").scan().commits.values()}
    assert edges - {commit.stop for commit in Store(tmp_path / "unbroken").scan().commits.values()}


# On two nodes


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, where this process is, and nodes that come and go; nobody else finds it by "auto"."""
    kept = tempfile.TemporaryDirectory(dir="/tmp", prefix="two-", ignore_cleanup_errors=True)  # Ray's logs come late
    with pytest.MonkeyPatch.context() as patch, kept as folder:
        patch.setenv("RAY_TMPDIR", folder)  # short, since it holds sockets
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        made = Cluster()
        try:
            add(made, **HEAD)
            ray.init(address=made.address, log_to_driver=False, logging_level="WARNING")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def nodes(cluster):
    """Two nodes with one CPU each."""
    try:
        yield [add(cluster, num_cpus=1), add(cluster, num_cpus=1)]
    finally:
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node, allow_graceful=False)


def told_to_leave(cluster, node) -> float:
    """What a cluster's manager says to Ray when a spot instance has got its notice, and does when the time is up."""
    client = ray._raylet.GcsClient(address=cluster.address)
    gone_at = time.time() + NOTICE_SECONDS
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node.node_id, reason, "spot", int(gone_at * 1000))
    assert accepted, why
    time.sleep(max(0.0, gone_at - time.time()))
    return killed(cluster, node)


def killed(cluster, node) -> float:
    """All its processes get SIGKILL, the raylet first; when that was."""
    (raylet,) = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    when = time.time()
    with contextlib.suppress(psutil.NoSuchProcess):  # a raylet that was told to leave goes when it has nothing to do
        process = psutil.Process(raylet.process.pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    return when


def act_when(ready, act) -> Future:
    """Act in a thread once it is time to; what came of it."""
    came: Future = Future()

    def watch():
        try:
            while not ready():
                time.sleep(0.02)
            came.set_result(act())
        except BaseException as error:
            came.set_exception(error)

    threading.Thread(target=watch, daemon=True).start()
    return came


def left_in_time(log: Path, node, gone_at: float, last_step: int) -> int:
    """Where the only process that trained on a node stopped, with work left, well before the node was gone."""
    names = list(log.glob(f"{node.node_id}-*"))
    assert len(names) == 1, f"nothing is to begin on a node that was told to leave: {names}"
    _, step, when = spans(log, names[0].name)[-1]
    assert when < gone_at - 1 and step < last_step
    assert spans(log)[-1][2] > gone_at  # its job took longer than the notice: it was not simply over
    return step


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("act", "step_seconds"), [(told_to_leave, 0.1), (killed, 0.02)])
def test_a_node_that_goes_away_costs_at_most_a_checkpoint_interval_a_job(cluster, nodes, tmp_path, act, step_seconds):
    """Nothing at all when it was told in time: its job commits where it is, and another goes on from there."""
    log, there = tmp_path / "log", f"{nodes[1].node_id}-*"
    unbroken = run_sweep(spec_of(tmp_path / "unbroken", toys.QUADRATIC), checkpoint_every=EVERY)
    before = lost_nodes()
    sweep = open_sweep(spec_of(tmp_path / "broken", slow(toys.QUADRATIC, log, step_seconds)), checkpoint_every=EVERY)
    gone = act_when(
        lambda: any(stop > EVERY + 10 for _, stop, _ in spans(log, there)),  # with seconds to go to the next checkpoint
        lambda: act(cluster, nodes[1]),
    )
    try:
        run_on_ray(sweep.driver, sweep.place, Slots(2), address=None)
    finally:
        sweep.tuning.close()
    gone_at = gone.result(60)
    assert sweep.results() == unbroken.results()
    lost = trained(log) - committed(tmp_path / "broken")
    assert committed(tmp_path / "broken") == committed(tmp_path / "unbroken")
    edges = {commit.stop for commit in Store(tmp_path / "broken").scan().commits.values()}
    off_the_grid = edges - {commit.stop for commit in Store(tmp_path / "unbroken").scan().commits.values()}
    if act is told_to_leave:
        assert lost == 0 and off_the_grid == {left_in_time(log, nodes[1], gone_at, last_step=240)}
    else:
        assert 0 <= lost <= EVERY and not off_the_grid
        assert waited(lambda: lost_nodes() > before, 60)


@pytest.mark.timeout(600)
def test_a_job_that_is_killed_before_it_heard_the_notice_is_done_again_by_the_driver_alone(cluster, nodes, tmp_path):
    """One step is longer than the notice. By default Ray Tune starts such a job again as well, from its start."""
    log, marker, node = tmp_path / "log", tmp_path / "deaf", nodes[1].node_id
    unbroken = run_sweep(spec_of(tmp_path / "unbroken", toys.QUADRATIC), checkpoint_every=EVERY)
    study = slow(toys.QUADRATIC, log, 0.02)

    def advance(state, placed, span, run):
        if own_node() == node and span.start > EVERY + 10 and not marker.exists():
            marker.touch()
            time.sleep(4 * NOTICE_SECONDS)
        study.advance(state, placed, span, run)

    sweep = open_sweep(spec_of(tmp_path / "broken", replace(study, advance=advance)), checkpoint_every=EVERY)
    gone = act_when(marker.exists, lambda: told_to_leave(cluster, nodes[1]))
    try:
        run_on_ray(sweep.driver, sweep.place, Slots(2), address=None)
    finally:
        sweep.tuning.close()
    gone.result(60)
    assert sweep.results() == unbroken.results()
    assert committed(tmp_path / "broken") == committed(tmp_path / "unbroken")
    assert 0 < trained(log) - committed(tmp_path / "broken") <= EVERY


TINY = replace(wsd.STUDY.tiny, layers=2, decay_fraction=0.25)


class Given:
    """A tuning that asks for these configs at once."""

    def __init__(self, study, *configs):
        self.waiting = [Entry(make_trial(study, config), "tune", "", None, {}) for config in configs]

    def advance(self):
        now, self.waiting = self.waiting, []
        return now

    @property
    def finished(self):
        return not self.waiting


def minders() -> set[str]:
    """The Tune actors that this Ray has ever started."""
    return {name for name, one in ray._private.state.actors().items() if "ImplicitFunc" in one["ActorClassName"]}


def held() -> list[str]:
    return [name for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("act", "step_seconds"), [(told_to_leave, 0.5), (killed, 0.1)])
def test_a_group_that_loses_a_node_goes_on_with_the_workers_that_are_left(cluster, nodes, tmp_path, act, step_seconds):
    """The batch of a step stays as it is, so what it measures does too; no placement group of the first one is left."""
    log, results, before = tmp_path / "log", tmp_path / "broken", minders()
    store = Store(results)
    store.prepare()
    driver = Driver(store, Given(slow(wsd.STUDY, log, step_seconds), TINY), slots=1, checkpoint_every=10)
    driver.start()
    place = Place(str(results), str(results / "stop"))
    slots = Slots(1, workers=2, min_workers=1)
    gone = act_when(lambda: trained(log) > 12, lambda: act(cluster, nodes[1]))
    run_on_ray(driver, place, slots, address=None)
    gone_at = gone.result(60)
    (entry,) = driver.entries
    alone = train(wsd.STUDY, TINY).rows
    assert entry.status == "complete" and [row.step for row in entry.rows] == [row.step for row in alone]
    differences = [
        abs(value - theirs.metrics[name])
        for ours, theirs in zip(entry.rows, alone, strict=True)
        for name, value in ours.metrics.items()
    ]
    lost = trained(log) - committed(results)
    assert max(differences) < 2e-5  # nats
    assert 0 <= lost <= 10 and committed(results) == 40
    assert {name.name.rpartition("-")[2] for name in log.iterdir()} == {"1", "2"}
    if act is told_to_leave:
        stopped_at = left_in_time(log, nodes[1], gone_at, last_step=40)
        assert lost == 0 and stopped_at in {commit.stop for commit in store.scan().commits.values()}
        assert len(minders() - before) == 2  # an actor of a job that gave way is not used again
    waited(lambda: not held(), 60)  # Ray tells a little later
    assert held() == []
