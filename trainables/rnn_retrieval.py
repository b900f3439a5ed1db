"""Can recurrent nets answer what stands in a text, and what gives them the means? (arXiv:2402.18510)

A recurrent net carries a state of fixed size past a text; a Transformer keeps all of it. Tasks ask what stood there:
recall of pairs, the value at an index, counts, what follows a c-gram, and whether a graph is a tree (answered at once,
after a written search, or by search calls that a retriever answers). Models are Transformers, recurrent nets, and
hybrids (recurrent, and one causal attention block at the end) with equally many parameters in their blocks.
A lane is one net. It is judged by the answers it generates and, beside them, with the right text before each token.
Beside its accuracy stand the bits its state has, those the task demands, and the accuracy that so many bits allow.
Left out of what the authors trained: Llama's gated MLPs (ours have as many parameters) and Mamba's wider channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, pi
from typing import Any, Literal

import torch

from trainables.common.captured import Captured
from trainables.common.lanes import Alive, Lanes, per_lane
from trainables.common.names import in_short
from trainables.common.retrieval import generation
from trainables.common.retrieval.is_tree import IsTree
from trainables.common.retrieval.models import (
    Embedding,
    Model,
    Positions,
    SizeName,
    architecture,
    initial_weights,
)
from trainables.common.retrieval.recall import Counting, Grams, Index, Questions, Recall
from trainables.common.retrieval.shards import FixedSet
from trainables.common.retrieval.tasks import Task
from trainables.common.sequence.network import Architecture
from trainables.common.sequence.training import AdamW, gradients
from trainables.common.streams import Streams
from trainables.study import FusedStudy, LaneRun, Metric

PROBED_STEPS = 12  # of a text's many positions each: more would take longer than a pack is tried for
SET_SEED = 0  # of a fixed training set
PLATEAU_FROM = 0.75  # share of the budget after which `report/loss_fall` counts what the loss still falls, nats


@dataclass(frozen=True)
class Config:
    # the problem
    task: Literal["recall", "index", "counting", "grams", "istree"] = "recall"
    length: int = 8  # pairs of recall, positions of a text, nodes of a graph
    values: int = 8  # that each pair or position may have; not read by istree
    questions: int = 4  # asked after each text, all different; not read by istree
    stacked: bool = True  # a pair of recall takes one position instead of two
    gram: int = 3  # c of task=grams
    graph: Literal["binary", "random"] = "binary"  # of task=istree
    body: Literal["none", "cot", "retrieval"] = "cot"  # of task=istree: what is written before the label
    train_rows: int | None = None  # size of a fixed training set, one for all seeds, kept on disk; None: fresh rows
    # the net
    model: Model = "transformer"
    size: SizeName = "1k"  # parameters of its blocks, equal in all models
    positions: Positions = "rotary"  # of attention
    embedding: Embedding = "learned"  # sinusoidal: fixed vectors of token ids, the readout too
    recurrent_gain: float = 1.0  # first weights of recurrent blocks against the usual ones, above 0
    # its training
    learning_rate: float = 1e-2  # peak, above 0; falls to 0 along a cosine
    weight_decay: float = 0.0  # decoupled, at least 0
    warmup_steps: int = 50  # linear, at most the budget
    clip: float | None = 1.0  # of the gradient's norm, above 0; None: never
    batch_size: int = 32  # rows a step
    budget_steps: int = 500
    measure_every: int = 100  # steps between measurements
    select_batches: int = 8  # of rows, measured along training
    report_batches: int = 16  # of other rows, measured at the end
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.batch_size, self.budget_steps, self.measure_every, self.select_batches, self.report_batches)
        if min(counts) < 1 or not 0 <= self.warmup_steps <= self.budget_steps:
            raise ValueError(
                "batch_size, budget_steps, measure_every, select_batches and report_batches must be at least 1 and "
                f"warmup_steps in [0, budget_steps], got {', '.join(map(str, counts))} and {self.warmup_steps}"
            )
        clip = 1.0 if self.clip is None else self.clip
        if min(self.learning_rate, self.recurrent_gain, clip) <= 0 or self.weight_decay < 0:
            raise ValueError(
                "learning_rate, recurrent_gain and clip must be above 0 and weight_decay at least 0, got "
                f"{self.learning_rate}, {self.recurrent_gain}, {self.clip} and {self.weight_decay}; clip=null is off"
            )
        if self.recurrent_gain != 1 and self.model == "transformer":
            raise ValueError(f"a transformer has no recurrent_gain, got {self.recurrent_gain}; leave it at 1")
        if self.train_rows is not None and self.train_rows < 1:
            raise ValueError(f"train_rows must be at least 1, got {self.train_rows}; null: fresh rows at every step")
        _ = self.net  # refuses what task and model cannot be

    @property
    def problem(self) -> Task:
        if self.task == "istree":
            return IsTree(self.length, self.graph, self.body)
        if self.task == "recall":
            return Recall(self.length, self.values, self.questions, self.stacked)
        if self.task == "grams":
            return Grams(self.length, self.values, self.questions, self.gram)
        kind = Index if self.task == "index" else Counting
        return kind(self.length, self.values, self.questions)

    @property
    def net(self) -> Architecture:
        return architecture(self.model, self.size, self.problem, self.positions, self.embedding)


def shape(config: Config) -> tuple[Any, ...]:
    """All that decides the size of a tensor or the program; rates, decays, gains and seeds are numbers per lane."""
    return (
        *(repr(config.problem), config.net, config.train_rows, config.warmup_steps, config.clip, config.batch_size),
        *(config.budget_steps, config.measure_every, config.select_batches, config.report_batches),
    )


class Lessons:
    """Nets that are taught, one lane each: a step of all of them looks at no value, so that it can be captured."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        first, seeds = configs[0], [config.seed for config in configs]
        self.first, self.task, self.net = first, first.problem, first.net
        gains = per_lane(configs, "recurrent_gain", device)
        self.weights = initial_weights(self.net, seeds, gains, device)
        self.optimizer = AdamW(self.weights, per_lane(configs, "weight_decay", device), clip=first.clip)
        self.lanes: Lanes = {
            "rate": per_lane(configs, "learning_rate", device),
            "loss": torch.zeros(len(configs), device=device),
        }
        self.streams = {purpose: Streams(seeds, purpose, device) for purpose in ("train", "select", "report")}
        fixed = None if first.train_rows is None else FixedSet(self.task, SET_SEED, first.train_rows, device=device)
        self.source = self.task if fixed is None else fixed  # from a fixed set each lane draws with replacement
        self.done = torch.zeros((), dtype=torch.int64, device=device)  # steps

    def step(self) -> None:
        first = self.first
        rows = self.source.rows(self.streams["train"], self.done, first.batch_size)
        asked = generation.predictions(self.task, rows)
        losses, found = gradients(lambda weights: generation.loss(self.net, weights, asked), self.weights)
        warm = ((self.done + 1) / max(1, first.warmup_steps)).clamp_max(1)
        fall = 0.5 * (1 + torch.cos(pi * self.done / first.budget_steps))
        self.optimizer.step(found, self.lanes["rate"] * warm * fall)
        self.lanes["loss"].copy_(losses)
        self.done += 1

    def measured(self, purpose: str, batches: int) -> Lanes:
        """Means over rows that only measurements of this purpose see; each measure [P]."""
        sums: Lanes = {}
        for number in range(batches):
            rows = self.task.rows(self.streams[purpose], number, self.first.batch_size)
            found = generation.teacher_forced(self.net, self.weights, self.task, rows)
            found["accuracy"] = generation.accuracy(self.net, self.weights, self.task, rows)
            sums = {name: sums.get(name, 0) + value for name, value in found.items()}
        erring, first_errors = sums.pop("erring"), sums.pop("first_error")
        return {name: value / batches for name, value in sums.items()} | {"first_error": first_errors / erring}

    def drop(self, alive: Alive, places: Sequence[int]) -> None:
        kept = alive.drop(places, *self.optimizer.lanes, self.lanes)
        self.streams = {purpose: streams.kept(kept) for purpose, streams in self.streams.items()}


