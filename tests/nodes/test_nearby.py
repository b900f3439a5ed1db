"""What `ray up` and `ray start` leave behind, written as Ray writes it, against the line that a person must read."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweeps.engine.words import Words
from sweeps.nodes import nearby
from sweeps.nodes.ground import cluster_elsewhere
from sweeps.nodes.nearby import ray_address, running_ray, seen_cluster, submit

CLONE = Path(__file__).resolve().parents[2]
AWS = {"cluster_name": "anabranch", "provider": {"type": "aws", "region": "us-west-2"}}
OWN = {"cluster_name": "ours", "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}}


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: Ray's folder, the temporary folder and the working directory in one."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(nearby.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ray").mkdir()
    return tmp_path


def test_a_running_ray_is_found_while_something_answers(laptop: Path):
    assert running_ray() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (laptop / "ray" / "ray_current_cluster").write_text(address)
        assert running_ray() == address
        assert ray_address(Words()) == address
        assert ray_address(Words(cluster="local")) is ray_address(Words(executor="local")) is None
        assert ray_address(Words(cluster="10.0.0.9:6379")) == "10.0.0.9:6379"
    heard: list[str] = []
    assert running_ray(heard.append) is None
    assert heard == [f"a Ray was started here, but nobody answers at {address} any more; `ray stop` takes note of that"]


def test_the_environment_says_which_ray(laptop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert running_ray() == "10.0.0.1:6379"


def test_a_cluster_in_a_cloud_is_said_to_have_been_started_and_no_more(laptop: Path):
    (laptop / "cluster.yaml").write_text(yaml.safe_dump(AWS))
    assert seen_cluster() is None and cluster_elsewhere(Words(), []) is None
    cache = {"_version": 1, "config": {**AWS, "provider": {**AWS["provider"], "_config_cache_path": "x"}}}
    (laptop / "ray-config-0123").write_text(json.dumps(cache))
    line = cluster_elsewhere(Words(), ["scale=gpu"])
    assert line is not None and "`ray up cluster.yaml` ran here on 20" in line
    assert "whether its cluster anabranch is still up is not known; to run this there: ray submit cluster.yaml " in line
    assert line.endswith("scale=gpu")
    for elsewhere in (Words(executor="local"), Words(cluster="local"), Words(cluster="10.0.0.1:6379")):
        assert cluster_elsewhere(elsewhere, []) is None


@pytest.mark.parametrize(
    "content",
    [
        {"config": {**AWS, "cluster_name": "another"}},
        {"config": {**AWS, "provider": {"type": "aws", "region": "eu-north-1"}}},
        {"config": None},
        ["no mapping"],
    ],
)
def test_what_another_cluster_or_another_program_left_says_nothing(laptop: Path, content: object):
    (laptop / "cluster.yaml").write_text(yaml.safe_dump(AWS))
    (laptop / "ray-config-0123").write_text(json.dumps(content))
    (laptop / "ray-config-4567").write_text("no JSON")
    assert seen_cluster() is None


def test_own_machines_are_up_as_long_as_ray_has_them_down_as_running(laptop: Path):
    (laptop / "cluster.local.yaml").write_text(yaml.safe_dump(OWN))
    state = {ip: {"tags": {}, "state": "running"} for ip in ("10.0.0.1", "10.0.0.2")}
    (laptop / "ray" / "cluster-ours.state").write_text(json.dumps(state))
    line = cluster_elsewhere(Words(), [])
    assert line is not None
    assert line.startswith("a cluster is up: ours of cluster.local.yaml, started on 10.0.0.1, 10.0.0.2; to run this")
    state["10.0.0.1"]["state"] = "terminated"  # what `ray down` writes
    (laptop / "ray" / "cluster-ours.state").write_text(json.dumps(state))
    assert cluster_elsewhere(Words(), []) is None


def test_rays_own_provider_writes_the_state_that_is_read(laptop: Path):
    from ray.autoscaler._private.local.node_provider import LocalNodeProvider

    (laptop / "cluster.local.yaml").write_text(yaml.safe_dump(OWN))
    provider = LocalNodeProvider(OWN["provider"], "ours")
    assert seen_cluster() is None
    provider.create_node({}, {"ray-node-type": "head"}, 1)
    found = seen_cluster()
    assert found is not None and found.running == ("10.0.0.1",)
    provider.terminate_node("10.0.0.1")
    assert seen_cluster() is None


def test_the_submit_line_survives_the_two_shells_that_read_it():
    words = ["scale=gpu", "space.budget_steps=[20,40]", "+space.width={low: 16, high: 64}", "study.corpus=a b's"]
    here = shlex.split(submit("cluster.yaml", "sweeps/wsd_budget.py", words))
    assert here[:4] == ["ray", "submit", "cluster.yaml", "sweeps/wsd_budget.py"]
    there = subprocess.run(["bash", "-c", "printf '%s\\n' " + " ".join(here[4:])], capture_output=True, text=True)
    assert there.stdout.splitlines() == words


@pytest.mark.parametrize("half", ["provider: {type: aws", "provider: aws", "\x00", "cluster_name: [", "a: b: c"])
def test_a_cluster_file_that_is_being_edited_is_passed_over(laptop: Path, half: str):
    """The other file is still looked at; the doctor is the one that says what is wrong with this one."""
    (laptop / "cluster.yaml").write_text(half)
    assert seen_cluster() is None and cluster_elsewhere(Words(), []) is None
    (laptop / "cluster.local.yaml").write_text(yaml.safe_dump(OWN))
    (laptop / "ray" / "cluster-ours.state").write_text(json.dumps({"10.0.0.1": {"tags": {}, "state": "running"}}))
    found = seen_cluster()
    assert found is not None and found.file == "cluster.local.yaml"


def test_a_ray_in_a_folder_of_its_own_is_found_by_the_word_that_the_doctor_gives(tmp_path: Path):
    """Ray itself writes where it runs, with RAY_TMPDIR set as the doctor's way out says."""
    from sweeps.nodes import health
    from sweeps.nodes.gathering import Disk, NodeFacts

    full = NodeFacts("here", ray_disk=Disk(1, 100))
    (way,) = [finding.way_out for finding in health.disks([full]) if "Ray" in finding.found]
    variable = way.split(", or ")[1].split("=")[0]
    code = (
        "import sys; from ray._common.utils import get_default_ray_temp_dir as place; "
        "from sweeps.nodes.nearby import ray_folder; print(place()); print(ray_folder())"
    )
    environment = {**os.environ, variable: str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=CLONE)
    theirs, ours = done.stdout.split()
    assert theirs == ours == str(tmp_path / "ray"), done.stderr
