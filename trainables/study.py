"""The contract of a study, and the one training walk over a timeline.

A staged study is a small record of functions. `root` is all of a config that is not timeline; `timeline` is the rest.
`advance` trains a state through a span of absolute steps under a segment's knobs and `measure` looks at a state without
touching it. Neither sees the config, so nothing that trials share can depend on what they do not share.

A trial alone: `train(STUDY, config)`. Many trials: the planner in `sweeps.engine` merges their timelines into a tree of
`Branch`es and `walk` trains each branch once.
"""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from math import isfinite
from typing import Any, Literal, NamedTuple, Protocol

import torch

from trainables.common.timeline import Placed, Timeline, place, prefix_json, total_steps

Tensors = dict[str, torch.Tensor]
Values = Mapping[str, float | Sequence[float]]


class Metric(NamedTuple):
    """A column that a study is judged by, and whether less or more of it is better."""

    name: str
    goal: Literal["min", "max"]


SELECT_LOSS, REPORT_LOSS = Metric("select/loss", "min"), Metric("report/loss", "min")


class Span(NamedTuple):
    """Absolute steps start .. stop - 1."""

    start: int
    stop: int


class State(Protocol):
    """What training changes. `tensors` names all of it; `load_tensors` puts it back into the same objects."""

    def tensors(self) -> Tensors: ...
    def load_tensors(self, tensors: Tensors) -> None: ...


class Run(Protocol):
    """A study's only door to where it runs."""

    device: torch.device
    rank: int
    workers: int

    def report(self, **row: Any) -> None: ...
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module: ...
    def should_stop(self) -> bool: ...


class Diverged(Exception):
    """A measured loss is no longer finite; the trial ends here, and its result is that it diverged."""

    def __init__(self, step: int, metrics: Values):
        bad = {name: value for name, value in metrics.items() if isinstance(value, float) and not isfinite(value)}
        super().__init__(f"diverged: at step {step} " + ", ".join(f"{name} = {value}" for name, value in bad.items()))
        self.step = step


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, a time limit). What was committed stays."""


@dataclass
class LocalRun:
    """A run in this process, without Ray. `rows` keeps what was reported."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    workers: int = 1
    rows: list[dict[str, Any]] = field(default_factory=list)
    stop: Callable[[], bool] = lambda: False

    def report(self, **row: Any) -> None:
        self.rows.append(row)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def should_stop(self) -> bool:
        return self.stop()


def measured_on_grid(root: Any, timeline: Timeline) -> dict[int, bool]:
    """Steps at which a trial is measured -> whether in full; a function of its own timeline alone.

    Lightly on the absolute grid of `root.measure_every` steps, and as long before each fall from a stable stretch as
    the fall is; in full at the end of each stable stretch and of each fall, and at the end.
    """
    placed, total = place(timeline), total_steps(timeline)
    points = {step: False for step in range(root.measure_every, total + 1, root.measure_every)}
    for part, following in pairwise(placed):
        if part.segment.constant and following.segment.falling:
            points.setdefault(max(part.start, part.stop - following.segment.steps), False)
            points[part.stop] = True
        elif part.segment.falling:
            points[part.stop] = True
    points[total] = True
    return {step: full for step, full in sorted(points.items()) if step > 0}


def one_per_budget(study: "StagedStudy", values: Mapping[str, Any], budgets: Sequence[int]) -> list[Any]:
    """The configs of one method at increasing budgets: the default family of a study."""
    return [study.config(**{**values, study.budget: budget}) for budget in budgets]