def train(configs: Sequence[Config], run: LaneRun) -> None:
    """All lanes for the same number of steps; one whose loss is no longer finite leaves the batch."""
    first = configs[0]
    lessons, alive = Lessons(configs, run.device), Alive(len(configs), run.device)
    steps = Captured(lessons.step, run.device)
    demands = demanded(first)
    before: dict[int, float] = {}  # each lane's select loss at the last measurement before the plateau
    done = 0
    while done < first.budget_steps and len(alive):
        now = min(first.measure_every, first.budget_steps - done)
        steps(now)
        done += now
        if run.should_stop():
            return
        full = done == first.budget_steps
        ill = []
        with run.measuring():
            seen = as_lists(lessons.measured("select", first.select_batches))
            told = as_lists(lessons.measured("report", first.report_batches)) if full else {}
            losses = lessons.lanes["loss"].tolist()
            for place, lane in enumerate(alive.lane):
                row = {"train/loss": losses[place], **demands}
                row |= {f"select/{name}": values[place] for name, values in seen.items() if name != "first_error"}
                row |= {f"report/{name}": values[place] for name, values in told.items()}
                if full and not isfinite(row["report/first_error"]):
                    del row["report/first_error"]  # no row had an error
                if full and lane in before:
                    row["report/loss_fall"] = before[lane] - row["select/loss"]
                if done <= PLATEAU_FROM * first.budget_steps:
                    before[lane] = row["select/loss"]
                run.report(lane=lane, step=done, full=full, **row)
                if not isfinite(row["select/loss"]) or not isfinite(losses[place]):
                    ill.append(place)
        if ill and not full:
            lessons.drop(alive, ill)
            steps.renew()


