"""Facts with one thing wrong each, and services that misbehave, against the finding that must name it; a whole check-up
of this machine. (A check-up of a cluster is in test_joining.)"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sweeps import doctor
from sweeps.engine.words import Refused
from sweeps.nodes import health, looking, services
from sweeps.nodes.gathering import Disk, NodeFacts, _arrived, here, trial_folder
from sweeps.nodes.health import Finding
from sweeps.nodes.joining import HEAD, NodeKind, Offer, Slots

GB = 10**9
CLONE = Path(__file__).resolve().parents[2]
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cu128", "numpy": "2.4.6", "anabranch": "0.1.0"}
WELL = NodeFacts(
    "gpu-1 (10.0.0.2, node 1a2b3c)",
    resources={"CPU": 16.0, "GPU": 2.0},
    versions=VERSIONS,
    code="0123456789ab",
    file_system="nfs4",
    results_disk=Disk(500 * GB, 1000 * GB),
    ray_disk=Disk(100 * GB, 200 * GB),
    shared_memory=Disk(32 * GB, 32 * GB),
    gpus_of_torch="2",
    clock_seconds=0.01,
    clock_within=0.002,
    files_late=0.02,
)
DRIVER = replace(WELL, name="head (10.0.0.1, node ffffff)", resources={HEAD: 1.0}, gpus_of_torch=None)
TINY = ["scale=tiny", "tracking=none", "cluster=local"]


def judged(node: NodeFacts, needed: float = 0.0) -> list[Finding]:
    nodes = [DRIVER, node]
    return [
        *health.answering(nodes),
        *health.software(nodes, DRIVER, gpus=True),
        *health.storage(nodes, "/shared/results"),
        *health.seen_gpus(nodes),
        *health.clocks(nodes),
        *health.disks(nodes, needed),
    ]


def test_nothing_is_wrong_with_nodes_that_are_well():
    findings = judged(replace(WELL, versions={**VERSIONS, "torch": "2.13.0+cu130"}))  # another build of it
    assert health.worst(findings) == "ok" and not any(finding.way_out for finding in findings)
    assert [finding.about for finding in findings] == ["nodes", "versions", "storage", "GPUs", "clocks", "disk"]
    health.before_a_sweep([DRIVER, WELL], DRIVER, "/shared/results", gpus=True)


WRONG = {
    "silent": (replace(WELL, silent="it did not answer in time"), "fault", "nodes", "it did not answer in time"),
    "another Ray": (
        replace(WELL, versions={**VERSIONS, "ray": "2.59.1", "numpy": "1.26.0"}),
        *("fault", "versions", "has ray 2.59.1 (driver: 2.60.0), numpy 1.26.0 (driver: 2.4.6)"),
    ),
    "no Anabranch": (
        replace(WELL, versions={**VERSIONS, "anabranch": "not installed"}),
        *("fault", "versions", "anabranch not installed (driver: 0.1.0)"),
    ),
    "other code": (replace(WELL, code="ba9876543210"), "fault", "versions", "code ba9876543210 (driver: 0123456789ab)"),
    "no CUDA": (
        replace(WELL, versions={**VERSIONS, "torch": "2.13.0+cpu"}),
        *("fault", "versions", "has GPUs and torch 2.13.0+cpu, which knows none"),
    ),
    "another folder": (
        replace(WELL, read_error="FileNotFoundError: x", write_error="FileNotFoundError: x"),
        *("fault", "storage", "does not see what the driver wrote to /shared/results: FileNotFoundError"),
    ),
    "read-only": (
        replace(WELL, write_error="OSError: [Errno 30] Read-only file system"),
        *("fault", "storage", "cannot write to /shared/results: OSError: [Errno 30] Read-only file system"),
    ),
    "one way": (
        replace(WELL, unseen="FileNotFoundError: y"),
        *("fault", "storage", "the driver does not see what gpu-1 (10.0.0.2, node 1a2b3c) wrote"),
    ),
    "torn": (
        replace(WELL, files_late=None, unseen="abc was visible under its name before it was whole (5 bytes)"),
        *("fault", "storage", "before it was whole"),
    ),
    "late": (replace(WELL, files_late=30.0), "warning", "storage", "reaches the driver 30.0 s later"),
    "a hidden GPU": (replace(WELL, gpus_of_torch="1"), "fault", "GPUs", "offers 2 GPUs to Ray, torch there finds 1"),
    "a wrong clock": (replace(WELL, clock_seconds=-7.5), "fault", "clocks", "is -7.5 s from the driver"),
    "no room": (replace(WELL, results_disk=Disk(GB, 9 * GB)), "fault", "disk", "1.0 GB free for the results, the plan"),
    "little room": (replace(WELL, results_disk=Disk(6 * GB, 9 * GB)), "warning", "disk", "6.0 GB free for the results"),
    "Ray's disk": (replace(WELL, ray_disk=Disk(GB, 100 * GB)), "fault", "disk", "1% free under Ray's folder"),
    "shared memory": (
        replace(WELL, shared_memory=Disk(64 << 20, 64 << 20)),
        "warning",
        "disk",
        "/dev/shm holds 0.1 GB",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_node_with_one_thing_wrong_is_named_with_the_way_out(case: str):
    node, level, about, words = WRONG[case]
    bad = [finding for finding in judged(node, needed=2 * GB) if finding.level != "ok"]
    assert [(finding.level, finding.about) for finding in bad] == [(level, about)], bad
    assert words in bad[0].found and node.name in bad[0].found and bad[0].way_out
    if about in ("nodes", "versions", "storage") and level == "fault":
        with pytest.raises(Refused, match=r"all of it: python -m sweeps\.doctor") as refused:
            health.before_a_sweep([DRIVER, node], DRIVER, "/shared/results", gpus=True)
        assert words in str(refused.value) and bad[0].way_out in str(refused.value)


def test_a_clock_that_cannot_be_read_well_enough_is_not_blamed():
    slow = replace(WELL, clock_seconds=3.0, clock_within=2.5)
    assert {finding.level for finding in health.clocks([slow])} == {"ok"}


def test_nodes_that_train_without_gpus_may_have_torch_without_cuda():
    node = replace(WELL, versions={**VERSIONS, "torch": "2.13.0+cpu"})
    assert health.worst(health.software([node], DRIVER, gpus=False)) == "ok"


def test_gpus_per_trial_against_what_nodes_have():
    offer = Offer(({HEAD: 1.0}, {"CPU": 16.0, "GPU": 2.0}))
    (good,) = health.resources(Slots(1, gpus=1), offer, "gpu")
    assert good.level == "ok" and "1 x 1 GPUs per trial, 2 side by side" in good.found
    (bad,) = health.resources(Slots(1, gpus=1, workers=8), offer, "paper")
    assert bad.level == "fault" and "room for 2" in bad.found and bad.way_out.startswith("take a smaller scale")


def test_workers_that_are_not_there_yet_are_said():
    kinds = (NodeKind("gpu", {"CPU": 8.0, "GPU": 1.0}, 2, 8),)
    (promised,) = health.missing(Offer(({HEAD: 1.0},), kinds, 8))
    assert promised.level == "warning" and "0 of 2 workers" in promised.found
    (unseen,) = health.missing(Offer(({HEAD: 1.0},), (replace(kinds[0], least=0),), 8))
    assert unseen.level == "warning" and "up to 8 gpu" in unseen.found
    assert not health.missing(Offer(({HEAD: 1.0}, {"CPU": 8.0}), (replace(kinds[0], least=1),), 8))


@contextlib.contextmanager
def server(answer: bytes, status: int = 200, host: str = "127.0.0.1") -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer if self.path == "/health" else b"no")

        def log_message(self, *words: object) -> None: ...

    with http.server.ThreadingHTTPServer((host, 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


def test_mlflow_servers_that_answer_and_that_do_not(tmp_path: Path):
    with server(b"OK") as port:
        (good,) = services.mlflow(f"http://me:secret@127.0.0.1:{port}", tmp_path)
    assert good.level == "ok" and "secret" not in good.found
    (gone,) = services.mlflow(f"http://127.0.0.1:{port}", tmp_path)
    assert (
        gone.level == "fault" and "does not answer" in gone.found and "python -m sweeps.mlflow_server" in gone.way_out
    )
    for answer, status, words in ((b"OK", 500, "status 500"), (b"<html>", 200, "no MLflow server: '<html>'")):
        with server(answer, status) as port:
            (bad,) = services.mlflow(f"http://127.0.0.1:{port}/", tmp_path)
        assert bad.level == "fault" and words in bad.found


def test_mlflow_databases_that_can_be_read_and_that_cannot(tmp_path: Path):
    file = tmp_path / "mlflow.db"
    (coming,) = services.mlflow(None, tmp_path)
    assert coming.level == "ok" and str(file) in coming.found and not file.exists()
    file.write_bytes(b"no database" * 100)
    (bad,) = services.mlflow(f"sqlite:///{file}", tmp_path)
    assert bad.level == "fault" and "cannot be read" in bad.found
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("create table alembic_version (version_num text)")
    (good,) = services.mlflow(None, tmp_path)
    assert good.level == "ok" and "can be read" in good.found
    assert services.mlflow("none", tmp_path)[0].found == "tracking=none: no mirror"
    assert services.mlflow("databricks", tmp_path)[0].level == "warning"


def test_a_service_that_answers_beyond_the_loopback_is_a_fault():
    beyond = [one for one in doctor.own_addresses() if not one.startswith("127.")]
    if not beyond:
        pytest.skip("this machine has no address but the loopback")
    with server(b"OK") as port:
        (good,) = services.loopback_only("dashboard", f"127.0.0.1:{port}", doctor.own_addresses())
    with server(b"OK", host="0.0.0.0") as port:
        (bad,) = services.loopback_only("dashboard", f"http://127.0.0.1:{port}", doctor.own_addresses())
    assert good.level == "ok"
    assert bad.level == "fault" and f"answers at {beyond[0]}:{port}" in bad.found and "127.0.0.1" in bad.way_out
    assert not services.loopback_only("dashboard", None, beyond)


def test_a_ray_that_asks_for_its_token_is_told_from_what_is_no_ray(tmp_path: Path):
    code = (
        "import ray; print(ray.init(address='local', num_cpus=1, include_dashboard=False).address_info['gcs_address'])"
    )
    words = [sys.executable, "-c", f"{code}; import sys; sys.stdout.flush(); sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    with subprocess.Popen(words, env={**environment, "HOME": str(tmp_path)}, text=True, **pipes) as ray:
        try:
            address = ray.stdout.readline().strip()
            (good,) = services.token(address)
        finally:
            ray.communicate("")
    assert good.level == "ok" and f"{address} refuses whoever comes without one" in good.found
    (gone,) = services.token(address)
    assert gone.level == "warning" and "is not known" in gone.found


def own_raylets() -> set[int]:
    """Those that this process has started."""
    raylets = {one.pid for one in psutil.process_iter(["name"]) if "raylet" in (one.info["name"] or "")}
    return raylets & {one.pid for one in psutil.Process().children(recursive=True)}


def with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with room on its disk and in its shared memory."""
    monkeypatch.setattr(looking, "room", lambda path: {"free": 500 * GB, "total": 1000 * GB})


