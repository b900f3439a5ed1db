"""A small encoder pre-trained on masked words, at several compute budgets from one trunk (arXiv:1810.04805).

Masked language modelling as BERT does it, under a warm-up-stable-decay learning rate (arXiv:2410.05192): budgets share
the stable stretch, and every kept state is an encoder that Hugging Face's transformers reads. The loss is in nats per
masked token. It has no bits per byte: a masked token is predicted from both sides, so that its nats are no code length.
"""

# B rows, T positions, P masked positions of a row, V vocabulary, N held-out rows

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F

from trainables.common.data.batches import Windows, equal_rows, evaluation_windows, window_starts, worker_rows
from trainables.common.data.corpora import Corpus
from trainables.common.data.masking import FRAME, MaskedRows, masked_rows, masked_tokens, unigram_nats
from trainables.common.data.wordpiece import Masking, open_encoded
from trainables.common.models.encoder import Encoder, EncoderShape
from trainables.common.models.encoder_folder import folder_files
from trainables.common.optimizers import adamw
from trainables.common.timeline import Placed
from trainables.common.training import TrainingState
from trainables.masked_lm_schedules import DEFAULTS, Config, branch, describe, family, timeline
from trainables.study import Metric, Run, Span, StagedStudy


@dataclass(frozen=True)
class Root:
    """All of a config that is not its timeline, and what its corpus and encoding are."""

    corpus: str = field(metadata={"key": False})  # where it lies; `corpus_sha` says what it is, under its encoding
    corpus_sha: str
    tokenizer: str = field(metadata={"key": False})
    tokenizer_sha: str
    vocabulary: int
    mask_rate: float
    width: int
    layers: int
    heads: int
    ffn_width: int
    context: int
    batch_size: int
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    clip_norm: float
    precision: str
    measure_every: int
    select_tokens: int
    report_documents: int
    windows_per_document: int
    seed: int
    torch: str


COPIED = tuple(item.name for item in fields(Root) if item.name in DEFAULTS)


def root(config: Config) -> Root:
    """Opens the corpus, for its checksum. Raises ValueError when it or its encoding is missing or too short."""
    corpus, masking = opened(config.corpus, config.tokenizer)
    made = Root(
        **{name: getattr(config, name) for name in COPIED},
        corpus_sha=corpus.sha,
        tokenizer_sha=masking.sha,
        vocabulary=masking.vocabulary,
        torch=torch.__version__.split("+")[0],
    )
    refuse_short(replace(made, seed=0))
    return made


@cache
def opened(corpus: str, tokenizer: str) -> tuple[Corpus, Masking]:
    return open_encoded(corpus, tokenizer)


@cache
def refuse_short(root: Root) -> None:
    """Raises ValueError where a split is too short for the windows that are cut from it."""
    corpus, _ = opened(root.corpus, root.tokenizer)
    window_starts(len(corpus.train.tokens), 0, root.seed, root.batch_size, root.context - FRAME)
    held_out_windows(root)


def units(root: Root) -> dict[str, float]:
    """Tokens (positions) and training FLOPs per step, and parameters."""
    shape, tokens = shape_of(root), root.batch_size * root.context
    masked = root.batch_size * masked_tokens(root.context - FRAME, root.mask_rate)
    work = shape.training_flops(tokens, masked, root.batch_size)
    return {"tokens": tokens, "flops": work, "parameters": shape.parameters}


def shape_of(root: Root) -> EncoderShape:
    return EncoderShape(root.vocabulary, root.width, root.layers, root.heads, root.ffn_width, root.context)


LOSS_MEMORY = 0.98  # of the running mean of the training loss, a step


