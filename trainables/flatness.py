"""Do flat minima generalise, and do algorithms that flatten generalise for that reason? (arXiv:2307.11007)

Shallow networks learn y = x_1 x_2 from few points of a cube. 1-SAM and label noise find flatter interpolating networks
than SGD. Without a bias these generalise; with one, a sharper network found by weight decay generalises better; with a
layer norm the flattest networks include ones that memorise, and still 1-SAM finds one that does not. Sharpness is the
trace of the loss' Hessian. All trials of one shape are lanes of one program.
"""

# A lanes alive, T steps of a block, B samples of a step, N training samples, D inputs (the bias' among them), H hidden

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from math import inf, isfinite
from typing import Any, Literal, get_args

import torch
from torch.func import vmap

from trainables.common import two_layer, vmapped
from trainables.common.captured import Captured
from trainables.common.lanes import Alive, Lanes, per_lane, spread
from trainables.common.models.shallow import NETWORKS
from trainables.common.sam import sam_gradient
from trainables.common.streams import Streams
from trainables.flatness_measures import measure
from trainables.study import PROBE_STEPS, FusedStudy, LaneRun, Metric

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
CHUNK_NUMBERS = 2**24  # hidden activations at a time when many samples are evaluated


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


def draw(
    config: Config, seeds: Sequence[int], split: str, count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [A, count, d] of a split and their labels [A, count]; splits are draws of their own."""
    streams, dimension = Streams(seeds, f"{split} samples", device), config.dimension
    if config.data == "xor":
        inputs = streams.signs(0, count, dimension)
        return inputs, inputs[..., 0] * inputs[..., 1]
    directions = streams.normal(0, count, dimension)
    directions /= torch.linalg.vector_norm(directions, dim=2, keepdim=True)
    inputs = directions * (streams.uniform(1, count, 1) ** (1 / dimension) * dimension**0.5)
    return inputs, inputs[..., 0].abs() - inputs[..., 1].abs()


def initial(configs: Sequence[Config], seeds: Sequence[int], device: torch.device) -> Lanes:
    """Uniform within 1 / sqrt(inputs of the unit), as `torch.nn.Linear`; a network without bias has zeros there."""
    first = configs[0]

    def uniform(name: str, fan_in: int, *shape: int) -> torch.Tensor:
        return (2 * Streams(seeds, f"{name} weights", device).uniform(0, *shape) - 1) / fan_in**0.5

    weights = {"inner": uniform("inner", first.dimension, first.dimension + 1, first.width)}
    weights["inner"] *= per_lane(configs, "first_layer_scale", device)[:, None, None]
    weights["inner"][:, -1] *= _biased(configs, device)[:, None]
    if first.architecture == "three_layer":
        weights["middle"] = uniform("middle", first.width, first.width, first.width)
    weights["outer"] = uniform("outer", first.width, first.width)
    return weights


def _biased(configs: Sequence[Config], device: torch.device) -> torch.Tensor:
    return torch.tensor([float(config.architecture != "no_bias") for config in configs], device=device)


class Pack:
    """The lanes of one shape: their data, weights and knobs as tensors, and the step that changes the weights."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        self.configs, self.first, self.device = configs, configs[0], device
        self.alive = Alive(len(configs), device)
        seeds = [config.seed for config in configs]
        self.order, self.noises = Streams(seeds, "order", device), Streams(seeds, "label noise", device)
        self.network_name = NETWORK[self.first.architecture]
        self.network, self.head = NETWORKS[self.network_name], two_layer.HEADS.get(self.network_name)
        self.loss = two_layer.LOSSES[self.first.loss]
        self.data: Lanes = {}
        for split in ("train", "select", "report"):
            count = self.first.samples if split == "train" else getattr(self.first, f"{split}_samples")
            inputs, labels = draw(self.first, seeds, split, count, device)
            ones = _biased(configs, device)[:, None, None].expand(-1, count, 1)
            self.data[f"{split} inputs"], self.data[f"{split} labels"] = torch.cat([inputs, ones], 2), labels
        self.knobs: Lanes = {
            name: per_lane(configs, name, device)
            for name in ("weight_decay", "label_smoothing", "projected_norm", "gain", "interpolated_below")
        }
        noise = [config.label_noise_std if config.algorithm == "label_noise" else 0.0 for config in configs]
        self.knobs |= {"noise": torch.tensor(noise, device=device)}
        self.knobs |= {name: torch.zeros(len(configs), device=device) for name in ("rate", "radius")}
        self.weights = initial(configs, seeds, device)
        self.project()
        # Of the pack, not of a lane: an addition of 0 and a product with 1 change nothing.
        self.noisy, self.decaying = any(noise), any(config.weight_decay for config in configs)
        self.offset = torch.zeros(1, dtype=torch.int64, device=device)  # steps into the block
        self.drawn: Lanes = {}
        self.advance = Captured(self.step, device)

    def enter(self, phase: int) -> None:
        """The rate and radius of every lane in a phase."""
        configs = [self.configs[lane] for lane in self.alive.lane]
        self.knobs["rate"].copy_(torch.tensor([config.rates[phase] for config in configs]))
        self.knobs["radius"].copy_(torch.tensor([config.radii[phase] for config in configs]))

    def draw_block(self, step: int) -> None:
        """The samples and label noise of the block of steps that `step` lies in, wherever in it training stands."""
        block, count, size = step // BLOCK_STEPS, self.first.samples, self.first.samples_a_step
        fresh: Lanes = {}
        if self.first.algorithm not in FULL_BATCH:
            lanes = torch.arange(len(self.alive), device=self.device)[:, None, None]
            places = self.order.integers(block, count, BLOCK_STEPS, size) + lanes * count
            fresh["places"] = places.transpose(0, 1).flatten(1)  # T, A * B: rows of the lanes' data end to end
        if self.noisy:
            fresh["noise"] = self.noises.normal(block, BLOCK_STEPS, size).transpose(0, 1).flatten(1)
        for name, value in fresh.items():
            if name in self.drawn and self.drawn[name].shape == value.shape:
                self.drawn[name].copy_(value)
            else:
                self.drawn[name] = value.contiguous()
        self.offset.fill_(step % BLOCK_STEPS)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [A, B, D] and labels [A, B] of the step."""
        inputs, labels = self.data["train inputs"], self.data["train labels"]
        if "places" in self.drawn:
            places = self.drawn["places"].index_select(0, self.offset)[0]
            inputs = inputs.flatten(0, 1).index_select(0, places).view(len(inputs), -1, inputs.shape[2])
            labels = labels.flatten().index_select(0, places).view(len(labels), -1)
        if self.noisy:
            noise = self.drawn["noise"].index_select(0, self.offset).view_as(labels)
            labels = torch.addcmul(labels, self.knobs["noise"][:, None], noise)
        return inputs, labels

    def step(self) -> None:
        """One step of every lane, in place."""
        inputs, labels = self.batch()
        knobs, weights = self.knobs, self.weights
        rate, radius = knobs["rate"], knobs["radius"]
        keep = 1 - rate * knobs["weight_decay"] if self.decaying else None
        smoothing = knobs["label_smoothing"][:, None]

        def slope(output: torch.Tensor) -> torch.Tensor:
            return self.loss.slope(output, labels, smoothing)

        def gradient(weights: Lanes) -> Lanes:
            if self.head is not None:
                return two_layer.gradient(self.head, slope, weights, inputs)
            return vmapped.lane_gradients(self.lane_loss, weights, self.lane_data(inputs, labels))

        if self.head is not None and inputs.shape[1] == 1:
            two_layer.descend_one_sample(self.head, slope, weights, inputs, rate, radius, keep)
        else:
            ascending = self.first.algorithm in ASCENDING
            gradients = sam_gradient(gradient, weights, radius) if ascending else gradient(weights)
            for name, value in weights.items():
                if keep is not None:
                    value.mul_(spread(keep, value))
                value.addcmul_(spread(-rate, value), gradients[name])
        self.project()
        self.offset.add_(1)

    def project(self) -> None:
        if self.first.architecture == "sim_ln_projected":
            inner = self.weights["inner"]
            inner.mul_((self.knobs["projected_norm"] / torch.linalg.vector_norm(inner, dim=(1, 2)))[:, None, None])

    def lane_loss(self, weights: Lanes, data: Lanes) -> torch.Tensor:
        """Mean loss of one lane."""
        output = self.network(weights, data["inputs"], data["training"], data["gain"])
        return self.loss.value(output, data["labels"], data["smoothing"]).mean()

    def lane_data(self, inputs: torch.Tensor, labels: torch.Tensor) -> Lanes:
        knobs = {"gain": self.knobs["gain"], "smoothing": self.knobs["label_smoothing"]}
        return {"inputs": inputs, "labels": labels, "training": self.data["train inputs"], **knobs}

    def outputs(self, split: str) -> torch.Tensor:
        """Outputs on a split, [A, samples of the split]; a batch norm keeps the training set's statistics."""
        inputs, training = self.data[f"{split} inputs"], self.data["train inputs"]
        size = max(1, CHUNK_NUMBERS // (len(inputs) * self.first.width))
        run = vmap(self.network)
        return torch.cat([run(self.weights, part, training, self.knobs["gain"]) for part in inputs.split(size, 1)], 1)

    def drop(self, positions: Sequence[int], step: int) -> None:
        """Take ended lanes out of the batch."""
        kept = self.alive.drop(positions, self.weights, self.knobs, self.data)
        self.order, self.noises = self.order.kept(kept), self.noises.kept(kept)
        self.advance.renew()
        if len(self.alive) and step % BLOCK_STEPS:
            self.draw_block(step)


def train(configs: Sequence[Config], run: LaneRun) -> None:
    """All lanes through all phases, measured on the grid and at the end; a lane that diverged leaves the batch."""
    pack, first = Pack(configs, run.device), configs[0]
    cuts = {*range(first.measure_every, first.budget_steps, first.measure_every), first.budget_steps}
    ends = sorted({*cuts, *first.phase_starts[1:], *range(BLOCK_STEPS, first.budget_steps, BLOCK_STEPS)})
    step = 0
    for end in ends:
        if step in first.phase_starts:
            pack.enter(first.phase_starts.index(step))
        if step % BLOCK_STEPS == 0:
            pack.draw_block(step)
        pack.advance(end - step)
        step = end
        if step not in cuts:
            continue
        if run.should_stop():
            return
        with run.measuring():
            diverged, full = [], step == first.budget_steps
            for position, metrics in enumerate(measure(pack, full)):
                run.report(lane=pack.alive.lane[position], step=step, full=full, **metrics)
                if not all(map(isfinite, metrics.values())):
                    diverged.append(position)
            if diverged and not full:
                pack.drop(diverged, step)
        if not len(pack.alive):
            return


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

STUDY: FusedStudy = FusedStudy(
    "flatness",
    paper="2307.11007",
    version=1,
    config=Config,
    tiny=Config(
        dimension=6, samples=20, width=8, budget_steps=40, measure_every=10, select_samples=300, report_samples=300
    ),
    shape=shape,
    train=train,
    probe=probe,
    family=family,
    select=Metric("select/accuracy", "max"),
    report=Metric("report/accuracy", "max"),
    conditions=("architecture", "data", "dimension", "samples", "width", "loss", "budget_steps"),
    units=units,
    describe=describe,
)
