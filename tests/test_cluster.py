"""The shipped cluster files, and copies with one thing wrong each, against Ray's check and ours; MLflow's server of a
folder against requests, the processes that are there and the file that stands for Ray."""

from __future__ import annotations

import copy
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sweeps import mlflow_server
from sweeps.cluster import CloudCluster, exports, fits, main, scales, validate
from sweeps.engine.tracking import database

ROOT = Path(__file__).parent.parent
AWS, OWN = ROOT / "cluster.yaml", ROOT / "cluster.local.yaml"
IMAGE = "ami-0123456789abcdef0"


def content_of(file: Path) -> dict[str, Any]:
    """A shipped file with its one blank, the image of AWS, filled in."""
    return yaml.safe_load(file.read_text().replace("ami-REPLACE-ME", IMAGE))


def written(folder: Path, content: dict[str, Any]) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_shipped_file_for_aws_is_in_order_but_for_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(AWS)]) == 1
    assert "got ami-REPLACE-ME; put that of an Ubuntu 22.04" in capsys.readouterr().err
    file = written(tmp_path, content_of(AWS))
    cluster = validate(file)
    assert isinstance(cluster, CloudCluster)
    assert {kind.node_config["ImageId"] for kind in cluster.available_node_types.values()} == {IMAGE}
    assert cluster.available_node_types["head"].resources == {"CPU": 0}
    assert cluster.available_node_types["gpu"].node_config["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert main([str(file)]) == 0
    said = capsys.readouterr().out
    assert "in order: anabranch, a head and at most 8 workers" in said and "scale=gpu: up to 8 at a time" in said


def test_the_shipped_file_for_own_machines_is_in_order(capsys: pytest.CaptureFixture[str]):
    assert main([str(OWN)]) == 0
    assert "in order: anabranch-own, a head and 2 workers" in capsys.readouterr().out


def test_both_files_do_the_same_on_their_nodes():
    aws, own = content_of(AWS), content_of(OWN)
    assert (
        aws["file_mounts"] == own["file_mounts"]
        and aws["worker_start_ray_commands"] == own["worker_start_ray_commands"][:-1]  # AWS takes the node itself away
    )
    first_boot = ("apt-get", "cloud-init")  # own machines have Python
    assert [line for line in aws["setup_commands"] if not any(one in line for one in first_boot)] == own[
        "setup_commands"
    ]
    without = [line.replace("RAY_enable_autoscaler_v2=0 ", "") for line in own["head_start_ray_commands"]]
    assert without == aws["head_start_ray_commands"]


@pytest.mark.parametrize("file", [AWS, OWN], ids=["aws", "own"])
def test_what_the_file_mounts_is_there(file: Path):
    for source in content_of(file)["file_mounts"].values():
        assert source == "~/.ray/auth_token" or (ROOT / source).exists()


def test_the_results_folder_is_shared_with_the_workers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    folder, *clients = exports(OWN).split()
    assert folder == "/home/me/anabranch/results"
    assert [client.split("(")[0] for client in clients] == ["192.168.1.11", "192.168.1.12"]
    assert all(f"all_squash,anonuid={os.getuid()}," in client for client in clients)


def types(content: dict[str, Any]) -> dict[str, Any]:
    return content["available_node_types"]


def gpu(content: dict[str, Any]) -> dict[str, Any]:
    return types(content)["gpu"]


def replace(place: str, old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    """Every `old` in the commands at `place` becomes `new`; a line that is then empty goes."""

    def spoil(content: dict[str, Any]) -> None:
        before = content[place]
        content[place] = [line for line in (one.replace(old, new) for one in before) if line]
        assert content[place] != before

    return spoil


HEAD, WORKER, SETUP = "head_start_ray_commands", "worker_start_ray_commands", "setup_commands"
ANY_FILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no name": (lambda c: c.pop("cluster_name"), "cluster_name: Field required"),
    "no token": (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "auth_token"),
    "an open head": (replace(HEAD, "RAY_AUTH_MODE=token ", ""), "RAY_AUTH_MODE=token"),
    "an open worker": (replace(WORKER, "RAY_AUTH_MODE=token ", ""), "RAY_AUTH_MODE=token"),
    "an open dashboard": (replace(HEAD, "=127.0.0.1", "=0.0.0.0"), "--dashboard-host=127.0.0.1"),
    "no autoscaler": (replace(HEAD, " --autoscaling-config=~/ray_bootstrap_config.yaml", ""), "no worker ever comes"),
    "no start": (replace(WORKER, "ray start", "ray stop"), "every `ray start`"),
    "another Ray": (lambda c: c[SETUP].append("pip install 'ray[default]==2.40.0'"), "got 2.40.0"),
    "any Ray": (replace(SETUP, "-c ~/anabranch/constraints.txt", ""), "pin Ray"),
    "no results": (replace(SETUP, "ANABRANCH_RESULTS", "RESULTS"), "absolute folder that all nodes share, got None"),
    "results in a bucket": (
        replace(SETUP, "RESULTS=~/anabranch/results", "RESULTS=s3://mine"),
        "got s3://mine; object",
    ),
    "results anywhere": (replace(SETUP, "RESULTS=~/anabranch/results", "RESULTS=results"), "got results;"),
    "no shared results": (replace(WORKER, "mountpoint -q", "true"), "has `mountpoint -q ~/anabranch/results` before"),
    "another shared folder": (replace(WORKER, "anabranch/results", "other"), "has `mountpoint -q ~/anabranch/results`"),
    "shared too late": (lambda c: c[WORKER].sort(key=lambda line: "ray start" not in line), "before `ray start`"),
    "no MLflow": (replace(HEAD, "sweeps.mlflow_server", "this"), "starts the MLflow server"),
    "an open MLflow": (
        replace(HEAD, "python -m sweeps.mlflow_server", "mlflow server --host 0.0.0.0"),
        "--host 127.0.0.1",
    ),
    "MLflow elsewhere": (
        replace(SETUP, "http://127.0.0.1:5000", "http://tracking.example"),
        "got http://tracking.example",
    ),
    "a key that Ray does not know": (lambda c: c.update(max_wrokers=3), "Ray refuses it"),
}
AWS_ALONE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a negative count": (lambda c: gpu(c).update(max_workers=-1), "greater than or equal to 0"),
    "a count in words": (lambda c: c.update(max_workers="8"), "max_workers: Input should be a valid integer"),
    "no time-out": (lambda c: c.pop("idle_timeout_minutes"), "idle_timeout_minutes: Field required"),
    "swapped counts": (lambda c: gpu(c).update(min_workers=9), "min_workers <= max_workers, got 9 > 8"),
    "more at least than at most": (lambda c: (c.update(max_workers=3), gpu(c).update(min_workers=4)), "got 4 > 3"),
    "no such head": (lambda c: c.update(head_node_type="haed"), "got haed"),
    "no worker": (lambda c: [kind.update(max_workers=0) for kind in types(c).values()], "CPU >= 1 or GPU >= 1"),
    "fewer than no GPU": (lambda c: gpu(c)["resources"].update(GPU=-1), "counts of 0 or more"),
    "no image": (lambda c: gpu(c)["node_config"].pop("ImageId"), "every node type has an ImageId"),
    "no provider type": (lambda c: c.update(provider={"region": "us-west-2"}), "Ray refuses it"),
}
OWN_ALONE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no head": (lambda c: c["provider"].pop("head_ip"), "provider has head_ip"),
    "no list": (lambda c: c["provider"].update(worker_ips="192.168.1.11"), "a list worker_ips"),
    "one machine twice": (lambda c: c["provider"]["worker_ips"].append("192.168.1.10"), "different machines"),
    "an autoscaler that waits": (replace(HEAD, "RAY_enable_autoscaler_v2=0 ", ""), "never starts own machines"),
    "node types": (lambda c: c.update(available_node_types={"gpu": {"node_config": {}}}), "Ray refuses it"),
}
WRONG = [
    *((AWS, name, *case) for name, case in (ANY_FILE | AWS_ALONE).items()),
    *((OWN, name, *case) for name, case in (ANY_FILE | OWN_ALONE).items()),
]