def as_lists(measures: Lanes) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in measures.items()}


def demanded(config: Config) -> dict[str, float]:
    """What the task asks of a memory and what the net's holds past the prompt, in bits; chance, and what these allow.

    A recurrent state is counted in full, 32 bits to a number, which is more than a net can use: a ceiling below 1 holds
    for whatever it learns. That of attention is its cache, which grows with the text.
    """
    task = config.problem
    bits = float(config.net.state_bits(task.prompt))
    ceiling = task.ceiling(bits) if isinstance(task, Questions) else 1.0
    return {"state_bits": bits, "required_bits": task.required_bits, "chance": task.chance, "ceiling": ceiling}


def units(config: Config) -> dict[str, float]:
    """Tokens and FLOPs per step (a backward pass costs two forward ones), all parameters."""
    net, positions = config.net, config.problem.length - 1
    return {
        "tokens": config.batch_size * positions,
        "flops": 3 * config.batch_size * net.flops(positions),
        "parameters": net.parameters,
    }


SHORT = {"task": "", "length": "n", "values": "v", "body": "", "graph": "", "model": "", "size": "", "positions": ""}
SHORT |= {
    "questions": "q",
    "embedding": "",
    "learning_rate": "lr",
    "weight_decay": "wd",
    "budget_steps": "B",
    "seed": "s",
}


def describe(config: Config, varying: Sequence[str]) -> str:
    """What varies, shortly.

    >>> describe(Config(model="gru", learning_rate=3e-3), ["model", "length", "learning_rate", "budget_steps", "seed"])
    'retrieval n=8 gru lr=0.003 B=500 s0'
    """
    return in_short(config, varying, SHORT, "retrieval")


def probe(config: Config) -> Config:
    """A few steps, measured once: what the speed of packs is measured on."""
    steps = min(PROBED_STEPS, config.budget_steps)
    warmup = min(config.warmup_steps, steps)
    return replace(config, budget_steps=steps, warmup_steps=warmup, select_batches=1, report_batches=1)


STUDY: FusedStudy = FusedStudy(
    "rnn_retrieval",
    paper="2402.18510",
    version=1,
    config=Config,
    tiny=Config(length=4, values=4, questions=2, batch_size=16, budget_steps=40, warmup_steps=4, measure_every=10,
                select_batches=2, report_batches=2),
    shape=shape,
    train=train,
    conditions=(
        *("task", "length", "values", "questions", "stacked", "gram", "graph", "body", "train_rows", "size"),
        "budget_steps",
    ),
    # equally good rates tie, and the lowest of them is taken: of high ones the best seed has the lowest loss
    select=Metric("select/accuracy", "max"),
    report=Metric("report/accuracy", "max"),
    units=units,
    describe=describe,
    probe=probe,
)  # fmt: skip
