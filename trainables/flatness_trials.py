"""What a trial of `flatness` may be (arXiv:2307.11007): architectures, algorithms, config, and what trains together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from math import inf
from typing import Any, Literal, get_args

from trainables.common import two_layer
from trainables.study import PROBE_STEPS

Architecture = Literal["no_bias", "bias", "softplus", "sim_bn", "sim_ln", "sim_ln_projected", "three_layer"]
Algorithm = Literal["gd", "sgd", "label_noise", "one_sam", "m_sam", "full_sam"]
NETWORK: Mapping[str, str] = {
    "no_bias": "relu", "bias": "relu", "softplus": "softplus", "sim_bn": "batch_norm", "sim_ln": "layer_norm",
    "sim_ln_projected": "layer_norm", "three_layer": "three_layer",
}  # fmt: skip
ASCENDING = ("one_sam", "m_sam", "full_sam")
FULL_BATCH = ("gd", "full_sam")
READ_UNDER: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "rho": ("algorithm", ASCENDING),
    "later_rhos": ("algorithm", ASCENDING),
    "label_noise_std": ("algorithm", ("label_noise",)),
    "batch_size": ("algorithm", ("sgd", "label_noise", "m_sam")),
    "label_smoothing": ("loss", ("logistic",)),
    "projected_norm": ("architecture", ("sim_ln_projected",)),
    "gain": ("architecture", ("sim_bn",)),
}
"""Fields that only some trials read: name -> (the field that decides, its values that do)."""

BLOCK_STEPS = 256  # steps whose samples are drawn at once


@dataclass(frozen=True)
class Config:
    architecture: Architecture = "bias"  # no_bias and bias are ReLU networks of two layers
    algorithm: Algorithm = "one_sam"  # gd, full_sam: all samples a step; one_sam: one; the others: batch_size
    data: Literal["xor", "ball"] = "xor"  # y = x_1 x_2 on {-1, 1}^d; y = |x_1| - |x_2| in the ball of radius sqrt(d)
    dimension: int = 30  # d, at least 2
    samples: int = 100  # n, to train on
    width: int = 100  # hidden units a layer
    loss: Literal["mse", "logistic"] = "mse"  # mean over samples
    budget_steps: int = 60_000  # steps in all; an epoch is samples / (samples a step)
    learning_rate: float = 0.01  # above 0; of the first phase
    rho: float = 0.1  # SAM's radius, above 0; of the first phase
    weight_decay: float = 0.0  # at least 0, of all weights: w <- (1 - rate * decay) w - rate * gradient
    label_noise_std: float = 0.3  # of the Gaussian added to the label afresh at every step, above 0
    label_smoothing: float = 0.2  # chance of the other label, in (0, 0.5)
    batch_size: int = 1  # samples a step, drawn with replacement
    later_learning_rates: tuple[float, ...] = ()  # of the phases after the first
    later_rhos: tuple[float, ...] = ()  # the same for SAM's radius
    phase_parts: tuple[float, ...] = (1.0,)  # how the phases share out the budget, such as (20, 20, 1)
    first_layer_scale: float = 1.0  # times the first layer's initial weights, above 0
    projected_norm: float = 10.0  # that the first layer, weights and bias, is held at after every step, above 0
    gain: float = 1.0  # of the batch norm, above 0; fixed
    interpolated_below: float = 1e-4  # loss above its least, under which the Hessian is the samples' Gram matrix
    select_samples: int = 2000  # fresh ones, to select on
    report_samples: int = 2000  # fresh ones, to report on
    measure_every: int = 3000  # steps between measurements
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("architecture", Architecture), ("algorithm", Algorithm)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(get_args(kind))}")
        if self.data not in ("xor", "ball") or self.loss not in ("mse", "logistic"):
            raise ValueError(f"data is xor or ball and loss mse or logistic, got {self.data!r} and {self.loss!r}")
        if self.loss == "logistic" and (self.data == "ball" or self.algorithm == "label_noise"):
            raise ValueError(
                f"logistic loss needs labels -1 and +1, got data={self.data}, algorithm={self.algorithm}; take loss=mse"
            )
        for name, (decider, values) in READ_UNDER.items():
            if getattr(self, decider) not in values and getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under {decider}={getattr(self, decider)}, got {getattr(self, name)}; "
                    f"leave it at {DEFAULTS[name]!r} or take {decider}={' or '.join(values)}"
                )
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ABOVE_ZERO:
            if not all(0 < value < inf for value in _as_tuple(getattr(self, name))):
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be below 0.5, got {self.label_smoothing}")
        later = len(self.phase_parts) - 1
        rhos = later if self.algorithm in ASCENDING else 0
        if len(self.later_learning_rates) != later or len(self.later_rhos) != rhos:
            raise ValueError(
                f"{later + 1} phases under {self.algorithm} need {later} later_learning_rates and {rhos} later_rhos, "
                f"got {self.later_learning_rates} and {self.later_rhos}; phase_parts has an entry per phase"
            )
        if len(set(self.phase_starts)) <= later or self.phase_starts[-1] >= self.budget_steps:
            raise ValueError(
                f"each phase needs a step, got phases from steps {self.phase_starts} of {self.budget_steps}; raise "
                "budget_steps or even out phase_parts"
            )

    @cached_property
    def phase_starts(self) -> tuple[int, ...]:
        """The first step of every phase, rounded."""
        whole = sum(self.phase_parts)
        before = list(accumulate(self.phase_parts, initial=0.0))[:-1]
        return tuple(round(self.budget_steps * part / whole) for part in before)

    @property
    def rates(self) -> tuple[float, ...]:
        return self.learning_rate, *self.later_learning_rates

    @property
    def radii(self) -> tuple[float, ...]:
        """SAM's radius in every phase; 0 is gradient descent."""
        ascending = self.algorithm in ASCENDING
        return (self.rho, *self.later_rhos) if ascending else (0.0,) * len(self.phase_parts)

    @property
    def samples_a_step(self) -> int:
        return self.samples if self.algorithm in FULL_BATCH else self.batch_size


