"""A hundred trials in a row in one Ray: lost on rungs, told to stop, failing, diverging, killed. What is left?

`python -m tests.faults.soak ARM GIVEN.json ANSWER.json` is a soak in a process that has done nothing before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sweeps.engine.search import run_on_ray
from sweeps.engine.spec import Search, Spec
from sweeps.nodes.joining import Slots
from tests.benchmarks.meter import run_arm
from tests.faults.clusters import Raylets, raylets
from tests.faults.slow import opened
from tests.sweeps.engine_cases import Sweep, toy_spec
from trainables import toys
from trainables.study import StagedStudy, Stopped

STEPS = 100  # of a trial: the least that goes into a job of its own
STOP_SHARE = 20  # of all jobs so many go by until the third sweep is told to stop: a quarter of its own


class Deaf:
    """A watcher who takes in nothing."""

    def planned(self, driver: Any, new: Any) -> None: ...
    def committed(self, commit: Any, rows: Any) -> None: ...
    def settled(self, entry: Any) -> None: ...
    def job_started(self, job: Any) -> None: ...
    def job_began(self, job: Any) -> None: ...
    def job_ended(self, job: Any, error: str | None) -> None: ...


@dataclass
class Use(Deaf):
    """What the driver's process holds after each job."""

    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def job_ended(self, job: Any, error: str | None) -> None:
        here = psutil.Process()
        self.megabytes.append(here.memory_info().rss / 2**20)
        self.files.append(here.num_fds())

    def growth(self, values: list[float]) -> float:
        """Per hundred jobs, over the last two thirds: a straight line through them."""
        late = values[len(values) // 3 :]
        return 100 * float(np.polyfit(range(len(late)), late, 1)[0])


@dataclass
class Stopper(Deaf):
    """Tells a sweep to stop once so many of its jobs have ended, as Ctrl-C or a time limit would."""

    stop: Path
    jobs: int

    def job_ended(self, job: Any, error: str | None) -> None:
        self.jobs -= 1
        if self.jobs == 0:
            self.stop.touch()


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
    """Three sweeps in one Ray of `jobs` jobs in all: a grid, rungs, and one that is told to stop before it goes on."""
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
        toy_spec(folder / "stopped", study, rates=grid[: jobs // 5], budgets=(STEPS,), decay_fraction=0.0),
    ]
    with _temporary_files_in(folder / "temporary"):
        for spec in specs:
            if spec.results.name == "stopped":
                stops += _stopped(cluster, spec, use, workers, after=max(1, jobs // STOP_SHARE))
            sweep = _run(cluster, spec, [use], workers)
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


def _run(cluster: Raylets, spec: Spec, watchers: Sequence[Deaf], workers: int) -> Sweep:
    sweep = opened(spec, slots=len(spec.budgets) * 100, watchers=watchers)  # so many: each trial is a job of its own
    try:
        run_on_ray(sweep.driver, sweep.place, Slots(2 if workers == 1 else 1, workers=workers), address=cluster.address)
    finally:
        sweep.tuning.close()
    return sweep


def _stopped(cluster: Raylets, spec: Spec, use: Use, workers: int, after: int) -> int:
    """Run a sweep that is told to stop after so many jobs; did it?"""
    stop = spec.results.resolve() / "stop"
    try:
        _run(cluster, spec, [use, Stopper(stop, after)], workers)
    except Stopped:
        return 1
    finally:
        stop.unlink(missing_ok=True)
    return 0


def soak_alone(folder: Path, jobs: int = 100, workers: int = 1) -> Soaked:
    """The same in a process and a Ray of its own: what a process held before would blur the slope of its memory."""
    given = {"folder": str(folder.resolve()), "jobs": jobs, "workers": workers}
    return Soaked(**run_arm(__name__, "soak", given)[1])


def main(words: Sequence[str]) -> None:
    _, question, answer = words
    given = json.loads(Path(question).read_text())
    with raylets(cpus=1) as cluster:
        found = soak(cluster, Path(given["folder"]), given["jobs"], given["workers"])
    Path(answer).write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(sys.argv[1:])
