"""Does a net that fits noisy labels perfectly do harm, and what repairs it? (arXiv:2206.00501)

Networks are trained on partly wrong labels until they fit them. One trunk at a constant learning rate gives every
budget; from it branch early stopping (the weights that were best on held-out samples come back) and self-training
(the net's own labels, hard or soft, teach a net that starts anew). Held-out labels are as noisy as those of training,
and test labels, which are clean, choose nothing.
"""

# N samples, B of a batch, K classes

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from trainables.common import imports
from trainables.common.benign.config import (
    DEFAULTS,
    PSEUDO_LABELS,
    Config,
    ModelName,
    describe,
    family,
    timeline,
)
from trainables.common.benign.measures import clean_measures, error, fitted_temperature, loss, training_measures
from trainables.common.benign.samples import (
    NoiseKind,
    Samples,
    batch_rows,
    check_sizes,
    effective_rate,
    open_source,
    splits,
)
from trainables.common.data.batches import draws, equal_rows, worker_rows
from trainables.common.models.mlp import MLP, mlp_parameters
from trainables.common.models.resnet import Norm, ResNet, forward_flops_per_image
from trainables.common.optimizers import make_optimizer
from trainables.common.timeline import Placed, Timeline, place, total_steps
from trainables.common.training import TrainingState, bare
from trainables.study import Metric, Run, Span, StagedStudy


@dataclass(frozen=True)
class Root:
    """All of a config that is not its timeline: samples with their noise, net, optimizer."""

    data: str = field(metadata={"key": False})  # where they lie; data_sha says what they are
    data_sha: str
    train_size: int | None
    held_out: int
    test_size: int | None
    image_size: int
    noise_rate: float
    noise_kind: NoiseKind | None
    model: ModelName
    width: int
    depth: int
    blocks: tuple[int, ...]
    norm: Norm
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    augment: bool
    monitor_every: int
    boundary_excess: float
    measure_every: int
    seed: int
    shape: tuple[int, ...]
    classes: int
    sources: tuple[str, ...]
    torch: str


COPIED = tuple(item.name for item in fields(Root) if item.name in DEFAULTS and item.name != "noise_kind")


def root(config: Config) -> Root:
    """Opens the samples, for their checksum. Raises ValueError when they are missing or cannot be trained on so."""
    source = open_source(config.data, config.image_size)
    if source.lazy and config.repair in PSEUDO_LABELS:
        raise ValueError(
            f"repair={config.repair} would keep a label for every class of each image of {config.data} in every state; "
            "images decoded from a folder take repair=none or early_stop"
        )
    check_sizes(source, config.train_size, config.held_out, config.test_size, config.batch_size)
    own = [config.optimizer] if ":" in config.optimizer else []
    return Root(
        **{name: getattr(config, name) for name in COPIED},
        data_sha=source.sha,
        noise_kind=config.noise_kind if config.noise_rate else None,
        shape=source.shape,
        classes=source.classes,
        sources=tuple(imports.fingerprint(path) for path in own),
        torch=torch.__version__.split("+")[0],
    )


def measured_at(root: Root, timeline: Timeline) -> dict[int, bool]:
    """Lightly on a grid; in full at the end, at each training's end, and at the half, quarter, ... of the first.

    A training that a restore or a relabelling follows is measured before it: what has diverged must not teach unseen.
    """
    points = dict.fromkeys(range(root.measure_every, total_steps(timeline) + 1, root.measure_every), False)
    ends = [
        special.start
        for training, special in pairwise(place(timeline))
        if "lr" in dict(training.segment.knobs) and "lr" not in dict(special.segment.knobs)
    ]
    points |= dict.fromkeys(ends, True)
    first = ends[0] if ends else total_steps(timeline)
    while first >= root.monitor_every:
        points[first] = True
        first //= 2
    points[total_steps(timeline)] = True
    return dict(sorted(points.items()))


def units(root: Root) -> dict[str, float]:
    """Samples and FLOPs per step, three forward passes of the batch (looks at held-out samples are not counted)."""
    if root.model == "mlp":
        parameters = mlp_parameters(root.shape, root.classes, root.width, root.depth)
        forward = 2.0 * parameters
    else:
        parameters = sum(parameter.numel() for parameter in make_model(root, 0).parameters())
        channels, height, across = root.shape
        forward = forward_flops_per_image(channels, root.classes, root.width, root.blocks, height, across)
    return {"tokens": root.batch_size, "flops": 3 * root.batch_size * forward, "parameters": parameters}


