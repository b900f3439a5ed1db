"""Which feed-forward neurons of a frozen encoder carry a task, and does it suffer without them? (arXiv:2211.07349)

Prompt vectors are trained in front of a text; a neuron's predictivity is how well its activation at a prompt position,
above or below its mean, tells the class. The most predictive neurons of each layer are then perturbed, under the prompt
or after tuning biases or adapters instead, beside as many random and matched others; or all but they are cut out.
"""

# B texts, C classes, S questions, L layers, F neurons per layer, D width

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from trainables.common.skills import evaluation, perturbing, predictivity, texts
from trainables.common.skills.encoders import Encoder, encoder_source, load_encoder, load_tokenizer, needs_transformers
from trainables.common.skills.pruning import Prunable, block_parameters
from trainables.common.skills.settings import DEFAULTS, HYPER_PARAMETERS, TINY, Config, describe, family, timeline
from trainables.common.skills.tuned import TUNINGS, Readout, Tuned, Tuning, first_tokens, words_of
from trainables.common.timeline import Placed, Timeline, place, total_steps
from trainables.common.training import TrainingState
from trainables.study import Metric, Run, Span, StagedStudy, Values


@dataclass(frozen=True)
class Root:
    """Encoder, task and prompt: all that budgets, rates, tunings and perturbations have in common."""

    task: str = field(metadata={"key": False})  # where it lies; `task_sha` says what it is, its stored split included
    task_sha: str
    encoder: str = field(metadata={"key": False})  # where it lies; `encoder_sha` says what it is
    encoder_sha: str
    random: bool
    readout: Readout
    verbaliser: str | None
    batch_size: int
    prompt_length: int
    adapter_width: int
    train_size: int
    dev_size: int
    held_out_size: int
    max_tokens: int
    top: int
    shuffles: int
    measure_every: int
    seed: int
    libraries: tuple[str, ...]


COPIED = tuple(item.name for item in fields(Root) if item.name in DEFAULTS)


def root(config: Config) -> Root:
    """Opens task and encoder for their checksums. Raises ValueError where one is missing or does not fit."""
    source = encoder_source(config.encoder)
    texts.sizes_of(config.task, config.train_size, config.dev_size, config.held_out_size)
    found = texts.sentences_of(config.task)
    if config.readout == "mask" and not source.masked:
        raise ValueError(
            f"readout=mask needs an encoder with a head for masked tokens, which {config.encoder!r} has not; "
            "take readout=mean or first, or another encoder"
        )
    if config.verbaliser is not None and len(config.verbaliser.split(",")) != len(found.classes):
        raise ValueError(f"verbaliser must name {len(found.classes)} words, for {', '.join(found.classes)}")
    if config.first_layer >= source.layers:
        raise ValueError(f"first_layer must be below the encoder's {source.layers} layers, got {config.first_layer}")
    if config.top > source.neurons:
        raise ValueError(f"top must be at most the {source.neurons} neurons of a layer, got {config.top}")
    refuse_unreadable(config.encoder, config.task, config.verbaliser, config.readout, config.max_tokens)
    length = (config.readout != "mean") + config.prompt_length + config.max_tokens
    if length > source.positions:
        raise ValueError(
            f"prompt_length {config.prompt_length} and max_tokens {config.max_tokens} take {length} positions, but "
            f"encoder {config.encoder!r} has {source.positions}; make one smaller"
        )
    return Root(
        **{name: getattr(config, name) for name in COPIED},
        task_sha=found.sha,
        encoder_sha=source.sha,
        random=source.random,
        libraries=(torch.__version__.split("+")[0], str(needs_transformers().__version__)),
    )


@cache
def refuse_unreadable(encoder: str, task: str, verbaliser: str | None, readout: Readout, max_tokens: int) -> None:
    """Raises ValueError where the encoder's tokenizer lacks what class words, texts or readout need."""
    found = texts.sentences_of(task)
    words = words_of(found.classes, verbaliser)
    tokenizer = load_tokenizer(encoder_source(encoder), [*found.train.texts, *words])
    for name in ("pad_token", *(() if readout == "mean" else ("mask_token",))):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"readout={readout} needs a {name}, which the tokenizer of {encoder!r} has not")
    if max_tokens <= tokenizer.num_special_tokens_to_add():
        raise ValueError(f"max_tokens must leave room beside the tokenizer's special tokens, got {max_tokens}")
    first_tokens(tokenizer, words, readout)


