"""A hundred trials in a row in one Ray: stopped early or by the clock, failing, diverging, killed. What is left?"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sweeps.engine.search import run_on_ray
from sweeps.engine.spec import Search, Spec
from sweeps.nodes.joining import Slots
from tests.faults.clusters import Raylets
from tests.faults.slow import opened
from tests.sweeps.engine_cases import Sweep, toy_spec
from trainables import toys
from trainables.study import StagedStudy, Stopped

STEPS = 100  # of a trial: the least that goes into a job of its own
STOP_AFTER_SECONDS = 4.0


@dataclass
class Use:
    """What the driver's process holds after each job."""

    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def job_ended(self, job: Any, error: str | None) -> None:
        here = psutil.Process()
        self.megabytes.append(here.memory_info().rss / 2**20)
        self.files.append(here.num_fds())

    def planned(self, driver: Any, new: Any) -> None: ...
    def committed(self, commit: Any, rows: Any) -> None: ...
    def settled(self, entry: Any) -> None: ...
    def job_started(self, job: Any) -> None: ...

    def growth(self, values: list[float]) -> float:
        """Per hundred jobs, over the last two thirds: a straight line through them."""
        late = values[len(values) // 3 :]
        return 100 * float(np.polyfit(range(len(late)), late, 1)[0])


@dataclass
class Soaked:
    """What a hundred jobs in a row came to, and left behind."""

    jobs: int
    statuses: dict[str, int]
    stops: int
    megabytes_per_100: float
    files_per_100: float
    left: dict[str, Any]
    folders: list[str]

    @property
    def good(self) -> bool:
        return self.files_per_100 < 5 and not any(self.left.values()) and not self.folders


def troubled(marks: Path) -> StagedStudy:
    """The toy, of which every fifth rate raises, and of which two die once with their process."""

    def advance(state: Any, placed: Any, span: Any, run: Any) -> None:
        number = round(1e4 * placed.at(0)["lr"]) if placed.start == 0 else 0
        if number and number % 5 == 0:
            raise (RuntimeError, MemoryError, ValueError)[number % 3](f"trial {number} was to fail")
        if number in (7, 31) and not (marks / str(number)).exists():
            (marks / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        toys.advance(state, placed, span, run)

    return replace(toys.QUADRATIC, advance=advance)


def soak(cluster: Raylets, folder: Path, jobs: int = 100, workers: int = 1) -> Soaked:
    """Three sweeps in one Ray of `jobs` jobs in all: a grid, rungs, and one that the clock stops before it goes on."""
    marks = folder / "marks"
    marks.mkdir(parents=True)
    use, before = Use(), cluster.left_behind()
    statuses: dict[str, int] = {}
    stops = 0
    study = troubled(marks)
    most = jobs * 6 // 10
    grid = [number / 1e4 for number in range(1, most)] + [1e25]
    rungs = Search(proposals=jobs // 5, bracket=jobs // 5, eta=2)
    specs = [
        toy_spec(folder / "grid", study, rates=grid, budgets=(STEPS,), decay_fraction=0.0),
        toy_spec(folder / "rungs", study, rates=grid[: jobs // 5], budgets=(STEPS, 2 * STEPS), search=rungs),
        toy_spec(folder / "clock", study, rates=grid[: jobs // 5], budgets=(STEPS,), decay_fraction=0.0),
    ]
    with _temporary_files_in(folder / "temporary"):
        for spec in specs:
            if spec.results.name == "clock":
                stops += _stopped_by_the_clock(cluster, spec, use, workers)
            sweep = _run(cluster, spec, use, workers)
            for entry in sweep.entries:
                statuses[entry.status] = statuses.get(entry.status, 0) + 1
    left = cluster.clean_within(30, but=before)
    scratch = [path for spec in specs for path in (spec.results / "ray").glob("*")]
    return Soaked(
        jobs=len(use.files),
        statuses=statuses,
        stops=stops,
        megabytes_per_100=use.growth(use.megabytes),
        files_per_100=use.growth([float(count) for count in use.files]),
        left=left,
        folders=[str(path) for path in (*scratch, *(folder / "temporary").iterdir())],
    )


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """What this process makes as temporary files and folders is made there."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _run(cluster: Raylets, spec: Spec, use: Use, workers: int) -> Sweep:
    sweep = opened(spec, slots=len(spec.budgets) * 100, watchers=[use])  # so many that each trial is a job of its own
    try:
        run_on_ray(sweep.driver, sweep.place, Slots(2 if workers == 1 else 1, workers=workers), address=cluster.address)
    finally:
        sweep.tuning.close()
    return sweep


def _stopped_by_the_clock(cluster: Raylets, spec: Spec, use: Use, workers: int) -> int:
    """Run a sweep for some seconds, as a time limit would; was it stopped?"""
    stop = spec.results.resolve() / "stop"
    spec.results.mkdir(parents=True, exist_ok=True)
    clock = threading.Timer(STOP_AFTER_SECONDS, stop.touch)
    clock.start()
    try:
        _run(cluster, spec, use, workers)
    except Stopped:
        return 1
    finally:
        clock.cancel()
        stop.unlink(missing_ok=True)
    return 0