def make_model(root: Root, taught: int) -> torch.nn.Module:
    """The root's net with initial weights: a function of the seed and of how many nets taught before it."""
    generator = torch.Generator().manual_seed(int(draws(1, "weights", root.seed, taught)[0] >> 1))
    if root.model == "mlp":
        inputs = torch.Size(root.shape).numel()
        return MLP(inputs, root.classes, root.width, root.depth, generator=generator)
    return ResNet(root.shape[0], root.classes, root.width, root.blocks, root.norm, generator=generator)


def check_workers(root: Root, workers: int) -> None:
    """Raise ValueError where so many workers cannot share the training of a root."""
    equal_rows(root, workers)
    if workers > 1 and root.model == "resnet" and root.norm == "batch":
        raise ValueError(
            "norm=batch needs one worker, since each keeps running statistics of its own samples and would choose "
            f"and relabel by its own, got {workers}; take norm=group or norm=none, or one worker"
        )


class Training(TrainingState):
    """Net, optimizer and labels; of the watch on the held-out samples, what was best since training last began.

    targets: the labels [N, K] that training follows; empty where inputs are decoded from a folder, whose given labels
    are followed. taught: nets that taught before this one. best.*: weights and buffers at the least held-out error.
    """

    def __init__(self, root: Root, run: Run):
        self.root = root
        check_workers(root, run.workers)
        source = open_source(root.data, root.image_size)
        if source.sha != root.data_sha:
            raise ValueError(
                f"data {root.data!r} is {source.sha[:12]} here and {root.data_sha[:12]} where the sweep was planned; "
                "use the same files on all machines"
            )
        noise = root.noise_rate, root.noise_kind
        sizes = root.train_size, root.held_out, root.test_size
        self.train, self.held, self.test = splits(source, *sizes, noise, root.seed, run.device)
        model = run.wrap(make_model(root, 0))
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError("the weights that were best are kept whole, got sharded ones; set resources.parallel=ddp")
        given_N = self.train.given_N[:0] if source.lazy else self.train.given_N
        watch = {"best_error": torch.tensor(torch.inf, dtype=torch.float64), "best_step": torch.tensor(0)}
        super().__init__(
            model,
            optimizer_of(root, model),
            {
                "targets": F.one_hot(given_N, root.classes).float(),
                "taught": torch.tensor(0),
                "step": torch.tensor(0),
                **watch,
                **{f"best.{name}": value.detach().clone() for name, value in weights_of(model)},
            },
        )

    @property
    def best(self) -> dict[str, Tensor]:
        return {name.removeprefix("best."): value for name, value in self.extra.items() if name.startswith("best.")}


