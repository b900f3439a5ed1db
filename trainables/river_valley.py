"""When does a stable rate with a short decay beat a cosine? SGD in a two-dimensional river valley (arXiv:2410.05192).

    L(x, y) = hill + river,   hill = k/2 r(x, y)^2,   river = h exp(-s x)

A steep valley whose floor r = 0 slowly falls with x: r = y - b sin x (the floor winds) or r = x y - 1 (a hyperbola,
which also gets steeper as it falls). Gradients are exact but for noise of standard deviation sigma sqrt(k) in y: steps
bounce between the hillsides while they drift down the river. On a straight floor (b = 0) and a constant rate lr the
hill settles, in expectation, at lr k sigma^2 / (2 (2 - lr k)).

The picture is the paper's; formulas, numbers and start are ours. A trial is an expectation: `replicas` runs that differ
in their noise alone. Half of them give the select metrics, the other half the report metrics: what two data splits are
to a model, two disjoint sets of noise are here.
"""

# P lanes, R replicas

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from trainables.common import laned_schedules
from trainables.common.laned_schedules import Method, Rates, refuse_odd_schedules
from trainables.common.lanes import per_lane
from trainables.common.schedules import Accounting
from trainables.common.streams import Streams
from trainables.study import FusedStudy, LaneRun

Valley = Literal["sine", "hyperbola"]
STARTS: dict[Valley, tuple[float, float]] = {"sine": (0.0, 0.0), "hyperbola": (2.0, 2.0)}
FLOPS = {"sine": 24, "hyperbola": 20}  # of one step of one replica, elementary functions counted as one


@dataclass(frozen=True)
class Config:
    method: Method = "wsd"
    budget_steps: int = 2000  # steps, warm-up and decay included
    earlier_budgets: tuple[int, ...] = ()  # smaller budgets that the run passes through (wsd_s, cyclic_cosine)
    peak_lr: float = 5e-3  # learning rate of the stable stretch, above 0
    min_lr_ratio: float = 0.1  # rate at the end of a decay over the peak rate, in [0, 1)
    warmup_steps: int = 0  # linear from 0
    decay_fraction: float = 0.1  # of the budget, in (0, 1]
    decay_shape: str = "linear"  # a name in SHAPES
    accounting: Accounting = "family"  # wsd_s: cost the WSD family's steps, or end at each budget exactly
    valley: Valley = "sine"  # floor y = bend sin x, or x y = 1
    noise: float = 1.0  # sigma: the gradient in y has noise of sigma sqrt(curvature); at least 0
    curvature: float = 100.0  # k, across the valley; above 0
    bend: float = 1.0  # b, how far the floor winds (sine); 0: straight
    height: float = 1.0  # h, river loss at x = 0; at least 0
    slope: float = 0.1  # s, how fast the river falls; at least 0
    replicas: int = 32  # runs averaged, half for select and half for report; even, at least 2
    measure_every: int = 100  # steps between measurements
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_odd_schedules(self)
        if self.valley not in get_args(Valley):
            raise ValueError(f"no valley {self.valley!r}; there are {', '.join(get_args(Valley))}")
        if not self.curvature > 0 or min(self.noise, self.height, self.slope) < 0:
            raise ValueError(
                f"need curvature > 0 and noise, height and slope >= 0, got {self.curvature}, {self.noise}, "
                f"{self.height} and {self.slope}"
            )
        if self.valley == "hyperbola" and self.bend != 1.0:
            raise ValueError(f"bend does nothing in the hyperbola valley, got {self.bend}; leave it at 1 or take sine")
        if self.replicas < 2 or self.replicas % 2:
            raise ValueError(f"replicas are halved between select and report, so even and >= 2; got {self.replicas}")


def across_sine(
    x: torch.Tensor, y: torch.Tensor, bend: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """r = y - b sin x with its derivatives in x and y."""
    return y - bend * torch.sin(x), -bend * torch.cos(x), 1.0


def across_hyperbola(
    x: torch.Tensor, y: torch.Tensor, bend: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """r = x y - 1 with its derivatives in x and y."""
    return x * y - 1, y, x


ACROSS: dict[Valley, Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]]] = {
    "sine": across_sine,
    "hyperbola": across_hyperbola,
}


