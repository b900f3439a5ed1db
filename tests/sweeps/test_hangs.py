"""What a sweep that hangs says while it hangs, and what one that can neither run nor end raises, against the jobs and
trials that it waits for."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace

import pytest
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.engine import search
from sweeps.engine.launch import Question, launch
from sweeps.engine.local import Stuck, run_here
from sweeps.engine.search import JobSearcher
from sweeps.engine.watchdog import Watchdog
from sweeps.engine.words import Words
from sweeps.nodes.joining import Slots
from tests.sweeps.engine_cases import open_sweep, toy_spec
from trainables import toys

SILENT_SECONDS = 0.3


def test_a_launched_sweep_names_the_job_that_it_waits_for(tmp_path, monkeypatch):
    """One stage takes ten times as long as what counts as silence here; the sweep ends all the same."""
    slow = []

    def advance(state, placed, span, run):
        if not slow and span.stop > 17:  # the fall of a trial, whose stable stretch is committed by then
            slow.append(span.stop)
            time.sleep(10 * SILENT_SECONDS)
        toys.advance(state, placed, span, run)

    monkeypatch.setitem(Watchdog.__init__.__kwdefaults__, "silent", SILENT_SECONDS)
    monkeypatch.setitem(Watchdog.__init__.__kwdefaults__, "every", 0.05)
    spec = toy_spec(tmp_path, replace(toys.QUADRATIC, advance=advance), rates=(0.1, 0.2), budgets=(20,))
    console = Console(file=io.StringIO(), width=300)
    words = Words(executor="local", tracking="none", results=str(tmp_path))
    found = launch(Question("toy", spec.study, about=""), spec, words, console)
    said = console.file.getvalue()
    assert slow and re.search(
        r"waiting for job-\d+: nothing has come from it for .* \(quadratic steps 0 to 15", said
    ), said
    assert found is not None and set(found.trials.column("status").to_pylist()) == {"complete"}


@pytest.fixture
def sweep(tmp_path):
    opened = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(20,)), slots=1)
    yield opened
    opened.tuning.close()


def names_of(sweep):
    return ", ".join(entry.trial.key[:12] for entry in sweep.entries)


def test_a_sweep_of_which_nothing_can_run_ends_in_this_process_with_what_it_waits_for(sweep, monkeypatch):
    monkeypatch.setattr(sweep.driver.queue, "offer", lambda plan: None)
    with pytest.raises(Stuck, match=f"nothing runs; pending trials: {names_of(sweep)}"):
        run_here(sweep.driver, sweep.place)


def test_a_sweep_of_which_nothing_can_run_ends_on_ray_with_what_it_waits_for(sweep, monkeypatch):
    """At once where nothing waits; `run_on_ray` raises the fault that ended the search."""
    monkeypatch.setattr(sweep.driver.queue, "offer", lambda plan: None)
    searcher = JobSearcher(sweep.driver, Slots(1), sweep.place)
    assert searcher.suggest("one") == Searcher.FINISHED
    assert isinstance(searcher.fault, Stuck)
    assert str(searcher.fault) == f"nothing runs; pending trials: {names_of(sweep)}"


def test_a_sweep_whose_work_never_becomes_ready_ends_on_ray_after_a_while(sweep, monkeypatch):
    """A quarter of a second here: a moment in which nothing runs is no fault."""
    monkeypatch.setattr(search, "WATCHDOG_SECONDS", 0.25)
    monkeypatch.setattr(sweep.driver.queue, "pick", lambda ready: [])
    searcher = JobSearcher(sweep.driver, Slots(1), sweep.place)
    assert searcher.suggest("one") is None and searcher.fault is None
    time.sleep(0.3)
    assert searcher.suggest("one") == Searcher.FINISHED
    assert isinstance(searcher.fault, Stuck) and names_of(sweep) in str(searcher.fault)


def test_waiting_for_a_job_that_runs_is_no_fault(sweep, monkeypatch):
    monkeypatch.setattr(search, "WATCHDOG_SECONDS", 0.0)
    searcher = JobSearcher(sweep.driver, Slots(1), sweep.place)
    while "job" in (searcher.suggest(f"trial-{len(searcher.jobs)}") or {}):
        pass
    time.sleep(0.01)
    assert searcher.jobs and searcher.suggest("more") is None and searcher.fault is None
    assert sweep.driver.waits_for() == "waiting for " + ", ".join(sorted(job.name for job in searcher.jobs.values()))
