"""What a trial of `sam_bias` may be (arXiv:2211.05729): problems, modes, config, and the timeline that it makes.

A mode is how a step finds its gradient. Each starts where gradient descent reached zero loss: the trunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch

from trainables.common.timeline import Timeline, segment

ProblemName = Literal["toy4d", "quadratic", "mlp_small"]
PROBLEM_FIELDS: dict[str, tuple[str, ...]] = {
    "toy4d": (),
    "quadratic": ("dimension",),
    "mlp_small": ("samples", "inputs", "hidden", "held_out"),
}
"""Which sizes each problem reads."""


class Mode(NamedTuple):
    """How a step finds its gradient; `reads` are the config fields that only some modes read."""

    reads: tuple[str, ...] = ("radius",)
    random: bool = False  # a random direction instead of an ascent
    through: bool = False  # the derivative goes through the direction


MODES: dict[str, Mode] = {
    "gd": Mode(reads=()),
    "full_sam": Mode(),  # ascent direction of the whole loss, held fixed
    "ascent_loss": Mode(through=True),  # gradient descent on the loss in the ascent direction
    "worst": Mode(("radius", "worst_ascents")),  # the worst direction on the sphere, held fixed
    "worst_loss": Mode(("radius", "worst_ascents"), through=True),
    "average": Mode(random=True),  # a fresh random direction each step
    "one_sam": Mode(),  # one random sample a step, perturbed by its own gradient
    "m_sam": Mode(("radius", "group", "groups")),  # several groups of samples a step, each perturbed by its own
}
SOME_READ = {name for mode in MODES.values() for name in mode.reads}
SIZES = {name for names in PROBLEM_FIELDS.values() for name in names}


@dataclass(frozen=True)
class Config:
    problem: ProblemName = "toy4d"
    mode: str = "full_sam"  # a name in MODES
    budget_steps: int = 5000  # steps after the trunk (see time_per_step), at least 1
    time_per_step: float | None = None  # learning_rate * radius^2 of a budget step; None: that of the config itself
    learning_rate: float = 0.01  # after the trunk, above 0
    radius: float = 0.2  # of the perturbation, above 0; gd has none
    group: int = 1  # m_sam: samples that share a perturbation; divides the samples
    groups: int | None = None  # m_sam: random groups a step; None: all
    worst_ascents: int = 4  # ascents on the sphere that find the worst direction, at least 2
    warm_steps: int = 400  # gradient descent before, to zero loss: the trunk
    warm_rate: float = 0.01  # its learning rate, above 0
    kick: float = 1e-2  # length of the random step that ends the trunk, above 0: at zero loss SAM has no direction
    dimension: int = 10  # quadratic: weights
    samples: int = 16  # mlp_small: training points, with random labels
    inputs: int = 8  # mlp_small: numbers per point
    hidden: int = 32  # mlp_small: tanh units
    held_out: int = 64  # mlp_small: points for select, and as many others for report
    precision: Literal["float64", "float32"] = "float64"
    measure_every: int = 250  # steps between light measurements
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("problem", get_args(ProblemName)), ("mode", MODES), ("precision", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(known)}")
        for name in ("learning_rate", "radius", "warm_rate", "kick", "time_per_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}; mode=gd trains without a radius")
        for name in ("budget_steps", "warm_steps", "group", "groups", "measure_every", *SIZES):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.worst_ascents < 2:
            raise ValueError(f"worst_ascents must be at least 2, got {self.worst_ascents}; one ascent is full_sam")
        for name in unread(self.problem, self.mode):
            if getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under problem={self.problem}, mode={self.mode}, got {getattr(self, name)}; "
                    f"leave it at {DEFAULTS[name]}"
                )
        if self.mode == "m_sam" and (
            self.sample_count % self.group or self.group_count * self.group > self.sample_count
        ):
            raise ValueError(
                f"m_sam needs group to divide the {self.sample_count} samples and groups * group to be at most that, "
                f"got group {self.group} and groups {self.groups}"
            )

    @property
    def sample_count(self) -> int:
        return {"toy4d": 2, "quadratic": self.dimension, "mlp_small": self.samples}[self.problem]

    @property
    def group_count(self) -> int:
        return self.sample_count // self.group if self.groups is None else self.groups

    @property
    def sharpened_steps(self) -> int:
        """Steps after the trunk: as many as take the time of `budget_steps` steps at `time_per_step`.

        >>> Config(budget_steps=100, time_per_step=4e-4, radius=0.1, learning_rate=0.01).sharpened_steps
        400
        """
        if self.time_per_step is None or self.mode == "gd":
            return self.budget_steps
        return max(1, round(self.budget_steps * self.time_per_step / (self.learning_rate * self.radius**2)))

    @property
    def phase2_time(self) -> float:
        """Steps after the trunk times learning_rate * radius^2; 0 for gd."""
        return 0.0 if self.mode == "gd" else self.sharpened_steps * self.learning_rate * self.radius**2


DTYPES = {"float64": torch.float64, "float32": torch.float32}
DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Config) if item.default is not MISSING}


def unread(problem: str, mode: str) -> set[str]:
    """The fields that neither this problem nor this mode reads.

    >>> sorted(unread("quadratic", "gd"))
    ['group', 'groups', 'held_out', 'hidden', 'inputs', 'radius', 'samples', 'worst_ascents']
    """
    return (SIZES | SOME_READ) - set(PROBLEM_FIELDS[problem]) - set(MODES[mode].reads)


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; what the problem and the mode do not read is left at its default."""
    away = unread(values.get("problem", DEFAULTS["problem"]), values.get("mode", DEFAULTS["mode"]))
    kept = {name: value for name, value in values.items() if name not in away}
    return [Config(**{**kept, "budget_steps": budget}) for budget in budgets]


def timeline(config: Config) -> Timeline:
    """Gradient descent and the kick (the trunk), then the mode. Knobs are numbers, so that states fork:

    lr; radius (absent: plain gradient descent); ascents that find the direction (0: a random one); through (1: the
    derivative goes through the direction); group (samples that share a direction) and groups (of them a step); or
    kick alone: a random step of this length.
    """
    trunk = segment(config.warm_steps, lr=config.warm_rate), segment(1, kick=config.kick)
    mode, steps = MODES[config.mode], config.sharpened_steps
    if config.mode == "gd":
        return *trunk, segment(steps, lr=config.learning_rate)
    everything = {"group": config.sample_count, "groups": 1}
    picked = {"one_sam": {"group": 1, "groups": 1}, "m_sam": {"group": config.group, "groups": config.group_count}}
    ascents = 0 if mode.random else config.worst_ascents if "worst_ascents" in mode.reads else 1
    knobs = {"lr": config.learning_rate, "radius": config.radius, "ascents": ascents, "through": mode.through}
    return *trunk, segment(steps, **knobs, **picked.get(config.mode, everything))


SHORT = {"budget_steps": "B", "radius": "r", "learning_rate": "lr", "group": "m", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """Problem and mode, then what varies.

    >>> describe(Config(radius=0.1), ["mode", "radius", "budget_steps", "seed"])
    'toy4d full_sam r=0.1 B=5000 s=0'
    """
    away = unread(config.problem, config.mode) | {"problem", "mode"}
    named = [name for name in varying if name not in away]
    return " ".join(
        [config.problem, config.mode, *(f"{SHORT.get(name, name)}={getattr(config, name)}" for name in named)]
    )
