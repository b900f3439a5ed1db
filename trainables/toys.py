"""The smallest studies, staged and fused: SGD with noisy gradients on a quadratic bowl. For tests and as patterns.

    L(w) = 1/2 sum_i h_i w_i^2,   w <- w - lr (h w + noise),   noise_t = f(seed, t).

Under a constant rate the expected loss settles at a level that grows with the rate; decaying the rate lowers it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch

from trainables.common.lanes import Alive, per_lane
from trainables.common.streams import Streams
from trainables.common.timeline import Placed, Timeline, ramp, segment
from trainables.study import FusedStudy, LaneRun, Run, Span, StagedStudy, Tensors


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


@dataclass(frozen=True)
class LaneConfig:
    budget_steps: int = 20  # steps in all, at least 1
    learning_rate: float = 0.1  # above 0
    noise: float = 0.1  # standard deviation of the gradient noise, at least 0
    dimension: int = 4  # coordinates
    target: float | None = None  # a trial ends early below this loss; None: never
    seed: int = 0
    measure_every: int = 5  # steps between measurements

    def __post_init__(self) -> None:
        if self.budget_steps < 1 or self.dimension < 1:
            raise ValueError(f"need budget_steps >= 1 and dimension >= 1, got {self.budget_steps} and {self.dimension}")


def train_lanes(configs: Sequence[LaneConfig], run: LaneRun) -> None:
    """The bowl at a constant rate, one lane per config; a lane that reached its target leaves the batch."""
    first, device = configs[0], run.device
    curvature = torch.linspace(0.1, 1.0, first.dimension, device=device)
    start = Streams([config.seed for config in configs], "start", device)
    noises = Streams([config.seed for config in configs], "noise", device)
    lanes = {
        "position": start.normal(0, first.dimension),
        "rate": per_lane(configs, "learning_rate", device),
        "noise": per_lane(configs, "noise", device),
    }
    alive = Alive(len(configs), device)
    for step in range(1, first.budget_steps + 1):
        noise = lanes["noise"][:, None] * noises.normal(step, first.dimension)
        lanes["position"] -= lanes["rate"][:, None] * (curvature * lanes["position"] + noise)
        last = step == first.budget_steps
        if not last and step % first.measure_every:
            continue
        if run.should_stop():
            return
        with run.measuring():
            losses = 0.5 * (lanes["position"] ** 2 @ curvature)
            done = []
            for place, loss in enumerate(losses.tolist()):
                target = configs[alive.lane[place]].target
                full = last or (target is not None and loss < target)
                reported = {"report/loss": loss} if full else {}
                run.report(lane=alive.lane[place], step=step, full=full, **{"select/loss": loss}, **reported)
                if full or not isfinite(loss):
                    done.append(place)
        if done:
            noises = noises.kept(alive.drop(done, lanes))
        if not len(alive):
            return


LANES: FusedStudy = FusedStudy(
    "lanes",
    paper="none: a toy in lanes",
    version=1,
    config=LaneConfig,
    tiny=LaneConfig(),
    shape=lambda config: (config.dimension, config.budget_steps, config.measure_every),
    train=train_lanes,
    conditions=("budget_steps", "noise", "dimension"),
    units=lambda root: {"tokens": 1, "flops": 4 * root.dimension, "parameters": root.dimension},
    describe=lambda config, varying: " ".join(["lanes", *(f"{name}={getattr(config, name)}" for name in varying)]),
)