def measured_at(root: Root, timeline: Timeline) -> dict[int, bool]:
    """Lightly along the prompt training and at its end; in full before and after a cut of neurons, and at the end."""
    placed = place(timeline)
    probe = next(part.start for part in placed if "probe" in dict(part.segment.knobs))
    points = {step: False for step in (*range(root.measure_every, probe, root.measure_every), probe)}
    for part in placed:
        if "keep" in dict(part.segment.knobs):
            points |= {part.start: True, part.stop: True}
    return dict(sorted({**points, total_steps(timeline): True}.items()))


class Skill(TrainingState):
    """What is trained, what the probe found, and what is done to the neurons.

    `tuning`: a place in TUNINGS; `perturbation`: kind (-1: none), size, fraction, draws, first layer; `kept`: the
    neurons that are not cut out.
    """

    def __init__(self, root: Root, run: Run):
        self.root, self.source = root, encoder_source(root.encoder)
        found = texts.sentences_of(root.task)
        for name, here, planned in (("task", found.sha, root.task_sha), ("encoder", self.source.sha, root.encoder_sha)):
            if here != planned:
                raise ValueError(
                    f"{name} is {here[:12]} here and {planned[:12]} where the sweep was planned; use the same files"
                )
        words = words_of(found.classes, root.verbaliser)
        encoder: Encoder = load_encoder(
            self.source, root.seed, [*found.train.texts, *words], run.device, headed=root.readout == "mask"
        )
        sizes = root.train_size, root.dev_size, root.held_out_size, root.max_tokens
        self.task = texts.open_task(root.task, encoder.tokenizer, *sizes)
        self.tuned = Tuned(
            encoder, words, readout=root.readout, prompt_length=root.prompt_length,
            adapter_width=root.adapter_width, seed=root.seed,
        )  # fmt: skip
        self.prunable = Prunable(encoder.blocks)
        self.zero_shot: float | None = None
        layers, neurons = self.source.layers, self.source.neurons
        extra = {
            "tuning": torch.zeros(1, dtype=torch.int64),
            "perturbation": torch.tensor([-1.0, 0, 0, 0, 0], dtype=torch.float64),
            "kept": torch.ones(layers, neurons, dtype=torch.bool, device=run.device),
            **predictivity.no_findings(layers, neurons, len(words), run.device),
        }
        optimizer = torch.optim.Adam(self.tuned.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-6)
        super().__init__(self.tuned, optimizer, extra)

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        super().load_tensors(tensors)
        self.tuned.use(TUNINGS[int(self.extra["tuning"])])
        self.prunable.keep(self.extra["kept"], self.extra["mean"])


def start(root: Root, run: Run) -> Skill:
    return Skill(root, run)


def advance(state: Skill, placed: Placed, span: Span, run: Run) -> None:
    """Training steps, or one of the acts that take a step of their own."""
    knobs = placed.at(span.start)
    if "probe" in knobs:
        seed, top, shuffles = state.root.seed, state.root.top, state.root.shuffles
        found = predictivity.findings(state.tuned, state.task, state.source, seed, top=top, shuffles=shuffles)
        for name, value in found.items():
            state.extra[name].copy_(value)
    elif "keep" in knobs:
        order = predictivity.order_of(state.extra["predictivity"])
        kept = perturbing.top_neurons(order, knobs["keep"])
        kept[: int(knobs["first_layer"])] = True
        state.extra["kept"].copy_(kept)
        state.prunable.keep(kept, state.extra["mean"])
        state.optimizer.state.clear()
    elif "kind" in knobs:
        names = ("kind", "size", "fraction", "draws", "first_layer")
        state.extra["perturbation"].copy_(torch.tensor([knobs[name] for name in names], dtype=torch.float64))
    else:
        for step in range(span.start, span.stop):
            train_step(state, placed.at(step), step, run)


