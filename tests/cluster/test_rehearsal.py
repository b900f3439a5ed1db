"""The rehearsal of a cluster, where this machine can make its namespaces: a whole `ray up` to `ray down` against the
records that come home; and everywhere that it refuses to run where Rays of others are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest
import yaml

from tests.cluster import machines
from tests.cluster.machines import ROOT, namespaces
from tests.cluster.rehearsal import main, rehearsed

START = [sys.executable, "-m", "tests.cluster.rehearsal"]


@pytest.mark.timeout(1800)  # two minutes on a quiet machine
def test_a_cluster_comes_up_sweeps_on_both_nodes_and_goes():
    if lacking := machines.missing():
        warnings.warn("the rehearsal of a cluster was skipped; missing: " + "; ".join(lacking))
        pytest.skip("the rehearsal of a cluster cannot run here; missing: " + "; ".join(lacking))
    done = subprocess.run(START, cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    found = json.loads(done.stdout.splitlines()[-1].split(": ", 1)[1])
    assert set(found["stages"]) == {"head", "worker"} and min(found["stages"].values()) >= 1


def test_it_refuses_to_run_among_others():
    """Told that it is inside, in the namespaces that it was started from: nothing may be touched."""
    here = [f"{name}={value}" for name, value in namespaces().items()]
    for words in (here, []):
        done = subprocess.run([*START, "--inside", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "refused: this is no place of its own (shared namespaces: pid, net, mnt;" in done.stderr


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("/x/ray/core/src/ray/raylet/raylet --session=1", True),
        ("/x/ray/core/src/ray/gcs/gcs_server --session=1", True),
        ("python something.py", False),
    ],
)
def test_it_refuses_to_run_where_a_ray_is_in_sight(monkeypatch: pytest.MonkeyPatch, line: str, refused: bool):
    """In namespaces of its own, as the first process there: one Ray that can be seen is one too many."""
    monkeypatch.setattr(machines, "processes", lambda: {1: "python", 7: line})
    monkeypatch.setattr(machines, "namespaces", lambda: dict.fromkeys(machines.SHARED_NAMESPACES, "own"))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    outside = [f"{name}=another" for name in machines.SHARED_NAMESPACES]
    if refused:
        with pytest.raises(SystemExit, match=r"shared namespaces: none; process 1; Rays in sight: 1\)"):
            machines.refuse_to_touch_others(outside)
    else:
        machines.refuse_to_touch_others(outside)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machines, "tool", lambda name: None if name == "sshd" else f"/usr/bin/{name}")
    assert main([]) == 2
    assert "missing: `sshd` (apt install openssh-server); root" in capsys.readouterr().err


def test_the_rehearsed_file_is_the_users_but_for_what_one_machine_cannot_have():
    file = ROOT / "cluster.local.yaml"
    user, ours = yaml.safe_load(file.read_text()), rehearsed(file)
    changed = {key for key in user | ours if user.get(key) != ours.get(key)}
    assert changed == {"provider", "auth", "setup_commands", "head_setup_commands", "worker_setup_commands"}
    assert [line for line in user["setup_commands"] if line not in ours["setup_commands"]] == [
        "~/venv/bin/pip install -q -c ~/anabranch/constraints.txt -e ~/anabranch"
    ]
    assert len(ours["setup_commands"]) == len(user["setup_commands"])
