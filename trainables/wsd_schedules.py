"""Configs of the WSD study and what their methods do to the learning rate (arXiv:2410.05192).

A config is a method, a peak, a budget and the model and data it trains; its timeline is the rest of this page. The
training itself is in `trainables.wsd`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from trainables.common import schedules
from trainables.common.models.llama import LlamaShape
from trainables.common.timeline import SHAPES, Timeline, place

Method = Literal["wsd", "wsd_s", "cosine", "cyclic_cosine", "constant", "low_constant"]
SCHEDULE_FIELDS: dict[str, tuple[str, ...]] = {
    "wsd": ("min_lr_ratio", "decay_fraction", "decay_shape", "decay_basis"),
    "wsd_s": (
        *("min_lr_ratio", "decay_fraction", "decay_fractions", "decay_shape", "decay_basis"),
        *("accounting", "earlier_budgets", "rewarmup_steps"),
    ),
    "cosine": ("min_lr_ratio",),
    "cyclic_cosine": ("min_lr_ratio", "earlier_budgets", "rewarmup_steps"),
    "constant": (),  # the ablation "no decay"
    "low_constant": ("min_lr_ratio",),  # the ablation "no high stable rate": the rate that decays end at, throughout
}
"""Which schedule fields each method reads, beside budget_steps, peak_lr and warmup_steps."""
SOME_READ = {name for names in SCHEDULE_FIELDS.values() for name in names}


COUNTS = (
    *("measure_every", "batch_size", "micro_batch_size", "select_tokens"),
    *("report_documents", "windows_per_document"),
)


@dataclass(frozen=True)
class Config:
    method: Method = "wsd"
    budget_steps: int = 1600  # optimizer steps, warm-up and decay included
    earlier_budgets: tuple[int, ...] = ()  # smaller budgets that the run passes through (wsd_s, cyclic_cosine)
    peak_lr: float = 3e-3  # learning rate of the stable stretch, above 0
    min_lr_ratio: float = 0.1  # rate at the end of a decay over the peak rate, in [0, 1)
    warmup_steps: int = 40  # linear from 0
    rewarmup_steps: int = 0  # after each earlier budget; 0: the rate jumps back
    decay_fraction: float = 0.1  # of the budget (see decay_basis), in (0, 1]
    decay_fractions: tuple[float, ...] = ()  # one per budget, earlier ones first; empty: decay_fraction for all
    decay_shape: str = "linear"  # a name in SHAPES, or "package.module:function"
    decay_basis: schedules.Basis = "cumulative"  # a decay is a share of the whole budget, or of its own period
    accounting: schedules.Accounting = "family"  # wsd_s: cost the WSD family's steps, or end at each budget exactly
    width: int = 64
    layers: int = 2
    heads: int = 2
    ffn_width: int = 160
    context: int = 64  # tokens a sequence
    batch_size: int = 8  # sequences a step, over all workers
    micro_batch_size: int | None = None  # sequences at a time on one device; None: all at once
    model: str | None = None  # "package.module:function" of (vocabulary, context, generator); None: Llama
    corpus: str = "pycode"  # a name, or the path of a text or token file or folder
    tokenizer: str = "bytes"  # or the path of a tokenizers JSON file
    optimizer: str = "adamw"  # or "package.module:function" of (model, settings)
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # largest gradient norm
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over fp32 weights
    compile: bool = False
    measure_every: int = 100  # steps between light measurements
    select_tokens: int = 8192  # of the select split, at every measurement
    report_documents: int = 96  # of the report split, before and after decays and at the end
    windows_per_document: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"no method {self.method!r}; there are {', '.join(get_args(Method))}")
        budgets = (*self.earlier_budgets, self.budget_steps)
        if list(budgets) != sorted(set(budgets)) or budgets[0] < 1:
            raise ValueError(f"budgets must increase from at least 1, got {budgets}; sort them and drop repeats")
        if not self.peak_lr > 0:
            raise ValueError(f"peak_lr must be above 0, got {self.peak_lr}")
        if not 0 <= self.min_lr_ratio < 1:
            raise ValueError(f"min_lr_ratio must be in [0, 1), got {self.min_lr_ratio}")
        if self.decay_shape not in SHAPES and ":" not in self.decay_shape:
            raise ValueError(
                f"no decay_shape {self.decay_shape!r}; there are {', '.join(SHAPES)}, or 'package.module:function'"
            )
        for name in SOME_READ - set(SCHEDULE_FIELDS[self.method]):
            if name == "earlier_budgets" and self.method == "wsd" and self.decay_basis == "period":
                continue
            if getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under method {self.method!r}, got {getattr(self, name)}; leave it at "
                    f"{DEFAULTS[name]!r} or take a method that reads it"
                )
        if self.decay_fractions and (
            len(self.decay_fractions) != len(budgets) or self.decay_fractions[-1] != self.decay_fraction
        ):
            raise ValueError(
                f"decay_fractions needs one entry per budget, the last equal to decay_fraction, got "
                f"{self.decay_fractions} for budgets {budgets} and decay_fraction {self.decay_fraction}"
            )
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"decay fractions must be in (0, 1], got {self.fractions}")
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not (self.clip_norm > 0 and self.epsilon > 0):
            raise ValueError(f"clip_norm and epsilon must be above 0, got {self.clip_norm} and {self.epsilon}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is fp32 or bf16, got {self.precision!r}")
        if self.method == "low_constant" and self.min_lr_ratio == 0:
            raise ValueError("low_constant trains at peak_lr * min_lr_ratio, so min_lr_ratio must be above 0, got 0")
        if self.model is None:
            LlamaShape(256, self.width, self.layers, self.heads, self.ffn_width, self.context)  # refuses odd sizes
        timeline(self)  # refuses what does not fit into the budget

    @property
    def budgets(self) -> tuple[int, ...]:
        return (*self.earlier_budgets, self.budget_steps)

    @property
    def fractions(self) -> tuple[float, ...]:
        return self.decay_fractions or (self.decay_fraction,) * len(self.budgets)

    @property
    def decay_steps(self) -> list[int]:
        """Length of the decay at each budget."""
        return schedules.decay_steps(self.budgets, self.fractions, self.decay_basis)


DEFAULTS = {item.name: item.default for item in fields(Config)}


def timeline(config: Config) -> Timeline:
    """The learning rate's segments. Raises ValueError for a schedule that does not fit into its budget."""
    peak, low, warmup = config.peak_lr, config.peak_lr * config.min_lr_ratio, config.warmup_steps
    match config.method:
        case "constant":
            return schedules.constant(config.budget_steps, peak, warmup)
        case "low_constant":
            return schedules.constant(config.budget_steps, low, warmup)
        case "cosine":
            return schedules.cosine(config.budget_steps, peak, low, warmup)
        case "cyclic_cosine":
            return schedules.cyclic_cosine(config.budgets, peak, low, warmup, config.rewarmup_steps)
        case "wsd":
            decay = config.decay_steps[-1]
            return schedules.warmup_stable_decay(config.budget_steps, decay, peak, low, warmup, config.decay_shape)
    return schedules.wsd_s(
        *(config.budgets, config.decay_steps, peak, low, warmup, config.decay_shape),
        accounting=config.accounting,
        rewarmup=config.rewarmup_steps,
    )


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget of one method; what the method does not read is left at its default.

    Under wsd_s and cyclic_cosine (and wsd with periods) each config carries its earlier budgets. `decay_fractions`
    may hold one fraction per budget.
    """
    method = values.get("method", DEFAULTS["method"])
    read = SCHEDULE_FIELDS.get(method, ())
    kept = {name: value for name, value in values.items() if name in read or name not in SOME_READ}
    fractions = tuple(values.get("decay_fractions", ()))
    if fractions and len(fractions) != len(budgets):
        raise ValueError(f"decay_fractions needs one entry per budget, got {fractions} for {list(budgets)}")
    periods = method == "wsd" and values.get("decay_basis") == "period"
    configs = []
    for index, budget in enumerate(budgets):
        own: dict[str, Any] = {**kept, "budget_steps": budget}
        if "earlier_budgets" in read or periods:
            own["earlier_budgets"] = tuple(budgets[:index])
        if fractions and "decay_fraction" in read:
            own["decay_fraction"] = fractions[index]
        if fractions and "decay_fractions" in read:
            own["decay_fractions"] = fractions[: index + 1]
        configs.append(Config(**own))
    return configs


def branch(config: Config, at: int, decay: int, shape: str) -> Config:
    """The WSD config that leaves a config's stable stretch at step `at` and decays over `decay` steps.

    Raises ValueError when step `at` does not lie in a stable stretch of WSD, WSD-S' first one or a constant rate.
    """
    placed = place(timeline(config))
    stretch = next((part for part in placed if part.segment.constant and part.start <= at <= part.stop), None)
    if stretch is None or any(part.segment.falling and part.start < at for part in placed):
        steps = [f"{part.start}..{part.stop}" for part in placed if part.segment.constant]
        raise ValueError(
            f"step {at} is not in a first stable stretch of this trial; stable: {', '.join(steps) or 'none'}"
        )
    return replace(
        config,
        method="wsd",
        budget_steps=at + decay,
        earlier_budgets=(),
        decay_fraction=decay / (at + decay),
        decay_fractions=(),
        decay_shape=shape,
        decay_basis="cumulative",
        accounting="family",
        rewarmup_steps=0,
    )


SHORT = {
    "peak_lr": "lr",
    "budget_steps": "B",
    "decay_fraction": "f",
    "decay_shape": "",
    "min_lr_ratio": "min",
    "warmup_steps": "warmup",
    "weight_decay": "wd",
    "accounting": "",
    "seed": "s",
}


def describe(config: Config, varying: Sequence[str]) -> str:
    """Method, then what varies, shortly.

    >>> describe(Config(peak_lr=3e-3, budget_steps=2000, seed=0), ["peak_lr", "budget_steps", "seed"])
    'wsd lr=3e-3 B=2000 s0'
    """
    words: list[str] = [config.method]
    read = SCHEDULE_FIELDS[config.method]
    varying = varying or ("peak_lr", "budget_steps", "decay_fraction", "seed")
    for name in [name for name in SHORT if name in varying] + [name for name in varying if name not in SHORT]:
        label, value = SHORT.get(name, name), getattr(config, name)
        if name in ("method", "earlier_budgets") or (name in SOME_READ and name not in read):
            continue
        if name not in SHORT and value == DEFAULTS[name]:
            continue
        text = _short(value) if isinstance(value, float) else str(value)
        words.append(f"{label}{text}" if name == "seed" or not label else f"{label}={text}")
    return " ".join(words)


def _short(value: float) -> str:
    """3e-3, .1, 0.25: the shortest usual way to write a number."""
    if value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}".replace("0.", ".", 1) if 0 < value < 1 else f"{value:g}"