class Training(TrainingState):
    """Model, optimizer and a running mean of the training loss, with the rows that they train and are judged on."""

    def __init__(self, root: Root, run: Run):
        self.root = root
        self.corpus, self.masking = opened(root.corpus, root.tokenizer)
        if (self.corpus.sha, self.masking.sha) != (root.corpus_sha, root.tokenizer_sha):
            raise ValueError(
                f"corpus {root.corpus!r} under {root.tokenizer!r} is {self.corpus.sha[:12]} here and "
                f"{root.corpus_sha[:12]} where the sweep was planned; use one Python version, or one corpus file and "
                "one encoding, on all machines"
            )
        self.select, self.report, self.unigram_V = held_out(root)
        self.running = torch.zeros(2, device=run.device)  # sum of losses and of weights, both forgotten at LOSS_MEMORY
        model = run.wrap(Encoder(shape_of(root), torch.Generator().manual_seed(root.seed)))
        optimizer = adamw(
            model,
            learning_rate=0.0,  # set at every step
            beta1=root.beta1,
            beta2=root.beta2,
            epsilon=root.epsilon,
            weight_decay=root.weight_decay,
        )
        super().__init__(model, optimizer, {"running_loss": self.running})

    def losses(self, rows: MaskedRows, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """Nats of each masked token [B, P], and whether its likeliest token is the right one."""
        with torch.autocast(run.device.type, torch.bfloat16, enabled=self.root.precision == "bf16"):
            logits_BPV = self.model(rows.inputs_BT, rows.at_BP).float()
        losses_BP = F.cross_entropy(logits_BPV.transpose(1, 2), rows.targets_BP, reduction="none")
        return losses_BP, logits_BPV.argmax(2) == rows.targets_BP


def held_out_windows(root: Root) -> tuple[Windows, Windows]:
    """Of the select split, and of the report split by document."""
    corpus, _ = opened(root.corpus, root.tokenizer)
    text, documents, windows = root.context - FRAME, root.report_documents, root.windows_per_document
    select = evaluation_windows(corpus.select, tokens=root.select_tokens, context=text)
    report = evaluation_windows(corpus.report, documents=documents, windows_per_document=windows, context=text)
    return select, report


@cache
def held_out(root: Root) -> tuple[MaskedRows, MaskedRows, torch.Tensor]:
    """Rows of the select and of the report split, masked once for all seeds, and the nats of the train split's shares.

    The report split's rows are grouped by document.
    """
    corpus, masking = opened(root.corpus, root.tokenizer)
    select, report = held_out_windows(root)
    select_rows, report_rows = (
        masked_rows(cut.inputs_NT.numpy(), root.mask_rate, masking, "held out", name)
        for cut, name in ((select, "select"), (report, "report"))
    )
    return select_rows, report_rows, unigram_nats(corpus.train.tokens, masking)


def start(root: Root, run: Run) -> Training:
    return Training(root, run)


def advance(state: Training, placed: Placed, span: Span, run: Run) -> None:
    """Optimizer steps under the segment's learning rate; the rows of a step and their masks depend on (seed, step)."""
    root, running = state.root, state.running
    parameters = list(state.model.parameters())
    state.model.train()
    for step in range(span.start, span.stop):
        for group in state.optimizer.param_groups:
            group["lr"] = placed.at(step)["lr"]
        rows = training_rows(root, step, run)
        losses_BP, _ = state.losses(rows, run)
        loss = losses_BP.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, root.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        running.mul_(LOSS_MEMORY)
        running[0] += (1 - LOSS_MEMORY) * loss.detach()
        running[1] += 1 - LOSS_MEMORY
    if run.workers > 1:  # the mean of a batch is the mean over the workers' rows
        torch.distributed.all_reduce(running)
        running /= run.workers


def training_rows(root: Root, step: int, run: Run) -> MaskedRows:
    """This worker's rows of a step: windows that start anywhere in the train split, and may cross documents."""
    corpus, masking = opened(root.corpus, root.tokenizer)
    tokens, text = corpus.train.tokens, root.context - FRAME
    starts_B = window_starts(len(tokens), step, root.seed, root.batch_size, text)
    text_BT = tokens[starts_B[:, None] + np.arange(text)]
    rows = masked_rows(text_BT, root.mask_rate, masking, "training", root.seed, step)
    return rows.rows(worker_rows(root.batch_size, run.rank, run.workers)).to(run.device)


EVALUATED_ROWS = 128  # at a time


@torch.no_grad()
def measure(state: Training, run: Run, full: bool) -> Mapping[str, float | Sequence[float]]:
    """Nats per masked token and the share predicted right, on held-out documents with fixed masks.

    In full also on the report split, there with the loss of the train split's shares (unigram_loss) and with the
    share of its commonest token (unigram_accuracy), which a model that looks at no context reaches.
    """
    state.model.eval()
    total, weight = state.running.tolist()
    loss_N, right_N = _judged(state, state.select, run)
    metrics: dict[str, float | Sequence[float]] = {
        "train/loss": total / weight,
        "select/loss": float(loss_N.mean()),
        "select/accuracy": float(right_N.mean()),
    }
    if full:
        loss_N, right_N = _judged(state, state.report, run)
        targets = state.report.targets_BP
        metrics["report/loss"] = float(loss_N.mean())
        metrics["report/accuracy"] = float(right_N.mean())
        metrics["report/unigram_loss"] = float(state.unigram_V[targets].mean())
        metrics["report/unigram_accuracy"] = float((targets == state.unigram_V.argmin()).double().mean())
        metrics["report/document_losses"] = loss_N.view(state.root.report_documents, -1).mean(1).tolist()
    return metrics


def _judged(state: Training, rows: MaskedRows, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and accuracy of each row [N], float64 in CPU memory."""
    parts = []
    for first in range(0, len(rows.inputs_BT), EVALUATED_ROWS):
        some = rows.rows(slice(first, first + EVALUATED_ROWS)).to(run.device)
        parts.append([value.double().mean(1).cpu() for value in state.losses(some, run)])
    loss_N, right_N = (torch.cat(part) for part in zip(*parts, strict=True))
    return loss_N, right_N


def files(root: Root) -> dict[str, bytes]:
    """What Hugging Face's transformers needs beside the weights, which have the names of BertForMaskedLM."""
    _, masking = opened(root.corpus, root.tokenizer)
    return folder_files(shape_of(root), masking, root.seed)


STUDY: StagedStudy = StagedStudy(
    "masked_lm",
    paper="1810.04805",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    check_workers=equal_rows,
    tiny=Config(
        budget_steps=40,
        warmup_steps=4,
        width=16,
        layers=1,
        ffn_width=32,
        context=18,
        batch_size=4,
        measure_every=10,
        select_tokens=512,
        report_documents=8,
    ),
    conditions=("budget_steps", "corpus", "tokenizer", "mask_rate", "context", "batch_size")
    + ("width", "layers", "heads", "ffn_width", "select_tokens", "report_documents", "windows_per_document"),
    select=Metric("select/loss", "min"),
    report=Metric("report/loss", "min"),
    units=units,
    family=family,
    describe=describe,
    files=files,
    branch=branch,
)
