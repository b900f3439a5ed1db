"""The contract of a study: staged, where trials share stretches of training, or fused, where they share the program.

A staged study is a small record of functions. `root` is all of a config that is not timeline; `timeline` is the rest.
`advance` trains a state through a span of absolute steps under a segment's knobs and `measure` looks at a state without
touching it. Neither sees the config, so nothing that trials share can depend on what they do not share.

A fused study trains many configs at once, one lane each: `train(configs, run)`.

A trial alone: `trainables.walk.train(STUDY, config)`. Many trials: the planner in `sweeps.engine` merges the timelines
of a staged study into a tree of `Branch`es, which `trainables.walk` trains once each, and packs the trials of a fused
one, which `trainables.pack` trains.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import Any, Literal, NamedTuple, Protocol

import torch

from trainables.common.timeline import Placed, Timeline, place, prefix_json, segment, total_steps

Tensors = dict[str, torch.Tensor]
Values = Mapping[str, float | Sequence[float]]


class Metric(NamedTuple):
    """A column that a study is judged by, and whether less or more of it is better."""

    name: str
    goal: Literal["min", "max"]


PROBE_STEPS = 40
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
    def slowest(self, seconds: float) -> float: ...  # over all workers, the same on each


class LaneRun(Protocol):
    """What a fused study sees of where it runs."""

    device: torch.device

    def report(self, *, lane: int, step: int, full: bool = False, **metrics: float | Sequence[float]) -> None: ...
    def measuring(self) -> AbstractContextManager[None]: ...
    def should_stop(self) -> bool: ...


class Diverged(Exception):
    """A measured loss is no longer finite; the trial ends here, and its result is that it diverged."""

    def __init__(self, step: int, metrics: Values):
        bad = {name: value for name, value in metrics.items() if isinstance(value, float) and not isfinite(value)}
        super().__init__(f"diverged: at step {step} " + ", ".join(f"{name} = {value}" for name, value in bad.items()))
        self.step = step


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, a time limit, a node that goes away). What was committed stays."""


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

    def slowest(self, seconds: float) -> float:
        return seconds


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


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else list(value)


