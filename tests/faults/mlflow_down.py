"""MLflow's server killed while a sweep runs, and a new one later, against a mirror that was never broken."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from sweeps.engine.launch import Question, sweep
from sweeps.engine.tracking import mirror
from sweeps.tracking import main
from tests.faults.kills import waited
from trainables import wsd

WORDS = [
    *("scale=tiny", "executor=local", "space.method=[wsd,cosine]", "space.budget_steps=[40,80]"),
    *("study.measure_every=5", "seeds=1"),
]
TABLES = {
    "trials": ["trial", "key", "proposal", "phase", "status", "config", "select/loss", "report/loss"],
    "measurements": ["trial", "step", "key", "select/loss", "train/loss", "full", "shared"],
}
OWN = ("mlflow.user", "mlflow.parentRunId", "anabranch.files")  # tags that two mirrors of the same records do not share


@dataclass
class Mirror:
    """What became of a sweep and of its mirror when the server went away: after `killed_at` of `stages` stages, drawn
    from `seed`, and `killed` while the sweep still ran."""

    seed: int
    stages: int
    killed_at: int
    killed: bool
    said: str
    records_equal: bool
    before: int  # runs that the first server had taken in
    recovered_seconds: float
    mirror_equal: bool
    doubles: int

    @property
    def good(self) -> bool:
        return self.killed and self.records_equal and self.mirror_equal and not self.doubles


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """MLflow's own server on loopback; the process that is killed with all that it started."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True, "text": True}
    running = subprocess.Popen(command, **quiet)
    try:
        if not waited(lambda: answers(port) or running.poll() is not None, 120) or running.poll() is not None:
            raise RuntimeError(f"MLflow's server did not start: {' '.join(command)}")
        yield running
    finally:
        kill_all_of(running)


def kill_all_of(running: subprocess.Popen[str]) -> None:
    """kill -9 the server and its workers, which are a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def rehearse(folder: Path, seed: int) -> Mirror:
    """A sweep whose MLflow server is killed at a random time, and `sync` to a new one on the same database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results, calm = folder / "results", folder / "calm"
    uri = f"http://127.0.0.1:{port}"
    run(calm, "none")
    stages = len(list((calm / "store" / "stages").glob("*/*.json")))
    enough = Random(seed).randint(1, max(1, stages // 2))  # so early that the sweep has yet to come to its end
    returned, killed_while_it_ran = threading.Event(), threading.Event()

    def kill_the_server() -> None:
        committed = (results / "store" / "stages").glob
        if waited(lambda: len(list(committed("*/*.json"))) >= enough):
            kill_all_of(first)
            if not returned.is_set():
                killed_while_it_ran.set()

    with server(folder / "server", port) as first:
        killer = threading.Thread(target=kill_the_server)
        killer.start()
        said = run(results, uri)
        returned.set()
        killer.join()
        killed = first.returncode == -signal.SIGKILL and killed_while_it_ran.is_set()
    equal = all(table(results, name) == table(calm, name) for name in TABLES)
    before = len(runs(f"sqlite:///{folder}/server/mlflow.db"))
    began = time.monotonic()
    with server(folder / "server", port):
        status = main(["sync", str(results), "--uri", uri])
        recovered = time.monotonic() - began
        again = main(["sync", str(results), "--uri", uri])
    found = runs(f"sqlite:///{folder}/server/mlflow.db")
    whole = f"sqlite:///{folder}/whole.db"
    (one,) = (results / "sweeps").glob("*/sweep.json")
    mirror(one.parent, whole)
    names = Counter(run["identity"] for run in found)
    same = status == again == 0 and comparable(found) == comparable(runs(whole))
    doubles = sum(names.values()) - len(names)
    return Mirror(seed, stages, enough, killed, said, equal, before, recovered, same, doubles)


def run(results: Path, tracking: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    sweep(Question("wsd_budget", wsd.STUDY, ""), [*WORDS, f"results={results}", f"tracking={tracking}"], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def table(results: Path, name: str) -> list[str]:
    (file,) = (results / "sweeps").glob(f"*/{name}.parquet")
    return sorted(map(repr, pq.read_table(file).select(TABLES[name]).to_pylist()))


def runs(uri: str) -> list[dict[str, Any]]:
    """All that MLflow has of the study's runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("wsd")
    if experiment is None:
        return []
    found = []
    for one in client.search_runs([experiment.experiment_id], max_results=1000):
        curves = {
            name: sorted((p.step, p.value) for p in client.get_metric_history(one.info.run_id, name))
            for name in one.data.metrics
        }
        tags = {name: value for name, value in one.data.tags.items() if name not in OWN}
        found.append(
            {
                "identity": tags.get("anabranch.identity", one.info.run_id),
                "parent": "mlflow.parentRunId" not in one.data.tags,
                "name": one.info.run_name,
                "status": one.info.status,
                "params": dict(one.data.params),
                "tags": tags,
                "curves": curves,
            }
        )
    return found


def comparable(found: list[dict[str, Any]]) -> list[str]:
    return sorted(repr(sorted(one.items())) for one in found)
