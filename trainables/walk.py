"""The one training walk: branches of a stage tree, each trained once, and a single config from start to end."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any, TypeVar

import torch

from trainables.pack import train_pack
from trainables.study import (
    AnyStudy,
    Branch,
    Cost,
    Diverged,
    FusedStudy,
    LocalRun,
    Point,
    Row,
    Run,
    Span,
    Stage,
    StagedStudy,
    State,
    Stopped,
    Tensors,
    alone,
    state_key,
)

T = TypeVar("T")

ON_DEVICE_BYTES = 2 * 2**30
ASK_SECONDS = 1.0  # of training, between two looks at whether the run should stop


def clone(tensors: Tensors) -> Tensors:
    """A copy that training does not change: on the same device while small, in CPU memory above ON_DEVICE_BYTES."""
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    return {
        name: value.detach().cpu().clone() if size > ON_DEVICE_BYTES else value.detach().clone()
        for name, value in tensors.items()
    }


def walk(
    study: StagedStudy,
    root: Any,
    branches: Sequence[Branch],
    run: Run,
    *,
    commit: Callable[[Stage], None],
    tensors: Tensors | None = None,
    state: State | None = None,
) -> None:
    """Train a forest of branches that start from one state: `state`, by default at step 0, with `tensors` loaded.

    Each stage is handed to `commit` when it ends. Small branches go first, so that at most one copy of the state per
    depth is alive. A diverged stage, or one that raises, ends its branch; the others go on; what the run's own methods
    raise ends the walk. When the run is asked to stop, the steps of the stage that it is in are committed as a stage of
    their own, whose state is kept: nothing that was trained is lost. Then it raises Stopped.
    """
    state = study.start(root, run) if state is None else state
    if tensors is not None:
        state.load_tensors(tensors)
    waiting: list[tuple[Branch, Tensors | None]] = []
    stretch = _Stretch()

    def push(children: Sequence[Branch], fork: Tensors | None) -> None:
        largest_first = sorted(children, key=lambda child: child.total_steps, reverse=True)
        waiting.extend((child, fork) for child in largest_first)

    push(branches, clone(state.tensors()) if len(branches) > 1 else None)
    while waiting:
        branch, fork = waiting.pop()
        stage, stopped = Stage(branch, [], None, Cost(), 0), False
        try:
            if fork is not None:
                state.load_tensors(fork)
            stopped = _train_stage(study, stage, state, run, stretch)
            if stopped:
                stage.branch = cut_short(branch, study.root_key(root), branch.start + stage.executed_steps)
            fork = _cloned(stage, state)
        except _OfTheRun as fault:
            raise fault.error from None
        except Exception:
            stage.status, stage.error = "failed", traceback.format_exc()
        if stage.status == "complete":
            push(stage.branch.children, fork if len(stage.branch.children) > 1 else None)
            stage.tensors = fork if stage.branch.keep else None
        if stage.executed_steps or not stopped:
            commit(stage)
        if stopped:
            raise Stopped(f"stopped at step {stage.branch.stop}")


def cut_short(branch: Branch, root_key: str, step: int) -> Branch:
    """The part of a stage up to a step, as a stage that keeps its state: a state key knows only what was trained."""
    points = tuple(point for point in branch.points if point.step <= step)
    key = state_key(root_key, branch.placed, step)
    return replace(branch, key=key, stop=step, points=points, keep=True, children=())


@dataclass
class _Stretch:
    """How many steps are trained before the run is asked again whether to stop: what about ASK_SECONDS are good for."""

    steps: int = 1

    def trained(self, steps: int, seconds: float) -> None:
        worth = int(ASK_SECONDS * steps / max(seconds, 1e-9))
        self.steps = max(1, min(2 * self.steps, worth))


def _cloned(stage: Stage, state: State) -> Tensors | None:
    """The state at the end of a finished stage, where it is kept or forked."""
    if stage.status != "complete" or not (stage.branch.keep or len(stage.branch.children) > 1):
        return None
    began = time.perf_counter()
    tensors = clone(state.tensors())
    stage.cost.checkpoint_seconds += time.perf_counter() - began
    return tensors


def _train_stage(study: StagedStudy, stage: Stage, state: State, run: Run, stretch: _Stretch) -> bool:
    """Train and measure until the stage ends, or the run is asked to stop: was it?"""
    branch = stage.branch
    points = {point.step: point for point in branch.points}
    for placed in branch.placed:
        step, stop = max(placed.start, branch.start), min(placed.stop, branch.stop)
        while step < stop:
            if _of_the_run(run.should_stop):
                return True
            span = Span(step, min([stop, step + stretch.steps, *(cut for cut in points if cut > step)]))
            began = time.perf_counter()
            study.advance(state, placed, span, run)
            _wait_for(run.device)
            trained = time.perf_counter()
            stage.cost.train_seconds += trained - began
            stretch.trained(span.stop - step, _of_the_run(partial(run.slowest, trained - began)))
            step = span.stop
            stage.executed_steps = step - branch.start
            if step in points:
                row = _measure(study, state, run, points[step], placed.at(step - 1))
                stage.rows.append(row)
                stage.cost.evaluation_seconds += time.perf_counter() - trained
                if not all(isfinite(value) for value in row.metrics.values()):
                    stage.status, stage.error = "diverged", str(Diverged(step, row.metrics))
                    return False
    return False


def _measure(study: StagedStudy, state: State, run: Run, point: Point, knobs: dict[str, float]) -> Row:
    metrics: dict[str, float] = {}
    arrays: dict[str, list[float]] = {}
    for name, value in study.measure(state, run, point.full).items():
        if isinstance(value, Sequence):
            arrays[name] = [float(item) for item in value]
        else:
            metrics[name] = float(value)
    _of_the_run(partial(run.report, key=point.key, step=point.step, full=point.full, **metrics))
    return Row(point.key, point.step, point.full, metrics, arrays, knobs)


class _OfTheRun(Exception):
    """An error of the run's own, a disk or a network that is away: not the study's, and no reason to fail a trial."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


def _of_the_run(call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        raise _OfTheRun(error) from error


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(study: AnyStudy, config: Any, run: Run | None = None, *, keep: bool = False) -> Stage:
    """Train one config from step 0 to its end, without a store and without Ray; a fused study's as a pack of one.

    Raises Diverged, with the step, when a measured loss is no longer finite, and RuntimeError with the study's own
    traceback when it raises.

    >>> from trainables.toys import QUADRATIC
    >>> train(QUADRATIC, QUADRATIC.tiny).rows[-1].step
    20
    """
    stages: list[Stage] = []
    if isinstance(study, FusedStudy):
        train_pack(study, [config], run or LocalRun(), commit=lambda lane, stage: stages.append(stage))
    elif isinstance(study, StagedStudy):
        root, branch = alone(study, config, keep=keep)
        walk(study, root, [branch], run or LocalRun(), commit=stages.append)
    stage = stages[0]
    if stage.status == "diverged":
        raise Diverged(stage.rows[-1].step, stage.rows[-1].metrics)
    if stage.status == "failed":
        raise RuntimeError(f"{study.name} failed on {config}:\n{stage.error}")
    return stage
