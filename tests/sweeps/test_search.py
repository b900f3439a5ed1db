"""The Ray executor: a sweep with a killed actor against an unbroken run in this process; errors of jobs, counted by
hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray import tune

from sweeps.engine import search
from sweeps.engine.jobs import RETRIES
from sweeps.engine.search import JobSearcher, Unfit
from sweeps.engine.worker import Place
from sweeps.nodes.joining import Slots
from sweeps.nodes.looking import code
from tests.sweeps.engine_cases import open_sweep, toy_spec
from trainables.study import LocalRun

ROOT = Path(__file__).parents[2]
WORDS = ["scale=tiny", "tracking=none", "space.method=wsd", "space.budget_steps=[100,400]", "study.measure_every=50"]


def results_of(folder: Path, *words: str, kill: bool = False) -> dict[str, object]:
    command = [sys.executable, "sweeps/wsd_budget.py", *WORDS, f"results={folder}", *words]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        running = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        killed = False
        while running.poll() is None and kill and not killed:
            time.sleep(0.2)
            committed = len(list((folder / "store" / "stages").glob("*/*.json")))
            killed = committed > 0 and kill_one_actor(running.pid)
        status = running.wait(200)
    assert status == 0 and killed == kill, f"status {status}, killed {killed}:\n{log.read_text()[-6000:]}"
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


@pytest.mark.parametrize("lost_by", ["this job", "an earlier one", "nobody"])
def test_a_job_that_dies_with_its_node_is_tried_again_without_end(tmp_path: Path, lost_by: str):
    """Many more errors than RETRIES: they fail both trials, unless a node was lost while each of the jobs ran."""
    sweep, lost = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(20,)), slots=1), [0]
    searcher = JobSearcher(sweep.driver, Slots(1), sweep.place, lambda: lost[0])
    errors = 0
    while not sweep.driver.finished and errors < 4 * (RETRIES + 1):
        lost[0] += lost_by == "an earlier one"
        name = f"trial-{errors}"
        assert "job" in searcher.suggest(name)
        lost[0] += lost_by == "this job"
        searcher.on_trial_complete(name, error=True)
        errors += 1
    sweep.tuning.close()
    assert searcher.fault is None and len(sweep.told.errors) == errors > RETRIES
    assert [entry.status for entry in sweep.entries] == ["pending" if lost_by == "this job" else "failed"] * 2


def test_a_node_without_the_folder_or_with_other_files_gives_its_job_back(tmp_path: Path, monkeypatch):
    """It waits for the folder to be mounted; what it cannot do says nothing about the items of the job."""
    monkeypatch.setattr(search, "UNFIT_SECONDS", 1.5)
    monkeypatch.setattr(search, "own_node", lambda: "late")
    place = Place(str(tmp_path), str(tmp_path / "sweeps" / "one" / "stop"), code=code(), nodes=("early",))
    with pytest.raises(Unfit, match=r"does not see .*; mount the shared folder"):
        search._must_fit(place)
    mounting = threading.Timer(0.7, (tmp_path / "sweeps" / "one").mkdir, kwargs={"parents": True})
    mounting.start()
    search._must_fit(place)
    mounting.join()
    with pytest.raises(Unfit, match="other files of Anabranch"):
        search._must_fit(replace(place, code="another"))
    search._must_fit(replace(place, code="another", nodes=("late",)))  # it was there, and checked, at the start

    sweep = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(20,)), slots=1)
    searcher = JobSearcher(sweep.driver, Slots(1), sweep.place)
    monkeypatch.setattr(tune, "report", lambda result: searcher.on_trial_result("x", result))
    for _ in range(3 * RETRIES):
        assert "job" in searcher.suggest("x")
        with pytest.raises(Unfit), search._saying_why():
            raise Unfit("that node has no folder")
        searcher.on_trial_complete("x", error=True)
    sweep.tuning.close()
    assert {entry.status for entry in sweep.entries} == {"pending"}
    assert set(sweep.told.errors) == {"Unfit: that node has no folder"}


def test_what_killed_searches_left_is_taken_away_after_a_day(tmp_path: Path):
    for name, hours in (("old", 30), ("new", 1), ("old-but-alive", 30)):
        (tmp_path / name / "jobs").mkdir(parents=True)
        (tmp_path / name / "jobs" / "state.json").write_text("{}")
        for path in (tmp_path / name / "jobs" / "state.json", tmp_path / name / "jobs", tmp_path / name):
            os.utime(path, (time.time() - hours * 3600,) * 2)
    os.utime(tmp_path / "old-but-alive" / "jobs" / "state.json")
    search._take_away_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old-but-alive"}
    search._take_away_abandoned(tmp_path / "not there")


@pytest.mark.parametrize("asked_by", ["the node's notice", "the sweep", "nobody"])
def test_a_worker_of_a_group_says_whether_it_gave_way(tmp_path: Path, monkeypatch, asked_by: str):
    sweep = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(20,)), slots=1)
    sweep.tuning.close()
    if asked_by == "the sweep":
        Path(sweep.place.stop_file).touch()
    monkeypatch.setattr(search.train, "report", lambda told: None)
    monkeypatch.setattr(search, "_must_fit", lambda place: None)
    run = LocalRun()
    run.meet = lambda doing, error: None
    said = search._run_in_group(sweep.driver.next_job(), sweep.place, run, lambda: asked_by == "the node's notice")
    assert said["gave_way"] == (asked_by == "the node's notice")
    assert (said["told"]["commits"] > 0) == (asked_by == "nobody")
