"""The smallest staged study: SGD with noisy gradients on a quadratic bowl. For tests of the engine and as a pattern.

    L(w) = 1/2 sum_i h_i w_i^2,   w <- w - lr (h w + noise),   noise_t = f(seed, t).

Under a constant rate the expected loss settles at a level that grows with the rate; decaying the rate lowers it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from trainables.common.timeline import Placed, Timeline, ramp, segment
from trainables.study import Run, Span, StagedStudy, Tensors


@dataclass(frozen=True)
class Config:
    budget_steps: int = 20  # steps in all, at least 1
    learning_rate: float = 0.1  # peak, above 0
    decay_fraction: float = 0.25  # share of the budget that decays linearly to 0, in [0, 1]
    noise: float = 0.1  # standard deviation of the gradient noise, at least 0
    dimension: int = 4  # coordinates
    seed: int = 0
    measure_every: int = 5  # steps between measurements

    def __post_init__(self) -> None:
        if self.budget_steps < 1 or not 0 <= self.decay_fraction <= 1:
            raise ValueError(
                f"need budget_steps >= 1 and decay_fraction in [0, 1], got {self.budget_steps}, {self.decay_fraction}"
            )


@dataclass(frozen=True)
class Root:
    noise: float
    dimension: int
    seed: int
    measure_every: int


def root(config: Config) -> Root:
    return Root(config.noise, config.dimension, config.seed, config.measure_every)


def timeline(config: Config) -> Timeline:
    decay = round(config.decay_fraction * config.budget_steps)
    stable = segment(config.budget_steps - decay, lr=config.learning_rate)
    return stable, segment(decay, lr=ramp(config.learning_rate, 0.0))


class Bowl:
    """Position w, shape [D], curvatures h, shape [D]."""

    def __init__(self, root: Root):
        self.root = root
        self.curvature = torch.linspace(0.1, 1.0, root.dimension)
        self.position = torch.randn(root.dimension, generator=torch.Generator().manual_seed(root.seed))

    def tensors(self) -> Tensors:
        return {"position": self.position}

    def load_tensors(self, tensors: Tensors) -> None:
        self.position.copy_(tensors["position"])


def start(root: Root, run: Run) -> Bowl:
    return Bowl(root)


def advance(state: Bowl, placed: Placed, span: Span, run: Run) -> None:
    for step in range(span.start, span.stop):
        noise = torch.randn(
            state.root.dimension, generator=torch.Generator().manual_seed(state.root.seed * 2**32 + step)
        )
        gradient = state.curvature * state.position + state.root.noise * noise
        state.position.sub_(placed.at(step)["lr"] * gradient)


def measure(state: Bowl, run: Run, full: bool) -> Mapping[str, float]:
    loss = 0.5 * float(state.curvature @ state.position**2)
    return {"select/loss": loss, "report/loss": loss} if full else {"select/loss": loss}


def describe(config: Config, varying: Sequence[str]) -> str:
    return " ".join(["quadratic", *(f"{name}={getattr(config, name)}" for name in varying)])


def diverging(config: Config) -> Config:
    """The same trial with a rate beyond 2 / h_max: it diverges."""
    return replace(config, learning_rate=1e6)


QUADRATIC: StagedStudy = StagedStudy(
    "quadratic",
    paper="none: a toy",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    tiny=Config(),
    conditions=("budget_steps", "noise", "dimension"),
    units=lambda root: {"tokens": 1, "flops": 4 * root.dimension, "parameters": root.dimension},
    describe=describe,
)
