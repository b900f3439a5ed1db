"""What the display prints, with and without a terminal, against numbers counted by hand."""

from __future__ import annotations

import io
import math
import threading
import time

import pytest
from rich.console import Console

from sweeps.engine.progress import Display, Progress, banner, line, where_the_time_went


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def in_mid_run() -> Progress:
    """Two slots; the trunk of 800 steps and one branch are in, 40 s after the first job started."""
    clock = Clock()
    progress = Progress(clock=clock)
    progress.started(trials=12, jobs=3, slots=2, steps_alone=12_000, steps_planned=2_400, proposals=4, reused=2)
    clock.now += 10
    progress.job_started("a")
    progress.job_started("b")
    progress.stage_finished(800, train_seconds=30, evaluation_seconds=2, checkpoint_seconds=1, startup_seconds=3)
    progress.stage_finished(200, train_seconds=8)
    progress.trial_finished("wsd lr=3e-3 B=1000 s0", "complete", 1000, 2.5)
    progress.trial_finished("wsd lr=1e-2 B=1000 s0", "complete", 1000, 2.25)
    progress.trial_finished("wsd lr=1e-3 B=500 s0", "complete", 500, math.nan)
    progress.trial_finished("wsd lr=1e-1 B=500 s0", "diverged", 500, None)
    progress.job_ended("b")
    clock.now += 40
    return progress


def test_what_follows_from_the_events():
    progress = in_mid_run()
    assert (progress.complete, progress.failed, progress.left) == (3, 1, 6)
    assert progress.best == {1000: (2.25, "wsd lr=1e-2 B=1000 s0")}
    assert progress.steps_saved == 1000 + 1000 + 500 + 500 - 1000
    assert progress.seconds_left == pytest.approx((2400 - 1000) * 40 / 1000)
    # 2 slots x 50 s; before the first job both slots start up for 10 s
    assert progress.shares() == {
        "training": 0.38,
        "evaluation": 0.02,
        "checkpoints": 0.01,
        "start-up": 0.23,
        "waiting": 0.36,
    }
    assert where_the_time_went(progress).startswith("50 s on 2 slots: training 38 %, evaluation 2 %")


def test_the_greatest_is_best_when_the_goal_is_max():
    progress = Progress(goal="max")
    for name, value in (("a", 0.5), ("b", 0.9), ("c", 0.7)):
        progress.trial_finished(name, "complete", 100, value)
    assert progress.best == {100: (0.9, "b")}


def test_before_anything_ran_the_time_left_is_unknown():
    progress = Progress()
    assert progress.seconds_left is None and "? left" in line(progress)
    progress.finished()
    assert sum(progress.shares().values()) == pytest.approx(1)


def test_without_a_terminal_there_are_plain_lines_at_intervals():
    progress = in_mid_run()
    console = Console(file=io.StringIO(), record=True, width=80, force_terminal=False)
    display = Display(progress, console)
    display.tick()
    display.tick()  # too early for a second line
    progress.message("the store is nearly full")
    display.tick()
    progress.clock.now += 15
    display.tick()
    printed = console.export_text().splitlines()
    assert printed == [
        "wsd lr=1e-1 B=500 s0: diverged",
        "[50 s] trials: 2 from the store, 3 done, 1 failed, 6 left; steps: 1,000 of 2,400 run, 2,000 saved; "
        "56 s left; best B=1000: 2.2500",
        "the store is nearly full",
        "[1 min 5 s] trials: 2 from the store, 3 done, 1 failed, 6 left; steps: 1,000 of 2,400 run, 2,000 saved; "
        "1 min 17 s left; best B=1000: 2.2500",
    ]


def test_on_a_terminal_there_is_one_picture_and_messages_above_it():
    progress = in_mid_run()
    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=True)
    with Display(progress, console):
        progress.trial_finished("wsd lr=3e-3 B=500 s0", "complete", 500, 2.75)
    printed = console.export_text()
    assert "wsd lr=1e-1 B=500 s0: diverged" in printed
    assert "trials: 2 from the store, 4 done, 1 failed, 5 left" in printed
    assert "1,000 of 2,400 steps, 2,500 saved" in printed
    assert "1 of 2 slots busy" in printed
    assert [row.split() for row in printed.splitlines() if " B=" in row and "diverged" not in row][-2:] == [
        ["500", "2.7500", "wsd", "lr=3e-3", "B=500", "s0"],
        ["1,000", "2.2500", "wsd", "lr=1e-2", "B=1000", "s0"],
    ]


def test_the_display_ends_with_an_exception_and_leaves_no_thread():
    progress = Progress()
    with pytest.raises(KeyboardInterrupt), Display(progress, Console(file=io.StringIO())):
        progress.message("nearly there")
        raise KeyboardInterrupt
    time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_the_banner_translates_our_words():
    text = banner(in_mid_run(), study="wsd", scale="laptop")
    first, *rest = text.splitlines()
    assert first == "wsd at scale laptop: 12 trials in 3 Ray jobs, 4 proposals"
    assert all(word in text for word in ("Ray Tune trial", "Optuna trial", "MLflow child run", "MLflow parent run"))
    assert "2,400 steps to run; the trials alone would take 12,000 (5.00x)" in rest
    assert "2 trials are in the store already and are not run again" in rest
    grid = Progress(trials=1, jobs=1)
    assert banner(grid, study="wsd", scale="tiny", executor="local").startswith(
        "wsd at scale tiny: 1 trials in 1 job\n"
    )
    assert "Optuna trial" not in banner(grid, study="wsd", scale="tiny")
