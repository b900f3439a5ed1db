"""How many samples and how much compute does a network need to learn a parity with noise? (arXiv:2303.07987)

A secret s in F2^n; queries a are uniform, labels are <a, s> + e mod 2 with e = 1 at the noise rate. A two-layer net
trained on them becomes a cleaner oracle, from which Gaussian elimination reads the secret. Three settings:
  abundant     fresh samples at every step: how many until the secret is found?
  moderate     a pool of `samples`: how many steps until the secret is found? A reduction may come before the net.
  restricted   the smallest pool 2^(k/2) from which one of several initialisations finds the secret, by bisection over k
A lane is one instance with its nets. It is solved when a secret was found and noisy samples bore it out; only then is
the secret compared with the true one, for the log. Left out of what others trained: dropout, convolutional nets,
learning-rate schedules, and an L1 penalty on parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log2
from typing import Any, Literal

import torch

from trainables.common.names import in_short
from trainables.common.parity import gauss
from trainables.common.parity.baselines import Instance, samples_of, walsh_samples
from trainables.common.parity.networks import Architecture
from trainables.common.parity.problems import Problem
from trainables.common.parity.racing import Race, Seen, Training
from trainables.common.parity.recovery import verification_samples
from trainables.common.parity.reduction import Reduction
from trainables.common.parity.samples import MAX_DIMENSION
from trainables.study import FusedStudy, LaneRun, Metric

Setting = Literal["abundant", "moderate", "restricted"]
WALSH_MEASURED = 20  # bits up to which maximum likelihood's samples are measured beside every trial: milliseconds
UNTRAINED_ERROR = 0.5  # what a pool size counts from which no net found the secret
MOST_SPREAD = 0.1  # of the estimated error, as a standard deviation


@dataclass(frozen=True)
class Config:
    # the problem
    setting: Setting = "abundant"
    dimension: int = 10  # bits of the secret, 2 to 40
    noise_rate: float = 0.1  # chance that a label flips, in [0, 0.5)
    secret_rate: float | None = 0.5  # share of ones in the secret, rounded down; None: the noise rate (sparse form)
    samples: int | None = None  # the pool of setting=moderate, up to 2^31
    smallest_size: int = 6  # setting=restricted looks at pools of 2^(k/2) samples: the first k
    largest_size: int = 24  # the same: the first k that is no longer looked at
    dropped_bits: int = 0  # reduction before the net: bits that are zero in every query that is kept
    xor_rounds: int = 0  # the same: rounds of adding up pairs of samples, each squares 1 - 2 noise_rate
    block_bits: int = 0  # the same: bits that vanish in each round
    # the nets
    network: Literal["mlp", "norm_mlp", "sparse_mlp"] = "mlp"
    layers: int = 1  # hidden layers
    width: int = 128  # units of each
    activation: Literal["relu", "cosine"] = "relu"  # cosine: (cos + 1) / 2
    output: Literal["sigmoid", "cosine"] = "sigmoid"
    keep_rate: float = 0.2  # share of weights that network=sparse_mlp has, in (0, 1]
    initialisations: int = 1  # nets per lane, on the same samples; the best one counts
    # their training
    loss: Literal["bce", "l1"] = "bce"
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-2  # constant, above 0
    weight_decay: float = 0.0  # added to the gradient as weight_decay * parameter (coupled, no AdamW), at least 0
    batch_size: int = 512  # samples a step; from a pool they are drawn with replacement
    budget_steps: int = 2000  # steps in all; of setting=restricted, for each pool size that is tried
    measure_every: int = 50  # steps between measurements, at each of which the secret may be found
    select_samples: int = 4096  # noisy samples held out to measure the error
    seed: int = 0  # of the instance, the nets and their batches

    def __post_init__(self) -> None:
        if not 0 <= self.noise_rate < 0.5:
            raise ValueError(f"noise_rate must be in [0, 0.5), got {self.noise_rate}; flip the labels if it is larger")
        if not 2 <= self.dimension <= MAX_DIMENSION:
            raise ValueError(f"dimension must be 2 to {MAX_DIMENSION}, got {self.dimension}; reduce the problem first")
        if not 1 <= self.weight <= self.dimension:
            raise ValueError(
                f"the secret needs 1 to {self.dimension} ones, got {self.weight} by secret_rate={self.secret_rate}; "
                "raise it (for null, which takes the noise rate, that one)"
            )
        if (self.samples is not None) != (self.setting == "moderate"):
            raise ValueError(
                f"setting=moderate needs samples and no other setting has them, got setting={self.setting} and "
                f"samples={self.samples}; abundant draws fresh ones, restricted takes smallest_size and largest_size"
            )
        if self.samples is not None and not 1 <= self.samples <= 2**31:
            raise ValueError(f"samples must be 1 to 2^31, got {self.samples}")
        if self.setting == "restricted" and not 0 <= self.smallest_size < self.largest_size <= 60:
            raise ValueError(
                f"need 0 <= smallest_size < largest_size <= 60, got {self.smallest_size}, {self.largest_size}"
            )
        self._check_reduction()
        counts = (self.layers, self.width, self.initialisations, self.batch_size, self.budget_steps, self.measure_every)
        if min(counts) < 1 or self.learning_rate <= 0 or self.weight_decay < 0 or not 0 < self.keep_rate <= 1:
            raise ValueError(
                "layers, width, initialisations, batch_size, budget_steps and measure_every must be at least 1, "
                "learning_rate above 0, weight_decay at least 0 and keep_rate in (0, 1]; got "
                f"{', '.join(map(str, counts))}, {self.learning_rate}, {self.weight_decay}, {self.keep_rate}"
            )
        bias = 1 - 2 * self.reduction.noise_rate(self.noise_rate)
        needed = ceil(round((0.5 / (MOST_SPREAD * bias)) ** 2, 6))
        if self.select_samples < needed:
            raise ValueError(
                f"at the noise rate that the net sees, {0.5 - bias / 2:.4g}, {self.select_samples:,} select samples "
                f"tell the error worse than to {MOST_SPREAD}; take select_samples={needed} or more"
            )

    def _check_reduction(self) -> None:
        if min(self.dropped_bits, self.xor_rounds, self.block_bits) < 0 or self.reduction.remaining < 2:
            raise ValueError(
                f"a reduction must leave 2 bits or more of {self.dimension}, got dropped_bits={self.dropped_bits}, "
                f"xor_rounds={self.xor_rounds}, block_bits={self.block_bits}"
            )
        if (self.xor_rounds == 0) != (self.block_bits == 0):
            raise ValueError(f"xor_rounds and block_bits go together, got {self.xor_rounds} and {self.block_bits}")
        if self.reduction.remaining < self.dimension and self.setting != "moderate":
            raise ValueError(f"a reduction takes a pool: setting=moderate and samples; got setting={self.setting}")

    @property
    def weight(self) -> int:
        """Ones in the secret."""
        return int(self.dimension * (self.noise_rate if self.secret_rate is None else self.secret_rate) + 1e-9)

    @property
    def reduction(self) -> Reduction:
        return Reduction(self.dimension, self.dropped_bits, self.xor_rounds, self.block_bits)

    @property
    def net(self) -> Architecture:
        words = (self.network, self.layers, self.width, self.activation, self.output, self.loss)
        return Architecture(self.reduction.remaining, *words)

    @property
    def rounds(self) -> int:
        """Pool sizes that a bisection tries at most; 1 in the other settings."""
        return 1 if self.setting != "restricted" else ceil(log2(self.largest_size - self.smallest_size + 1))

    @property
    def measurements(self) -> int:
        """Measured steps of one race that runs to its end."""
        return ceil(self.budget_steps / self.measure_every)


def shape(config: Config) -> tuple[Any, ...]:
    """All that decides the size of a tensor or the program; noise, rates, pools and seeds are numbers per lane."""
    return (
        *(config.setting, config.net, config.reduction, config.optimizer, config.initialisations, config.batch_size),
        *(config.budget_steps, config.measure_every, config.select_samples),
        *((config.smallest_size, config.largest_size) if config.setting == "restricted" else ()),
    )


def prepared(configs: Sequence[Config], device: torch.device) -> tuple[Problem, Training]:
    """What the lanes are asked, and how their nets are trained."""
    first = configs[0]
    pools = {
        "abundant": None,
        "moderate": [config.samples or 0 for config in configs],
        "restricted": [samples_of(first.largest_size - 1)] * len(configs),
    }
    problem = Problem(
        seeds=[config.seed for config in configs],
        weights=[config.weight for config in configs],
        noise_rates=[config.noise_rate for config in configs],
        reduction=first.reduction,
        samples=pools[first.setting],
        select_samples=first.select_samples,
        device=device,
    )
    training = Training(
        *(first.net, first.optimizer, first.batch_size, first.budget_steps, first.measure_every, first.initialisations),
        learning_rates=[config.learning_rate for config in configs],
        weight_decays=[config.weight_decay for config in configs],
        keep_rates=[config.keep_rate for config in configs],
    )
    return problem, training


def train(configs: Sequence[Config], run: LaneRun) -> None:
    """All lanes until each is solved or out of budget."""
    setting = bisect if configs[0].setting == "restricted" else race
    setting(configs, *prepared(configs, run.device), run)


def race(configs: Sequence[Config], problem: Problem, training: Training, run: LaneRun) -> None:
    """The settings abundant and moderate: one race. The mean error counts steps after the secret was found as 0."""
    errors: list[list[float]] = [[] for _ in configs]
    counts = problem.counts if problem.table_PM is not None else None
    for step, seen in Race(training, problem, range(len(configs)), counts).run(run):
        for lane, one in seen.items():
            errors[lane].append(one.error)
            config = configs[lane]
            full = one.secret is not None or step == config.budget_steps
            samples = step * config.batch_size if config.samples is None else config.samples
            row = {
                "select/mean_error": sum(errors[lane]) / (config.measurements if full else len(errors[lane])),
                "select/error": one.error,
                "samples": float(samples),
            }
            if full:
                with run.measuring():
                    row |= verdict(config, problem, lane, one, samples if one.secret is not None else None)
            run.report(lane=lane, step=step, full=full, **row)


def bisect(configs: Sequence[Config], problem: Problem, training: Training, run: LaneRun) -> None:
    """The setting restricted: races from pools of 2^(k/2); all lanes try their own k in the same rounds.

    The mean error is over pool sizes: 0 from the smallest that is solved, UNTRAINED_ERROR below, half of it between.
    """
    low, high = ([getattr(config, name) for config in configs] for name in ("smallest_size", "largest_size"))
    best: list[Seen | None] = [None] * len(configs)  # at the smallest size that is solved
    last: dict[int, Seen] = {}

    def mean_error(lane: int) -> float:
        config = configs[lane]
        sizes = config.largest_size - config.smallest_size
        failed, unknown = low[lane] - config.smallest_size, high[lane] - low[lane]
        return UNTRAINED_ERROR * (failed + unknown / 2) / sizes

    def report(lane: int, steps: int, one: Seen, size: int) -> None:
        full = low[lane] == high[lane]
        row = {"select/mean_error": mean_error(lane), "select/error": one.error, "samples": float(samples_of(size))}
        if full:
            with run.measuring():
                shown, samples = best[lane] or one, samples_of(high[lane]) if best[lane] else None
                row |= verdict(configs[lane], problem, lane, shown, samples)
        run.report(lane=lane, step=steps, full=full, **row)

    for number in range(configs[0].rounds):
        racing = [lane for lane in range(len(configs)) if low[lane] < high[lane]]
        sizes = [(low[lane] + high[lane]) // 2 for lane in range(len(configs))]
        for step, seen in Race(training, problem, racing, [samples_of(size) for size in sizes], number).run(run):
            last |= seen
            for lane, one in seen.items():
                if one.secret is not None:
                    high[lane], best[lane] = sizes[lane], one
                elif step == training.budget_steps:
                    low[lane] = sizes[lane] + 1
                if not isfinite(one.error):
                    low[lane] = high[lane]  # all its nets are lost: the report says so, and the lane is over
                report(lane, number * training.budget_steps + step, one, sizes[lane])
        if run.should_stop():
            return


def verdict(config: Config, problem: Problem, lane: int, one: Seen, samples: int | None) -> Iterator[tuple[str, float]]:
    """What a trial is worth, and what classical solvers need for the same instance. Only here is the truth looked at.

    report/samples_to_secret counts training samples. What is held out, to select and to verify, comes on top (but is
    part of a pool that is reduced); maximum likelihood is verified on the same samples and selects on none.
    """
    right = one.secret is not None and one.secret == int(problem.whole_secret_P[lane])
    yield "report/solved", float(right)
    yield "report/wrong_secret", float(one.secret is not None and not right)
    yield "report/error", one.report_error
    if right and samples is not None:
        yield "report/samples_to_secret", float(samples)
    seen_rate = config.reduction.noise_rate(config.noise_rate)
    yield "report/held_out_samples", float(config.select_samples + verification_samples(seen_rate))
    yield "report/walsh_bytes", 4.0 * 2**config.dimension
    yield "report/gauss_expected_draws", gauss.expected_draws(config.noise_rate, config.dimension)
    if config.dimension <= WALSH_MEASURED:
        found = walsh_samples(Instance(config.dimension, config.noise_rate, config.weight, config.seed))
        if found is not None:
            yield "report/walsh_samples", float(found)


def units(config: Config) -> dict[str, float]:
    """Samples and FLOPs per step, parameters. Two layers: h (4 n + 6) FLOPs a sample, without an input gradient."""
    net, nets = config.net, config.initialisations
    if net.layers == 1:
        flops = net.width * (4 * net.dimension + 6)
    else:
        inner = (net.layers - 1) * net.width**2
        flops = 4 * net.width * net.dimension + 6 * (inner + net.width)
    return {"tokens": config.batch_size, "flops": nets * config.batch_size * flops, "parameters": nets * net.parameters}


SHORT = {"dimension": "n", "noise_rate": "tau", "learning_rate": "lr", "weight_decay": "wd", "width": "h"}
SHORT |= {"samples": "m", "network": "", "setting": "", "budget_steps": "B", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """What varies, shortly.

    >>> describe(Config(learning_rate=3e-3), ["dimension", "noise_rate", "learning_rate", "budget_steps", "seed"])
    'lpn n=10 tau=0.1 lr=0.003 B=2000 s0'
    """
    return in_short(config, varying, SHORT, "lpn")


STUDY: FusedStudy = FusedStudy(
    "lpn",
    paper="2303.07987",
    version=1,
    config=Config,
    tiny=Config(dimension=6, width=32, batch_size=64, budget_steps=40, measure_every=20, select_samples=256),
    shape=shape,
    train=train,
    conditions=(
        *("setting", "dimension", "noise_rate", "secret_rate", "samples", "smallest_size", "largest_size"),
        *("dropped_bits", "xor_rounds", "block_bits", "initialisations", "budget_steps"),
    ),
    select=Metric("select/mean_error", "min"),
    report=Metric("report/solved", "max"),
    count_steps=lambda config: config.rounds * config.budget_steps,
    units=units,
    describe=describe,
)
