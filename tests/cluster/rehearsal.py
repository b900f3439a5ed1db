"""`make cluster-test`: `ray up`, a sweep over two nodes, `ray submit`, `ray down`, with no cloud and in minutes.

The cluster file is made from cluster.local.yaml; `rehearsed` lists what one machine without a network cannot have.
It runs in namespaces of its own (machines.py) and refuses to run where it could touch another Ray.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import analysis
from sweeps.cluster import validate
from tests.cluster import machines
from tests.cluster.machines import ADDRESSES, KEY, PLACE, ROOT

CLUSTER = PLACE / "cluster.yaml"
SWEEP = "sweeps/wsd_budget.py"
# Longer than scale=tiny alone: the head's processes start first and would have done all before the worker's are there.
WORDS = ("scale=tiny", "space.budget_steps=[1000,2000]", "study.measure_every=200")
NODES = "import ray; ray.init('auto', log_to_driver=False); print('ALIVE', sum(n['Alive'] for n in ray.nodes()))"
MLFLOW = (
    "import mlflow; mlflow.set_tracking_uri('http://127.0.0.1:5000'); "
    "print('RUNS', len(mlflow.search_runs(search_all_experiments=True)))"
)
LEAVING_SECONDS = 180.0  # a worker's Ray notices within a minute that the head's has gone; the box may be loaded


class Failed(RuntimeError):
    """A step of the rehearsal did not do what it must; what it printed is in the message."""


def rehearsed(file: Path) -> dict[str, Any]:
    """The user's cluster file as it is, but for

    - provider and auth: the pretend machines, as root;
    - the line that installs the project: there is no network, so this Python's environment lies at ~/venv and finds
      the synced code by PYTHONPATH;
    - the installation of NFS: a namespace has no NFS server, so the head's folder is mounted on the worker beforehand.
    """
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    installs = [line for line in content["setup_commands"] if "pip install" in line]
    if len(installs) != 1:
        raise Failed(f"{file} installs the project with one line of setup_commands, found {installs}")
    others = [line for line in content["setup_commands"] if line not in installs]
    return content | {
        "provider": {"type": "local", "head_ip": ADDRESSES["head"], "worker_ips": [ADDRESSES["worker"]]},
        "auth": {"ssh_user": "root", "ssh_private_key": str(KEY)},
        "setup_commands": [*others, "echo 'export PYTHONPATH=~/anabranch' >> ~/.anabranch"],
        "head_setup_commands": [],
        "worker_setup_commands": [],
    }


@contextmanager
def step(words: str) -> Iterator[None]:
    print(f"  {words} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"  {words}: ok, {time.monotonic() - started:.0f} s", flush=True)


def ray(*words: str, limit: float = 600) -> str:
    """A `ray` command on the laptop, and what it printed."""
    done = subprocess.run(
        ["ray", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit
    )
    if done.returncode:
        raise Failed(f"ray {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout


def on_head(command: str) -> str:
    return ray("exec", str(CLUSTER), command)


def until(question: str, answer: str, limit: float = 600) -> None:
    """Ask the head until the answer comes: on a busy machine a worker's Ray needs several attempts of a minute."""
    deadline = time.monotonic() + limit
    while answer not in (said := on_head(question)):
        if time.monotonic() > deadline:
            raise Failed(f"{question!r} did not answer {answer!r} within {limit:.0f} s but\n{said[-3000:]}")
        time.sleep(2)


def must(holds: bool, words: str) -> None:
    if not holds:
        raise Failed(words)


def open_port(address: str, port: int) -> bool:
    with socket.socket() as asking:
        asking.settimeout(5)
        return asking.connect_ex((address, port)) == 0


def comes_up() -> None:
    with step("ray get-auth-token --generate"):
        ray("get-auth-token", "--generate")
    with step("ray up"):
        ray("up", "-y", str(CLUSTER))
        must(open_port(ADDRESSES["head"], 6379), "the head's Ray listens where workers find it")
    with step("the worker joins"):
        until(f'python -c "{NODES}"', "ALIVE 2")


