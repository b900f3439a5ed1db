"""Do nets that read brackets equally well look alike inside? (arXiv:2312.01429)

A small causal Transformer predicts the next of brackets of k kinds that nest at most D deep. The right prediction needs
the kind of the bracket opened last. Nets that differ in their seed alone learn it; each stores the attention of its
last block on rows that are the same for all, so that a sweep sees how far equal functions attend differently.

  first_layer    the last block's input: class vectors, as if a first layer had found token and depth and nothing else
                 (onehot, trigonometric), or a first block that is trained (learned)
  prefix_length  that many brackets, closed again, are put before every training row; `contrast` penalises the squared
                 change of the logits that they cause. With contrast=0 the prefixed rows alone: its control
  trains         all weights; all but a random balanced query-key map (`around_map`); or a mask over the weights of a
                 random net that is never trained (`mask`)

Right means: of the closing brackets the one that may close is the likeliest. The paper's own training settings are not
known here: sizes, rates and the scaling of measures are ours.
"""

# P lanes, B rows, T positions, C classes, V vocabulary

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, pi
from typing import Any, Literal

import torch

from trainables.common.captured import Captured
from trainables.common.dyck import measures, partial
from trainables.common.dyck.source import FirstLayer, Rows, Source
from trainables.common.lanes import Alive, per_lane
from trainables.common.names import in_short
from trainables.common.sequence.network import Architecture, logits
from trainables.common.sequence.training import AdamW, gradients, token_losses
from trainables.common.streams import Streams
from trainables.study import FusedStudy, LaneRun, Metric

ROWS_AT_ONCE = 16  # of long evaluation rows, for memory
Values = dict[str, float | list[float]]


@dataclass(frozen=True)
class Config:
    # the problem
    kinds: int = 2  # k kinds of brackets
    depth: int = 4  # D, most brackets open at once
    open_rate: float = 0.5  # chance that a bracket opens at depths between 0 and D, where the net is evaluated; (0, 1)
    length: int = 28  # brackets of a training row
    ood_lengths: tuple[int, ...] = (52, 100, 200)  # more brackets, increasing: accuracy is seen up to each
    # the net
    first_layer: Literal["onehot", "trigonometric", "learned"] = "onehot"
    positions: Literal["none", "linear", "learned"] = "none"
    norm: bool = True  # layer norms
    width: int = 32
    hidden: int = 64  # units of each MLP
    trains: partial.Trains = "weights"
    score_spread: float = 1.0  # trains=around_map: standard deviation of the map's scores over queries, above 0
    keep_rate: float = 0.3  # trains=mask: share of each matrix that is kept, in (0, 1)
    network_seed: int = 0  # trains=mask: of the random net; `seed` is then of the scores and the data
    # its training
    learning_rate: float = 3e-3  # at the start; falls to 0 along a half cosine
    weight_decay: float = 0.0  # decoupled, at least 0
    train_open_rate: float | None = None  # of the training rows, in (0, 1); None: open_rate
    prefix_length: int = 0  # closed brackets put before every training row, even
    contrast: float = 0.0  # weight of the squared change of the logits under the prefix, at least 0
    batch_size: int = 64  # rows a step
    budget_steps: int = 400
    # what is looked at
    measure_every: int = 200  # steps between measurements
    evaluation_rows: int = 64  # rows to select on, as many others to report on, the same for all seeds
    probe_rows: int = 10  # rows whose attention is kept
    probe_length: int = 19  # brackets of each
    seed: int = 0

    def __post_init__(self) -> None:
        rates = [self.open_rate, *((self.train_open_rate,) if self.train_open_rate is not None else ())]
        if not all(0 < rate < 1 for rate in rates):
            raise ValueError(f"open_rate and train_open_rate must be in (0, 1), got {rates}")
        lengths = (self.length, *self.ood_lengths)
        if not self.ood_lengths or list(lengths) != sorted(set(lengths)) or self.length < 2:
            raise ValueError(
                f"need at least one of ood_lengths, increasing and beyond length >= 2, got {self.length}, "
                f"{self.ood_lengths}"
            )
        if not 0 <= self.prefix_length + self.length <= lengths[-1] or self.prefix_length % 2:
            raise ValueError(
                f"prefix_length must be even and prefixed rows no longer than the last of ood_lengths, "
                f"{lengths[-1]}, got {self.prefix_length} + {self.length}"
            )
        if self.prefix_length < 0 or self.contrast < 0 or (self.contrast > 0 and self.prefix_length == 0):
            raise ValueError(
                f"contrast compares rows with and without a prefix: it needs prefix_length of 2 or more, got contrast="
                f"{self.contrast} and prefix_length={self.prefix_length}"
            )
        counts = (self.width, self.hidden, self.batch_size, self.budget_steps, self.measure_every)
        looks = (self.evaluation_rows, self.probe_rows, self.probe_length)
        if min(*counts, *looks) < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                "sizes, steps and rows must be at least 1, learning_rate above 0 and weight_decay at least 0, got "
                f"{counts}, {looks}, {self.learning_rate}, {self.weight_decay}"
            )
        if self.probe_length > lengths[-1]:
            raise ValueError(f"probe_length must be at most {lengths[-1]}, got {self.probe_length}")
        self._check_partial_training()
        _ = self.source, self.net  # refuse what these refuse

    def _check_partial_training(self) -> None:
        if self.trains == "around_map" and (self.first_layer == "learned" or self.positions != "none"):
            raise ValueError(
                "trains=around_map needs inputs that are their class alone: first_layer=onehot or trigonometric and "
                f"positions=none, got {self.first_layer} and {self.positions}"
            )
        if self.trains == "around_map" and self.width <= self.kinds * self.depth:
            raise ValueError(
                f"a balanced map other than 0 needs width above kinds * depth, got {self.width} and "
                f"{self.kinds} * {self.depth}"
            )
        if self.score_spread <= 0 or not 0 < self.keep_rate < 1:
            raise ValueError(
                f"score_spread must be above 0 and keep_rate in (0, 1), got {self.score_spread} and {self.keep_rate}"
            )

    @cached_property
    def source(self) -> Source:
        return Source(self.kinds, self.depth)

    @cached_property
    def net(self) -> Architecture:
        given = self.features_of_classes("cpu")
        return Architecture(
            vocabulary=self.source.vocabulary,
            length=self.ood_lengths[-1] + 1,
            width=self.width,
            mixers=("attention",) * (2 if given is None else 1),
            hidden=self.hidden,
            positions=self.positions,
            norm=self.norm,
            features=None if given is None else given.shape[1],
        )

    def features_of_classes(self, device: torch.device | str) -> torch.Tensor | None:
        """[C, F]; None where the net reads tokens."""
        layers: Mapping[str, FirstLayer] = {"onehot": "onehot", "trigonometric": "trigonometric"}
        layer = layers.get(self.first_layer)
        return None if layer is None else self.source.features(layer, device)