def _as_tuple(value: Any) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


DEFAULTS = {item.name: item.default for item in fields(Config)}
LEAST = {
    "dimension": 2, "weight_decay": 0, "interpolated_below": 0,
    **dict.fromkeys(("samples", "width", "budget_steps", "batch_size"), 1),
    **dict.fromkeys(("select_samples", "report_samples", "measure_every"), 1),
}  # fmt: skip
ABOVE_ZERO = (
    *("learning_rate", "later_learning_rates", "rho", "later_rhos", "label_noise_std", "label_smoothing"),
    *("phase_parts", "first_layer_scale", "projected_norm", "gain"),
)


def read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial without those that its architecture, algorithm and loss do not read.

    >>> read({"algorithm": "gd", "rho": 0.2, "weight_decay": 0.05})
    {'algorithm': 'gd', 'weight_decay': 0.05}
    """
    return {
        name: value
        for name, value in values.items()
        if name not in READ_UNDER
        or values.get(READ_UNDER[name][0], DEFAULTS[READ_UNDER[name][0]]) in READ_UNDER[name][1]
    }


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; what a trial does not read is left at its default, so that it is not trained twice."""
    return [Config(**read({**values, "budget_steps": budget})) for budget in budgets]


def shape(config: Config) -> tuple[Any, ...]:
    """Equal for configs that train together: sizes, program, phases and grid. In closed form SGD is SAM of radius 0."""
    network, one_by_one = NETWORK[config.architecture], config.samples_a_step == 1
    closed = one_by_one and network in two_layer.HEADS
    return (
        *(network, config.architecture == "sim_ln_projected", config.data, config.loss),
        *(config.dimension, config.samples, config.width, config.samples_a_step),
        *(config.algorithm in FULL_BATCH, closed or config.algorithm in ASCENDING),
        *(config.budget_steps, config.phase_parts),
        *(config.measure_every, config.select_samples, config.report_samples),
    )


def units(config: Config) -> dict[str, float]:
    """Samples and FLOPs a step, and weights: a multiply-add is two FLOPs, forward and backward are three passes."""
    biased = config.architecture != "no_bias"
    weights = (config.dimension + biased + 1) * config.width
    weights += config.width**2 if config.architecture == "three_layer" else 0
    gradients = 2 if config.algorithm in ASCENDING else 1
    passes = config.samples if config.architecture == "sim_bn" else config.samples_a_step
    return {"tokens": config.samples_a_step, "flops": 6.0 * weights * passes * gradients, "parameters": weights}


def probe(config: Config) -> Config:
    """A stand-in whose steps cost the same: as few as its phases allow, and hardly anything evaluated."""
    closed = NETWORK[config.architecture] in two_layer.HEADS
    steps = max(BLOCK_STEPS if closed else PROBE_STEPS, round(2 * sum(config.phase_parts) / min(config.phase_parts)))
    steps = min(steps, config.budget_steps)
    return replace(config, budget_steps=steps, interpolated_below=1e9, select_samples=1, report_samples=1)


def describe(config: Config, varying: Sequence[str]) -> str:
    """Such as "bias one_sam n=100 budget_steps=60000 seed=3"."""
    words: list[str] = [config.architecture, config.algorithm]
    for name in varying:
        if name not in ("architecture", "algorithm") and name in read(vars(config)):
            value = getattr(config, name)
            words.append(f"{SHORT.get(name, name)}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(words)[:79]


SHORT = {
    "learning_rate": "lr", "weight_decay": "wd", "label_noise_std": "noise", "label_smoothing": "smoothing",
    "first_layer_scale": "scale", "projected_norm": "norm",
}  # fmt: skip
