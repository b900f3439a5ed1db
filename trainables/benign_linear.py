"""Does interpolating wrong labels harm? A linear model, from few dimensions to many (arXiv:2206.00501).

Inputs are signal * y e_1 + N(0, I_p), and a part of the labels y is wrong. Gradient descent from zero on the logistic
loss fits all n of them, right and wrong. At p near n that costs accuracy, at p far above n it does not; stopping early,
or fitting a student to the predictions of an early model (self-training), avoids the cost. Models are trained in their
dual, w = sum_i a_i x_i: an n x n Gram matrix whatever p is, so all ratios p / n are lanes of one program. The model,
signal and sizes are ours; the paper's own experiments are on images.
"""

# P lanes, N training inputs, M held-out inputs, m N or M of them

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from trainables.common.benign.linear_data import NoiseKind, Problem, Split, draw, effective_rate
from trainables.common.benign.linear_measures import clean_error, expected_loss, fitted_scale
from trainables.common.captured import Captured
from trainables.common.lanes import per_lane
from trainables.common.names import in_short
from trainables.study import PROBE_STEPS, FusedStudy, LaneRun, Metric

Repair = Literal["none", "early_stop", "self_train_hard", "self_train_soft"]
SELF_TRAINING: tuple[Repair, ...] = ("self_train_hard", "self_train_soft")
Metrics = Mapping[str, torch.Tensor]
JUDGED = ("error", "loss", "scaled_loss")  # each has its own early stop and its own excess