@dataclass(frozen=True)
class StagedStudy:
    """One paper's training, in stages that trials can share.

    name, paper: short name; arXiv id. version: raised when training changes meaning.
    config: the frozen dataclass of everything that decides a result.
    root: config -> hashable dataclass with `seed` and `measure_every`. timeline: config -> segments.
    start: (root, run) -> State at step 0. advance: (state, placed segment, span, run) -> None.
    measure: (state, run, full) -> metrics by name; numbers, or in full also lists of numbers (kept, not plotted).
    conditions: config fields that define the problem; never searched for quality.
    select, report: metrics on disjoint data; tuning sees `select` only, claims and frontiers use `report`.
    budget: the config field that counts steps. units: root -> tokens (or samples) and FLOPs per step, parameters.
    family: (values, budgets) -> configs, one per budget; where a method's path passes through its earlier budgets
    the configs carry them.
    describe: what varies -> a short name, such as "wsd lr=3e-3 B=2000 f=.1 s0".
    files: root -> what a model needs beside its weights, by file name. branch: (config, at step, decay steps, shape) ->
    the config that leaves this one's timeline at a step and decays.
    """

    name: str
    paper: str
    version: int
    config: type
    root: Callable[[Any], Any]
    timeline: Callable[[Any], Timeline]
    start: Callable[[Any, Run], State]
    advance: Callable[[Any, Placed, Span, Run], None]
    measure: Callable[[Any, Run, bool], Values]
    tiny: Any
    conditions: tuple[str, ...] = ()
    select: Metric = SELECT_LOSS
    report: Metric = REPORT_LOSS
    budget: str = "budget_steps"
    units: Callable[[Any], Mapping[str, float]] = lambda root: {}
    family: Callable[[Mapping[str, Any], Sequence[int]], list[Any]] | None = None
    describe: Callable[[Any, Sequence[str]], str] | None = None
    measured_at: Callable[[Any, Timeline], dict[int, bool]] = measured_on_grid
    files: Callable[[Any], Mapping[str, bytes]] | None = None
    branch: Callable[[Any, int, int, str], Any] | None = None
    module: str = ""

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.conditions, self.budget) if name not in self.field_names]
        if unknown:
            raise ValueError(f"study {self.name!r} names {unknown}, which its config lacks; fields: {self.field_names}")
        if not self.module:
            object.__setattr__(self, "module", self.root.__module__)

    @property
    def field_names(self) -> list[str]:
        return [item.name for item in fields(self.config)]

    @property
    def hyper_parameters(self) -> list[str]:
        return [name for name in self.field_names if name not in (*self.conditions, "seed")]

    def configs(self, values: Mapping[str, Any], budgets: Sequence[int]) -> list[Any]:
        """One config per budget. Raises ValueError unless the budgets increase."""
        if list(budgets) != sorted(set(budgets)):
            raise ValueError(f"budgets must increase, got {list(budgets)}; sort them and drop repeats")
        return self.family(values, budgets) if self.family else one_per_budget(self, values, budgets)

    def root_key(self, root: Any) -> str:
        """sha256 hex of study, version and root: equal keys, one tree.

        A root's field with metadata {"key": False} only says where to find what another field identifies.
        """
        keyed = {item.name for item in fields(root) if item.metadata.get("key", True)}
        content = {name: value for name, value in asdict(root).items() if name in keyed}
        text = json.dumps([self.name, self.version, content], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()


def state_key(root_key: str, placed: Sequence[Placed], step: int) -> str:
    """sha256 hex of the root and the canonical timeline up to `step`: equal keys, equal states."""
    return hashlib.sha256((root_key + prefix_json(placed, step)).encode()).hexdigest()


class Point(NamedTuple):
    """A measurement to take: absolute step, state key there, whether in full."""

    step: int
    key: str
    full: bool


class Row(NamedTuple):
    """A measurement taken. `knobs` are those of the last step before it; `arrays` are kept but not plotted."""

    key: str
    step: int
    full: bool
    metrics: dict[str, float]
    arrays: dict[str, list[float]]
    knobs: dict[str, float]


@dataclass(frozen=True)
class Branch:
    """A stage, start .. stop, and what follows it: the unit that `walk` trains, commits and forks after.

    `placed` are the segments it runs through, `points` the measurements in (start, stop], `keep` whether the state at
    its end is committed too, `key` that state's key.
    """

    key: str
    start: int
    stop: int
    placed: tuple[Placed, ...]
    points: tuple[Point, ...]
    keep: bool = False
    children: tuple["Branch", ...] = ()

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def total_steps(self) -> int:
        return sum(branch.steps for branch in self.stages())

    def stages(self) -> Iterator["Branch"]:
        """This stage and all that follow, parents first."""
        waiting = [self]
        while waiting:
            branch = waiting.pop()
            yield branch
            waiting.extend(branch.children)


@dataclass
class Cost:
    """Seconds of wall clock in one stage, by what they went to."""

    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0


@dataclass
class Stage:
    """A finished stage, as `walk` hands it to `commit`: status is complete, diverged or failed."""

    branch: Branch
    rows: list[Row]
    tensors: Tensors | None
    cost: Cost
    executed_steps: int
    status: Literal["complete", "diverged", "failed"] = "complete"
    error: str | None = None


ON_DEVICE_BYTES = 2 * 2**30


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
    depth is alive. A diverged stage, or one that raises, ends its branch; the others go on. Raises Stopped when the
    run is asked to stop.
    """
    state = study.start(root, run) if state is None else state
    if tensors is not None:
        state.load_tensors(tensors)
    waiting: list[tuple[Branch, Tensors | None]] = []

    def push(children: Sequence[Branch], fork: Tensors | None) -> None:
        largest_first = sorted(children, key=lambda child: child.total_steps, reverse=True)
        waiting.extend((child, fork) for child in largest_first)

    push(branches, clone(state.tensors()) if len(branches) > 1 else None)
    while waiting:
        branch, fork = waiting.pop()
        stage = Stage(branch, [], None, Cost(), 0)
        try:
            if fork is not None:
                state.load_tensors(fork)
            _train_stage(study, stage, state, run)
            fork = _cloned(stage, state)
        except Stopped:
            raise
        except Exception:
            stage.status, stage.error = "failed", traceback.format_exc()
        if stage.status == "complete":
            push(branch.children, fork if len(branch.children) > 1 else None)
            stage.tensors = fork if branch.keep else None
        commit(stage)


def _cloned(stage: Stage, state: State) -> Tensors | None:
    """The state at the end of a finished stage, where it is kept or forked."""
    if stage.status != "complete" or not (stage.branch.keep or len(stage.branch.children) > 1):
        return None
    began = time.perf_counter()
    tensors = clone(state.tensors())
    stage.cost.checkpoint_seconds += time.perf_counter() - began
    return tensors


def _train_stage(study: StagedStudy, stage: Stage, state: State, run: Run) -> None:
    branch = stage.branch
    points = {point.step: point for point in branch.points}
    for placed in branch.placed:
        step, stop = max(placed.start, branch.start), min(placed.stop, branch.stop)
        while step < stop:
            if run.should_stop():
                raise Stopped(f"stopped at step {step}")
            span = Span(step, min([stop, *(cut for cut in points if cut > step)]))
            began = time.perf_counter()
            study.advance(state, placed, span, run)
            _wait_for(run.device)
            trained = time.perf_counter()
            stage.cost.train_seconds += trained - began
            step = span.stop
            stage.executed_steps = step - branch.start
            if step in points:
                row = _measure(study, state, run, points[step], placed.at(step - 1))
                stage.rows.append(row)
                stage.cost.evaluation_seconds += time.perf_counter() - trained
                if not all(isfinite(value) for value in row.metrics.values()):
                    stage.status, stage.error = "diverged", str(Diverged(step, row.metrics))
                    return


def _measure(study: StagedStudy, state: State, run: Run, point: Point, knobs: dict[str, float]) -> Row:
    metrics: dict[str, float] = {}
    arrays: dict[str, list[float]] = {}
    for name, value in study.measure(state, run, point.full).items():
        if isinstance(value, Sequence):
            arrays[name] = [float(item) for item in value]
        else:
            metrics[name] = float(value)
    run.report(key=point.key, step=point.step, full=point.full, **metrics)
    return Row(point.key, point.step, point.full, metrics, arrays, knobs)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alone(study: StagedStudy, config: Any, root: Any = None, *, keep: bool = False) -> tuple[Any, Branch]:
    """A config as its root and one unforked branch from step 0 to its end."""
    root = study.root(config) if root is None else root
    timeline = study.timeline(config)
    placed, root_key = place(timeline), study.root_key(root)
    points = tuple(
        Point(step, state_key(root_key, placed, step), full) for step, full in study.measured_at(root, timeline).items()
    )
    stop = total_steps(timeline)
    return root, Branch(state_key(root_key, placed, stop), 0, stop, placed, points, keep)


def train(study: StagedStudy, config: Any, run: Run | None = None, *, keep: bool = False) -> Stage:
    """Train one config from step 0 to its end, without a store and without Ray.

    Raises Diverged, with the step, when a measured loss is no longer finite, and RuntimeError with the study's own
    traceback when it raises.

    >>> from trainables.toys import QUADRATIC
    >>> train(QUADRATIC, QUADRATIC.tiny).rows[-1].step
    20
    """
    stages: list[Stage] = []
    root, branch = alone(study, config, keep=keep)
    walk(study, root, [branch], run or LocalRun(), commit=stages.append)
    stage = stages[0]
    if stage.status == "diverged":
        raise Diverged(stage.rows[-1].step, stage.rows[-1].metrics)
    if stage.status == "failed":
        raise RuntimeError(f"{study.name} failed on {config}:\n{stage.error}")
    return stage


def with_values(study: StagedStudy, **values: Any) -> Any:
    """The study's tiny config with some fields replaced. Raises ValueError for a name that is no field."""
    unknown = [name for name in values if name not in study.field_names]
    if unknown:
        raise ValueError(f"{study.name} has no field {unknown}; fields: {', '.join(study.field_names)}")
    return replace(study.tiny, **values)
