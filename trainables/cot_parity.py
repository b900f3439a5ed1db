"""How many samples does a Transformer need to learn a parity, with and without a chain of thought? (arXiv:2410.05459)

The parity of K secret bits among N. Without a chain of thought the net answers at once; with one it first writes the
parities of the first 0, 1, ..., K secret bits. It sees new rows at every step, or a finite training set in passes.

Sample complexity is the number of samples seen at the first evaluation at which every supervised token of every
held-out row is right, if the next evaluation bears it out; a lane that never gets there is censored and has none. A
chain's tokens are predicted from the true tokens before them, as the author does; `report/free_running_accuracy` is
of chains that the net writes itself. A lane is one secret with one net.

Left out of what the author trains: weights in bfloat16 (here float32) and dropout of attention probabilities.
"""

# P lanes, B rows, T positions, N input bits, S supervised tokens, V vocabulary, L layers, H heads, M measurements

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch

from trainables.common.captured import Captured
from trainables.common.cot_parity.construction import constructed
from trainables.common.cot_parity.history import History
from trainables.common.cot_parity.last import last_logits
from trainables.common.cot_parity.readings import attentions, free_running_answers, mean_entropy, right, shares_right
from trainables.common.cot_parity.rows import MAPPED_BITS, Rows, Samples, Task
from trainables.common.lanes import Alive, Lanes, per_lane
from trainables.common.names import in_short
from trainables.common.sequence.network import Architecture, dropout, initial, logits
from trainables.common.sequence.training import AdamW, gradients, token_losses
from trainables.common.streams import Streams
from trainables.study import FusedStudy, LaneRun, Metric


@dataclass(frozen=True)
class Config:
    # the problem
    input_bits: int = 12  # N
    secret_bits: int = 3  # K, 1 to N
    chain_of_thought: bool = True  # whether the parities of the first secret bits are supervised too
    train_size: int | None = None  # rows of a finite training set, seen in passes; None: new rows at every step
    held_out_rows: int = 512  # select rows, and as many report rows
    secret_seed: int | None = None  # of the secret; None: the seed
    # the net
    layers: int = 1
    heads: int = 1  # of each layer
    width: int = 64
    norm: bool = True  # layer norms
    dropout: float = 0.0  # of embeddings and of each part's outputs, in [0, 1)
    initialisation: Literal["torch", "gpt2"] = "gpt2"  # gpt2: N(0, 0.02^2), and the embedding is the readout too
    start: Literal["random", "constructed"] = "random"  # constructed: at a solution, of one layer and head, no norm
    # its training: AdamW
    learning_rate: float = 1e-3  # peak, above 0
    schedule: Literal["constant", "linear"] = "constant"  # linear: falls to 0 over the budget
    weight_decay: float = 0.0  # decoupled, at least 0
    clip_norm: float | None = 1.0  # longest gradient; None: any
    entropy_bonus: float = 0.0  # nats of loss that a fully spread attention earns; below 0 it costs them
    batch_size: int = 64
    budget_steps: int = 1563  # steps in all
    # when it is measured and what counts as success
    first_measured: int = 4  # steps before the first evaluation
    measured_per_doubling: int = 4  # evaluations while the steps double
    success_at: float = 1.0  # exact match of the held-out rows, in (0, 1]
    confirmations: int = 1  # later evaluations in a row that must be successes too, at least 0
    stop_when_learned: bool = True  # a lane ends once select and report rows both show a confirmed success
    seed: int = 0  # of the secret, the net and its rows

    def __post_init__(self) -> None:
        if not 1 <= self.secret_bits <= self.input_bits:
            raise ValueError(f"secret_bits must be 1 to input_bits={self.input_bits}, got {self.secret_bits}")
        ones = ("layers", "held_out_rows", "batch_size", "budget_steps", "first_measured", "measured_per_doubling")
        least = {**dict.fromkeys(ones, 1), "confirmations": 0}
        low = [name for name, value in least.items() if getattr(self, name) < value]
        if low:
            raise ValueError(f"{low[0]} must be at least {least[low[0]]}, got {getattr(self, low[0])}")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 < self.success_at <= 1:
            raise ValueError(
                "learning_rate must be above 0, weight_decay at least 0 and success_at in (0, 1], got "
                f"{self.learning_rate}, {self.weight_decay}, {self.success_at}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}; null is off")
        if self.input_bits <= MAPPED_BITS and 4 * self.held_out_rows > 2**self.input_bits:
            raise ValueError(
                f"select and report rows may be half of the 2^{self.input_bits} inputs at most, got twice "
                f"{self.held_out_rows}; lower held_out_rows"
            )
        if self.train_size is not None:
            self._check_training_set(self.train_size)
        if self.start == "constructed":
            self._check_construction()
        assert self.net.vocabulary == 2  # the architecture refuses what it cannot be

    def _check_training_set(self, size: int) -> None:
        if self.input_bits > MAPPED_BITS:
            raise ValueError(f"train_size needs input_bits <= {MAPPED_BITS}, got {self.input_bits}; take new rows")
        most = 2**self.input_bits - 2 * self.held_out_rows
        if not self.batch_size <= size <= most or size % self.batch_size:
            raise ValueError(
                f"train_size must be a multiple of batch_size={self.batch_size} and at most {most}, which is what is "
                f"not held out, got {size}"
            )

    def _check_construction(self) -> None:
        if self.chain_of_thought or self.norm or (self.layers, self.heads, self.initialisation) != (1, 1, "torch"):
            raise ValueError(
                "start=constructed needs chain_of_thought=false, norm=false, layers=1, heads=1, initialisation=torch, "
                f"got {self.chain_of_thought}, {self.norm}, {self.layers}, {self.heads}, {self.initialisation}"
            )
        if self.width < 5 or 4 * self.width < self.secret_bits:
            raise ValueError(f"start=constructed needs width >= 5 and 4 * width >= secret_bits, got {self.width}")

    @property
    def task(self) -> Task:
        return Task(self.input_bits, self.secret_bits, self.chain_of_thought, self.held_out_rows, self.train_size)

    @property
    def net(self) -> Architecture:
        gpt2 = self.initialisation == "gpt2"
        return Architecture(
            vocabulary=2,
            length=self.task.positions,
            width=self.width,
            mixers=("attention",) * self.layers,
            heads=self.heads,
            norm=self.norm,
            embedding="tied" if gpt2 else "learned",
            spread=0.02 if gpt2 else None,
            dropout=self.dropout,
        )

    @property
    def measured_steps(self) -> list[int]:
        """Steps at which a lane is evaluated: a geometric grid, the same for every arm, and the end of the budget."""
        steps, at = {self.budget_steps}, 0
        while (step := round(self.first_measured * 2 ** (at / self.measured_per_doubling))) < self.budget_steps:
            steps.add(step)
            at += 1
        return sorted(steps)