@dataclass(frozen=True)
class Config:
    samples: int = 100  # n, to train on
    ratio: float = 4.0  # p / n, dimensions per training sample; p is rounded, at least 2
    signal: float = 6.0  # distance of a class mean from the origin, at ratio 1; above 0
    signal_exponent: float = 0.0  # the signal grows as ratio to this power; 0.25 keeps signal^2 / sqrt(p / n)
    noise_rate: float = 0.2  # share of labels flipped, or drawn anew (symmetric); of all, less than half may be wrong
    noise_kind: NoiseKind = "flip"  # symmetric: a random class, the clean one included
    repair: Repair = "none"
    rounds: int = 1  # of self-training: students, of which each but the last teaches the next
    teacher_step: int | None = None  # the teacher is the model after so many steps; off: the best on held-out inputs
    budget_steps: int = 3000  # of each model; a teacher of a fixed step stops there
    learning_rate: float = 1.0  # in units of 1 / L, L the largest curvature of the loss; descends below 2
    weight_decay: float = 0.0  # in units of L
    held_out: int = 400  # inputs with given labels: one half chooses steps and temperatures, one selects; even
    measurements: int = 24  # of each model, at steps in geometric progression
    boundary_excess: float = 0.02  # the excess error that select/boundary measures the distance from
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("noise_kind", get_args(NoiseKind)), ("repair", get_args(Repair))):
            if getattr(self, name) not in values:
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(values)}")
        for name in FINITE:
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("ratio", "signal", "learning_rate"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if self.held_out % 2:
            raise ValueError(f"held_out must be even, for its two halves; got {self.held_out}")
        if self.dimension < 2:
            raise ValueError(f"ratio * samples must be at least 2, got {self.ratio} * {self.samples}; raise the ratio")
        if not self.wrong_rate < 0.5:
            raise ValueError(
                f"less than half of the labels may be wrong, got noise_rate={self.noise_rate} with "
                f"noise_kind={self.noise_kind}, {self.wrong_rate:g} of them; lower noise_rate"
            )
        if self.repair not in SELF_TRAINING:
            for name in TEACHING:
                if getattr(self, name) != DEFAULTS[name]:
                    raise ValueError(
                        f"{name} does nothing under repair={self.repair}, got {getattr(self, name)}; leave it at "
                        f"{DEFAULTS[name]} or take repair={' or '.join(SELF_TRAINING)}"
                    )
        elif self.teacher_step is not None and not 1 <= self.teacher_step <= self.budget_steps:
            raise ValueError(
                f"teacher_step must be from 1 to budget_steps={self.budget_steps}, got {self.teacher_step}; "
                "leave it off for the best step on held-out inputs"
            )

    @property
    def dimension(self) -> int:
        """p."""
        return round(self.ratio * self.samples)

    @property
    def strength(self) -> float:
        """The signal at this ratio."""
        return float(self.signal * self.ratio**self.signal_exponent)

    @property
    def wrong_rate(self) -> float:
        """Chance that a given label is wrong."""
        return effective_rate(self.noise_rate, self.noise_kind)

    @property
    def models(self) -> tuple[int, ...]:
        """Steps of each model that is trained, the delivered one last."""
        teachers = self.rounds if self.repair in SELF_TRAINING else 0
        return (self.teacher_step or self.budget_steps,) * teachers + (self.budget_steps,)


DEFAULTS = {item.name: item.default for item in fields(Config)}
LEAST = {"noise_rate": 0, "weight_decay": 0, "held_out": 4, "measurements": 2}
LEAST |= {"samples": 1, "rounds": 1, "budget_steps": 1}
FINITE = ("signal_exponent", "weight_decay", "boundary_excess")
TEACHING = ("rounds", "teacher_step")


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; without self-training its fields are left out, so that nothing is trained twice."""
    teaching = values.get("repair", "none") in SELF_TRAINING
    read = {name: value for name, value in values.items() if teaching or name not in TEACHING}
    return [Config(**{**read, "budget_steps": budget}) for budget in budgets]


def family_steps(configs: Sequence[Config]) -> int:
    """Steps of all budgets: the last student passes through the earlier ones if its teachers do not depend on them."""
    last = configs[-1]
    fixed = last.repair not in SELF_TRAINING or last.teacher_step is not None
    return sum(last.models) if fixed else sum(sum(config.models) for config in configs)


def shape(config: Config) -> tuple[Any, ...]:
    """Sizes and steps; the ratio, the noise, hard or soft labels and the rates are numbers per lane."""
    fixed = config.repair in SELF_TRAINING and config.teacher_step is not None
    return config.samples, config.held_out, config.measurements, config.models, fixed


def measured_steps(steps: int, measurements: int) -> list[int]:
    """Steps from 1 to the last in geometric progression, rounded; fewer where they would coincide.

    >>> measured_steps(100, 5)
    [1, 3, 10, 32, 100]
    """
    return sorted({round(steps ** (at / (measurements - 1))) for at in range(measurements)})


class Pack:
    """The lanes of one shape: their data, models and what was best so far."""

    def __init__(self, configs: Sequence[Config], device: torch.device):
        self.configs, self.samples = configs, configs[0].samples
        problems = [
            Problem(config.seed, config.dimension, config.strength, config.noise_rate, config.noise_kind)
            for config in configs
        ]
        self.train, self.held = draw(problems, self.samples, configs[0].held_out, device)
        self.strength_P = per_lane(configs, "strength", device, torch.float64)
        curvature_P = torch.linalg.eigvalsh(self.train.gram_PNm)[:, -1] / (4 * self.samples)
        rate_P = per_lane(configs, "learning_rate", device, torch.float64)
        self.keep_P11 = (1 - rate_P * per_lane(configs, "weight_decay", device, torch.float64))[:, None, None]
        self.pace_P11 = (-rate_P / curvature_P / self.samples)[:, None, None]
        self.soft_P = torch.tensor([config.repair == "self_train_soft" for config in configs], device=device)
        self.targets_P1N = (self.train.given_Pm[:, None] + 1) / 2  # chance of label +1
        self.dual_P1N = torch.zeros_like(self.targets_P1N)
        self.advance = Captured(self.step, device)
        self.best: dict[str, torch.Tensor] = {}

    def step(self) -> None:
        """a <- (1 - rate decay) a - rate / (L n) (sigmoid(f) - target), with f = K a the outputs on the training set.

        A row times a symmetric matrix: on a CPU several times as fast as the matrix times a column.
        """
        slope_P1N = torch.sigmoid(torch.bmm(self.dual_P1N, self.train.gram_PNm)).sub_(self.targets_P1N)
        self.dual_P1N.mul_(self.keep_P11).addcmul_(slope_P1N, self.pace_P11)

    def begin(self) -> None:
        """A new model, zero, of which nothing is best yet."""
        self.dual_P1N.zero_()
        self.best = {}

    def outputs(self, split: Split) -> torch.Tensor:
        """Outputs on a split, [P, m]."""
        return torch.bmm(self.dual_P1N, split.gram_PNm)[:, 0]

    def measure(self) -> dict[str, torch.Tensor]:
        """What the models are worth as they stand; each metric [P]."""
        train, target_PN = self.train, self.targets_P1N[:, 0]
        outputs_PN, held_PM = self.outputs(train), self.outputs(self.held)
        norm_P = (outputs_PN * self.dual_P1N[:, 0]).sum(1).clamp_min(0).sqrt()
        margins_PN = outputs_PN * train.given_Pm / norm_P[:, None]
        flipped_PN = train.given_Pm != train.clean_Pm
        stop, select = self.held.given_Pm.chunk(2, 1)
        held_stop, held_select = held_PM.chunk(2, 1)
        scale_P = fitted_scale(held_stop, stop)
        found = {
            "train/target_loss": (functional.softplus(outputs_PN) - target_PN * outputs_PN).mean(1),
            **_on(outputs_PN, train.given_Pm, "train/"),
            **_on(outputs_PN, train.clean_Pm, "train/clean_"),
            "train/flipped": flipped_PN.sum(1).double(),
            "train/memorised": (flipped_PN & (outputs_PN * train.given_Pm > 0)).sum(1).double(),
            "margin/mean": margins_PN.mean(1),
            "margin/least": margins_PN.amin(1),
            "weight_norm": norm_P,
            "temperature": 1 / scale_P,
        }
        for name, held, given in (("stop/", held_stop, stop), ("select/", held_select, select)):
            found |= _on(held, given, name)
            found[f"{name}scaled_loss"] = functional.softplus(-held * given * scale_P[:, None]).mean(1)
        mean_P = self.strength_P * (self.dual_P1N[:, 0] * train.signal_Pm).sum(1)
        found["report/error"] = clean_error(mean_P, norm_P)
        found["report/loss"] = expected_loss(mean_P, norm_P)
        found["report/scaled_loss"] = expected_loss(mean_P * scale_P, norm_P * scale_P)
        return found

    def remember(self, found: Metrics, step: int) -> None:
        """Keep what is best on the held-out half that chooses, by each of JUDGED; among equals the first."""
        seen = {f"{name} {part}": found[f"{part}/{name}"] for name in JUDGED for part in ("stop", "select", "report")}
        seen |= {"step": torch.full_like(self.strength_P, step), "dual": self.dual_P1N.clone()}
        if not self.best:
            self.best = seen
            return
        better = {name: found[f"stop/{name}"] < self.best[f"{name} stop"] for name in JUDGED}
        for key, value in seen.items():
            chosen_P = better[key.split()[0] if " " in key else "error"]
            chosen = chosen_P.view(-1, *(1,) * (value.ndim - 1))
            self.best[key] = torch.where(chosen, value, self.best[key])

    def teach(self, fixed: bool) -> None:
        """The next model's targets: the classes (hard) or class chances (soft) that this one, or its best, predicts."""
        if not fixed:
            self.dual_P1N.copy_(self.best["dual"])
        outputs_P1N = self.outputs(self.train)[:, None]
        hard_P1N = (outputs_P1N > 0).to(outputs_P1N.dtype)
        self.targets_P1N.copy_(torch.where(self.soft_P[:, None, None], torch.sigmoid(outputs_P1N), hard_P1N))

    def stop_early(self) -> None:
        """The best model so far in place of the last, in the lanes that ask for it."""
        stops_P = torch.tensor([config.repair == "early_stop" for config in self.configs], device=self.dual_P1N.device)
        self.dual_P1N.copy_(torch.where(stops_P[:, None, None], self.best["dual"], self.dual_P1N))


def _on(outputs: torch.Tensor, labels: torch.Tensor, name: str) -> Metrics:
    margins = outputs * labels
    wrong = (margins <= 0).double() + margins.isnan() * margins  # a NaN is no mistake: it must be seen
    return {f"{name}error": wrong.mean(1), f"{name}loss": functional.softplus(-margins).mean(1)}


def train(configs: Sequence[Config], run: LaneRun) -> None:
    """Teachers, if there are any, and the model that is delivered, each measured along its way."""
    pack, first, before = Pack(configs, run.device), configs[0], 0
    for at, steps in enumerate(first.models):
        pack.begin()
        done = 0
        for step in measured_steps(steps, first.measurements):
            if run.should_stop():
                return
            pack.advance(step - done)
            done, last = step, step == steps and at == len(first.models) - 1
            with run.measuring():
                found = pack.measure()
                pack.remember(found, step)
                end = found
                if last:
                    pack.stop_early()
                    found = pack.measure()
                for lane, row in enumerate(rows(configs, found, end, pack.best, last)):
                    run.report(lane=lane, step=before + step, full=last, **row)
        before += steps
        if not last:
            pack.teach(fixed=first.teacher_step is not None)


def rows(configs: Sequence[Config], found: Metrics, end: Metrics, best: Metrics, full: bool) -> list[dict[str, float]]:
    """A row per lane: the model as it is delivered (`found`), and what going on to the `end` cost against the best.

    Held-out labels are noisy, and so see only 1 - 2 * wrong_rate of a difference in clean errors; select/excess is the
    difference that they see, divided by that.
    """
    table = {name: values.tolist() for name, values in found.items() if full or not name.startswith("report/")}
    table = {name: values for name, values in table.items() if not name.startswith("stop/")}
    seen = (end["select/error"] - best["error select"]).tolist()
    table["wrong_rate"] = [config.wrong_rate for config in configs]
    table["select/excess"] = [one / (1 - 2 * config.wrong_rate) for one, config in zip(seen, configs, strict=True)]
    table["select/boundary"] = [
        abs(one - config.boundary_excess) for one, config in zip(table["select/excess"], configs, strict=True)
    ]
    if full:
        for name in JUDGED:
            table[f"report/final_{name}"] = end[f"report/{name}"].tolist()
            table[f"report/early_{name}"] = best[f"{name} report"].tolist()
            table[f"report/excess_{name}"] = (end[f"report/{name}"] - best[f"{name} report"]).tolist()
        table["report/stop_step"] = best["step"].tolist()
    lanes = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    for row in lanes if full else ():
        if row["train/flipped"]:
            row["report/memorised_fraction"] = row["train/memorised"] / row["train/flipped"]
    return lanes


def units(config: Config) -> dict[str, float]:
    """Samples and FLOPs a step, and weights, of the same descent on w itself: 4 n p (outputs and gradient).

    The dual takes 2 n^2 whatever p is; a network of growing width would not.
    """
    flops = 4.0 * config.samples * config.dimension
    return {"tokens": config.samples, "flops": flops, "parameters": config.dimension}


def probe(config: Config) -> Config:
    """A stand-in of a few steps that hardly measures."""
    steps = min(PROBE_STEPS, config.budget_steps)
    teacher = None if config.teacher_step is None else min(steps, config.teacher_step)
    return replace(config, budget_steps=steps, teacher_step=teacher, measurements=2)


SHORT = {"ratio": "p/n", "noise_rate": "noise", "repair": "", "rounds": "rounds", "teacher_step": "teacher"}
SHORT |= {"learning_rate": "lr", "weight_decay": "wd", "samples": "n", "budget_steps": "B", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """What varies, shortly.

    >>> describe(Config(ratio=2.0, repair="early_stop"), ["ratio", "noise_rate", "repair", "budget_steps", "seed"])
    'linear p/n=2 noise=0.2 early_stop B=3000 s0'
    """
    return in_short(config, varying, SHORT, "linear")[:79]


STUDY: FusedStudy = FusedStudy(
    "benign_linear",
    paper="2206.00501",
    version=1,
    config=Config,
    tiny=Config(samples=20, ratio=2.0, noise_rate=0.3, budget_steps=40, measurements=6),
    shape=shape,
    train=train,
    probe=probe,
    family=family,
    family_steps=family_steps,
    count_steps=lambda config: sum(config.models),
    units=units,
    describe=describe,
    conditions=(
        *("ratio", "samples", "signal", "signal_exponent", "noise_rate", "noise_kind", "repair"),
        *("budget_steps", "held_out", "boundary_excess"),
    ),
    select=Metric("select/error", "min"),
    report=Metric("report/error", "min"),
    boundary="select/boundary",
    agreement=1e-6,
)
