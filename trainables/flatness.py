"""Do flat minima generalise, and do algorithms that flatten generalise for that reason? (arXiv:2307.11007)

Shallow networks learn y = x_1 x_2 from few points of a cube. 1-SAM and label noise find flatter interpolating networks
than SGD. Without a bias these generalise; with one, a sharper network found by weight decay generalises better; with a
layer norm the flattest networks include ones that memorise, and still 1-SAM finds one that does not. Sharpness is the
trace of the loss' Hessian. All trials of one shape are lanes of one program.
"""

# A lanes alive, T steps of a block, B samples of a step, N training samples, D inputs (the bias' among them), H hidden

from collections.abc import Sequence
from math import isfinite

import torch
from torch.func import vmap

from trainables.common import two_layer, vmapped
from trainables.common.captured import Captured
from trainables.common.lanes import Alive, Lanes, per_lane, spread
from trainables.common.models.shallow import NETWORKS
from trainables.common.sam import sam_gradient
from trainables.common.streams import Streams
from trainables.flatness_measures import measure
from trainables.flatness_trials import (
    ASCENDING,
    BLOCK_STEPS,
    FULL_BATCH,
    NETWORK,
    Config,
    describe,
    family,
    probe,
    shape,
    units,
)
from trainables.study import FusedStudy, LaneRun, Metric

CHUNK_NUMBERS = 2**24  # hidden activations at a time when many samples are evaluated


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
