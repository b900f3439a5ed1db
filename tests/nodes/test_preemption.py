"""Sweeps whose jobs are stopped, told to leave or killed with their node, against the same sweep unbroken."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
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
from sweeps.nodes.groups import lost_nodes
from sweeps.nodes.joining import Slots
from tests.sweeps.engine_cases import open_sweep, run_sweep, toy_spec
from trainables import toys, wsd
from trainables.study import Stopped
from trainables.walk import train

EVERY = 60  # steps between checkpoints
HEAD = {  # a node counts as dead after eight seconds of silence
    "num_cpus": 0,
    "include_dashboard": False,
    "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 8},
}


def spec_of(results, study, budget=400):
    return toy_spec(results, study, rates=(0.05, 0.1), budgets=(budget,), decay_fraction=0.25)


def slow(study, log: Path, seconds: float):
    """A study that takes so long for a step, starts when two processes have come to it, and writes down the steps of
    every span that rank 0 trained, in a file of each process and number of workers."""
    log.mkdir()

    def advance(state, placed, span, run):
        with open(log / f"{os.getpid()}-rank{run.rank}-of-{run.workers}", "a") as file:
            while len(list(log.iterdir())) < 2:
                time.sleep(0.02)
            time.sleep(seconds * (span.stop - span.start))
            study.advance(state, placed, span, run)
            file.write(f"{span.stop - span.start}\n")

    return replace(study, advance=advance)


def trained(log: Path) -> int:
    return sum(int(line) for file in log.glob("*-rank0-*") for line in file.read_text().split())


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
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp", prefix="two-") as folder:
        patch.setenv("RAY_TMPDIR", folder)  # short, since it holds sockets
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        made = Cluster(initialize_head=True, head_node_args=HEAD)
        try:
            ray.init(address=made.address, log_to_driver=False, logging_level="WARNING")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def nodes(cluster):
    """Two nodes with one CPU each."""
    made = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    yield made
    for node in made:
        cluster.remove_node(node, allow_graceful=False)


def told_to_leave(cluster, node) -> None:
    """What a cluster's manager says to Ray when a spot instance has got its notice."""
    client = ray._raylet.GcsClient(address=cluster.address)
    in_a_minute = int((time.time() + 60) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node.node_id, reason, "spot", in_a_minute)
    assert accepted, why


def killed(cluster, node) -> None:
    """All its processes get SIGKILL, the raylet first."""
    (raylet,) = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    process = psutil.Process(raylet.process.pid)
    for one in [process, *process.children(recursive=True)]:
        one.send_signal(signal.SIGKILL)


def act_when(ready, act) -> None:
    """Act in a thread once it is time to."""

    def watch():
        while not ready():
            time.sleep(0.02)
        act()

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("act", [told_to_leave, killed])
def test_a_node_that_goes_away_costs_at_most_a_checkpoint_interval_a_job(cluster, nodes, tmp_path, act):
    log = tmp_path / "log"
    unbroken = run_sweep(spec_of(tmp_path / "unbroken", toys.QUADRATIC), checkpoint_every=EVERY)
    before = lost_nodes()
    sweep = open_sweep(spec_of(tmp_path / "broken", slow(toys.QUADRATIC, log, 0.01)), checkpoint_every=EVERY)
    act_when(lambda: trained(log) > 3 * EVERY, lambda: act(cluster, nodes[1]))
    try:
        run_on_ray(sweep.driver, sweep.place, Slots(2), address=None)
    finally:
        sweep.tuning.close()
    assert sweep.results() == unbroken.results()
    lost = trained(log) - committed(tmp_path / "broken")
    assert committed(tmp_path / "broken") == committed(tmp_path / "unbroken")
    assert lost == 0 if act is told_to_leave else 0 <= lost <= EVERY
    assert act is told_to_leave or lost_nodes() > before


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


@pytest.mark.timeout(600)
def test_a_group_that_lost_a_node_goes_on_with_the_workers_that_are_left(cluster, nodes, tmp_path):
    """The batch of a step stays as it is, so what it measures does too; no placement group of the dead one is left."""
    log, results = tmp_path / "log", tmp_path / "broken"
    store = Store(results)
    store.prepare()
    driver = Driver(store, Given(slow(wsd.STUDY, log, 0.1), TINY), slots=1, checkpoint_every=10)
    driver.start()
    place = Place(str(results), str(results / "stop"))
    slots = Slots(1, workers=2, min_workers=1)
    act_when(lambda: trained(log) > 12, lambda: killed(cluster, nodes[1]))
    run_on_ray(driver, place, slots, address=None)
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
    assert not [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