def shape(config: Config) -> tuple[Any, ...]:
    """All that decides the size of a tensor or the program; rates, decays, contrast and seeds are numbers per lane."""
    return (
        *(config.source, config.net, config.first_layer, config.trains, config.length, config.ood_lengths),
        *(config.open_rate, config.prefix_length, config.contrast > 0, config.batch_size, config.budget_steps),
        *(config.measure_every, config.evaluation_rows, config.probe_rows, config.probe_length),
    )


def parts_of(configs: Sequence[Config], device: torch.device) -> partial.Net:
    """The nets of all lanes before training."""
    first, seeds = configs[0], [config.seed for config in configs]
    if first.trains == "mask":
        network_seeds = [config.network_seed for config in configs]
        return partial.masked(first.net, seeds, network_seeds, per_lane(configs, "keep_rate", device), device)
    features = first.features_of_classes(device)
    if first.trains == "around_map" and features is not None:
        return partial.around_map(first.net, first.source, features, seeds, per_lane(configs, "score_spread", device))
    return partial.all_free(first.net, seeds, device)


class Training:
    """All lanes in training: their nets, optimizer, data and step."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        self.config, self.device = configs[0], device
        self.parts = parts_of(configs, device)
        self.optimizer = AdamW(self.parts.free, per_lane(configs, "weight_decay", device))
        rates = [config.train_open_rate or config.open_rate for config in configs]
        self.numbers = {name: per_lane(configs, name, device) for name in ("learning_rate", "contrast")}
        self.numbers["open_rate"] = torch.tensor(rates, device=device)
        self.streams = Streams([config.seed for config in configs], "dyck rows", device)
        self.features = self.config.features_of_classes(device)
        self.at = torch.zeros((), dtype=torch.int64, device=device)
        self.chances = self._chances()

    def _chances(self) -> torch.Tensor:
        config, rates = self.config, self.numbers["open_rate"]
        before = config.source.closed_chances(rates, config.prefix_length)
        return torch.cat([before, config.source.chances(rates, config.length)], 1)

    def inputs(self, rows: Rows) -> torch.Tensor:
        """What the net reads of begun rows: tokens [P, B, 1 + T], or features [P, B, 1 + T, F]."""
        source = self.config.source
        if self.features is None:
            return source.begun(rows.tokens)
        return torch.nn.functional.embedding(source.classes_of(rows), self.features)

    def losses(self, free: dict[str, torch.Tensor], rows: Rows) -> torch.Tensor:
        """Cross-entropy of the next bracket over the whole rows, and what contrast adds, [P]."""
        config, weights = self.config, self.parts.weights(free)
        found = logits(config.net, weights, self.inputs(rows)[:, :, :-1])
        losses_P = token_losses(found, rows.tokens, torch.ones_like(rows.tokens))
        if config.contrast == 0:
            return losses_P
        alone = logits(config.net, weights, self.inputs(without_prefix(rows, config.prefix_length))[:, :, :-1])
        change = (found[:, :, config.prefix_length :] - alone).square().sum(-1).mean((1, 2))
        return losses_P + self.numbers["contrast"] * change

    def step(self) -> None:
        """One step of all lanes; only tensors change, so that it can be captured."""
        rows = self.config.source.drawn(self.chances, self.streams, self.at, self.config.batch_size)
        _, found = gradients(lambda free: self.losses(free, rows), self.parts.free)
        decline = 0.5 * (1 + torch.cos(pi * self.at / self.config.budget_steps))
        self.optimizer.step(found, self.numbers["learning_rate"] * decline)
        self.at.add_(1)

    def drop(self, alive: Alive, places: Sequence[int]) -> None:
        kept = alive.drop(places, self.numbers, *self.optimizer.lanes, *self.parts.lanes)
        self.streams, self.chances = self.streams.kept(kept), self._chances()


def without_prefix(rows: Rows, prefix: int) -> Rows:
    """Rows from after their closed prefix on."""
    tokens, depths, openers, needed = (part[:, :, prefix:] for part in rows)
    return Rows(tokens, depths, (openers - prefix).clamp_min(0), needed)


class Measurements:
    """Measurements of the lanes that train, on rows that are the same for all seeds."""

    def __init__(self, training: Training):
        self.training, self.config, self.source = training, training.config, training.config.source
        config, longest = training.config, training.config.ood_lengths[-1]
        self.select, self.report = (self._rows(kind, config.evaluation_rows, longest) for kind in ("select", "report"))
        self.probe = self._rows("probe", config.probe_rows, config.probe_length)
        self.source_entropy = self.source.entropy(config.open_rate, longest)
        for rows in (self.select, self.report):
            measures.refuse_rows_that_lack(self.source, rows, (config.length, *config.ood_lengths))

    def _rows(self, kind: str, count: int, brackets: int) -> Rows:
        rate = torch.tensor([self.config.open_rate], device=self.training.device)
        streams = Streams([0], f"dyck {kind}", self.training.device)
        return self.source.drawn(self.source.chances(rate, brackets), streams, 0, count)

    @torch.no_grad()
    def seen(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Losses over the training length, and accuracy by length, each [P]."""
        config, weights = self.config, self.training.parts.weights(self.training.parts.free)
        lanes = len(next(iter(weights.values())))
        right, losses = [], []
        for few in zip(*(part.split(ROWS_AT_ONCE, 1) for part in rows), strict=True):
            some = Rows(*(part.expand(lanes, -1, -1) for part in few))
            found = logits(config.net, weights, self.training.inputs(some))
            right.append(measures.closes_right(self.source, found, some))
            early = self.source.next_chances(some, config.open_rate)[:, :, : config.length]
            losses.append(measures.divergence(found[:, :, : config.length], early) * few[0].shape[1])
        right_PBT, open_PBT = (torch.cat(part, 1) for part in zip(*right, strict=True))
        lengths = (config.length, *config.ood_lengths)
        by_length = measures.closing_accuracy(right_PBT, open_PBT, lengths)
        found_P = {f"accuracy_{stop}": one for stop, one in zip(lengths, by_length, strict=True)}
        excess_P = torch.stack(losses).sum(0) / rows.tokens.shape[1]
        return {"excess_loss": excess_P, "ood_error": 1 - by_length[-1], **found_P}

    def light(self) -> dict[str, list[float]]:
        """What is selected on, of every lane; a lane whose loss is not finite has no accuracy either."""
        found = self.seen(self.select)
        broken = ~found["excess_loss"].isfinite()
        names = ("excess_loss", "ood_error", f"accuracy_{self.config.length}")
        return {f"select/{name}": found[name].masked_fill(broken, torch.nan).tolist() for name in names}

    @torch.no_grad()
    def full(self) -> Iterator[tuple[str, list[Any]]]:
        """What is reported: each a list of lanes."""
        training, config = self.training, self.config
        weights = training.parts.weights(training.parts.free)
        lanes = len(next(iter(weights.values())))
        for name, values in self.seen(self.report).items():
            yield f"report/{name}", values.tolist()
        yield "report/source_entropy", [self.source_entropy] * lanes

        short = Rows(*(part[:, :, : config.length].expand(lanes, -1, -1) for part in self.report))
        probe = Rows(*(part.expand(lanes, -1, -1) for part in self.probe))
        attended = measures.attention_seen(config.net, self.source, weights, training.inputs, short, probe)
        for name, values in attended.items():
            yield f"report/{name}", values.tolist()
        yield "report/probe_tokens", self.source.begun(probe.tokens).flatten(1).tolist()
        if training.parts.keep_rates:
            yield "report/kept", partial.kept_of_the_map(config.net, training.parts).tolist()


