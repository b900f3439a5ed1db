"""What the watchdog says of silent jobs against a clock that the test moves, and of a job that really hangs."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace

import pytest

from sweeps.engine.local import run_here
from sweeps.engine.watchdog import Watchdog
from tests.sweeps.engine_cases import Told, open_sweep, toy_spec
from trainables import toys


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def jobs(tmp_path):
    """Two jobs of a sweep, as the driver would announce them."""
    sweep = open_sweep(toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(100,), decay_fraction=0.0), slots=2)
    yield [sweep.driver.next_job() for _ in range(2)]
    sweep.tuning.close()


class Commit:
    def __init__(self, job):
        self.job = job.name


def test_a_silent_job_is_named_once_and_again_when_it_is_twice_as_long(jobs):
    said, clock = [], Clock()
    watchdog = Watchdog(said.append, silent=600, clock=clock)
    for job in jobs:
        watchdog.job_started(job)
        watchdog.job_began(job)
    heard_at = {}
    for clock.now in range(0, 5000, 10):
        watchdog.committed(Commit(jobs[1]), [])
        before = len(said)
        watchdog.look()
        if len(said) > before:
            heard_at[clock.now] = said[-1]
    assert list(heard_at) == [610, 1230, 2470, 4950]
    assert all(f"waiting for {jobs[0].name}" in words for words in said)
    assert "10 min (quadratic steps 0 to 100)" in said[0] and "tried again" in said[0]


def test_a_job_that_speaks_or_ends_is_not_named(jobs):
    said, clock = [], Clock()
    watchdog = Watchdog(said.append, silent=600, clock=clock)
    watchdog.job_started(jobs[0])
    watchdog.job_began(jobs[0])
    clock.now = 599
    watchdog.committed(Commit(jobs[0]), [])
    clock.now = 1100
    watchdog.look()
    watchdog.job_ended(jobs[0], None)
    clock.now = 99_999
    watchdog.look()
    assert said == []


def test_where_stages_take_an_hour_ten_minutes_are_no_silence(jobs):
    said, clock = [], Clock()
    watchdog = Watchdog(said.append, silent=600, clock=clock)
    watchdog.job_started(jobs[0])
    watchdog.job_began(jobs[0])
    clock.now = 3600
    watchdog.committed(Commit(jobs[0]), [])
    clock.now = 3600 + 5 * 3600 - 1
    watchdog.look()
    assert said == []
    clock.now += 2
    watchdog.look()
    assert len(said) == 1 and "300 min" in said[0]


def _hanging_sweep(folder, words):
    """A sweep whose training waits for ever at step 12, with a watchdog that loses patience after a second."""

    def advance(state, placed, span, run):
        if span.stop > 12:
            time.sleep(10_000)
        toys.advance(state, placed, span, run)

    sweep = open_sweep(toy_spec(folder, replace(toys.QUADRATIC, advance=advance), rates=(0.1, 0.2)))
    watchdog = Watchdog(lambda text: words.put(text), silent=1, every=0.1)
    sweep.driver.watchers.append(watchdog)
    assert isinstance(sweep.told, Told)
    with watchdog:
        run_here(sweep.driver, sweep.place)


def test_a_job_that_hangs_is_named_while_it_hangs(tmp_path):
    context = multiprocessing.get_context("fork")
    words = context.Queue()
    process = context.Process(target=_hanging_sweep, args=(tmp_path, words))
    process.start()
    try:
        assert re.match(r"waiting for job-0001: nothing has come from it", words.get(timeout=60))
        assert process.is_alive()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_a_job_that_no_node_has_taken_is_said_to_wait_and_not_to_hang(jobs):
    """Both wait for a node that takes 25 minutes to come; then one trains and the other hangs at once."""
    said, clock = [], Clock()
    watchdog = Watchdog(lambda text: said.append((clock.now, text)), silent=600, clock=clock)
    for job in jobs:
        watchdog.job_started(job)
    for clock.now in range(0, 1500, 10):
        watchdog.look()
    assert [when for when, _ in said] == [610, 1230]
    first, second = jobs
    assert said[0][1].startswith(f"no node has taken {first.name}, {second.name} for 10 min; ")
    assert all("ray status" in words and "hang" not in words for _, words in said)
    said.clear()
    clock.now = 1500
    for job in jobs:
        watchdog.job_began(job)
    for clock.now in range(1500, 2500, 10):
        watchdog.committed(Commit(second), [])
        watchdog.look()
    assert [when for when, _ in said] == [2110]  # 600 s after it began: the 25 minutes are no measure of a stage
    assert f"waiting for {first.name}: nothing has come from it for 10 min" in said[0][1] and "hang" in said[0][1]


@pytest.mark.parametrize("began", [False, True], ids=["it never began", "it hung"])
def test_what_a_job_waited_that_died_is_no_measure_of_a_stage(jobs, began):
    """It is an hour until its node dies or somebody ends its process; the next one hangs, too."""
    said, clock = [], Clock()
    watchdog = Watchdog(said.append, silent=600, clock=clock)
    watchdog.job_started(jobs[0])
    if began:
        watchdog.job_began(jobs[0])
    clock.now = 3600
    watchdog.job_ended(jobs[0], "its node died")
    watchdog.job_started(jobs[1])
    watchdog.job_began(jobs[1])
    clock.now += 601
    watchdog.look()
    assert len(said) == 1 and f"waiting for {jobs[1].name}" in said[0]
