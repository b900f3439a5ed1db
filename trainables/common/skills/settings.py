"""Settings of the skill-neuron study: what a trial is, which fields it reads, and what it does step by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args

from trainables.common.skills.perturbing import KINDS, RANDOM_KINDS, Kind
from trainables.common.skills.tuned import TUNINGS, Readout, Tuning
from trainables.common.timeline import Timeline, ramp, segment

Action = Literal["probe", "perturb", "prune"]


@dataclass(frozen=True)
class Config:
    task: str = "movie"  # labelled sentences: a name of trainables.common.data.sentences, or a file of label<TAB>text
    encoder: str = "minilm"  # "minilm", a Hugging Face folder, "random:" and one of these, or "tiny"
    readout: Readout = "mean"  # logits at a masked position, or cosine of the first or of the mean output
    verbaliser: str | None = None  # words for the classes, with commas between; None: the classes' names
    action: Action = "perturb"  # what follows prompt and probe
    tuning: Tuning = "prompt"  # what is trained before neurons are perturbed; they are found by the prompt always
    budget_steps: int = 80  # of prompt training, at least 1
    learning_rate: float = 3e-2  # of Adam on the prompt, above 0
    decay_fraction: float = 0.3  # last part of the budget over which the rate falls to 0, in [0, 1]
    batch_size: int = 16  # texts a step
    prompt_length: int = 8  # trained vectors, at least 1
    backbone_steps: int = 80  # bitfit, adapter: steps of their training
    backbone_learning_rate: float = 1e-3  # bitfit, adapter: their rate, above 0
    adapter_width: int = 24  # adapter: its bottleneck
    kind: Kind = "noise_sigma"  # noise absolute or in units of each neuron's own spread, zero, or mean
    size: float = 1.0  # noise: its standard deviation, above 0
    fraction: float = 0.1  # perturb: neurons of each layer, in (0, 0.5]
    draws: int = 2  # perturb: draws of noise and of control neurons
    keep_fraction: float = 0.1  # prune: neurons of each layer that stay, in (0, 1)
    retune_steps: int = 50  # prune: prompt training afterwards
    first_layer: int = 0  # perturb, prune: layers before this one are left whole
    train_size: int = 600  # training texts
    dev_size: int = 600  # other texts of the train split, on which neurons are chosen
    held_out_size: int = 200  # most texts of the select and of the report split that are read
    max_tokens: int = 32  # of a text
    top: int = 10  # neurons whose mean predictivity is told
    shuffles: int = 5  # label shuffles behind the null
    measure_every: int = 50  # steps between light measurements
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"readout": get_args(Readout), "action": get_args(Action), "tuning": TUNINGS, "kind": KINDS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(known)}")
        for name, value in vars(self).items():
            least = 0 if name in ("first_layer", "seed") else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("learning_rate", "backbone_learning_rate", "size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, low, high in (("decay_fraction", 0.0, 1.0), ("fraction", 1e-9, 0.5), ("keep_fraction", 1e-9, 0.99)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {getattr(self, name)}")
        if self.dev_size < 4:
            raise ValueError(f"dev_size must be at least 4, as its two halves have both classes, got {self.dev_size}")
        if self.verbaliser is not None and "," not in self.verbaliser:
            raise ValueError(f"verbaliser must name a word for each class, 'bad,good', got {self.verbaliser!r}")
        if self.tuning != "prompt" and self.action != "perturb":
            raise ValueError(
                f"tuning={self.tuning} is for action=perturb, got action={self.action}; take tuning=prompt"
            )
        for name in unread(vars(self)):
            if getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under action={self.action}, tuning={self.tuning}, kind={self.kind}, got "
                    f"{getattr(self, name)}; leave it at {DEFAULTS[name]}"
                )

    @property
    def decay_steps(self) -> int:
        return max(1, round(self.decay_fraction * self.budget_steps)) if self.decay_fraction else 0


DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Config) if item.default is not MISSING}
SOME_READ: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    **dict.fromkeys(("tuning", "kind", "fraction", "draws"), lambda values: values["action"] == "perturb"),
    "first_layer": lambda values: values["action"] != "probe",
    "size": lambda values: values["action"] == "perturb" and values["kind"] in RANDOM_KINDS,
    **dict.fromkeys(("keep_fraction", "retune_steps"), lambda values: values["action"] == "prune"),
    **dict.fromkeys(("backbone_steps", "backbone_learning_rate"), lambda values: values["tuning"] != "prompt"),
    "adapter_width": lambda values: values["tuning"] == "adapter",
}
"""Fields that only some trials read."""


def unread(values: Mapping[str, Any]) -> set[str]:
    """The fields that such a trial does not read.

    >>> sorted(unread({"action": "perturb", "tuning": "prompt", "kind": "zero"}) & {"size", "fraction"})
    ['size']
    """
    return {name for name, read in SOME_READ.items() if not read({**DEFAULTS, **values})}


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; what such a trial does not read is left at its default."""
    kept = {name: value for name, value in values.items() if name not in unread(values)}
    return [Config(**{**kept, "budget_steps": budget}) for budget in budgets]


def timeline(config: Config) -> Timeline:
    """Prompt training, the probe, and what follows. Knobs are numbers, so that states fork:

    lr (of the prompt), bitfit or adapter (their rates); probe: predictivity is counted; keep: all but this share of
    the neurons from first_layer on are cut out; kind, size, fraction, draws, first_layer: a perturbation is set.
    """
    stable = config.budget_steps - config.decay_steps
    falls = segment(config.decay_steps, lr=ramp(config.learning_rate, 0.0))
    parts: Timeline = (segment(stable, lr=config.learning_rate), falls, segment(1, probe=1))
    if config.action == "prune":
        cut = segment(1, keep=config.keep_fraction, first_layer=config.first_layer)
        return *parts, cut, segment(config.retune_steps, lr=config.learning_rate)
    if config.action == "probe":
        return parts
    if config.tuning != "prompt":
        parts = (*parts, segment(config.backbone_steps, **{config.tuning: config.backbone_learning_rate}))
    size = config.size if config.kind in RANDOM_KINDS else 1.0
    knobs = dict(kind=KINDS.index(config.kind), size=size, fraction=config.fraction, draws=config.draws)
    return *parts, segment(1, **knobs, first_layer=config.first_layer)


SHORT = {"budget_steps": "B", "learning_rate": "lr", "prompt_length": "K", "fraction": "f", "seed": "s", "size": "a"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """Task, action, then what varies.

    >>> describe(Config(fraction=0.2), ["task", "fraction", "kind", "budget_steps", "seed"])
    'movie perturb f=0.2 noise_sigma B=80 s=0'
    """
    away = unread(vars(config)) | {"task", "action"}
    words = [config.task.rpartition("/")[2], config.action]
    for name in varying:
        if name not in away:
            value = str(getattr(config, name)).rpartition("/")[2]
            words.append(
                value if name in ("kind", "tuning", "encoder", "readout") else f"{SHORT.get(name, name)}={value}"
            )
    return " ".join(words)[:78]


TINY = Config(
    task="templates", encoder="tiny", budget_steps=8, batch_size=4, prompt_length=3, train_size=16, dev_size=16,
    held_out_size=16, top=3, shuffles=2, measure_every=4,
)  # fmt: skip
HYPER_PARAMETERS = {"learning_rate", "decay_fraction", "prompt_length", "backbone_learning_rate", "fraction", "size"}