@pytest.mark.parametrize(
    ("shipped", "name", "spoil", "words"), WRONG, ids=[f"{case[0].stem}: {case[1]}" for case in WRONG]
)
def test_a_file_with_one_thing_wrong_is_refused(
    tmp_path: Path, shipped: Path, name: str, spoil: Any, words: str, capsys: pytest.CaptureFixture[str]
):
    content = copy.deepcopy(content_of(shipped))
    spoil(content)
    file = written(tmp_path, content)
    assert main([str(file)]) == 1, name
    said = capsys.readouterr().err
    assert words in said and str(file) in said


def test_jobs_at_a_time_are_counted_over_the_nodes_that_may_come(tmp_path: Path):
    content = content_of(AWS)

    def fit(scale: str) -> tuple[int, str]:
        cluster = validate(written(tmp_path, content))
        assert isinstance(cluster, CloudCluster)
        return fits(cluster, scale)

    def jobs(*names: str) -> list[int]:
        return [fit(name)[0] for name in names]

    assert set(scales()) == {"tiny", "laptop", "gpu", "paper"}
    cpus = 2 * 16  # of `cpu` nodes: for jobs without a GPU no GPU node is started
    assert jobs("laptop", "gpu", "paper") == [cpus, 8, 1]
    assert "no node has all workers of a job" in fit("paper")[1]
    content["max_workers"] = 3
    assert jobs("laptop", "gpu", "paper") == [cpus, 3, 0]
    types(content)["gpu8"]["max_workers"] = 1
    assert jobs("laptop", "gpu", "paper") == [cpus, 8 + 2, 1]
    assert "network" not in fit("paper")[1]
    gpu(content)["max_workers"] = types(content)["gpu8"]["max_workers"] = 0
    assert jobs("laptop", "gpu", "paper") == [cpus, 0, 0]
    assert "scale=gpu: no, a job needs 1 GPU; raise max_workers" in fit("gpu")[1]


