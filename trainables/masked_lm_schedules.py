"""Configs of the masked-word study and what they do to the learning rate: warm-up, stable, decay (arXiv:2410.05192).

The training itself is in `trainables.masked_lm`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Literal, get_args

from trainables.common import schedules
from trainables.common.data.masking import FRAME
from trainables.common.models.encoder import EncoderShape
from trainables.common.timeline import SHAPES, Timeline, place

Method = Literal["wsd", "constant"]
DECAY_FIELDS = ("min_lr_ratio", "decay_fraction", "decay_shape")
"""What method=wsd alone reads."""
COUNTS = (
    *("budget_steps", "batch_size", "measure_every"),
    *("select_tokens", "report_documents", "windows_per_document"),
)


@dataclass(frozen=True)
class Config:
    method: Method = "wsd"  # constant: without the decay, so that its end is a state of the trunk
    budget_steps: int = 1000  # optimizer steps, warm-up and decay included
    peak_lr: float = 1e-3  # learning rate of the stable stretch, above 0
    min_lr_ratio: float = 0.0  # rate at the end of the decay over the peak rate, in [0, 1)
    warmup_steps: int = 100  # linear from 0
    decay_fraction: float = 0.2  # of the budget, in (0, 1]
    decay_shape: str = "linear"  # a name in SHAPES
    corpus: str = "pycode"  # a name, or the path of a text file or folder
    tokenizer: str = "bytes"  # or "wordpiece-N", trained on the corpus, or the path of a tokenizers JSON file
    mask_rate: float = 0.15  # share of the tokens of a row that are predicted, in (0, 1)
    width: int = 64
    layers: int = 2
    heads: int = 2
    ffn_width: int = 256
    context: int = 64  # positions of a row, [CLS] and [SEP] included
    batch_size: int = 32  # rows a step, over all workers
    weight_decay: float = 0.01  # at least 0
    beta1: float = 0.9  # in [0, 1)
    beta2: float = 0.98  # in [0, 1)
    epsilon: float = 1e-6  # above 0
    clip_norm: float = 1.0  # largest gradient norm, above 0; inf clips nothing
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over fp32 weights
    measure_every: int = 250  # steps between light measurements
    select_tokens: int = 16384  # of the select split, at every measurement
    report_documents: int = 96  # of the report split, before and after decays and at the end
    windows_per_document: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", get_args(Method)), ("precision", ("fp32", "bf16")), ("decay_shape", SHAPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(known)}")
        for name in ("peak_lr", "clip_norm", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        for name in ("peak_lr", "epsilon", "weight_decay"):
            if not isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}; give a number")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.min_lr_ratio < 1:
            raise ValueError(f"min_lr_ratio must be in [0, 1), got {self.min_lr_ratio}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be in (0, 1], got {self.decay_fraction}")
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate must be in (0, 1), got {self.mask_rate}")
        if self.context <= FRAME:
            raise ValueError(f"context must be above {FRAME}, as [CLS] and [SEP] take {FRAME}, got {self.context}")
        for name in DECAY_FIELDS if self.method == "constant" else ():
            if getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under method=constant, got {getattr(self, name)}; leave it at "
                    f"{DEFAULTS[name]} or take method=wsd"
                )
        EncoderShape(260, self.width, self.layers, self.heads, self.ffn_width, self.context)  # refuses odd sizes
        timeline(self)  # refuses what does not fit into the budget

    @property
    def decay_steps(self) -> int:
        return max(1, round(self.decay_fraction * self.budget_steps))


DEFAULTS = {item.name: item.default for item in fields(Config)}


def timeline(config: Config) -> Timeline:
    """Warm-up, the peak rate and, under wsd, a decay over the last steps of the budget."""
    budget, peak, warmup = config.budget_steps, config.peak_lr, config.warmup_steps
    if config.method == "constant":
        return schedules.constant(budget, peak, warmup)
    low = peak * config.min_lr_ratio
    return schedules.warmup_stable_decay(budget, config.decay_steps, peak, low, warmup, config.decay_shape)


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; what method=constant does not read is left at its default."""
    unread = DECAY_FIELDS if values.get("method") == "constant" else ()
    kept = {name: value for name, value in values.items() if name not in unread}
    return [Config(**{**kept, "budget_steps": budget}) for budget in budgets]


def branch(config: Config, at: int, decay: int, shape: str) -> Config:
    """The wsd config that leaves a config's stable stretch at step `at` and decays over `decay` steps.

    Raises ValueError when step `at` does not lie in the stable stretch.
    """
    stable = next((part for part in place(timeline(config)) if part.segment.constant), None)
    if stable is None or not stable.start <= at <= stable.stop:
        where = "none" if stable is None else f"{stable.start}..{stable.stop}"
        raise ValueError(f"step {at} is not in the stable stretch of this trial; stable: {where}")
    budget = at + decay
    return replace(config, method="wsd", budget_steps=budget, decay_fraction=decay / budget, decay_shape=shape)


SHORT = {"peak_lr": "lr", "decay_fraction": "f"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """Method, budget and seed, by which a state is exported, and what else varies.

    >>> describe(Config(peak_lr=2e-3, budget_steps=500), ["peak_lr", "seed"])
    'mlm wsd B=500 lr=0.002 s0'
    """
    away = {"method", "budget_steps", "seed", *(DECAY_FIELDS if config.method == "constant" else ())}
    words = [f"{SHORT.get(name, name)}={getattr(config, name)}" for name in varying if name not in away]
    return " ".join(["mlm", config.method, f"B={config.budget_steps}", *words, f"s{config.seed}"])
