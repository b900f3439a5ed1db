"""Schedules for lanes: what wsd.py does with one timeline per trial, for a pack of trials that step together.

A config that has the fields of `Scheduled` gets its timeline from here (arXiv:2410.05192; `schedules` has the shapes),
a pack gets the learning rate of every lane at every step, and a walk that measures each lane at its own steps.
"""

# P lanes, U different timelines among them, T steps

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import torch

from trainables.common import schedules
from trainables.common.captured import Captured
from trainables.common.timeline import SHAPES, Timeline, common_steps, place, total_steps
from trainables.study import PROBE_STEPS, LaneRun

Method = Literal["wsd", "wsd_s", "cosine", "cyclic_cosine", "constant"]
SCHEDULE_FIELDS: dict[str, tuple[str, ...]] = {
    "wsd": ("min_lr_ratio", "decay_fraction", "decay_shape"),
    "wsd_s": ("min_lr_ratio", "decay_fraction", "decay_shape", "accounting", "earlier_budgets"),
    "cosine": ("min_lr_ratio",),
    "cyclic_cosine": ("min_lr_ratio", "earlier_budgets"),
    "constant": (),
}
"""Which schedule fields each method reads, beside budget_steps, peak_lr and warmup_steps."""
SOME_READ = sorted({name for names in SCHEDULE_FIELDS.values() for name in names})