def sweeps() -> None:
    command = f"{SWEEP} {' '.join(WORDS)}"
    with step(f"python {command}, on the head"):
        first = on_head(f"cd anabranch && python {command}")
        must("to run now: 0 steps" not in first, f"the first sweep has to train:\n{first[-6000:]}")
    with step(f"ray submit {command}"):
        second = ray("submit", str(CLUSTER), SWEEP, *WORDS)
        must("to run now: 0 steps" in second, f"the results folder has all of it, yet:\n{second[-6000:]}")


def comes_home() -> dict[str, int]:
    """How many stages each node ran, by the records on the laptop."""
    with step("ray rsync-down of the results"):
        ray("rsync-down", str(CLUSTER), "anabranch/results/", str(PLACE / "results"))
        nodes = analysis.open(PLACE / "results").ledger["node"].to_pylist()
    return {name: nodes.count(name) for name in ADDRESSES}


def is_mirrored() -> int:
    """How many runs MLflow has; one server serves them, however often it is started."""
    with step("MLflow has the runs"):
        runs = int(on_head(f'python -c "{MLFLOW}"').split("RUNS ")[1].split()[0])
        must(runs > 1, f"MLflow has the sweep and its trials, got {runs} runs")
        on_head("python -m sweeps.mlflow_server")
        servers = [line for line in machines.processes().values() if "mlflow server" in line]
        must(len(servers) == 1, f"one server, got {servers}")
    return runs


def is_closed() -> None:
    with step("MLflow and dashboard on the loopback alone, nobody joins without the token"):
        for name, address in ADDRESSES.items():
            for port in (5000, 8265):
                must(not open_port(address, port), f"port {port} of {name} is open to the network")
        stranger = {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin", "HOME": "/tmp", "RAY_AUTH_MODE": "disabled"}
        words = ["ray", "status", "--address", f"{ADDRESSES['head']}:6379"]
        said = subprocess.run(words, env=stranger, capture_output=True, text=True, timeout=300)
        must("InvalidAuthToken" in said.stderr, f"without the token: {said.stdout}\n{said.stderr}")


def goes(before: set[int]) -> None:
    with step("ray down, and nothing of it is left"):
        ray("down", "-y", str(CLUSTER))
        deadline = time.monotonic() + LEAVING_SECONDS
        while left := {number: line for number, line in machines.processes().items() if number not in before}:
            must(time.monotonic() < deadline, f"still there {LEAVING_SECONDS:.0f} s after ray down: {left}")
            time.sleep(1)


def rehearse() -> dict[str, Any]:
    """All steps, from a laptop with nothing to a laptop with results; what was found. Raises Failed."""
    validate(ROOT / "cluster.local.yaml")
    CLUSTER.write_text(yaml.safe_dump(rehearsed(ROOT / "cluster.local.yaml"), sort_keys=False))
    before = set(machines.processes())
    comes_up()
    sweeps()
    stages, runs = comes_home(), is_mirrored()
    is_closed()
    goes(before)
    must(min(stages.values()) > 0, f"both nodes run stages, got {stages}")
    return {"stages": stages, "runs": runs}


def main(words: Sequence[str]) -> int:
    if words[:1] != ["--inside"]:
        if lacking := machines.missing():
            print("the rehearsal cannot run here; missing: " + "; ".join(lacking), file=sys.stderr)
            return 2
        return machines.enter(["tests.cluster.rehearsal", "--inside"])
    machines.refuse_to_touch_others(words[1:])
    machines.prepare_laptop()
    started = time.monotonic()
    try:
        with machines.nodes():
            found = rehearse()
    except Failed as error:
        print(f"the rehearsal failed: {error}", file=sys.stderr)
        return 1
    print(f"rehearsed in {time.monotonic() - started:.0f} s: {json.dumps(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