def test_what_is_no_file_or_no_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "none.yaml")]) == 1
    for text in ("a: [", "just words"):
        (tmp_path / "bad.yaml").write_text(text)
        assert main([str(tmp_path / "bad.yaml")]) == 1
    assert "is not YAML" in capsys.readouterr().err


def keepers(results: Path) -> list[psutil.Process]:
    """The processes of a folder's server: its keeper, MLflow's command and what serves."""
    named = [process for process in psutil.process_iter(["cmdline"]) if str(results) in (process.info["cmdline"] or ())]
    return [one for process in named for one in (process, *process.children(recursive=True))]


def wait_for(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)
    return holds()


@pytest.mark.timeout(600)
def test_one_mlflow_server_per_folder_that_goes_when_ray_has_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    results, ray = tmp_path / "results", tmp_path / "ray_current_cluster"
    ray.touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(results), "--port", str(port), "--ray", str(ray), "--grace", "1"]
    try:
        assert mlflow_server.main(words) == 0
        assert mlflow_server.answers(port)
        assert Path(database(results).removeprefix("sqlite:///")).exists()
        listening = {c.laddr.ip for one in keepers(results) for c in one.net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        before = {process.pid for process in keepers(results)}
        assert mlflow_server.main(words) == 0
        assert {process.pid for process in keepers(results)} == before
        assert mlflow_server.main([str(tmp_path / "other"), "--port", str(port)]) == 1
        assert f"port {port} is taken by another server" in capfd.readouterr().err
        ray.unlink()
        assert wait_for(lambda: not mlflow_server.answers(port), 60)
        assert wait_for(lambda: not keepers(results), 60)
    finally:
        for process in keepers(results):
            process.send_signal(signal.SIGKILL)


def test_the_files_name_no_tool_that_is_not_there():
    for file in (AWS, OWN):
        for module in re.findall(r"python -m (sweeps\.\w+)", file.read_text()):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_the_server_of_a_keeper_that_was_killed_gives_way_and_another_ones_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In place of MLflow, processes with its command line and with one that differs in the folder alone."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    script = tmp_path / "sleeper.py"
    script.write_text("import time; time.sleep(600)")

    def said(results: Path, port: int) -> list[str]:
        return [sys.executable, str(script), *command(results, port)[1:]]

    command = mlflow_server.command
    monkeypatch.setattr(mlflow_server, "command", said)
    running = {
        place: subprocess.Popen(said(place, port), start_new_session=True)
        for place, port in ((mine, 5000), (other, 5000), (mine / "x", 5000))
    }
    try:
        assert wait_for(lambda: all(str(script) in psutil.Process(p.pid).cmdline() for p in running.values()), 60)
        mlflow_server.end_orphans(mine, 5000)
        assert running[mine].poll() is not None
        assert running[other].poll() is running[mine / "x"].poll() is None
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def test_one_who_comes_while_a_keeper_leaves_waits_and_starts_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A keeper that has seen Ray go still holds its folder, and its server answers a while longer."""
    answering, started = [True], []

    class Keeper:
        def __init__(self, words: list[str], **more: object):
            started.append(words)
            answering[0] = True

        def poll(self) -> None:
            return None

    monkeypatch.setattr(mlflow_server, "answers", lambda port: answering[0])
    monkeypatch.setattr(mlflow_server, "end_orphans", lambda results, port: None)
    monkeypatch.setattr(mlflow_server.subprocess, "Popen", Keeper)
    there = threading.Event()

    def leave() -> None:
        with mlflow_server.keeping(tmp_path):
            there.set()
            time.sleep(1)
            answering[0] = False

    with ThreadPoolExecutor() as pool:
        leaving = pool.submit(leave)
        assert there.wait(60)
        assert mlflow_server.serve(tmp_path, 5999, tmp_path / "ray_current_cluster", 1) == 0
        leaving.result(60)
    assert len(started) == 1 and "--keep" in started[0]
    with mlflow_server.keeping(tmp_path), mlflow_server.serving(tmp_path):  # one that stays is left alone
        assert mlflow_server.serve(tmp_path, 5999, tmp_path / "ray_current_cluster", 1) == 0
    assert len(started) == 1


def test_ray_is_looked_for_where_it_keeps_its_files(tmp_path: Path):
    code = "from sweeps import mlflow_server; print(mlflow_server.RAY)"
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "ray" / "ray_current_cluster"), done.stderr


# The shell lines, run in a folder where programs stand in for a machine's own

APT = """#!/bin/bash
echo "$*" >> "$HOME/apt"
case "$*" in
  *update*) [ $(grep -c update "$HOME/apt") -ge 3 ] && touch "$HOME/lists" ;;  # another update holds the lock at first
  *install*) [ -f "$HOME/lists" ] && touch "$HOME/installed" ;;