def test_this_machine_is_checked_without_a_ray(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    before = own_raylets()
    with_room(monkeypatch)
    monkeypatch.chdir(tmp_path)
    script = str(CLONE / "sweeps" / "wsd_budget.py")
    assert doctor.main([script, *TINY, f"results={tmp_path / 'results'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("none runs here that a sweep would join", "python " + sys.version.split()[0], "1 node", "no mirror"):
        assert words in said
    assert "0 faults" not in said and "fault" not in said
    assert not own_raylets() - before and not (tmp_path / "results").exists()


def test_faults_make_the_exit_status_one_and_words_that_mean_nothing_two(tmp_path: Path, monkeypatch, capsys):
    with_room(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text("cluster_name: x")
    assert doctor.main([*TINY, f"results={tmp_path / 'results'}", "resources.gpus=64"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "needs 1 x (1 CPU, 64 GPU)" in said and re.search(r"\bwarning file cluster\.yaml: ", said), said
    assert doctor.main(["sweeps/nothing.py"]) == 2 and "wsd_budget" in capsys.readouterr().err
    assert doctor.main(["scal=tiny"]) == 2 and "no word 'scal'" in capsys.readouterr().err
    assert doctor.main(["--help"]) == 0 and "python -m sweeps.doctor" in capsys.readouterr().out
    assert doctor.main([*TINY[:2], "cluster=127.0.0.1:1", f"results={tmp_path / 'results'}"]) == 1
    assert "nobody answers at 127.0.0.1:1" in " ".join(capsys.readouterr().out.split())


def test_facts_of_this_machine_agree_with_another_way_of_asking(tmp_path: Path):
    facts = here(tmp_path)
    usage = psutil.disk_usage(str(tmp_path))
    assert facts.results_disk is not None and facts.results_disk.total == pytest.approx(usage.total, rel=0.2)
    mounts = {one.mountpoint: one.fstype for one in psutil.disk_partitions(all=True)}
    inside = [mount for mount in mounts if os.path.commonpath([mount, os.path.realpath(tmp_path)]) == mount]
    assert facts.file_system == mounts[max(inside, key=len)]


def test_results_that_cannot_be_written_are_a_finding(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    """/proc takes no folders, also from root."""
    monkeypatch.chdir(tmp_path)
    assert doctor.main([*TINY, "results=/proc/nothing"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "fault storage cannot write to /proc/nothing: [Errno 2]" in said and "results=FOLDER" in said


def test_what_fails_beside_the_results_folder_is_not_said_to_be_that(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="elsewhere") as raised, trial_folder(tmp_path / "results"):
        raise FileNotFoundError("elsewhere")
    assert "cannot write" not in str(raised.value) and not (tmp_path / "results").exists()


def test_a_file_of_a_node_that_cannot_be_read_is_told(tmp_path: Path):
    """Its name is here and its content is not: a folder stands for what another machine's disk would not give."""
    (tmp_path / ("0" * 64)).mkdir()
    assert "IsADirectoryError" in str(_arrived(tmp_path, {}))
    content = b"whole"
    name = hashlib.sha256(content).hexdigest()
    (tmp_path / ("0" * 64)).rmdir()
    (tmp_path / name).write_bytes(content)
    seen: dict[str, float] = {}
    assert _arrived(tmp_path, seen) is None and list(seen) == [name]


def test_of_a_service_elsewhere_nothing_is_said_from_here():
    """A free port here, whatever listens at the same number there; and a name that nobody knows."""
    with server(b"OK") as port:
        pass
    own = doctor.own_addresses()
    for host in ("192.0.2.1", "nowhere.invalid", "[2001:db8::1]"):  # set aside for documents: no machine has them
        assert services.loopback_only("MLflow", f"http://{host}:{port}", own) == []
    assert services.loopback_only("MLflow", f"http://127.0.0.1:{port}", own) == []  # nothing answers: said elsewhere
    with server(b"OK") as port:
        (good,) = services.loopback_only("MLflow", f"http://localhost:{port}", own)
    assert good.level == "ok"


@pytest.mark.parametrize("uri", ["http://me:secret@host:x", "http://host:99999", "http://[::1", "http://host:0"])
def test_an_address_that_is_none_is_a_finding(tmp_path: Path, uri: str):
    (bad,) = services.mlflow(uri, tmp_path)
    assert bad.level == "fault" and "http://HOST:PORT" in bad.found and "secret" not in str(bad)
    assert services.loopback_only("MLflow", uri, doctor.own_addresses()) == []


def test_what_answers_and_speaks_no_http_is_no_mlflow_server(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            asked, _ = other.accept()
            with asked:
                asked.recv(1000)
                asked.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        (bad,) = services.mlflow(f"http://127.0.0.1:{other.getsockname()[1]}", tmp_path)
    assert bad.level == "fault" and "no MLflow server" in bad.found