def train(configs: Sequence[Config], run: LaneRun) -> None:
    """All lanes to the end of their budget; one that diverges leaves."""
    config = configs[0]
    training, alive = Training(configs, run.device), Alive(len(configs), run.device)
    measured, stepping = Measurements(training), Captured(training.step, run.device)
    done = 0
    while done < config.budget_steps and len(alive):
        if run.should_stop():
            return
        stop = min(done + config.measure_every, config.budget_steps)
        stepping(stop - done)
        done, full = stop, stop == config.budget_steps
        with run.measuring():
            light = measured.light()
            rest = dict(measured.full()) if full else {}
            broken = []
            for place, lane in enumerate(list(alive.lane)):
                row: Values = {name: values[place] for name, values in (light | rest).items()}
                run.report(lane=lane, step=done, full=full, **row)
                if not isfinite(light["select/excess_loss"][place]):
                    broken.append(place)
        if broken and not full:
            training.drop(alive, broken)
            stepping.renew()


def units(config: Config) -> dict[str, float]:
    """Brackets and FLOPs per step (a backward pass counts as two forward ones), parameters."""
    brackets = config.length + config.prefix_length
    flops = config.net.flops(brackets) + (config.net.flops(config.length) if config.contrast else 0.0)
    return {
        "tokens": config.batch_size * brackets,
        "flops": 3 * config.batch_size * flops,
        "parameters": config.net.parameters,
    }