esac
"""
PYTHON = """#!/bin/bash
case "$*" in
  "-c import ensurepip") [ -f "$HOME/installed" ] ;;
  "-m venv "*) mkdir -p "$3/bin" && touch "$3/bin/python" && chmod +x "$3/bin/python" && [ -f "$HOME/installed" ] &&
    touch "$3/bin/pip" && chmod +x "$3/bin/pip" ;;
esac
"""
SUDO, QUIET = '#!/bin/bash\nexec "$@"\n', "#!/bin/bash\n"
COMMANDS = ("setup_commands", "head_setup_commands", "worker_setup_commands")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], int]:
    """Runs one command on a machine whose apt-get works from its third update on; its exit status."""
    programs = {"sudo": SUDO, "apt-get": APT, "python3.11": PYTHON, "sleep": QUIET, "add-apt-repository": QUIET}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    return lambda line: subprocess.run(["bash", "-c", line], env=environment, cwd=tmp_path, timeout=60).returncode


def lines_with(file: Path, words: str) -> list[str]:
    found = [line for place in COMMANDS for line in content_of(file)[place] if words in line]
    assert found
    return found


@pytest.mark.parametrize("file", [AWS, OWN], ids=["aws", "own"])
def test_bash_can_read_every_command(file: Path):
    content = content_of(file)
    for place in (*COMMANDS, HEAD, WORKER):
        for line in content[place]:
            read = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
            assert read.returncode == 0 and not read.stderr, f"{line}\n{read.stderr}"


@pytest.mark.parametrize("file", [AWS, OWN], ids=["aws", "own"])
def test_a_package_is_installed_once_apt_has_its_lists(file: Path, machine: Any, tmp_path: Path):
    """An update that meets another one fails, and an install without lists fails."""
    for line in lines_with(file, "apt-get"):
        for name in ("apt", "lists", "installed"):
            (tmp_path / name).unlink(missing_ok=True)
        assert machine(re.sub("test -x /\\S+", "false", line)) == 0, line
        asked = (tmp_path / "apt").read_text().splitlines()
        assert [("update" in one, "install" in one) for one in asked] == [(True, False)] * 3 + [(False, True)]
        assert "DPkg::Lock::Timeout=300" in asked[-1]


def test_a_machine_whose_python_has_no_pip_gets_both(machine: Any, tmp_path: Path):
    """Python 3.11 is there without its venv package, and an earlier `ray up` has left a folder without pip."""
    (make,) = lines_with(AWS, "-m venv")
    assert lines_with(OWN, "-m venv") == [make]
    assert machine(make) != 0 and (tmp_path / "venv" / "bin" / "python").exists()
    assert machine(make) != 0  # again: it still has no pip, and `ray up` says so
    (install,) = lines_with(AWS, "ensurepip")
    assert machine(install) == 0 and machine(make) == 0 and (tmp_path / "venv" / "bin" / "pip").exists()
    before = (tmp_path / "apt").read_text()
    assert machine(install) == machine(make) == 0 and (tmp_path / "apt").read_text() == before
