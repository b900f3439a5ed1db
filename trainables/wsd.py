"""How should the learning rate fall when the compute budget is not fixed? (arXiv:2410.05192)

Language models on real text under warm-up-stable-decay (WSD), its one-run form WSD-S, a cosine per budget, cyclic
cosine and constant rates. All that a trial's schedule does is its timeline; model, data, seed and optimizer are its
root. So WSD trials of all budgets, decay fractions and decay shapes share one stable trunk.
"""

# B batch, T positions, V vocabulary, N evaluation windows

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from math import log

import torch
import torch.distributed
import torch.nn.functional as F

from trainables.common import flops, imports
from trainables.common.data.batches import Windows, batch, equal_rows, evaluation_windows
from trainables.common.data.corpora import Corpus, open_corpus
from trainables.common.models.llama import Llama, LlamaShape
from trainables.common.optimizers import make_optimizer
from trainables.common.timeline import Placed
from trainables.common.training import TrainingState
from trainables.study import Metric, Run, Span, StagedStudy
from trainables.wsd_schedules import DEFAULTS, Config, branch, describe, family, timeline


@dataclass(frozen=True)
class Root:
    """All of a config that is not its timeline; `sources` are fingerprints of a user's own model and optimizer."""

    width: int
    layers: int
    heads: int
    ffn_width: int
    context: int
    batch_size: int
    micro_batch_size: int | None
    model: str | None
    corpus: str = field(metadata={"key": False})  # where it lies; `corpus_sha` says what it is, tokenizer included
    corpus_sha: str
    tokenizer: str = field(metadata={"key": False})
    vocabulary: int
    optimizer: str
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    clip_norm: float
    precision: str
    compile: bool
    measure_every: int
    select_tokens: int
    report_documents: int
    windows_per_document: int
    seed: int
    sources: tuple[str, ...]
    torch: str


COPIED = tuple(item.name for item in fields(Root) if item.name in DEFAULTS)


def root(config: Config) -> Root:
    """Opens the corpus, for its checksum. Raises ValueError when it is missing or too short."""
    corpus = corpus_of(config.corpus, config.tokenizer)
    own = [path for path in (config.model, config.optimizer) if path is not None and ":" in path]
    return Root(
        **{name: getattr(config, name) for name in COPIED},
        corpus_sha=corpus.sha,
        vocabulary=corpus.vocabulary,
        sources=tuple(imports.fingerprint(path) for path in own),
        torch=torch.__version__.split("+")[0],
    )


@cache
def corpus_of(name: str, tokenizer: str) -> Corpus:
    return open_corpus(name, tokenizer)


def units(root: Root) -> dict[str, float]:
    """Tokens and training FLOPs per step, and parameters; 6 FLOPs per parameter and token for a user's own model."""
    tokens = root.batch_size * root.context
    if root.model is None:
        shape = shape_of(root)
        return {
            "tokens": tokens,
            "flops": tokens * flops.training_flops_per_token(shape),
            "parameters": shape.parameters,
        }
    parameters = sum(parameter.numel() for parameter in make_model(root).parameters())
    return {"tokens": tokens, "flops": 6.0 * tokens * parameters, "parameters": parameters}


def shape_of(root: Root) -> LlamaShape:
    return LlamaShape(root.vocabulary, root.width, root.layers, root.heads, root.ffn_width, root.context)


def make_model(root: Root) -> torch.nn.Module:
    """The root's model with its initial weights, which depend on the seed alone."""
    generator = torch.Generator().manual_seed(root.seed)
    if root.model is None:
        return Llama(shape_of(root), generator)
    return imports.load(root.model)(vocabulary=root.vocabulary, context=root.context, generator=generator)


LOSS_MEMORY = 0.98  # of the running mean of the training loss, a step


class Training(TrainingState):
    """Model, optimizer and a running mean of the training loss, with the data that they train and are judged on."""

    def __init__(self, root: Root, run: Run):
        self.root = root
        self.corpus = corpus_of(root.corpus, root.tokenizer)
        if self.corpus.sha != root.corpus_sha:
            raise ValueError(
                f"corpus {root.corpus!r} is {self.corpus.sha[:12]} here and {root.corpus_sha[:12]} where the sweep was "
                "planned; use one Python version, or one corpus file, on all machines"
            )
        self.select, self.report = windows_of(root)
        torch.manual_seed(root.seed)  # for a user's model that draws from the global generator
        model = run.wrap(make_model(root))
        settings = {
            "learning_rate": 0.0,  # set at every step
            "beta1": root.beta1,
            "beta2": root.beta2,
            "epsilon": root.epsilon,
            "weight_decay": root.weight_decay,
        }
        optimizer = make_optimizer(root.optimizer, model, settings)
        self.forward: torch.nn.Module = torch.compile(model) if root.compile else model  # type: ignore[assignment]
        running = torch.zeros(2, device=run.device)  # sum of losses and of weights, both forgotten at LOSS_MEMORY
        super().__init__(model, optimizer, {"running_loss": running})

    def autocast(self, run: Run) -> torch.autocast:
        return torch.autocast(run.device.type, torch.bfloat16, enabled=self.root.precision == "bf16")