def weights_of(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from bare(model).named_parameters()
    yield from bare(model).named_buffers()


@torch.no_grad()
def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights_of(model):
        value.copy_(weights[name])


def optimizer_of(root: Root, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Of the root, at a rate that every step sets."""
    if root.optimizer == "sgd":
        decay = root.weight_decay
        return torch.optim.SGD(model.parameters(), lr=0.0, momentum=root.momentum, weight_decay=decay)
    settings = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    return make_optimizer(root.optimizer, model, {"learning_rate": 0.0, "weight_decay": root.weight_decay, **settings})


def start(root: Root, run: Run) -> Training:
    return Training(root, run)


def advance(state: Training, placed: Placed, span: Span, run: Run) -> None:
    """Steps on the labels as they stand, with a look at the held-out samples now and then; or a special step."""
    for step in range(span.start, span.stop):
        knobs = placed.at(step)
        if "restore" in knobs:
            watch(state)
            load_weights(state.model, state.best)
        elif "relabel" in knobs:
            relabel(state, soft=knobs["relabel"] == PSEUDO_LABELS["self_train_soft"])
        else:
            train_step(state, step, knobs["lr"], run)
        state.extra["step"].fill_(step + 1)
        if "lr" in knobs and (step + 1) % state.root.monitor_every == 0:
            watch(state)


def train_step(state: Training, step: int, rate: float, run: Run) -> None:
    """One step of the optimizer; the batch and its augmentation are functions of (seed, step)."""
    root = state.root
    rows_B = batch_rows(len(state.train), root.batch_size, root.seed, step)
    rows_B = rows_B[worker_rows(root.batch_size, run.rank, run.workers)]
    key = (root.seed, step * run.workers + run.rank) if root.augment else None
    targets = state.extra["targets"] if len(state.extra["targets"]) else state.train.given_N
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.model.train()
    logits_BK = state.model(state.train.read(rows_B, key))
    F.cross_entropy(logits_BK, targets[torch.from_numpy(rows_B).to(targets.device)]).backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def watch(state: Training) -> None:
    """Keep the weights where they are better than all before on the held-out samples."""
    found = error(logits_of(state, state.held), state.held.given_N)
    if found < float(state.extra["best_error"]):
        state.extra["best_error"].fill_(found)
        state.extra["best_step"].copy_(state.extra["step"])
        for name, value in weights_of(state.model):
            state.extra[f"best.{name}"].copy_(value)


@torch.no_grad()
def relabel(state: Training, soft: bool) -> None:
    """The net's labels of the training inputs replace the old; a net with new weights is to learn them."""
    logits_NK = logits_of(state, state.train)
    labels_NK = logits_NK.softmax(1) if soft else F.one_hot(logits_NK.argmax(1), state.root.classes).float()
    state.extra["targets"].copy_(labels_NK)
    state.extra["taught"].add_(1)
    load_weights(state.model, dict(weights_of(make_model(state.root, int(state.extra["taught"])))))
    state.optimizer.state.clear()
    state.extra["best_error"].fill_(torch.inf)


EVALUATED_AT_ONCE = 1024
EVALUATED_IN_TRAINING = 10_000  # training samples that are looked at in a measurement, where there are more


@torch.no_grad()
def logits_of(
    state: Training, samples: Samples, weights: Mapping[str, Tensor] | None = None, most: int | None = None
) -> Tensor:
    """Logits [N, K] of the first samples, all by default, under the net's own or other weights."""
    count = len(samples) if most is None else min(most, len(samples))
    model = bare(state.model).eval()
    parts = []
    for first in range(0, count, EVALUATED_AT_ONCE):
        inputs = samples.read(np.arange(first, min(first + EVALUATED_AT_ONCE, count)), None)
        parts.append(model(inputs) if weights is None else functional_call(model, dict(weights), (inputs,)))
    return torch.cat(parts)


def measure(state: Training, run: Run, full: bool) -> Mapping[str, float]:
    """Of the training samples, of the held-out ones with their noisy labels, and in full of the test samples.

    select/least_error: on the held-out samples, the least at any look since training last began, this one included.
    select/excess: what the error has risen since. In full also what the net of the least error is worth.
    """
    root, held = state.root, state.held
    logits_NK = logits_of(state, held)
    temperature, now = fitted_temperature(logits_NK, held.given_N), error(logits_NK, held.given_N)
    before = float(state.extra["best_error"])
    trained_NK = logits_of(state, state.train, most=EVALUATED_IN_TRAINING)
    excess = max(now - before, 0.0)  # in this order nan stays nan
    metrics = {
        **training_measures(trained_NK, state.train.given_N[: len(trained_NK)], state.train.clean_N[: len(trained_NK)]),
        "train/expected_wrong": effective_rate(root.noise_rate, root.noise_kind, root.classes),
        "select/error": now,
        "select/loss": loss(logits_NK, held.given_N),
        "select/scaled_loss": loss(logits_NK, held.given_N, temperature),
        "select/temperature": temperature,
        "select/least_error": min(now, before),
        "select/best_step": float(state.extra["best_step"] if before <= now else state.extra["step"]),
        "select/excess": excess,
        "select/boundary": abs(excess - root.boundary_excess),
    }
    if not full:
        return metrics
    final_NK = logits_of(state, state.test)
    early_NK, early_temperature = final_NK, temperature
    if before <= now:
        early_NK = logits_of(state, state.test, state.best)
        early_temperature = fitted_temperature(logits_of(state, held, state.best), held.given_N)
    return {**metrics, **clean_measures(final_NK, early_NK, state.test.clean_N, (temperature, early_temperature))}


TUNED = ("learning_rate", "weight_decay", "momentum", "decay_fraction", "seed")  # all but these are conditions

STUDY: StagedStudy = StagedStudy(
    "benign",
    paper="2206.00501",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    check_workers=check_workers,
    measured_at=measured_at,
    tiny=Config(
        data="digits",
        train_size=200,
        held_out=300,
        test_size=200,
        noise_rate=0.4,
        width=16,
        budget_steps=40,
        learning_rate=1e-2,
        batch_size=50,
        monitor_every=5,
        measure_every=15,
    ),
    conditions=tuple(name for name in DEFAULTS if name not in TUNED),
    select=Metric("select/least_error", "min"),
    report=Metric("report/error", "min"),
    boundary="select/boundary",
    units=units,
    family=family,
    describe=describe,
)
