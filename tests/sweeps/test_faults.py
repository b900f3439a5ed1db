"""Killed, stopped and starved sweeps, continued by the same command, against the same sweep unbroken."""

from __future__ import annotations

import errno
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console

import analysis
from sweeps.engine.launch import Question, main, sweep
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


# Two sweeps at once in one results folder


def _run_when_all_are_ready(spec, ready, how):
    torch.set_num_threads(1)
    reset_process()
    ready.wait(60)
    sweep = run_sweep(spec, **how)
    assert not Store(spec.results).scan().damaged
    (spec.results / f"{spec.name}.json").write_text(json.dumps(sorted(map(repr, sweep.results().items()))))


@pytest.mark.parametrize("checkpoint_every", [None, 7])
def test_two_sweeps_that_train_the_same_stages_at_once_both_end_right(tmp_path, checkpoint_every):
    """They share two of three rates: each drops, and trains again, states that the other one still needs."""
    how, axes = {"checkpoint_every": checkpoint_every}, {"one": (0.05, 0.1, 0.2), "two": (0.1, 0.2, 0.4)}
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(2)
    specs = {name: replace(slow_spec(tmp_path / "both", rates=rates), name=name) for name, rates in axes.items()}
    processes = [context.Process(target=_run_when_all_are_ready, args=(spec, ready, how)) for spec in specs.values()]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    for name, spec in specs.items():
        alone = run_sweep(replace(spec, results=tmp_path / name), **how)
        found = json.loads((tmp_path / "both" / f"{name}.json").read_text())
        assert found == sorted(map(repr, alone.results().items()))
    index = Store(tmp_path / "both").scan()
    assert not index.damaged and not list((tmp_path / "both").rglob(".writing-*"))
    assert len({commit.key for commit in index.commits.values()}) < len(index.commits)  # they did meet


def test_the_same_sweep_started_twice_is_refused_and_goes_on_undisturbed(tmp_path):
    spec = slow_spec(tmp_path / "one")
    process = multiprocessing.get_context("fork").Process(target=_run, args=(spec, {}))
    process.start()
    while not list((tmp_path / "one").rglob("*.log")):
        time.sleep(0.002)
    with pytest.raises(RuntimeError, match=r"another process has the journal .* open; wait for that sweep to end"):
        run_sweep(spec)
    process.join()
    assert process.exitcode == 0
    assert run_sweep(spec).results() == run_sweep(slow_spec(tmp_path / "unbroken")).results()


# Journals and records that somebody else has written into


def drawn(results):
    rates = {"low": 0.01, "high": 0.5, "log": True}
    return toy_spec(results, rates=rates, search=Search("random", proposals=4))


def a_journal(tmp_path):
    sweep = run_sweep(drawn(tmp_path))
    (journal,) = tmp_path.glob("journals/*.log")
    return journal, proposals_of(sweep)


def test_any_flipped_bit_of_a_journal_is_noticed_or_changes_nothing_that_it_says(tmp_path):
    """Optuna would take a flipped digit of a value for the value."""
    journal, before = a_journal(tmp_path)
    whole, draw, noticed = journal.read_bytes(), random.Random(0), 0
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        journal.write_bytes(bytes(content))
        try:
            sweep = run_sweep(drawn(tmp_path))
            assert proposals_of(sweep) == before and sweep.executed == 0
        except RuntimeError as error:
            assert re.search(r"the journal .* is damaged .*; move it away and run again", str(error))
            noticed += 1
    assert noticed > 40
    journal.unlink()
    again = run_sweep(drawn(tmp_path))
    assert proposals_of(again) == before and again.executed == 0  # the way out


FOREIGN = ["[" * 100_000, "{}", "[]", "null", "1e999", '{"op_code": 99}', '{"op_code": 4, "trial_id": 0}', "\x00"]


@pytest.mark.parametrize("line", FOREIGN)
def test_a_foreign_line_in_a_journal_is_refused_with_the_way_out(tmp_path, line):
    journal, _ = a_journal(tmp_path)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:4], f"{line}\n", *lines[4:]]))
    with pytest.raises(RuntimeError, match=r"the journal .* is damaged .*; move it away and run again"):
        run_sweep(drawn(tmp_path))


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_table_with_pickled_objects_in_it_is_read_without_running_them(tmp_path):
    """Arrow's extension type for Python objects, as a column and as the schema of the whole file."""
    mark = tmp_path / "executed"
    payload = pickle.dumps(Bomb(mark))
    run_here_and_now(tmp_path / "results")
    (file,) = (tmp_path / "results" / "sweeps").glob("*/trials.parquet")
    table = pq.read_table(file)
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    objects = pa.array([payload] * table.num_rows, pa.binary())
    table = table.append_column(pa.field("objects", pa.binary(), metadata=extension), objects)
    pq.write_table(table.replace_schema_metadata({"pickled": payload}), file)
    found = analysis.open(tmp_path / "results")
    assert found.trials.num_rows == table.num_rows and not mark.exists()


# What goes wrong inside a trial


def going_wrong(how):
    """The toy, of which the rate 0.1 goes wrong after step 12 and the others do not."""

    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        if placed.segment.constant and placed.at(span.start)["lr"] == 0.1 and span.stop > 12:
            how(state)

    return replace(toys.QUADRATIC, advance=advance)


def raising(error):
    def how(state):
        raise error

    return how


def filling(value):
    return lambda state: state.position.fill_(value)


