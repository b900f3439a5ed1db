"""What a trial of `sam_net` is: its config, its timeline, and the arms of one family."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from typing import Any

from trainables.common.models.resnet import Norm, check_shape
from trainables.common.timeline import Timeline, ramp, segment


@dataclass(frozen=True)
class Config:
    data: str = "digits"  # a name or folder that trainables.common.data.images opens
    train_size: int = 1024  # images that are trained on
    select_size: int = 256  # others of the training images, that choose
    report_size: int | None = None  # test images, at least 1; None: all
    pool: int = 1  # side of the squares of pixels that are averaged; divides the images' height and width
    width: int = 8  # channels of the first stage; each next has twice as many
    blocks: tuple[int, ...] = (1, 1, 1)  # residual blocks of each stage
    norm: Norm = "none"
    batch_size: int = 64
    budget_steps: int = 200
    decay_fraction: float = 0.2  # share of the budget in which the rate falls linearly to 0, in [0, 1)
    learning_rate: float = 0.1  # above 0
    momentum: float = 0.9  # in [0, 1)
    weight_decay: float = 5e-4  # added to the gradient of a step, never to that of a perturbation; at least 0
    radius: float = 0.0  # of the perturbation; 0: SGD
    group: int | None = None  # m-SAM: images that share a perturbation; divides the batch. None: the whole batch
    sam_start_step: int = 0  # SGD before it, SAM from it on; not after the stable stretch
    curvature_samples: int = 128  # training images, always the same, that train/* and the curvatures are of
    curvature_probes: int = 8  # random signs of the trace, at least 2
    measure_every: int = 50  # steps between light measurements
    curvature_every: int = 200  # steps between full ones, with curvatures and the report
    seed: int = 0

    def __post_init__(self) -> None:
        check_shape(1, 2, self.width, self.blocks, self.norm)
        for name in ("train_size", "select_size", "pool", "batch_size", "budget_steps", *CURVATURE, "measure_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.report_size is not None and self.report_size < 1:
            raise ValueError(f"report_size must be at least 1, got {self.report_size}; null takes all test images")
        for name in ("learning_rate", "radius", "weight_decay"):
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}; give a number")
        if self.curvature_probes < 2:
            raise ValueError(f"curvature_probes must be at least 2, got {self.curvature_probes}: one has no error")
        for name in ("batch_size", "curvature_samples"):
            if getattr(self, name) > self.train_size:
                raise ValueError(f"{name} must be at most train_size={self.train_size}, got {getattr(self, name)}")
        if not self.learning_rate > 0 or min(self.radius, self.weight_decay, self.sam_start_step) < 0:
            raise ValueError(
                "need learning_rate > 0 and radius, weight_decay and sam_start_step at least 0, got "
                f"{self.learning_rate}, {self.radius}, {self.weight_decay} and {self.sam_start_step}"
            )
        if not (0 <= self.decay_fraction < 1 and 0 <= self.momentum < 1):
            raise ValueError(
                f"decay_fraction and momentum must be in [0, 1), got {self.decay_fraction} and {self.momentum}"
            )
        for name in UNREAD_BY_SGD:
            if self.radius == 0 and getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing at radius=0, got {getattr(self, name)}; leave it at {DEFAULTS[name]}"
                )
        if self.sam_start_step > 0 and self.sam_start_step >= self.stable_steps:
            raise ValueError(
                f"sam_start_step must lie before the decay, which starts at step {self.stable_steps}, got "
                f"{self.sam_start_step}; start earlier or raise budget_steps"
            )
        if self.group is not None and (self.group < 1 or self.batch_size % self.group):
            raise ValueError(f"group must divide batch_size={self.batch_size}, got {self.group}")

    @property
    def decay_steps(self) -> int:
        return 0 if self.decay_fraction == 0 else max(1, round(self.decay_fraction * self.budget_steps))

    @property
    def stable_steps(self) -> int:
        """Steps at the full rate.

        >>> Config(budget_steps=100, decay_fraction=0.25).stable_steps
        75
        """
        return self.budget_steps - self.decay_steps


CURVATURE = ("curvature_samples", "curvature_every")
UNREAD_BY_SGD = ("sam_start_step", "group")
DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Config) if item.default is not MISSING}


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; at radius 0 what only SAM reads is left at its default."""
    away = UNREAD_BY_SGD if values.get("radius", DEFAULTS["radius"]) == 0 else ()
    kept = {name: value for name, value in values.items() if name not in away}
    return [Config(**{**kept, "budget_steps": budget}) for budget in budgets]


def timeline(config: Config) -> Timeline:
    """SGD until `sam_start_step`, then SAM at a constant and at a falling rate.

    Knobs: lr; radius and group, the images that share a perturbation (both absent: SGD).
    """
    rate, start = config.learning_rate, config.sam_start_step
    shared = config.batch_size if config.group is None else config.group
    sharp: dict[str, float] = {"radius": config.radius, "group": shared} if config.radius > 0 else {}
    return (
        segment(start, lr=rate),
        segment(config.stable_steps - start, lr=rate, **sharp),
        segment(config.decay_steps, lr=ramp(rate, 0.0), **sharp),
    )


SHORT = {"budget_steps": "B", "radius": "r", "learning_rate": "lr", "weight_decay": "wd", "group": "m", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """SGD, SAM or late SAM, then what varies.

    >>> describe(Config(radius=0.1, sam_start_step=50), ["radius", "sam_start_step", "learning_rate", "seed"])
    'late SAM r=0.1 sam_start_step=50 lr=0.1 s=0'
    """
    kind = "SGD" if config.radius == 0 else "late SAM" if config.sam_start_step else "SAM"
    named = [name for name in varying if config.radius > 0 or name not in (*UNREAD_BY_SGD, "radius")]
    return " ".join([kind, *(f"{SHORT.get(name, name)}={getattr(config, name)}" for name in named)])
