"""loop: the study's training loop against a bare one over the same model, data and optimizer; tokens per CPU second.

The bare loop is what one would write by hand for one run: no knobs, no micro-batches, no running loss, no batch that
depends on (seed, step) alone. Both run in this process on one thread and take turns; medians over the rounds count.
"""

import time
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F

from tests.benchmarks.settings import Measured, Settings
from trainables import wsd
from trainables.common.models.llama import Llama
from trainables.common.process import reset_process
from trainables.common.timeline import Placed, segment
from trainables.study import LocalRun, Span

ROUNDS, STEPS, WARM_UP = 21, 60, 20
CONFIG = wsd.Config(peak_lr=1e-3)  # the sizes of scale=laptop are the config's defaults


@dataclass
class Bare:
    """A training run without any of our machinery but the model class and the corpus file."""

    config: wsd.Config

    def __post_init__(self) -> None:
        root = wsd.root(self.config)
        self.tokens = torch.from_numpy(wsd.corpus_of(root.corpus, root.tokenizer).train.tokens[:].copy())
        self.model = Llama(wsd.shape_of(root), torch.Generator().manual_seed(self.config.seed))
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embedding" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or "embedding" in n]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = self.config.beta1, self.config.beta2
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.config.peak_lr, betas=betas, eps=self.config.epsilon, fused=True
        )
        self.generator = torch.Generator().manual_seed(self.config.seed)

    def advance(self, steps: int) -> None:
        size, context = self.config.batch_size, self.config.context
        offsets = torch.arange(context + 1)
        self.model.train()
        for _ in range(steps):
            starts = torch.randint(len(self.tokens) - context, (size,), generator=self.generator)
            windows = self.tokens[starts[:, None] + offsets].long()
            logits = self.model(windows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


@dataclass
class Ours:
    """The same run through the study: `wsd.advance` over spans of one long constant segment."""

    config: wsd.Config

    def __post_init__(self) -> None:
        self.run = LocalRun()
        self.state = wsd.start(wsd.root(self.config), self.run)
        self.placed = Placed(segment(1_000_000, lr=self.config.peak_lr), 0)
        self.step = 0

    def advance(self, steps: int) -> None:
        wsd.advance(self.state, self.placed, Span(self.step, self.step + steps), self.run)
        self.step += steps


def loop(settings: Settings) -> Measured:
    reset_process(threads=1)
    rounds, steps = (2, 3) if settings.quick else (ROUNDS, STEPS)
    config = replace(CONFIG, select_tokens=512, report_documents=8) if settings.quick else CONFIG
    arms = {"ours": Ours(config), "bare": Bare(config)}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm.advance(3 if settings.quick else WARM_UP)
    for number in range(rounds):
        for name in sorted(arms, reverse=number % 2 == 1):  # who goes first changes from round to round
            began = time.process_time()
            arms[name].advance(steps)
            seconds[name].append(time.process_time() - began)
    tokens = steps * config.batch_size * config.context
    speeds = {name: tokens / median(spent) for name, spent in seconds.items()}
    values = {
        "our_tokens_per_cpu_second": speeds["ours"],
        "bare_tokens_per_cpu_second": speeds["bare"],
        "part_of_bare": speeds["ours"] / speeds["bare"],
    }
    return Measured(values, {"steps_per_round": steps, "seconds": seconds})