def train_step(state: Skill, knobs: Mapping[str, float], step: int, run: Run) -> None:
    """Adam on what the knob names, gradients clipped to length 1; a step's texts are a function of (seed, step)."""
    tuned = state.tuned
    tuning: Tuning = "bitfit" if "bitfit" in knobs else "adapter" if "adapter" in knobs else "prompt"
    if tuning != tuned.tuning:
        tuned.use(tuning)
        state.extra["tuning"].fill_(TUNINGS.index(tuning))
    for group in state.optimizer.param_groups:
        group["lr"] = knobs["lr"] if tuning == "prompt" else knobs[tuning]
    batch = state.task.train.drawn(state.root.seed, step, state.root.batch_size, run.device)
    state.optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(tuned(batch), batch.labels).backward()
    trained = [parameter for parameter in tuned.parameters() if parameter.grad is not None]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    state.optimizer.step()


def measure(state: Skill, run: Run, full: bool) -> Values:
    """Loss and accuracy as trained; after a perturbation, what it costs on top: see `evaluation.arms`.

    separation is the fall of accuracy by skill neurons less that by random ones, 0 where none is perturbed.
    """
    perturbation = state.extra["perturbation"].tolist()
    arms = evaluation.Arms.of(perturbation, state.extra, state.prunable.output_norm, state.root.seed)
    select = evaluation.evaluate(state.tuned, state.task.select, arms, ("skill", "random"))
    metrics: dict[str, Any] = {
        "select/loss": select["loss"],
        "select/accuracy": select["accuracy"],
        "select/separation": select.get("separation", 0.0),
    }
    if not full:
        return metrics
    report = evaluation.evaluate(state.tuned, state.task.report, arms)
    metrics |= {f"report/{name}": value for name, value in report.items()}
    metrics["report/error"] = 1 - report["accuracy"]
    whole = bool(state.extra["kept"].all())
    if whole and state.tuned.tuning == "prompt":
        with state.tuned.unprompted():
            metrics["report/zero_shot_accuracy"] = evaluation.evaluate(state.tuned, state.task.report)["accuracy"]
    metrics |= {
        f"report/{name}": value for name, value in predictivity.told(state.extra, arms is None and whole).items()
    }
    return metrics if whole else metrics | cut_metrics(state, run)


def cut_metrics(state: Skill, run: Run) -> dict[str, float]:
    """Share of the blocks' parameters that is left, and how much less CPU time the select texts take.

    CPU seconds are measured (the better of two passes each), so that they alone differ from run to run.
    """
    source, kept, mean = state.source, state.extra["kept"], state.extra["mean"]
    blocks = block_parameters(source.layers, source.width, source.neurons)
    gone = int((~kept).sum()) * (2 * source.width + 1)
    metrics = {"report/parameters_kept": 1 - gone / blocks, "report/neurons_kept": float(kept.sum())}
    if run.device.type == "cpu":
        seconds = {}
        for name, those in (("whole", torch.ones_like(kept)), ("cut", kept)):
            state.prunable.keep(those, mean)
            passes = []
            for _ in range(2):
                began = time.process_time()
                evaluation.evaluate(state.tuned, state.task.select)
                passes.append(time.process_time() - began)
            seconds[name] = min(passes)
        metrics["report/cpu_speed_up"] = seconds["whole"] / seconds["cut"]
    return metrics


def units(root: Root) -> dict[str, float]:
    """Of a step: its tokens at their most, and 4 FLOPs per token and weight of the blocks, whose weights are frozen."""
    parameters = encoder_source(root.encoder).parameters
    tokens = root.batch_size * (root.prompt_length + root.max_tokens)
    return {"tokens": tokens, "flops": 4.0 * parameters * tokens, "parameters": parameters}


STUDY: StagedStudy = StagedStudy(
    "skill_neurons",
    paper="2211.07349",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    measured_at=measured_at,
    tiny=TINY,
    conditions=tuple(name for name in DEFAULTS if name not in HYPER_PARAMETERS | {"seed"}),
    report=Metric("report/error", "min"),
    units=units,
    family=family,
    describe=describe,
)
