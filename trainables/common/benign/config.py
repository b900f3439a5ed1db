"""The config of a study of benign overfitting (arXiv:2206.00501), what it does not read, and its timeline."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from typing import Any, Literal, get_args

from trainables.common.benign.samples import RATED, NoiseKind
from trainables.common.models.resnet import Norm, check_shape
from trainables.common.optimizers import OPTIMIZERS
from trainables.common.timeline import Segment, Timeline, ramp, segment

ModelName = Literal["mlp", "resnet"]
Repair = Literal["none", "early_stop", "self_train_hard", "self_train_soft"]
PSEUDO_LABELS = {"self_train_hard": 1.0, "self_train_soft": 2.0}
"""The knob `relabel` of each self-training."""


@dataclass(frozen=True)
class Config:
    data: str = "fashion_mnist"  # or digits, movie_rater, a folder of CIFAR batches, one of images in train/ and val/
    train_size: int | None = 1000  # training samples; None: all beside those held out
    held_out: int = 500  # samples that choose, with labels as noisy as those of training
    test_size: int | None = 2000  # samples with clean labels that report; None: all
    image_size: int = 224  # pixels to which the images of a folder are decoded
    noise_rate: float = 0.0  # share of the labels that noise draws, in [0, 1)
    noise_kind: NoiseKind = "symmetric"  # to any of all classes; flip: to the next one
    model: ModelName = "mlp"
    width: int = 64  # units of a hidden layer; channels of the first stage of a resnet
    depth: int = 1  # mlp: hidden layers
    blocks: tuple[int, ...] = (1, 1, 1)  # resnet: blocks of each stage
    norm: Norm = "batch"  # resnet
    repair: Repair = "none"
    rounds: int = 1  # self-training: students, each taught by the one before
    teacher_step: int | None = None  # self-training: step whose net teaches; None: the best on held-out samples
    student_fraction: float = 0.5  # self-training: a student's steps, as a share of the budget
    budget_steps: int = 1000  # steps on the given labels, at least 1
    batch_size: int = 100
    optimizer: str = "adamw"  # or sgd, or the import path of one's own
    learning_rate: float = 3e-3  # above 0
    decay_fraction: float = 0.0  # share of each training at whose end the rate falls to 0, in [0, 1]; 0: constant
    momentum: float = 0.9  # sgd
    weight_decay: float = 0.0
    augment: bool = False  # crop and mirror the training images, as a function of (seed, step)
    monitor_every: int = 25  # steps between looks at the held-out samples
    boundary_excess: float = 0.02  # select/boundary is the distance of the held-out excess from it
    measure_every: int = 250  # steps between light measurements
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("noise_kind", NoiseKind), ("model", ModelName), ("repair", Repair)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(get_args(known))}")
        if self.optimizer not in ("sgd", *OPTIMIZERS) and ":" not in self.optimizer:
            raise ValueError(
                f"no optimizer {self.optimizer!r}; there are sgd, {', '.join(OPTIMIZERS)}, or 'package.module:function'"
            )
        for name in FINITE:
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, low, high in (("noise_rate", 0, 1), ("momentum", 0, 1)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} must be in [{low}, {high}), got {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.student_fraction > 0):
            raise ValueError(
                "need learning_rate > 0, weight_decay >= 0 and student_fraction > 0, got "
                f"{self.learning_rate}, {self.weight_decay} and {self.student_fraction}"
            )
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be in [0, 1], got {self.decay_fraction}")
        if self.teacher_step is not None and self.teacher_step > self.budget_steps:
            raise ValueError(
                f"teacher_step must be at most budget_steps, got {self.teacher_step} > {self.budget_steps}; "
                "lower it, or leave it to the held-out samples (null)"
            )
        if self.train_size is not None and self.batch_size > self.train_size:
            raise ValueError(f"batch_size must be at most train_size, got {self.batch_size} > {self.train_size}")
        for name in unread(vars(self)):
            if getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under model={self.model}, repair={self.repair}, optimizer={self.optimizer}, "
                    f"got {getattr(self, name)}; leave it at {DEFAULTS[name]}"
                )
        if self.data == RATED and (self.noise_rate or self.model != "mlp" or self.augment):
            raise ValueError(
                f"data={RATED} is noisy by itself and has no images: it takes noise_rate=0, model=mlp, augment=false"
            )
        if self.model == "resnet":
            check_shape(1, 2, self.width, self.blocks, self.norm)

    @property
    def student_steps(self) -> int:
        return max(1, round(self.student_fraction * self.budget_steps))


COUNTS = (
    *("train_size", "held_out", "test_size", "image_size", "width", "depth", "rounds", "teacher_step"),
    *("budget_steps", "batch_size", "monitor_every", "measure_every"),
)
FINITE = ("learning_rate", "weight_decay", "student_fraction", "boundary_excess")
DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Config) if item.default is not MISSING}
TEACHING = {"rounds", "teacher_step", "student_fraction"}


def unread(values: Mapping[str, Any]) -> set[str]:
    """The fields that do nothing under this model, repair and optimizer.

    >>> sorted(unread({"model": "mlp", "repair": "self_train_soft", "optimizer": "adamw"}))
    ['blocks', 'momentum', 'norm']
    """
    given = {**DEFAULTS, **values}
    names = {"blocks", "norm"} if given["model"] == "mlp" else {"depth"}
    names |= set() if given["repair"] in PSEUDO_LABELS else TEACHING
    return names if given["optimizer"] == "sgd" else names | {"momentum"}


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; what does nothing is left at its default."""
    kept = {name: value for name, value in values.items() if name not in unread(values)}
    return [Config(**{**kept, "budget_steps": budget}) for budget in budgets]


def timeline(config: Config) -> Timeline:
    """Training on the given labels, then what the repair adds. Knobs: lr, or one of these alone, for one step:

    restore: the weights that were best on the held-out samples since training last began come back.
    relabel: the net's labels of the training inputs, hard (1) or soft (2), replace the old; its weights start anew.
    """
    first = training(config, config.budget_steps)
    if config.repair == "none":
        return first
    restore = segment(1, restore=1)
    if config.repair == "early_stop":
        return (*first, restore)
    relabel = segment(1, relabel=PSEUDO_LABELS[config.repair])
    student: Timeline = training(config, config.student_steps)
    parts: list[Segment] = []
    for taught in range(config.rounds):
        if config.teacher_step is None:
            parts += [*(student if taught else first), restore, relabel]
        else:
            parts += [segment(config.teacher_step, lr=config.learning_rate), relabel]
    return (*parts, *student)


def training(config: Config, steps: int) -> Timeline:
    """So many steps at the learning rate, the last of them falling to 0 where the config says so."""
    decay = max(1, round(config.decay_fraction * steps)) if config.decay_fraction else 0
    stable = segment(steps - decay, lr=config.learning_rate)
    return (stable, segment(decay, lr=ramp(config.learning_rate, 0.0))) if decay else (stable,)


SHORT = {"budget_steps": "B", "learning_rate": "lr", "weight_decay": "wd", "noise_rate": "noise", "width": "w"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """Model and repair, then what varies.

    >>> describe(Config(noise_rate=0.2), ["repair", "noise_rate", "budget_steps", "blocks", "seed"])
    'mlp none noise=0.2 B=1000 seed=0'
    """
    away = unread(vars(config)) | {"model", "repair"}
    named = [f"{SHORT.get(name, name)}={getattr(config, name)}" for name in varying if name not in away]
    return " ".join([config.model, config.repair, *named])
