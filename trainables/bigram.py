"""Does the river valley appear when a model learns which token follows which? (arXiv:2410.05192, section 4)

A table of logits learns a bigram source by SGD on batches of (context, next token). Some contexts have one possible
next token (deterministic), the others draw it from a Dirichlet sample (uncertain). The Hessian of a context's
cross-entropy in its own logits is

    H = p(context) (diag(pi) - pi pi^T),   trace p(context) (1 - sum pi^2),   pi = softmax(logits)

so as rows are learned, deterministic ones become flat (a river, walked slowly and the slower the rarer the context)
and uncertain ones stay steep (hillsides, where the noise of the batches keeps the logits jittering).

The distance to the source is KL = sum_context p(context) KL(q || pi), exact, and splits into both kinds of rows.
The picture is the paper's; source and numbers are ours. A trial is a mean over `replicas` models that differ in their
batches alone: half of them give the select metrics, the other half the report metrics, so that no batch has a part in
both.
"""

# P lanes, R replicas, C contexts, V next tokens, B batch, A pairs that can occur

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainables.common import laned_schedules
from trainables.common.laned_schedules import Method, Rates, refuse_odd_schedules
from trainables.common.schedules import Accounting
from trainables.common.streams import Streams
from trainables.study import FusedStudy, LaneRun