SHORT = {"first_layer": "", "positions": "pos", "norm": "norm", "trains": "", "kinds": "k", "depth": "D"}
SHORT |= {"learning_rate": "lr", "weight_decay": "wd", "prefix_length": "prefix", "contrast": "lambda", "width": "w"}
SHORT |= {"score_spread": "spread", "keep_rate": "keep", "network_seed": "net", "train_open_rate": "q"}
SHORT |= {"budget_steps": "B", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """What varies, shortly.

    >>> describe(Config(contrast=0.1, prefix_length=24), ["first_layer", "contrast", "budget_steps", "seed"])
    'dyck onehot lambda=0.1 B=400 s0'
    """
    return in_short(config, varying, SHORT, "dyck")


STUDY: FusedStudy = FusedStudy(
    "dyck",
    paper="2312.01429",
    version=1,
    config=Config,
    tiny=Config(
        kinds=2,
        depth=3,
        length=12,
        ood_lengths=(16, 24),
        width=16,
        hidden=16,
        batch_size=16,
        budget_steps=20,
        measure_every=10,
        evaluation_rows=32,
        probe_rows=2,
        probe_length=7,
    ),
    shape=shape,
    train=train,
    conditions=(
        *("kinds", "depth", "open_rate", "length", "ood_lengths", "first_layer", "positions", "norm", "trains"),
        *("score_spread", "keep_rate", "network_seed", "prefix_length", "budget_steps"),
    ),
    select=Metric("select/excess_loss", "min"),
    report=Metric("report/ood_error", "min"),
    units=units,
    describe=describe,
)