@cache
def windows_of(root: Root) -> tuple[Windows, Windows]:
    """The fixed evaluation windows: of the select split, and of the report split grouped by document."""
    corpus = corpus_of(root.corpus, root.tokenizer)
    select = evaluation_windows(corpus.select, tokens=root.select_tokens, context=root.context)
    report = evaluation_windows(
        corpus.report,
        context=root.context,
        documents=root.report_documents,
        windows_per_document=root.windows_per_document,
    )
    return select, report


def start(root: Root, run: Run) -> Training:
    return Training(root, run)


def advance(state: Training, placed: Placed, span: Span, run: Run) -> None:
    """AdamW steps under the segment's learning rate; the batch of a step is a function of (seed, step)."""
    root, running = state.root, state.extra["running_loss"]
    tokens = state.corpus.train.tokens
    parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    state.forward.train()
    for step in range(span.start, span.stop):
        for group in state.optimizer.param_groups:
            group["lr"] = placed.at(step)["lr"]
        inputs_BT, targets_BT = batch(
            *(tokens, step, root.seed, root.batch_size, root.context, run.device), rank=run.rank, workers=run.workers
        )
        loss = _backward(state, inputs_BT, targets_BT, run)
        torch.nn.utils.clip_grad_norm_(parameters, root.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        running.mul_(LOSS_MEMORY)
        running[0] += (1 - LOSS_MEMORY) * loss
        running[1] += 1 - LOSS_MEMORY
    if run.workers > 1:  # the mean of a batch is the mean over the workers' rows
        torch.distributed.all_reduce(running)
        running /= run.workers


def _backward(state: Training, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, run: Run) -> torch.Tensor:
    """Mean loss of this worker's rows, its gradient accumulated over micro-batches."""
    size = state.root.micro_batch_size or len(inputs_BT)
    total = torch.zeros((), device=run.device)
    for rows in range(0, len(inputs_BT), size):
        inputs, targets = inputs_BT[rows : rows + size], targets_BT[rows : rows + size]
        with state.autocast(run):
            logits_BTV = state.forward(inputs)
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets.flatten()) * len(inputs) / len(inputs_BT)
        loss.backward()
        total += loss.detach()
    return total


EVALUATED_TOKENS = 65_536  # at a time


@torch.no_grad()
def measure(state: Training, run: Run, full: bool) -> Mapping[str, float | Sequence[float]]:
    """Nats per token on the select split; in full also on the report split, per document and in bits per byte."""
    state.forward.eval()
    total, weight = state.extra["running_loss"].tolist()
    metrics: dict[str, float | Sequence[float]] = {
        "train/loss": total / weight,
        "select/loss": float(_window_losses(state, state.select, run).mean()),
    }
    if full:
        losses_N = _window_losses(state, state.report, run)
        metrics["report/loss"] = float(losses_N.mean())
        metrics["report/document_losses"] = state.report.per_document(losses_N).tolist()
        if state.report.bytes is not None:
            metrics["report/bits_per_byte"] = float(losses_N.sum()) * state.root.context / log(2) / state.report.bytes
    return metrics


def _window_losses(state: Training, windows: Windows, run: Run) -> torch.Tensor:
    """Mean loss of each window [N], float64 in CPU memory. Workers evaluate parts and add them up."""
    count = len(windows.inputs_NT)
    losses_N = torch.zeros(count, dtype=torch.float64, device=run.device)
    size = max(1, min(EVALUATED_TOKENS // state.root.context, -(-count // run.workers)))
    for first in range(run.rank * size, count + run.rank * size, run.workers * size):
        own = slice(first, first + size) if first < count else slice(0, 1)  # FSDP wants all workers at every forward
        targets = windows.targets_NT[own].to(run.device)
        with state.autocast(run):
            logits_BTV = state.forward(windows.inputs_NT[own].to(run.device))
        nats = F.cross_entropy(logits_BTV.float().transpose(1, 2), targets, reduction="none")
        if first < count:
            losses_N[own] = nats.double().mean(1)
    if run.workers > 1:
        torch.distributed.all_reduce(losses_N)
    return losses_N.cpu()


def files(root: Root) -> dict[str, bytes]:
    """The tokenizer, and the sizes of the architecture where it is ours."""
    corpus = corpus_of(root.corpus, root.tokenizer)
    made: dict[str, bytes] = {}
    if corpus.tokenizer_file is not None:
        made["tokenizer.json"] = corpus.tokenizer_file.read_bytes()
    else:
        about = {"type": "bytes", "vocabulary": root.vocabulary, "document_end": 0}
        made["tokenizer.json"] = json.dumps(about).encode()
    if root.model is None:
        made["architecture.json"] = json.dumps({"class": "Llama", **asdict(shape_of(root))}).encode()
    return made


STUDY: StagedStudy = StagedStudy(
    "wsd",
    paper="2410.05192",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    tiny=Config(
        *("wsd", 40),
        warmup_steps=4,
        width=16,
        layers=1,
        heads=2,
        ffn_width=32,
        context=16,
        batch_size=4,
        measure_every=10,
        select_tokens=512,
        report_documents=8,
    ),
    conditions=("budget_steps", "earlier_budgets", *("corpus", "tokenizer", "context", "batch_size"))
    + ("width", "layers", "heads", "ffn_width", "model"),
    select=Metric("select/loss", "min"),
    report=Metric("report/loss", "min"),
    units=units,
    family=family,
    describe=describe,
    files=files,
    branch=branch,
    check_workers=equal_rows,
)
