"""lanes: 1-SAM on 512 small networks at once against eager autograd one network at a time; trial-steps per CPU second.

All arms train the networks of `flatness` at scale=laptop (two layers, 30 inputs, 100 hidden units, 100 points, one
sample a step) on one thread in this process and take turns; medians over the rounds count. The eager arm is what one
would write by hand for one network: two backward passes and an update. It works on one lane's own data and order, so
that it also says by how far the arms' weights differ.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch.nn import functional as F

from tests.benchmarks.settings import Measured, Settings
from trainables.common import vmapped
from trainables.common.lanes import Lanes
from trainables.common.process import reset_process
from trainables.common.sam import sam_gradient
from trainables.flatness import Pack
from trainables.flatness_trials import BLOCK_STEPS, Config

LANES, ROUNDS = 512, 7
STEPS = {"closed_form": 200, "vmap": 40, "eager": 250}  # at most BLOCK_STEPS in a round
CONFIG = Config(
    architecture="bias", algorithm="one_sam", learning_rate=0.01, rho=0.1, select_samples=1, report_samples=1
)


class Fused:
    """The lanes through the study's own step: in closed form, or the same gradients through `torch.func`."""

    def __init__(self, lanes: int, mapped: bool = False):
        self.pack = Pack([replace(CONFIG, seed=seed) for seed in range(lanes)], torch.device("cpu"))
        self.pack.enter(0)
        if mapped:
            self.pack.advance.step = self.mapped_step

    def mapped_step(self) -> None:
        pack = self.pack
        inputs, labels = pack.batch()
        data = pack.lane_data(inputs, labels)

        def gradient(weights: Lanes) -> Lanes:
            return vmapped.lane_gradients(pack.lane_loss, weights, data)

        for name, slope in sam_gradient(gradient, pack.weights, pack.knobs["radius"]).items():
            pack.weights[name].sub_(slope, alpha=CONFIG.learning_rate)
        pack.offset.add_(1)

    def advance(self, steps: int) -> None:
        self.pack.draw_block(0)
        self.pack.advance(steps)


class Eager:
    """The first lane by itself, as a loop over samples with autograd."""

    def __init__(self) -> None:
        self.pack = Pack([CONFIG], torch.device("cpu"))
        self.pack.draw_block(0)
        self.inputs, self.labels = self.pack.data["train inputs"][0], self.pack.data["train labels"][0]
        self.order = self.pack.drawn["places"][:, 0].tolist()
        self.inner, self.outer = (self.pack.weights[name][0].clone().requires_grad_() for name in ("inner", "outer"))

    def gradient(self, inner: torch.Tensor, outer: torch.Tensor, sample: int) -> tuple[torch.Tensor, ...]:
        output = F.relu(self.inputs[sample] @ inner) @ outer
        return torch.autograd.grad((output - self.labels[sample]) ** 2, (inner, outer))

    def advance(self, steps: int) -> None:
        for sample in self.order[:steps]:
            uphill = self.gradient(self.inner, self.outer, sample)
            length = torch.sqrt(uphill[0].square().sum() + uphill[1].square().sum()).clamp_min(1e-12)
            there = [
                (weight.detach() + CONFIG.rho / length * slope).requires_grad_()
                for weight, slope in zip((self.inner, self.outer), uphill, strict=True)
            ]
            slopes = self.gradient(*there, sample)
            with torch.no_grad():
                self.inner -= CONFIG.learning_rate * slopes[0]
                self.outer -= CONFIG.learning_rate * slopes[1]


def lanes(settings: Settings) -> Measured:
    reset_process(threads=1)
    count, rounds = (4, 1) if settings.quick else (LANES, ROUNDS)
    steps = dict.fromkeys(STEPS, 3) if settings.quick else STEPS
    assert max(steps.values()) <= BLOCK_STEPS
    arms: dict[str, Callable[[int], None]] = {
        "closed_form": Fused(count).advance,
        "vmap": Fused(count, mapped=True).advance,
        "eager": Eager().advance,
    }
    difference = apart(3 if settings.quick else 50)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for name, advance in arms.items():
        advance(min(10, steps[name]))
    for number in range(rounds):
        for name in sorted(arms, reverse=number % 2 == 1):  # who goes first changes from round to round
            began = time.process_time()
            arms[name](steps[name])
            seconds[name].append(time.process_time() - began)
    trained = {"closed_form": count, "vmap": count, "eager": 1}
    speeds = {name: trained[name] * steps[name] / median(spent) for name, spent in seconds.items()}
    values = {f"{name}_trial_steps_per_cpu_second": speed for name, speed in speeds.items()}
    values |= {f"{name}_ratio": speeds[name] / speeds["eager"] for name in ("closed_form", "vmap")}
    return Measured(values | {"largest_difference": difference}, {"steps_per_round": steps, "seconds": seconds})


def apart(steps: int) -> float:
    """The largest difference between weights of the first of four lanes, in either form, and the eager network's."""
    eager = Eager()
    eager.advance(steps)
    worst = 0.0
    for mapped in (False, True):
        fused = Fused(4, mapped)
        fused.advance(steps)
        for name, weight in (("inner", eager.inner), ("outer", eager.outer)):
            worst = max(worst, float((fused.pack.weights[name][0] - weight.detach()).abs().max()))
    return worst