class Scheduled(Protocol):
    """The fields of a config that its schedule is made of; those of `trainables.wsd.Config` that toys need."""

    @property
    def method(self) -> Method: ...
    @property
    def budget_steps(self) -> int: ...
    @property
    def earlier_budgets(self) -> tuple[int, ...]: ...
    @property
    def peak_lr(self) -> float: ...
    @property
    def min_lr_ratio(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay_fraction(self) -> float: ...
    @property
    def decay_shape(self) -> str: ...
    @property
    def accounting(self) -> schedules.Accounting: ...
    @property
    def measure_every(self) -> int: ...


def timeline(config: Scheduled) -> Timeline:
    """The learning rate's segments. Raises ValueError for a schedule that does not fit into its budget."""
    peak, low, warmup = config.peak_lr, config.peak_lr * config.min_lr_ratio, config.warmup_steps
    budgets = (*config.earlier_budgets, config.budget_steps)
    decays = schedules.decay_steps(budgets, [config.decay_fraction] * len(budgets), "cumulative")
    match config.method:
        case "constant":
            return schedules.constant(config.budget_steps, peak, warmup)
        case "cosine":
            return schedules.cosine(config.budget_steps, peak, low, warmup)
        case "cyclic_cosine":
            return schedules.cyclic_cosine(budgets, peak, low, warmup, rewarmup=0)
        case "wsd":
            return schedules.warmup_stable_decay(config.budget_steps, decays[-1], peak, low, warmup, config.decay_shape)
    return schedules.wsd_s(budgets, decays, peak, low, warmup, config.decay_shape, accounting=config.accounting)


def refuse_odd_schedules(config: Scheduled) -> None:
    """Raise ValueError for schedule fields that a config cannot honour, and for those that its method does not read."""
    budgets = (*config.earlier_budgets, config.budget_steps)
    if config.method not in get_args(Method):
        raise ValueError(f"no method {config.method!r}; there are {', '.join(get_args(Method))}")
    if list(budgets) != sorted(set(budgets)) or budgets[0] < 1:
        raise ValueError(f"budgets must increase from at least 1, got {budgets}; sort them and drop repeats")
    if not config.peak_lr > 0:
        raise ValueError(f"peak_lr must be above 0, got {config.peak_lr}")
    if not 0 <= config.min_lr_ratio < 1:
        raise ValueError(f"min_lr_ratio must be in [0, 1), got {config.min_lr_ratio}")
    if not 0 < config.decay_fraction <= 1:
        raise ValueError(f"decay_fraction must be in (0, 1], got {config.decay_fraction}")
    if config.decay_shape not in SHAPES:
        raise ValueError(f"no decay_shape {config.decay_shape!r}; there are {', '.join(SHAPES)}")
    if config.accounting not in get_args(schedules.Accounting):
        raise ValueError(f"no accounting {config.accounting!r}; there are {', '.join(get_args(schedules.Accounting))}")
    if config.warmup_steps < 0 or config.measure_every < 1:
        raise ValueError(
            f"need warmup_steps >= 0 and measure_every >= 1, got {config.warmup_steps} and {config.measure_every}"
        )
    for name, default in unread(config).items():
        if getattr(config, name) != default:
            raise ValueError(
                f"{name} does nothing under method {config.method!r}, got {getattr(config, name)}; leave it at "
                f"{default!r} or take a method that reads it"
            )
    timeline(config)  # refuses what does not fit into the budget


def unread(config: Any, method: str | None = None) -> dict[str, Any]:
    """The schedule fields that a config's method (or another one) does not read, with their defaults."""
    read = SCHEDULE_FIELDS[method or config.method]
    return {item.name: item.default for item in fields(config) if item.name in SOME_READ and item.name not in read}


def family(make: Callable[..., Any], values: Mapping[str, Any], budgets: Sequence[int]) -> list[Any]:
    """One config per budget of one method; what the method does not read is left at its default.

    Under wsd_s and cyclic_cosine each config carries its earlier budgets.
    """
    read = SCHEDULE_FIELDS.get(values.get("method", "wsd"), ())
    kept = {name: value for name, value in values.items() if name in read or name not in SOME_READ}
    return [
        make(
            **{
                **kept,
                "budget_steps": budget,
                **({"earlier_budgets": tuple(budgets[:at])} if "earlier_budgets" in read else {}),
            }
        )
        for at, budget in enumerate(budgets)
    ]


def short(config: Any) -> Any:
    """The same lanes at a constant rate for a few steps, to measure the speed of packs."""
    steps = min(PROBE_STEPS, config.budget_steps)
    return replace(
        config, method="constant", budget_steps=steps, warmup_steps=0, measure_every=steps, **unread(config, "constant")
    )


def steps(config: Scheduled) -> int:
    """Steps of a config's whole run: its budget, and under WSD-S with family accounting the earlier decays too."""
    return total_steps(timeline(config))


def measured_steps(config: Scheduled) -> list[int]:
    """Where a lane is measured: every `measure_every` steps and where its segments end, the last step included."""
    parts = timeline(config)
    grid = range(config.measure_every, total_steps(parts), config.measure_every)
    return sorted({*grid, *schedules.boundaries(parts)})


def last_fork(config: Scheduled) -> int | None:
    """The step at which the last decay leaves a stable stretch; None where no decay does."""
    placed = place(timeline(config))
    forks = [now.start for before, now in pairwise(placed) if before.segment.constant and now.segment.falling]
    return forks[-1] if forks else None


def family_steps(configs: Sequence[Scheduled]) -> int:
    """Steps that a family of runs takes when what their timelines share is trained once."""
    timelines = [place(timeline(config)) for config in configs]
    shared = [
        max((common_steps(parts, earlier) for earlier in timelines[:at]), default=0)
        for at, parts in enumerate(timelines)
    ]
    return sum(parts[-1].stop - known for parts, known in zip(timelines, shared, strict=True))


SHORT = {"peak_lr": "lr", "budget_steps": "B", "decay_fraction": "f", "min_lr_ratio": "min", "warmup_steps": "warmup"}


def describe(config: Any, varying: Sequence[str], short: Mapping[str, str]) -> str:
    """Method, then what varies, shortly; `short` are a study's own fields with their labels."""
    labels = {**SHORT, **short, "decay_shape": "", "accounting": ""}
    idle = {"method", "earlier_budgets", *unread(config)}
    words = [str(config.method)]
    for name in [*labels, *sorted(set(varying) - {*labels, "seed"})]:
        if name in varying and name not in idle:
            label, value = labels.get(name, name), getattr(config, name)
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            words.append(f"{label}={text}" if label else text)
    return " ".join([*words, *([f"s{config.seed}"] if "seed" in varying else [])])


class Rates:
    """The learning rate of every lane at a step, equal to `Placed.at` of its own timeline.

    Lanes with equal timelines (other seeds, other noise) share one column of a table [T, U].
    """

    def __init__(self, configs: Sequence[Scheduled], device: torch.device | str, dtype: torch.dtype = torch.float64):
        timelines = [timeline(config) for config in configs]
        different = {parts: at for at, parts in enumerate(dict.fromkeys(timelines))}
        table_UT = [
            [placed.at(step)["lr"] for placed in place(parts) for step in range(placed.start, placed.stop)]
            for parts in different
        ]
        self.table_TU = torch.tensor(table_UT, dtype=dtype, device=device).T.contiguous()
        self.column_P = torch.tensor([different[parts] for parts in timelines], device=device)

    def at(self, step: torch.Tensor) -> torch.Tensor:
        """Rates [P] at a step counted from 0, a tensor of one number: nothing waits for its value."""
        return self.table_TU.index_select(0, step.view(1))[0].index_select(0, self.column_P)


Measured = Mapping[str, torch.Tensor]  # metric -> its value in every lane, [P]


def walk(
    configs: Sequence[Scheduled],
    run: LaneRun,
    *,
    step: Callable[[], object],
    measure: Callable[[], tuple[Measured, Measured]],
) -> None:
    """Call `step` for as many steps as the lanes have, and report what `measure` gives at each lane's own steps.

    `measure` returns (what every row has, what only the last row has). A lane whose last decay leaves a stable stretch
    also ends with the latter as they were there, as NAME_before_decay. Diverged lanes stay in the batch: they cost
    what the others cost, and their NaN stays in them.
    """
    lanes_at: dict[int, list[int]] = {}
    for lane, config in enumerate(configs):
        for stop in measured_steps(config):
            lanes_at.setdefault(stop, []).append(lane)
    forks, ends = [last_fork(config) for config in configs], [steps(config) for config in configs]
    before: list[dict[str, float]] = [{} for _ in configs]
    steps_of, done = Captured(step, run.device), 0
    for stop, lanes in sorted(lanes_at.items()):
        steps_of(stop - done)
        done = stop
        if run.should_stop():
            return
        with run.measuring():
            light, last = ({name: value.tolist() for name, value in part.items()} for part in measure())
            for lane in lanes:
                row = {name: values[lane] for name, values in light.items()}
                if stop == forks[lane]:
                    before[lane] = {f"{name}_before_decay": values[lane] for name, values in last.items()}
                if stop == ends[lane]:
                    row |= {name: values[lane] for name, values in last.items()} | before[lane]
                run.report(lane=lane, step=stop, full=stop == ends[lane], **row)