class Walkers:
    """Positions x and y of all replicas of all lanes, shape [P, R], in double precision."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        first = configs[0]
        self.replicas, self.across = first.replicas, ACROSS[first.valley]
        self.rates = Rates(configs, device)
        stream = {seed: at for at, seed in enumerate(dict.fromkeys(config.seed for config in configs))}
        self.noises = Streams(list(stream), "noise", device)  # lanes of one seed meet the same noise: drawn once
        self.stream_P = torch.tensor([stream[config.seed] for config in configs], device=device)
        self.curvature, self.noise, self.bend, self.height, self.slope = (
            per_lane(configs, name, device, torch.float64)[:, None]
            for name in ("curvature", "noise", "bend", "height", "slope")
        )
        self.jolt = self.noise * self.curvature.sqrt()
        shape = len(configs), first.replicas
        self.x, self.y = (
            torch.full(shape, start, dtype=torch.float64, device=device) for start in STARTS[first.valley]
        )
        self.done = torch.zeros((), dtype=torch.int64, device=device)

    def step(self) -> None:
        """x <- x - lr dL/dx,   y <- y - lr (dL/dy + sigma sqrt(k) xi); in place, as `Captured` needs it."""
        xi = self.noises.normal(self.done, self.replicas, dtype=torch.float64).index_select(0, self.stream_P)
        r, r_x, r_y = self.across(self.x, self.y, self.bend)
        pull = self.curvature * r
        gradient_x = pull * r_x - self.height * self.slope * torch.exp(-self.slope * self.x)
        gradient_y = pull * r_y + self.jolt * xi
        rate = self.rates.at(self.done)[:, None]
        self.x.sub_(rate * gradient_x)
        self.y.sub_(rate * gradient_y)
        self.done.add_(1)

    def measure(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Loss, hill and river of every lane [P] as means over the select replicas, and over the report replicas."""
        r, _, _ = self.across(self.x, self.y, self.bend)
        hill, river = self.curvature / 2 * r**2, self.height * torch.exp(-self.slope * self.x)
        half = self.replicas // 2
        (hill_select, river_select), (hill_report, river_report) = (
            (hill[:, part].mean(1), river[:, part].mean(1)) for part in (slice(half), slice(half, None))
        )
        light = {"select/loss": hill_select + river_select, "hill": hill_select, "river": river_select}
        last = {"report/loss": hill_report + river_report, "report/hill": hill_report, "report/river": river_report}
        return {**light, "lr": self.rates.at(self.done - 1)}, last


def shape(config: Config) -> tuple[Any, ...]:
    """Steps, replicas and valley; the schedule is not: each lane has its own rate at every step."""
    return laned_schedules.steps(config), config.replicas, config.valley


def train(configs: Sequence[Config], run: LaneRun) -> None:
    walkers = Walkers(configs, run.device)
    laned_schedules.walk(configs, run, step=walkers.step, measure=walkers.measure)


def units(config: Config) -> dict[str, float]:
    """One gradient a step counts as one token; FLOPs are those of all replicas."""
    return {"tokens": 1, "flops": FLOPS[config.valley] * config.replicas, "parameters": 2}


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    return laned_schedules.family(Config, values, budgets)


def describe(config: Config, varying: Sequence[str]) -> str:
    return laned_schedules.describe(config, varying, {"noise": "noise", "curvature": "k", "valley": ""})


STUDY: FusedStudy = FusedStudy(
    "river_valley",
    paper="2410.05192",
    version=1,
    config=Config,
    tiny=Config(budget_steps=40, replicas=4, measure_every=10),
    shape=shape,
    train=train,
    count_steps=laned_schedules.steps,
    probe=laned_schedules.short,
    conditions=(
        *("budget_steps", "earlier_budgets", "valley", "noise", "curvature", "bend", "height", "slope"),
        *("replicas", "measure_every"),
    ),
    units=units,
    family=family,
    family_steps=laned_schedules.family_steps,
    describe=describe,
)