def one_per_budget(study: "Study", values: Mapping[str, Any], budgets: Sequence[int]) -> list[Any]:
    """The configs of one method at increasing budgets: the default family of a study."""
    return [study.config(**{**values, study.budget: budget}) for budget in budgets]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a staged and a fused study have in common: names, config, and the metrics it is judged by.

    name, paper: short name; arXiv id. version: raised when training changes meaning.
    config: the frozen dataclass of everything that decides a result.
    tiny: a config that ends in seconds on a CPU.
    conditions: config fields that define the problem; never searched for quality.
    select, report: metrics on disjoint data; tuning sees `select` only, claims and frontiers use `report`.
    centre: what a config is worth over its tuning seeds: the mean of `select`, or the median where some seeds have
    only a bound (censored times).
    budget: the config field that counts steps (or what a step is made of: see `FusedStudy.steps`).
    boundary: the metric that is least where conditions cross from one regime into another, |excess - epsilon|: a search
    that follows it, and only such a search, may draw conditions.
    units: root -> tokens (or samples) and FLOPs per step, parameters.
    family: (values, budgets) -> configs, one per budget; where a method's path passes through its earlier budgets
    the configs carry them.
    describe: (config, names of varying fields) -> a short name, such as "wsd lr=3e-3 B=2000 f=.1 s0".
    module: where the study is defined; filled in.
    """

    name: str = field(kw_only=False)
    paper: str
    version: int
    config: type
    tiny: Any
    conditions: tuple[str, ...] = ()
    select: Metric = SELECT_LOSS
    report: Metric = REPORT_LOSS
    centre: Literal["mean", "median"] = "mean"
    budget: str = "budget_steps"
    boundary: str | None = None
    units: Callable[[Any], Mapping[str, float]] = lambda root: {}
    family: Callable[[Mapping[str, Any], Sequence[int]], list[Any]] | None = None
    describe: Callable[[Any, Sequence[str]], str] | None = None
    module: str = ""

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.conditions, self.budget) if name not in self.field_names]
        if unknown:
            raise ValueError(f"study {self.name!r} names {unknown}, which its config lacks; fields: {self.field_names}")
        if not self.module:
            object.__setattr__(self, "module", self.config.__module__)

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
        content = {item.name: getattr(root, item.name) for item in fields(root) if item.metadata.get("key", True)}
        text = json.dumps([self.name, self.version, content], sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StagedStudy(Study):
    """A study whose trials share the stretches that their timelines have in common.

    root: config -> hashable dataclass with `seed` and `measure_every`. timeline: config -> segments.
    start: (root, run) -> State at step 0. advance: (state, placed segment, span, run) -> None.
    measure: (state, run, full) -> metrics by name; numbers, or in full also lists of numbers (kept, not plotted).
    step_cost: knobs -> FLOPs of a step over those of `units`, which are of a plain step: SAM takes two gradients.
    files: root -> what a model needs beside its weights, by file name. branch: (config, at step, decay steps, shape) ->
    the config that leaves this one's timeline at a step and decays. check_workers: (root, workers) -> None; raises
    ValueError where so many workers cannot share its training, before anything starts.
    """

    root: Callable[[Any], Any]
    timeline: Callable[[Any], Timeline]
    start: Callable[[Any, Run], State]
    advance: Callable[[Any, Placed, Span, Run], None]
    measure: Callable[[Any, Run, bool], Values]
    measured_at: Callable[[Any, Timeline], dict[int, bool]] = measured_on_grid
    step_cost: Callable[[Mapping[str, float]], float] = lambda knobs: 1.0
    files: Callable[[Any], Mapping[str, bytes]] | None = None
    branch: Callable[[Any, int, int, str], Any] | None = None
    check_workers: Callable[[Any, int], None] = lambda root, workers: None


@dataclass(frozen=True, kw_only=True)
class FusedStudy(Study):
    """A study whose trials are small enough that many train as the lanes of one program.

    shape: config -> a hashable; configs of equal shape may train together. What decides a tensor's size or the program
    (dimension, width, architecture, batch size, steps) is shape, and is enumerated; the rest are numbers per lane.
    train: (configs of equal shape, run) -> None; lane i is configs[i], one config is a pack of one. A lane's numbers
    never depend on its neighbours beyond rounding: it owns its random stream, and a NaN stays in it.
    It reports each lane by `run.report(lane=i, step=s, **metrics)`, and last with `full=True` and the report metrics,
    which ends the lane; what is not training goes under `with run.measuring():`. It asks `run.should_stop()` now and
    then and simply returns when that is true.
    steps: config -> training steps of its whole run, by default the budget. A lane may end earlier (solved).
    probe: config -> a config of the same shape that takes a fraction of a second, to measure which pack pays; by
    default the same with a budget of PROBE_STEPS.
    family_steps: configs of one family, budgets increasing -> steps that training all of them takes where a method's
    path passes through its earlier budgets; by default the sum of their steps.
    agreement: relative tolerance within which a lane alone and in a pack agree in every metric.
    """

    shape: Callable[[Any], Any]
    train: Callable[[Sequence[Any], LaneRun], None]
    count_steps: Callable[[Any], int] | None = None
    probe: Callable[[Any], Any] | None = None
    family_steps: Callable[[Sequence[Any]], int] | None = None
    agreement: float = 1e-4

    def steps(self, config: Any) -> int:
        return int(getattr(config, self.budget)) if self.count_steps is None else self.count_steps(config)

    def family_cost(self, configs: Sequence[Any]) -> int:
        return sum(map(self.steps, configs)) if self.family_steps is None else self.family_steps(configs)

    def short(self, config: Any) -> Any:
        """The config that stands for this one when the speed of packs is measured."""
        if self.probe is not None:
            return self.probe(config)
        return replace(config, **{self.budget: min(PROBE_STEPS, getattr(config, self.budget))})

    # A fused trial is a tree of one stage: its root is all of its config, its timeline one stretch.

    def root(self, config: Any) -> Any:
        return config

    def timeline(self, config: Any) -> Timeline:
        return (segment(self.steps(config)),)

    def measured_at(self, root: Any, timeline: Timeline) -> dict[int, bool]:
        return {total_steps(timeline): True}


AnyStudy = StagedStudy | FusedStudy


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

    `placed` are the segments of its way from step 0 on, `points` the measurements in (start, stop], `keep` whether the
    state at its end is committed too, `key` that state's key.
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


def alone(study: "AnyStudy", config: Any, root: Any = None, *, keep: bool = False) -> tuple[Any, Branch]:
    """A config as its root and one unforked branch from step 0 to its end."""
    root = study.root(config) if root is None else root
    timeline = study.timeline(config)
    placed, root_key = place(timeline), study.root_key(root)
    points = tuple(
        Point(step, state_key(root_key, placed, step), full) for step, full in study.measured_at(root, timeline).items()
    )
    stop = total_steps(timeline)
    return root, Branch(state_key(root_key, placed, stop), 0, stop, placed, points, keep)


def with_values(study: Study, **values: Any) -> Any:
    """The study's tiny config with some fields replaced. Raises ValueError for a name that is no field."""
    unknown = [name for name in values if name not in study.field_names]
    if unknown:
        raise ValueError(f"{study.name} has no field {unknown}; fields: {', '.join(study.field_names)}")
    return replace(study.tiny, **values)
