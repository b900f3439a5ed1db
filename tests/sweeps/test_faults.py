"""Killed, stopped and starved sweeps, continued by the same command, against the same sweep unbroken."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from sweeps.engine.launch import Question, sweep
from sweeps.engine.spec import Search
from sweeps.engine.store import Store
from tests.sweeps.engine_cases import run_sweep, toy_spec
from trainables import toys, wsd
from trainables.common.process import reset_process

CLONE = Path(__file__).resolve().parents[2]


def slow_advance(state, placed, span, run):
    time.sleep(0.004)
    toys.advance(state, placed, span, run)


SLOW = replace(toys.QUADRATIC, advance=slow_advance)


def slow_spec(results, **more):
    how = dict(rates=(0.05, 0.1, 0.2), budgets=(20, 40, 80), decay_fraction=[0.1, 0.25, 0.5], fresh=2)
    return toy_spec(results, SLOW, **{**how, **more})


HALVING = dict(
    rates=tuple(0.02 * 1.5**n for n in range(8)), decay_fraction=0.25, search=Search(proposals=8, bracket=4, eta=2)
)
ADAPTIVE = dict(rates={"low": 0.01, "high": 0.5, "log": True}, decay_fraction=0.25, search=Search("tpe", proposals=5))


def _run(spec, how):
    torch.set_num_threads(1)
    run_sweep(spec, **how)


def killed_at(spec, seconds, how):
    """Run a sweep in a process of its own and kill -9 it. Did it live to be killed?"""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(spec, how))
    process.start()
    process.join(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def proposals_of(sweep):
    return [[(p.values, outcome) for p, outcome in cell.proposals.outcomes()] for cell in sweep.tuning.cells]


@pytest.mark.parametrize("kind", ["grid", "halving", "adaptive"])
@pytest.mark.parametrize("checkpoint_every", [None, 12])
def test_kill_9_at_random_times_and_the_same_command_again(tmp_path, kind, checkpoint_every):
    more, how = {"grid": {}, "halving": HALVING, "adaptive": ADAPTIVE}[kind], {"checkpoint_every": checkpoint_every}
    reset_process()  # its first call in a process imports for seconds
    began = time.perf_counter()
    unbroken = run_sweep(slow_spec(tmp_path / "unbroken", **more), **how)
    whole = time.perf_counter() - began
    draw = random.Random(f"{kind} {checkpoint_every}")
    spec = slow_spec(tmp_path / "broken", **more)
    kills = sum(killed_at(spec, draw.uniform(0.05, 0.5) * whole, how) for _ in range(3))
    assert kills >= 1
    last = run_sweep(spec, **how)
    assert last.results() == unbroken.results()
    assert proposals_of(last) == proposals_of(unbroken)
    commits = Store(spec.results).scan().commits.values()
    ran = Counter((commit.key, commit.start) for commit in commits)
    assert max(ran.values()) == 1, "a committed stage was run twice"
    assert not Store(spec.results).scan().damaged


def test_a_kill_between_a_stages_rows_and_its_manifest_costs_that_stage_alone(tmp_path, monkeypatch):
    spec = slow_spec(tmp_path / "broken")
    real, left = os.replace, [25]

    def replace_until_killed(source, target):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    def child():
        monkeypatch.setattr("sweeps.engine.store.os.replace", replace_until_killed)
        _run(spec, {})

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = len(Store(spec.results).scan().commits)
    assert there > 0
    last = run_sweep(spec)
    assert last.results() == run_sweep(slow_spec(tmp_path / "unbroken")).results()
    assert there + len(last.told.commits) == len(Store(spec.results).scan().commits)


def test_a_disk_that_fills_up_stops_with_one_error_and_more_room_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        spec = toy_spec(disk, rates=(0.05, 0.1, 0.2), budgets=(20, 40, 80), decay_fraction=[0.1, 0.25, 0.5], fresh=2)
        with pytest.raises(OSError, match=r"(cannot write to|No space).*"):
            run_sweep(spec)
        before = Store(disk).scan()
        assert before.commits and not before.damaged
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        last = run_sweep(spec)
        assert {entry.status for entry in last.entries} == {"complete"}
        assert not {commit.name for commit in last.told.commits} & set(before.commits)
        assert set(before.commits) < set(Store(disk).scan().commits)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# The real command

COMMAND = [sys.executable, "sweeps/wsd_budget.py", "scale=tiny", "executor=local", "tracking=none"]


def start(results, *more):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [*COMMAND, f"results={results}", *more],
        cwd=CLONE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_commits(results, count, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if len(list((results / "store" / "stages").glob("*/*.json"))) >= count:
            return
        time.sleep(0.005)


def table(results, name, columns):
    (file,) = (results / "sweeps").glob(f"*/{name}.parquet")
    rows = pq.read_table(file).select(columns).to_pylist()
    return sorted(map(repr, rows))


LONGER = ["space.method=[wsd,cosine]", "space.budget_steps=[40,80,160]", "study.measure_every=5", "seeds=1"]
TRIALS = ["trial", "key", "proposal", "phase", "status", "config", "select/loss", "report/loss", "steps_marginal"]
CURVES = ["trial", "step", "key", "select/loss", "train/loss", "full", "shared"]


def run_here_and_now(results):
    """The same command in this process, without its report: what it says."""
    console = Console(file=io.StringIO(), width=200)
    sweep(Question("wsd_budget", wsd.STUDY, ""), [*COMMAND[2:], f"results={results}", *LONGER], console)
    return console.file.getvalue()


def test_the_real_command_killed_and_interrupted_and_run_again_is_the_unbroken_one(tmp_path):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    process = start(broken, *LONGER)
    wait_for_commits(broken, 2, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    there = len(list((broken / "store" / "stages").glob("*/*.json")))

    process = start(broken, *LONGER)
    wait_for_commits(broken, there + 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert (
        "The same command" in said
        and "goes on from there" in said
        and f"results={broken}" in "".join(said.split())
        and "Traceback" not in said
    )
    assert any("pending" in status for status in table(broken, "trials", ["status"]))

    run_here_and_now(broken)
    run_here_and_now(unbroken)
    assert table(broken, "trials", TRIALS) == table(unbroken, "trials", TRIALS)
    assert table(broken, "measurements", CURVES) == table(unbroken, "measurements", CURVES)
    assert table(broken, "ledger", ["stage", "executed_steps"]) == table(
        unbroken, "ledger", ["stage", "executed_steps"]
    )
    assert max(Counter(table(broken, "ledger", ["stage", "from_step"])).values()) == 1
    assert re.search(r"to run now: 0 steps", run_here_and_now(broken))  # once more: nothing is left to do