@dataclass(frozen=True)
class Config:
    method: Method = "wsd"
    budget_steps: int = 1250  # steps, warm-up and decay included
    earlier_budgets: tuple[int, ...] = ()  # smaller budgets that the run passes through (wsd_s, cyclic_cosine)
    peak_lr: float = 12.0  # learning rate of the stable stretch, above 0
    min_lr_ratio: float = 0.1  # rate at the end of a decay over the peak rate, in [0, 1)
    warmup_steps: int = 0  # linear from 0
    decay_fraction: float = 0.1  # of the budget, in (0, 1]
    decay_shape: str = "linear"  # a name in SHAPES
    accounting: Accounting = "family"  # wsd_s: cost the WSD family's steps, or end at each budget exactly
    deterministic: int = 192  # contexts with one possible next token, at least 1
    uncertain: int = 8  # contexts with many, at least 1; all contexts are next tokens as well
    uncertain_mass: float = 0.3  # chance that a context is uncertain, in (0, 1); equal among them
    zipf: float = 1.3  # the i-th deterministic context is as frequent as i**-zipf; 0: all equally, at least 0
    concentration: float = 0.3  # of the Dirichlet of an uncertain row's next token, above 0; large: uniform
    batch_size: int = 32  # pairs a step
    replicas: int = 2  # models averaged, half for select and half for report; even, at least 2
    measure_every: int = 250  # steps between measurements
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_odd_schedules(self)
        for name in ("deterministic", "uncertain", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.uncertain_mass < 1 or self.zipf < 0 or not self.concentration > 0:
            raise ValueError(
                "need uncertain_mass in (0, 1), zipf >= 0 and concentration > 0, got "
                f"{self.uncertain_mass}, {self.zipf} and {self.concentration}"
            )
        if self.replicas < 2 or self.replicas % 2:
            raise ValueError(f"replicas are halved between select and report, so even and >= 2; got {self.replicas}")

    @property
    def contexts(self) -> int:
        return self.deterministic + self.uncertain


TRIES = 24  # of a rejection sampler that accepts nineteen in twenty: never exhausted, and equal for all lanes


def dirichlet(streams: Streams, concentration: torch.Tensor, *shape: int) -> torch.Tensor:
    """Dirichlet samples over the last axis, [P, *shape], with one concentration per lane [P].

    Each is a set of Gamma(a) draws over their sum; Gamma(a) = Gamma(a + 1) U^(1/a), and Gamma(a + 1) by Marsaglia and
    Tsang (2000, doi:10.1145/358407.358414): d v with d = a + 2/3, v = (1 + z / sqrt(9 d))^3, accepted where
    log u < z^2/2 + d - d v + d log v.
    """
    a = concentration.view(-1, *(1,) * len(shape)).double()
    d = a + 2 / 3
    gamma = torch.zeros(len(concentration), *shape, dtype=torch.float64, device=streams.device)
    for attempt in range(TRIES):
        z, u = (draw(2 * attempt + at, *shape, dtype=torch.float64) for at, draw in enumerate(
            (streams.normal, streams.uniform)
        ))  # fmt: skip
        v = (1 + z / (9 * d).sqrt()) ** 3
        accepted = (v > 0) & (torch.log(u) < z**2 / 2 + d - d * v + d * torch.log(v.clamp_min(1e-300)))
        gamma = torch.where((gamma == 0) & accepted, d * v, gamma)
    log_draws = torch.log(gamma) + torch.log(streams.uniform(2 * TRIES, *shape, dtype=torch.float64)) / a
    return torch.softmax(log_draws, -1)


class Source:
    """The bigram source of each lane, a function of its seed: chances of contexts [P, C] and next tokens [P, C, V]."""

    def __init__(self, configs: Sequence[Config], device: torch.device | str):
        first = configs[0]
        certain, contexts = first.deterministic, first.contexts
        streams = Streams([config.seed for config in configs], "source", device)
        ranks = torch.arange(1, certain + 1, dtype=torch.float64, device=device)
        zipf, mass, concentration = (
            torch.tensor([getattr(config, name) for config in configs], dtype=torch.float64, device=device)
            for name in ("zipf", "uncertain_mass", "concentration")
        )
        frequent = ranks ** -zipf[:, None]
        frequent = frequent / frequent.sum(1, keepdim=True) * (1 - mass[:, None])
        rare = (mass / first.uncertain)[:, None].expand(-1, first.uncertain)
        self.context_PC = torch.cat([frequent, rare], 1)
        self.next_PC = streams.integers(2 * TRIES + 1, contexts, certain)  # of deterministic contexts
        self.uncertain_PCV = dirichlet(streams, concentration, first.uncertain, contexts)
        one = torch.nn.functional.one_hot(self.next_PC, contexts).double()
        self.next_PCV = torch.cat([one, self.uncertain_PCV], 1)
        self.entropy_PC = -torch.xlogy(self.next_PCV, self.next_PCV).sum(2)

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All pairs that can occur: their cumulative chances [P, A], and context and next token of each [P, A]."""
        lanes, certain = self.next_PC.shape
        uncertain, tokens = self.uncertain_PCV.shape[1:]
        many = (self.context_PC[:, certain:, None] * self.uncertain_PCV).flatten(1)
        chances_PA = torch.cat([self.context_PC[:, :certain], many], 1)
        places = torch.arange(certain + uncertain, device=self.next_PC.device)
        context_A = torch.cat([places[:certain], places[certain:].repeat_interleave(tokens)])
        next_PA = torch.cat([self.next_PC, places.repeat(uncertain).expand(lanes, -1)], 1)
        return chances_PA.cumsum(1), context_A.expand(lanes, -1), next_PA


class Tables:
    """The logits of all replicas of all lanes as rows of one table [P R C, V], all zero at first."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        first, self.lanes = configs[0], len(configs)
        self.replicas, self.batch, self.certain = first.replicas, first.batch_size, first.deterministic
        self.contexts = first.contexts
        self.rates = Rates(configs, device, torch.float32)
        self.batches = Streams([config.seed for config in configs], "batches", device)
        self.source = Source(configs, device)
        self.below_PA, self.context_PA, self.next_PA = self.source.pairs()
        self.table = torch.zeros(self.lanes * self.replicas * self.contexts, self.contexts, device=device)
        model = torch.arange(self.lanes * self.replicas, device=device).view(self.lanes, self.replicas)
        self.first_row_PRB = (model * self.contexts)[:, :, None].expand(-1, -1, self.batch)
        self.done = torch.zeros((), dtype=torch.int64, device=device)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of this step: rows of the table and next tokens, both [P R B]."""
        u = self.batches.uniform(self.done, self.replicas * self.batch, dtype=torch.float64)
        pair = torch.searchsorted(self.below_PA, u).clamp_max(self.below_PA.shape[1] - 1)
        rows = self.context_PA.gather(1, pair).view(self.first_row_PRB.shape) + self.first_row_PRB
        return rows.flatten(), self.next_PA.gather(1, pair).flatten()

    def step(self) -> None:
        """W[c] <- W[c] - lr / B (softmax(W[c]) - onehot(next)) for each pair of the batch; in place."""
        rows, targets = self.draw()
        gradient = torch.softmax(self.table.index_select(0, rows), 1)
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
        rate = (-self.rates.at(self.done) / self.batch)[:, None].expand(-1, self.replicas * self.batch)
        self.table.index_add_(0, rows, gradient.mul_(rate.reshape(-1, 1)))
        self.done.add_(1)

    def measure(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """KL of deterministic and of uncertain rows, and the latter's share of the Hessian's trace, all exact; [P].

        One replica at a time: probabilities of all would not fit where the logits do.
        """
        wanted = ("kl_deterministic", "kl_uncertain", "hessian_share_uncertain")
        each = [self._measured(replica) for replica in range(self.replicas)]
        half = self.replicas // 2
        select, report = (torch.stack(part).mean(0) for part in (each[:half], each[half:]))
        light = dict(zip(wanted, select, strict=True))
        last = {f"report/{name}": value for name, value in zip(wanted, report, strict=True)}
        light = {"select/loss": select[0] + select[1], **light, "lr": self.rates.at(self.done - 1)}
        return light, {"report/loss": report[0] + report[1], **last}

    def _measured(self, replica: int) -> torch.Tensor:
        """(kl of deterministic rows, kl of uncertain rows, uncertain share of the Hessian's trace) of a replica."""
        models = self.table.view(self.lanes, self.replicas, self.contexts, self.contexts)
        log_PCV = torch.log_softmax(models[:, replica], 2)
        chosen = log_PCV[:, : self.certain].gather(2, self.source.next_PC[:, :, None])[:, :, 0].double()
        cross_PC = torch.cat([-chosen, -(self.source.uncertain_PCV * log_PCV[:, self.certain :]).sum(2)], 1)
        kl_PC = self.source.context_PC * (cross_PC - self.source.entropy_PC)
        trace_PC = self.source.context_PC * (1 - log_PCV.exp().square().sum(2, dtype=torch.float64))
        share = trace_PC[:, self.certain :].sum(1) / trace_PC.sum(1)
        return torch.stack([kl_PC[:, : self.certain].sum(1), kl_PC[:, self.certain :].sum(1), share])


def shape(config: Config) -> tuple[Any, ...]:
    """Steps and sizes; neither the schedule nor the source's chances are: they are numbers of each lane."""
    sizes = config.deterministic, config.uncertain, config.batch_size, config.replicas
    return laned_schedules.steps(config), *sizes


def train(configs: Sequence[Config], run: LaneRun) -> None:
    tables = Tables(configs, run.device)
    laned_schedules.walk(configs, run, step=tables.step, measure=tables.measure)


def units(config: Config) -> dict[str, float]:
    """A step trains one model on `batch_size` pairs; FLOPs are those of all replicas, about 6 per logit touched."""
    flops = 6 * config.batch_size * config.contexts * config.replicas
    return {"tokens": config.batch_size, "flops": flops, "parameters": config.contexts**2}


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    return laned_schedules.family(Config, values, budgets)


def describe(config: Config, varying: Sequence[str]) -> str:
    return laned_schedules.describe(config, varying, {"zipf": "zipf", "uncertain_mass": "mass"})


STUDY: FusedStudy = FusedStudy(
    "bigram",
    paper="2410.05192",
    version=1,
    config=Config,
    tiny=Config(budget_steps=40, deterministic=12, uncertain=4, batch_size=8, measure_every=10),
    shape=shape,
    train=train,
    count_steps=laned_schedules.steps,
    probe=laned_schedules.short,
    conditions=(
        *("budget_steps", "earlier_budgets", "deterministic", "uncertain", "uncertain_mass", "zipf"),
        *("concentration", "batch_size", "replicas", "measure_every"),
    ),
    units=units,
    family=family,
    family_steps=laned_schedules.family_steps,
    describe=describe,
)