@pytest.mark.parametrize(
    ("how", "status", "word", "told"),
    [
        (filling(math.nan), "diverged", "not finite", TrialState.PRUNED),
        (filling(math.inf), "diverged", "not finite", TrialState.PRUNED),
        (filling(-math.inf), "diverged", "not finite", TrialState.PRUNED),
        (raising(ZeroDivisionError("by nothing")), "failed", "by nothing", TrialState.FAIL),
        (raising(MemoryError("no room")), "failed", "MemoryError: no room", TrialState.FAIL),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "failed", "CUDA out of memory", TrialState.FAIL),
        (raising(RecursionError("too deep")), "failed", "too deep", TrialState.FAIL),
    ],
)
def test_a_trial_that_goes_wrong_says_so_in_its_record_and_to_optuna_and_the_others_go_on(
    tmp_path, how, status, word, told
):
    spec = toy_spec(tmp_path, going_wrong(how), rates=(0.05, 0.1, 0.2), budgets=(20, 40), decay_fraction=0.25)
    sweep = run_sweep(spec)
    healthy = run_sweep(toy_spec(tmp_path / "healthy", rates=(0.05, 0.2), budgets=(20, 40), decay_fraction=0.25))
    right = {(phase, config): result for (phase, config), result in sweep.results().items()}
    for entry in sweep.entries:
        config = entry.trial.config
        if config.learning_rate != 0.1:
            assert right["tune", config] == healthy.results()["tune", config]
            continue
        assert entry.status == status and word in entry.error
        assert ("Traceback" in entry.error) == (status == "failed")
        assert all(math.isfinite(value) for row in entry.rows[:-1] for value in row.metrics.values())
    (journal,) = tmp_path.glob("journals/*.log")
    (summary,) = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(journal))))
    study = optuna.load_study(study_name=summary.study_name, storage=JournalStorage(JournalFileBackend(str(journal))))
    states = {trial.params["learning_rate"]: trial.state for trial in study.trials}
    assert states == {0.05: TrialState.COMPLETE, 0.1: told, 0.2: TrialState.COMPLETE}
    assert all(trial.values is None or all(map(math.isfinite, trial.values)) for trial in study.trials)


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


def steps_in(results):
    (file,) = (results / "sweeps").glob("*/ledger.parquet")
    return sum(pq.read_table(file)["executed_steps"].to_pylist())


def table(results, name, columns):
    (file,) = (results / "sweeps").glob(f"*/{name}.parquet")
    rows = pq.read_table(file).select(columns).to_pylist()
    return sorted(map(repr, rows))


LONGER = ["space.method=[wsd,cosine]", "space.budget_steps=[40,80,160]", "study.measure_every=5", "seeds=1"]
TRIALS = ["trial", "key", "proposal", "phase", "status", "config", "select/loss", "report/loss", "steps_marginal"]
CURVES = ["trial", "step", "key", "select/loss", "train/loss", "full", "shared"]


def run_here_and_now(results, more=LONGER):
    """The same command in this process, without its report: what it says."""
    console = Console(file=io.StringIO(), width=200)
    sweep(Question("wsd_budget", wsd.STUDY, ""), [*COMMAND[2:], f"results={results}", *more], console)
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
    # Ctrl-C may cut a stage in two where nobody had planned it; no step is trained twice, and none is lost.
    assert steps_in(broken) == steps_in(unbroken)
    assert set(table(unbroken, "ledger", ["stage"])) <= set(table(broken, "ledger", ["stage"]))
    assert max(Counter(table(broken, "ledger", ["stage", "from_step"])).values()) == 1
    assert re.search(r"to run now: 0 steps", run_here_and_now(broken))  # once more: nothing is left to do


def test_a_results_folder_that_turns_read_only_ends_with_one_error_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys
):
    """From the fourth stage on no file of it can be put in its place, tables and figures included."""
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    real, committed = os.replace, []

    def replace_until_read_only(source, target):
        if broken in Path(target).parents:
            if len(committed) == 3:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
            committed.extend([target] * (Path(target).parts[-3] == "stages"))
        real(source, target)

    shorter = ["space.method=wsd", "space.budget_steps=[20,40]", "seeds=1"]
    words = [*COMMAND[2:], f"results={broken}", *shorter]
    with monkeypatch.context() as patched:
        patched.setattr("sweeps.engine.store.os.replace", replace_until_read_only)
        assert main(Question("wsd_budget", wsd.STUDY, ""), words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped: " in said and os.strerror(errno.EROFS) in said and str(broken) in said, said
    assert "What was finished is kept." in said and "Traceback" not in said
    before = Store(broken).scan()
    assert len(before.commits) == 3 and not before.damaged and not list(broken.rglob(".writing-*"))

    run_here_and_now(broken, shorter)
    run_here_and_now(unbroken, shorter)
    assert table(broken, "trials", TRIALS) == table(unbroken, "trials", TRIALS)
    assert table(broken, "measurements", CURVES) == table(unbroken, "measurements", CURVES)
    assert steps_in(broken) == steps_in(unbroken)  # none of the three stages was trained again
    assert set(before.commits) < set(Store(broken).scan().commits)


def test_the_real_command_twice_at_once_is_refused_in_one_line(tmp_path, capsys):
    run_here_and_now(tmp_path)
    (journal, *_) = (tmp_path / "journals").glob("*.log")
    with FileLock(f"{journal}.lock"):  # as the other process holds it
        status = main(Question("wsd_budget", wsd.STUDY, ""), [*COMMAND[2:], f"results={tmp_path}", *LONGER])
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2 and "refused: another process has the journal" in said and "Traceback" not in said
