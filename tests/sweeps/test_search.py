"""The Ray executor: a sweep with a killed actor against an unbroken run in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
WORDS = ["scale=tiny", "tracking=none", "space.method=wsd", "space.budget_steps=[100,400]", "study.measure_every=50"]


def results_of(folder: Path, *words: str, kill: bool = False) -> dict[str, object]:
    command = [sys.executable, "sweeps/wsd_budget.py", *WORDS, f"results={folder}", *words]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = False
    while running.poll() is None and kill and not killed:
        time.sleep(0.2)
        committed = len(list((folder / "store" / "stages").glob("*/*.json")))
        killed = committed > 0 and kill_one_actor(running.pid)
    assert running.wait(200) == 0 and killed == kill
    table = pq.read_table(next((folder / "sweeps").iterdir()) / "trials.parquet")
    return {row["trial"]: (row["status"], row["select/loss"], row["report/loss"]) for row in table.to_pylist()}


def kill_one_actor(driver: int) -> bool:
    """kill -9 an actor that trains, among the processes that this driver started."""
    for process in psutil.Process(driver).children(recursive=True):
        if "ImplicitFunc" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


def test_a_sweep_whose_actor_is_killed_ends_like_an_unbroken_one(tmp_path: Path):
    broken = results_of(tmp_path / "ray", "cluster=local", "slots=1", kill=True)
    assert broken == results_of(tmp_path / "here", "executor=local")
    assert {status for status, *_ in broken.values()} == {"complete"}
