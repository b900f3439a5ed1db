"""Packs: many trials of a fused study trained as one program, each ending as a stage of its own."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

from trainables.study import (
    Branch,
    Cost,
    Diverged,
    FusedStudy,
    Row,
    Run,
    Stage,
    Stopped,
    alone,
    state_key,
)

Commit = Callable[[int, Stage], None]


def _nothing() -> None:
    pass


class PackRun:
    """The `run` of a fused study: takes in its reports and ends its lanes.

    The seconds between two ends are shared out evenly among the lanes that trained in between, which by their shape
    cost the same: a lane's seconds are attributed, never measured.
    """

    def __init__(self, study: FusedStudy, configs: Sequence[Any], run: Run, commit: Commit, heed: Callable[[], None]):
        self.study, self.run, self.commit, self.heed, self.device = study, run, commit, heed, run.device
        self.roots, self.branches = zip(*(alone(study, config) for config in configs), strict=True)
        self.root_keys = [study.root_key(root) for root in self.roots]
        self.rows: list[list[Row]] = [[] for _ in configs]
        self.alive = set(range(len(configs)))
        self.shared = Cost()  # of each lane that is still alive
        self.since = time.perf_counter()
        self.evaluation = 0.0  # seconds of it since then
        self.measuring_since: float | None = None
        self.fault: Exception | None = None  # what was raised in here, which is nobody's but ours

    def report(self, *, lane: int, step: int, full: bool = False, **metrics: float | Sequence[float]) -> None:
        """Take in a measurement of a lane; `full`, or a metric that is not finite, ends it. Later ones are ignored."""
        if lane not in self.alive:
            return
        numbers = {name: float(value) for name, value in metrics.items() if not isinstance(value, Sequence)}
        arrays = {name: [float(one) for one in value] for name, value in metrics.items() if isinstance(value, Sequence)}
        branch: Branch = self.branches[lane]
        finite = all(isfinite(value) for value in numbers.values())
        ends = full or not finite
        key = branch.key if ends else state_key(self.root_keys[lane], branch.placed, step)
        self.rows[lane].append(Row(key, step, full, numbers, arrays, {}))
        with self.ours():
            self.run.report(lane=lane, key=key, step=step, full=full, **numbers)
            self.heed()
        if not finite:
            self.end(lane, step, "diverged", str(Diverged(step, numbers)))
        elif full:
            self.end(lane, step)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self.measuring_since = time.perf_counter()
        try:
            yield
        finally:
            self.evaluation += time.perf_counter() - self.measuring_since
            self.measuring_since = None

    def should_stop(self) -> bool:
        with self.ours():
            self.heed()
            return self.run.should_stop()

    @contextmanager
    def ours(self) -> Iterator[None]:
        """What is raised in here passes through the study's code, and is not the study's."""
        try:
            yield
        except Exception as fault:
            self.fault = fault
            raise

    def end(self, lane: int, step: int, status: Any = "complete", error: str | None = None) -> None:
        """Commit a lane with its share of the time so far."""
        now = time.perf_counter()
        if self.measuring_since is not None:  # lanes end while they are measured
            self.evaluation += now - self.measuring_since
            self.measuring_since = now
        self.shared.train_seconds += max(0.0, now - self.since - self.evaluation) / len(self.alive)
        self.shared.evaluation_seconds += self.evaluation / len(self.alive)
        self.since, self.evaluation = now, 0.0
        self.alive.remove(lane)
        cost = Cost(self.shared.train_seconds, self.shared.evaluation_seconds)
        with self.ours():
            self.commit(lane, Stage(self.branches[lane], self.rows[lane], None, cost, step, status, error))


def train_pack(
    study: FusedStudy, configs: Sequence[Any], run: Run, *, commit: Commit, heed: Callable[[], None] = _nothing
) -> None:
    """Train configs of equal shape together; each lane's stage is handed to `commit` when it ends.

    `heed` is called whenever the study reports or asks whether to stop: what else has to be done now and then.

    What a pack raises may be one lane's fault, or memory: the lanes that had not ended are trained again one at a time,
    and only one that raises alone ends as failed. Raises Stopped when the run is asked to stop, ValueError for configs
    of several shapes, and whatever `commit`, `heed` and the run raise.
    """
    shapes = {repr(study.shape(config)) for config in configs}
    if len(shapes) > 1:
        raise ValueError(f"a pack of {study.name} needs configs of one shape, got {', '.join(sorted(shapes))}")
    pack = PackRun(study, configs, run, commit, heed)
    try:
        study.train(configs, pack)
        if pack.alive and not run.should_stop():
            lanes = ", ".join(map(str, sorted(pack.alive)))
            raise RuntimeError(f"{study.name} returned before lanes {lanes} ended; report each last with full=True")
    except Stopped:
        raise
    except Exception:
        if pack.fault is not None or not pack.alive:
            raise  # not a lane's fault
        if len(configs) == 1:
            pack.end(0, 0, "failed", traceback.format_exc())
            return

        def of_lane(lane: int) -> Commit:
            return lambda _, stage: commit(lane, stage)

        for lane in sorted(pack.alive):
            train_pack(study, [configs[lane]], run, commit=of_lane(lane), heed=heed)
        return
    if pack.alive:
        raise Stopped(f"stopped with {len(pack.alive)} of {len(configs)} lanes training")
