"""A cluster of two raylets, and one that does not share the results folder, against what a sweep on it must do or say;
slots against a count of the jobs that fit, by hand."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from sweeps import doctor
from sweeps.engine.launch import Question, sweep
from sweeps.engine.words import Refused
from sweeps.nodes import joining, looking
from sweeps.nodes.gathering import gather, here, trial_folder
from sweeps.nodes.joining import HEAD, NodeKind, Offer, Slots, autoscaling, check_cluster, jobs_at_once, kinds
from tests.faults.clusters import add
from trainables import wsd

pytestmark = pytest.mark.timeout(600)  # a busy machine takes minutes to start two raylets
QUESTION = Question("wsd_budget", wsd.STUDY, about="What is asked?")
TINY = [
    "scale=tiny",
    "tracking=none",
    "space.method=wsd",
    "space.peak_lr=3e-3",
    "space.budget_steps=[20,40]",
    "seeds=1",
]
CONFIG = {
    "max_workers": 6,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 4},
        "gpu": {"resources": {"CPU": 16, "GPU": 4}, "min_workers": 1, "max_workers": 5},
    },
}
HEAD_NODE = {HEAD: 1.0, "memory": 1e9}


def say(*arguments: str) -> tuple[object, str]:
    console = Console(file=io.StringIO(), width=200)
    return sweep(QUESTION, [*TINY, *arguments], console), console.file.getvalue()


# Slots, counted by hand


@pytest.mark.parametrize(
    ("slots", "jobs"),
    [
        (Slots(1), 32),  # 4 CPU nodes of 8 jobs; no GPU node is started for these
        (Slots(1, gpus=1), 20),  # 5 GPU nodes of 4
        (Slots(1, gpus=0.25), 80),  # 5 x 16: each CPU one job, each GPU four
        (Slots(1, gpus=4), 5),
        (Slots(1, gpus=1, workers=8), 2),  # 20 workers make two groups
        (Slots(1, cpus=10), 5),  # fits a GPU node alone: it is started after all
    ],
)
def test_jobs_at_a_time_are_counted_on_what_the_autoscaler_may_bring(slots: Slots, jobs: int):
    offer = Offer((HEAD_NODE,), *kinds(CONFIG))
    assert jobs_at_once(slots, offer) == jobs
    check_cluster(slots, offer)


def test_the_nodes_that_are_there_count_where_they_are_more():
    nodes = (HEAD_NODE, *[{"CPU": 16.0, "GPU": 8.0}] * 3)
    assert jobs_at_once(Slots(1, gpus=1), Offer(nodes)) == 24
    assert jobs_at_once(Slots(1, gpus=1), Offer(nodes, (NodeKind("gpu", {"CPU": 8, "GPU": 1}, 0, 2),), 2)) == 24
    assert jobs_at_once(Slots(1, gpus=0.1), Offer(({"CPU": 99.0, "GPU": 1.0},))) == 10  # 1 // 0.1 is 9


def test_all_workers_together_stay_below_the_files_bound():
    offer = Offer((HEAD_NODE,), *kinds({**CONFIG, "max_workers": 3}))
    assert jobs_at_once(Slots(1, gpus=4), offer) == 3 and jobs_at_once(Slots(1), offer) == 24


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        (Slots(1, gpus=8), r"needs 1 x \(1 CPU, 8 GPU\), each on one node, and there is room for 0 .*up to 5 gpu"),
        (Slots(1, gpus=1, workers=21), r"needs 21 x \(1 CPU, 1 GPU\), .* room for 20"),
        (Slots(1, cpus=17), r"room for 0 .*take a smaller scale"),
    ],
)
def test_only_what_no_node_could_ever_run_is_refused(slots: Slots, words: str):
    with pytest.raises(Refused, match=words):
        check_cluster(slots, Offer((HEAD_NODE,), *kinds(CONFIG)))


def test_nothing_is_refused_while_nodes_of_unknown_size_may_join():
    config = yaml.safe_load(
        "{provider: {type: local}, max_workers: 2, head_node_type: local.cluster.node, available_node_types:"
        " {local.cluster.node: {node_config: {}, resources: {}, min_workers: 2, max_workers: 2}}}"
    )
    offer = Offer((HEAD_NODE,), *kinds(config))
    check_cluster(Slots(1, gpus=8), offer)
    assert jobs_at_once(Slots(1, gpus=8), offer) == 1
    with pytest.raises(Refused, match="room for 0"):
        check_cluster(Slots(1, gpus=8), Offer((HEAD_NODE, {"CPU": 4.0}, {"CPU": 4.0}), *kinds(config)))


def test_the_autoscalers_file_is_found_by_its_process(tmp_path: Path):
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    words = ["x/autoscaler/v2/monitor.py", "--gcs-address=10.9.8.7:1234", f"--autoscaling-config={file}"]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])
    try:
        assert autoscaling("10.9.8.7:1234") == CONFIG
        assert autoscaling("10.9.8.7:1235") is None  # another Ray's
    finally:
        process.kill()
        process.wait()


def test_what_is_promised_is_waited_for_and_said(monkeypatch: pytest.MonkeyPatch):
    offers = [Offer((HEAD_NODE,), *kinds(CONFIG)), Offer((HEAD_NODE, {"CPU": 8.0}), *kinds(CONFIG))]
    monkeypatch.setattr(joining, "offered", lambda: offers[0] if len(offers) == 1 else offers.pop(0))
    heard: list[str] = []
    joining.await_nodes(heard.append, seconds=30)
    assert heard == ["waiting for the cluster's nodes: 1 of 2 are there (at most 30 s)"]
    monkeypatch.setattr(joining, "offered", lambda: Offer((HEAD_NODE,), *kinds(CONFIG)))
    joining.await_nodes(heard.append, seconds=0)
    assert heard[-1] == "going on with 1 of 2 nodes; the others may still join"


# A cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head without CPUs and a node with two and a GPU by its own account; the address of its Ray."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        add(made, num_cpus=0, include_dashboard=False)
        add(made, num_cpus=2, num_gpus=1)
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def joined(cluster: str) -> str:
    """The same, and this process has joined it."""
    joining.join(cluster, Slots(1))
    return cluster


def test_a_sweep_joins_the_running_ray_and_counts_its_slots_there(cluster: str, tmp_path: Path):
    _, text = say(f"results={tmp_path}")  # cluster=auto, by what `ray start` leaves behind
    assert re.search(r"\b2 slots\b", text), text  # the head has no CPU, the node two
    (folder,) = (tmp_path / "sweeps").iterdir()
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"complete"} and len(rows) == 4
    assert not list(tmp_path.glob(".nodes-*"))


def test_a_job_that_no_node_could_run_is_refused_before_anything_is_written(cluster: str, tmp_path: Path):
    with pytest.raises(Refused, match=r"needs 1 x \(1 CPU, 2 GPU\).*nodes: 1 x \(0 CPU, 0 GPU\), 1 x \(2 CPU, 1 GPU\)"):
        say(f"results={tmp_path / 'results'}", "resources.gpus=2")
    assert not (tmp_path / "results").exists()


def test_every_node_tells_what_this_machine_tells_of_itself(joined: str, tmp_path: Path):
    found = gather(tmp_path, seconds=90, whole_files=True)
    ours = here(tmp_path)
    assert [node.resources.get("CPU", 0.0) for node in found] in ([0.0, 2.0], [2.0, 0.0])
    for node in found:  # on one machine: its own facts, seen through Ray
        assert node.silent is node.read_error is node.write_error is node.unseen is None
        assert (node.versions, node.file_system) == (ours.versions, ours.file_system)
        assert node.versions["python"] == sys.version.split()[0] and len(node.code) == 12
        assert abs(node.clock_seconds) <= max(node.clock_within, 0.05)
        disk = os.statvfs(tmp_path)
        assert node.files_late is not None and node.results_disk.total == disk.f_blocks * disk.f_frsize
    assert not list(tmp_path.iterdir())


def test_the_doctor_names_what_is_wrong_with_this_cluster(cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert doctor.main([*TINY, f"results={tmp_path}", "resources.gpus=1"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "2 nodes answered" in said and "renamed files arrive whole" in said
    assert re.search(r"fault token .* answers without one", said), said  # Cluster starts its raylets without
    assert re.search(r"has GPUs and torch \S+, which knows none|torch there finds 0", said), said
    assert re.search(r"ok resources scale=tiny: 1 x 1 GPUs per trial, 1 side by side", said), said


def test_a_node_with_a_folder_of_its_own_is_refused_with_its_name(joined: str, tmp_path: Path):
    """A third node in a mount namespace of its own, where something else lies over the results folder."""
    import ray

    results = tmp_path / "results"
    results.mkdir()
    ray_command = Path(sys.executable).parent / "ray"
    start = f"mount -t tmpfs none {results} && exec {ray_command} start --address={joined} --num-cpus=1 --block"
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(results)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs in a namespace of its own (root)")
    log = (tmp_path / "log").open("w")
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", start], stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while sum(one["Alive"] for one in ray.nodes()) < 3 and time.monotonic() < end:
            assert node.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        with pytest.raises(Refused) as refused:
            say(f"results={results}")
        third = next(one for one in ray.nodes() if one["Resources"].get("CPU") == 1.0)
        said = str(refused.value)
        assert f"node {third['NodeID'][:6]}) does not see what the driver wrote to {results}" in said
        assert "FileNotFoundError" in said and "mount one shared folder at this path on all nodes" in said
        assert said.count("does not see") == 1 and not list(results.iterdir())
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(60)


# What a node does, without one


def test_a_folder_that_is_read_only_or_another_one_is_told(tmp_path: Path):
    with trial_folder(tmp_path / "a" / "b") as (folder, secret):
        assert looking.try_folder(str(folder), "node", secret) == (None, None)
        assert (folder / "node").read_text() == secret
        read, written = looking.try_folder(str(folder), "node", "another")
        assert "holds something else" in read and written is None
        read, written = looking.try_folder(str(tmp_path / "none"), "node", secret)
        assert "FileNotFoundError" in read and "FileNotFoundError" in written
    assert not (tmp_path / "a").exists()  # what was made for the trial is gone
    with pytest.raises(OSError, match=r"cannot write to .*results=FOLDER"), trial_folder(Path("/proc/none")):
        pass


def test_the_fingerprint_of_the_code_follows_every_file(tmp_path: Path):
    def of(folder: Path) -> str:
        asked = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(Path.cwd())!r}]\n{CODE}"]
        return subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    CODE = Path(looking.__file__).read_text() + f"\nsys.path[:0] = [{str(tmp_path)!r}]; print(code())"
    files = [tmp_path / room / name for room in looking.ROOMS for name in ("__init__.py", "in/a.py", "in/deep/b.yaml")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    first, seen = of(tmp_path), set()
    for file in files:
        file.write_text("#")
        seen.add(of(tmp_path))
        file.write_text("")
    assert len(seen - {first}) == len(files) == 12 and {len(one) for one in seen} == {12}
    files[-1].rename(files[-1].with_name("c.yaml"))
    assert of(tmp_path) != first
    files[-1].with_name("c.yaml").rename(files[-1])
    assert of(tmp_path) == first
