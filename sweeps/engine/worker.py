"""What a job does where it runs: walk its items, commit every finished stage, tell what was committed."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from sweeps.engine.items import Item
from sweeps.engine.packs import pack_size
from sweeps.engine.store import Commit, DamagedStore, Store
from trainables.common.process import reset_process
from trainables.pack import train_pack
from trainables.study import Cost, FusedStudy, Run, Stage, StagedStudy
from trainables.walk import walk

TOGETHER_SECONDS = 1.0  # lanes that end within it are written as one manifest


@dataclass(frozen=True)
class Job:
    """What one Ray Tune trial runs: items, each with the kept state it starts from (None: step 0)."""

    name: str
    items: tuple[tuple[Item, Commit | None], ...]

    @property
    def steps(self) -> int:
        return sum(item.steps for item, _ in self.items)


@dataclass(frozen=True)
class Place:
    """What a job must know of where it runs: the results folder, the file whose appearance asks it to stop, and folders
    that hold a user's own modules. `pack` is the lanes that train together, None for as many as measurement says."""

    results: str
    stop_file: str
    paths: tuple[str, ...] = ()
    threads: int = 1
    pack: int | None = None
    session: str = ""  # the run of a command that these jobs belong to
    code: str = ""  # the hash of Anabranch's own files, which a node that is not of `nodes` must have
    nodes: tuple[str, ...] = ()  # those that were there, and were checked, before the sweep began

    def stop_asked(self) -> bool:
        return os.path.exists(self.stop_file)  # unlike Path.exists, no when the shared folder does not answer


@dataclass(frozen=True)
class Told:
    """A word from a job to the driver: it runs, a stage was committed, or a kept state turned out damaged."""

    committed: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    began: str = ""  # the job's name


def run_job(
    job: Job, place: Place, run: Run, tell: Callable[[Told], None], before_commit: Callable[[], None] = lambda: None
) -> None:
    """Run a job from a recorded process state. Raises trainables.study.Stopped when the run is asked to stop, and what
    `before_commit` raises where this process may no longer write.

    In a worker group every worker runs this and tells; rank 0 alone commits, and only its words count.

    What a study raises becomes a committed stage with status "failed" and its traceback; the other items go on.
    """
    tell(Told(began=job.name))
    sys.path.extend(path for path in place.paths if path not in sys.path)
    store = Store(place.results, place.session)
    if isinstance(job.items[0][0].study, FusedStudy):
        _train_packs(job, place, store, run, tell, before_commit)
        return
    for item, start in job.items:
        reset_process(threads=place.threads)
        commit = _Committer(store, job, item, run, tell, before_commit)
        try:
            tensors = None if start is None else store.load_state(start)
        except DamagedStore:
            tell(Told(damaged=(start.name,) if start else ()))
            continue
        try:
            _walk(item, run, commit, tensors)
        except OSError as error:  # the disk, not the study: stop here, nothing committed is lost
            raise OSError(f"cannot write to {Path(place.results).resolve()}: {error}") from error


@dataclass
class _Committer:
    """Writes the stages of one item. What passes between two commits beside their own cost is start-up."""

    store: Store
    job: Job
    item: Item
    run: Run
    tell: Callable[[Told], None]
    before_commit: Callable[[], None]
    since: float = field(default_factory=time.perf_counter)
    started_at: str = field(default_factory=lambda: _now())

    def __call__(self, stage: Stage) -> None:
        spent = stage.cost.train_seconds + stage.cost.evaluation_seconds + stage.cost.checkpoint_seconds
        startup = max(0.0, time.perf_counter() - self.since - spent)
        told = Told()
        self.before_commit()
        if self.run.rank == 0:
            written = self.store.commit(
                *(self.item.study.name, self.item.root_key, stage),
                job=self.job.name,
                device=device_name(self.run.device),
                started_at=self.started_at,
                startup=startup,
            )
            told = Told(committed=(written.name,))
        self.tell(told)
        self.since = time.perf_counter()
        self.started_at = _now()


def _train_packs(
    job: Job, place: Place, store: Store, run: Run, tell: Callable[[Told], None], before_commit: Callable[[], None]
) -> None:
    """Train a job's lanes, which are of one shape, in packs of the size that pays."""
    reset_process(threads=place.threads)
    began, started_at = time.perf_counter(), _now()
    items = [item for item, _ in job.items]
    study = items[0].study
    assert isinstance(study, FusedStudy)
    configs = [item.root for item in items]
    size = place.pack or pack_size(store.packs, study, configs, run)
    startup = time.perf_counter() - began
    for first in range(0, len(items), size):
        reset_process(threads=place.threads)
        pack = items[first : first + size]
        commit = _LaneCommitter(store, job, pack, run, tell, before_commit, startup, started_at)
        try:
            train_pack(study, configs[first : first + size], run, commit=commit, heed=commit.write_due)
        finally:
            commit.write()
        startup, started_at = 0.0, _now()


@dataclass
class _LaneCommitter:
    """Writes the stages of a pack's lanes, those that end within a second together. None waits longer than to the next
    measurement of the others, at which `write_due` is called."""

    store: Store
    job: Job
    items: Sequence[Item]
    run: Run
    tell: Callable[[Told], None]
    before_commit: Callable[[], None]
    startup: float
    started_at: str
    ended: list[tuple[str, Stage]] = field(default_factory=list)
    written_at: float = field(default_factory=time.monotonic)

    def __call__(self, lane: int, stage: Stage) -> None:
        self.ended.append((self.items[lane].root_key, stage))
        self.write_due()

    def write_due(self) -> None:
        if time.monotonic() - self.written_at > TOGETHER_SECONDS:
            self.write()

    def write(self) -> None:
        self.written_at = time.monotonic()
        if not self.ended:
            return
        self.before_commit()
        try:
            name = self.store.commit_lanes(
                *(self.items[0].study.name, self.ended),
                job=self.job.name,
                device=device_name(self.run.device),
                started_at=self.started_at,
                startup=self.startup,
                together=len(self.items),
            )
        except OSError as error:
            raise OSError(f"cannot write to {self.store.folder.resolve()}: {error}") from error
        self.ended, self.startup = [], 0.0
        self.tell(Told(committed=(name,)))


def _walk(item: Item, run: Run, commit: Callable[[Stage], None], tensors: dict[str, torch.Tensor] | None) -> None:
    """Walk an item; a study that cannot even start its root fails the item's first stage."""
    assert isinstance(item.study, StagedStudy)
    try:
        state = item.study.start(item.root, run)
    except Exception:
        commit(Stage(item.branch, [], None, Cost(), 0, "failed", traceback.format_exc()))
        return
    walk(item.study, item.root, [item.branch], run, commit=commit, tensors=tensors, state=state)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def device_name(device: torch.device) -> str:
    """What the ledger calls a device: "cpu", or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