def shape(config: Config) -> tuple[Any, ...]:
    """All that decides the size of a tensor or the program; rates, decay, the bonus, success and seeds are per lane."""
    return (
        *(config.task, config.net, config.start, config.schedule, config.clip_norm, config.entropy_bonus != 0),
        *(config.batch_size, config.budget_steps, config.first_measured, config.measured_per_doubling),
        config.stop_when_learned,
    )


class Training:
    """The nets of a pack and their rows."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        self.config, self.task, self.net = configs[0], configs[0].task, configs[0].net
        seeds = [config.seed for config in configs]
        secret_seeds = [c.seed if c.secret_seed is None else c.secret_seed for c in configs]
        self.alive = Alive(len(configs), device)
        self.samples = Samples(self.task, seeds, secret_seeds, device)
        self.weights = initial(self.net, seeds, device)
        if self.config.start == "constructed":
            self.weights = constructed(self.net, self.weights, self.samples.lanes["secret"])
        self.optimizer = AdamW(self.weights, per_lane(configs, "weight_decay", device), clip=self.config.clip_norm)
        zeros = torch.zeros(len(configs), device=device)
        self.lanes: Lanes = {
            "rate": per_lane(configs, "learning_rate", device),
            "bonus": per_lane(configs, "entropy_bonus", device),
            "loss": zeros.clone(),  # summed since the last measurement, as the next
            "exact": zeros.clone(),
        }
        self.masks = Streams(seeds, "dropout", device)
        self.step_count = torch.zeros((), dtype=torch.int64, device=device)
        self.captured = Captured(self.step, device)
        self.steps = self.measured = 0

    def losses(self, rows: Rows, weights: Lanes) -> torch.Tensor:
        """Mean cross-entropy of supervised tokens, less what spread attention earns; adds to the training record."""
        maps: list[torch.Tensor] = []
        drop = dropout(self.net, self.masks, self.step_count)
        if self.config.entropy_bonus or drop:
            said = logits(self.net, weights, rows.inputs, maps if self.config.entropy_bonus else None, drop)
            said = said[:, :, -self.task.supervised :]
        else:
            said = last_logits(self.net, weights, rows.inputs, self.task.supervised)
        losses_P = token_losses(said, rows.supervised, torch.ones_like(rows.supervised))
        self.lanes["loss"].add_(losses_P.detach())
        self.lanes["exact"].add_(right(said.detach(), rows.supervised).exact)
        return losses_P - self.lanes["bonus"] * mean_entropy(maps) if maps else losses_P

    def step(self) -> None:
        self.step_count.add_(1)
        rows = self.samples.batch(self.step_count, self.config.batch_size)
        _, found = gradients(partial(self.losses, rows), self.weights)
        rate = self.lanes["rate"]
        if self.config.schedule == "linear":
            rate = rate * (1 - (self.step_count - 1) / self.config.budget_steps)
        self.optimizer.step(found, rate)

    def advance(self, stop: int) -> None:
        """Train until step `stop`; a finite training set is put into a new order before each pass."""
        size = self.task.train_size
        per_pass = stop if size is None else size // self.config.batch_size
        while self.steps < stop:
            if size is not None and self.steps % per_pass == 0:
                self.samples.begin_pass(self.steps // per_pass)
            span = min(stop - self.steps, per_pass - self.steps % per_pass)
            self.captured(span)
            self.steps += span

    def drop(self, lanes: Sequence[int]) -> None:
        if lanes:
            places = [self.alive.lane.index(lane) for lane in lanes]
            kept = self.alive.drop(places, *self.optimizer.lanes, self.samples.lanes, self.lanes)
            self.samples.kept(kept)
            self.masks = self.masks.kept(kept)
            self.captured.renew()

    @torch.no_grad()
    def look(self) -> Iterator[tuple[int, dict[str, float], dict[str, list[float]]]]:
        """What each lane knows, and what its heads attend to, [L, H] flattened. Forgets the training record."""
        since, self.measured = self.steps - self.measured, self.steps
        known = {
            "train/loss": self.lanes["loss"] / since,
            "train/exact_match": self.lanes["exact"] / (since * self.config.batch_size),
        }
        for part in ("select", "report"):
            found = shares_right(self.net, self.weights, self.task, self.samples.of(part))
            known |= {f"{part}/exact_match": found.exact, f"{part}/answer_accuracy": found.answer}
        rows, secret_PK = self.samples.of("select"), self.samples.lanes["secret"]
        heads = attentions(self.net, self.weights, self.task, rows, secret_PK)._asdict()
        numbers = {name: values.tolist() for name, values in known.items()}
        of_heads = {name: values.flatten(1).tolist() for name, values in heads.items()}
        for name in ("loss", "exact"):
            self.lanes[name].zero_()
        for place, lane in enumerate(self.alive.lane):
            yield lane, {n: v[place] for n, v in numbers.items()}, {n: v[place] for n, v in of_heads.items()}

    @torch.no_grad()
    def free_running(self) -> dict[int, float]:
        """Share of report rows that each lane answers rightly after a chain of its own."""
        answers = free_running_answers(self.net, self.weights, self.task, self.samples.of("report"))
        return dict(zip(self.alive.lane, answers.tolist(), strict=True))


def train(configs: Sequence[Config], run: LaneRun) -> None:
    """All lanes until each has learned or its budget is over."""
    training, budget = Training(configs, run.device), configs[0].budget_steps
    counted = ("batch_size", "budget_steps", "held_out_rows", "success_at", "confirmations")
    histories = [History(*(getattr(config, name) for name in counted)) for config in configs]
    for step in configs[0].measured_steps:
        training.advance(step)
        if run.should_stop():
            return
        with run.measuring():
            for lane, seen, heads in training.look():
                histories[lane].add(step, seen, heads)
            rows = {lane: histories[lane].row() for lane in training.alive.lane}
            ended = [
                lane for lane in rows if step == budget or (histories[lane].learned and configs[lane].stop_when_learned)
            ]
            free_running = training.free_running() if ended else {}
            for lane, row in rows.items():
                more = histories[lane].verdict(free_running[lane]) if lane in ended else {}
                run.report(lane=lane, step=step, full=lane in ended, **{**row, **more})
        lost = [lane for lane, row in rows.items() if not all(map(isfinite, row.values()))]
        training.drop(sorted({*ended, *lost}))
        if not len(training.alive):
            return


def units(config: Config) -> dict[str, float]:
    """Tokens and FLOPs per step, parameters. FLOPs as if the last block worked at all positions; backward is twice."""
    positions = config.task.positions
    return {
        "tokens": config.batch_size * positions,
        "flops": 3 * config.batch_size * config.net.flops(positions),
        "parameters": config.net.parameters,
    }


SHORT = {"input_bits": "n", "secret_bits": "k", "train_size": "m", "layers": "L", "heads": "H", "width": "d"}
SHORT |= {"learning_rate": "lr", "entropy_bonus": "bonus", "start": "", "budget_steps": "B", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """What varies, shortly.

    >>> describe(Config(), ["secret_bits", "chain_of_thought", "learning_rate", "budget_steps", "seed"])
    'cot_parity CoT k=3 lr=0.001 B=1563 s0'
    """
    layout = ("CoT" if config.chain_of_thought else "direct",) if "chain_of_thought" in varying else ()
    return in_short(config, varying, SHORT, "cot_parity", *layout)


STUDY: FusedStudy = FusedStudy(
    "cot_parity",
    paper="2410.05459",
    version=1,
    config=Config,
    tiny=Config(
        input_bits=8,
        secret_bits=2,
        held_out_rows=64,
        width=16,
        initialisation="torch",
        batch_size=16,
        budget_steps=40,
        first_measured=10,
        measured_per_doubling=1,
    ),
    shape=shape,
    train=train,
    conditions=(
        *("input_bits", "secret_bits", "chain_of_thought", "train_size", "held_out_rows", "secret_seed"),
        *("layers", "heads", "width", "norm", "start", "entropy_bonus", "success_at", "confirmations", "budget_steps"),
    ),
    select=Metric("select/log_samples", "min"),
    report=Metric("report/exact_match", "max"),
    centre="median",
    units=units,
    describe=describe,
)
