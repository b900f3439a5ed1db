"""Labelled texts as tokens: balanced subsets of a stored split, and batches padded to their longest row."""

# N texts, B texts of a batch, T positions, C classes

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from trainables.common.data.sentences import SentenceSet, open_sentences


class Batch(NamedTuple):
    """Token numbers [B, T], which of them are there [B, T], classes [B], and which of the texts these are [B]."""

    tokens: torch.Tensor
    present: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class Texts:
    """Tokens of each text, and its class [N]."""

    tokens: list[list[int]]
    labels: torch.Tensor
    pad: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        longest = max(len(self.tokens[row]) for row in rows)
        tokens = torch.full((len(rows), longest), self.pad)
        present = torch.zeros(len(rows), longest)
        for at, row in enumerate(rows):
            length = len(self.tokens[row])
            tokens[at, :length] = torch.tensor(self.tokens[row])
            present[at, :length] = 1
        chosen = torch.tensor(list(rows))
        batch = Batch(tokens, present, self.labels[chosen], chosen)
        return Batch(*(part.to(device) for part in batch))

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All texts once, those of like length together, so that little is padded."""
        order = sorted(range(len(self)), key=lambda row: (len(self.tokens[row]), row))
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size], device)

    def drawn(self, seed: int, step: int, size: int, device: torch.device | str = "cpu") -> Batch:
        """The batch of a step: a function of (seed, step)."""
        generator = torch.Generator().manual_seed((seed * 2**32 + step) % 2**63)
        return self.batch(torch.randint(len(self), (size,), generator=generator).tolist(), device)


@cache
def sentences_of(task: str) -> SentenceSet:
    return open_sentences(task)


@dataclass(frozen=True)
class Task:
    """The texts of a task: `train` and `dev` are disjoint parts of its train split; `select` and `report` its own."""

    classes: tuple[str, ...]
    train: Texts
    dev: Texts
    select: Texts
    report: Texts


def sizes_of(task: str, train: int, dev: int, held_out: int) -> dict[str, int]:
    """How many texts each part would have, balanced. Raises ValueError where the train split or dev is too small."""
    found = sentences_of(task)
    classes = len(found.classes)
    least = int(np.bincount(found.train.labels, minlength=classes).min())
    if dev <= classes:
        raise ValueError(
            f"dev_size must be above {classes}, two texts of each class, as neurons are ranked on its halves, got {dev}"
        )
    wanted = -(-train // classes) + -(-dev // classes)
    if wanted > least:
        raise ValueError(
            f"task {task!r} has {least} training texts of its rarest class, but train_size {train} and dev_size {dev} "
            f"take {wanted} of each of its {classes}; make them smaller"
        )
    return {"train": train, "dev": dev, "held_out": held_out}


def open_task(task: str, tokenizer: Any, train: int, dev: int, held_out: int, max_tokens: int) -> Task:
    """The first texts of each class, as many of one as of another, cut to `max_tokens`.

    The first `train` of the train split are trained on, and `dev` others of it choose neurons: no text is in both.
    """
    sizes_of(task, train, dev, held_out)
    found = sentences_of(task)
    classes = len(found.classes)
    fitted = balanced(found.train.labels, classes, 0, train)
    chooses = balanced(found.train.labels, classes, train, dev)
    parts = {"train": (found.train, fitted), "dev": (found.train, chooses)}
    for name in ("select", "report"):
        split = getattr(found, name)
        parts[name] = split, balanced(split.labels, classes, 0, held_out)

    def tokenized(split: Any, rows: np.ndarray) -> Texts:
        texts = [split.texts[row] for row in rows]
        tokens = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
        return Texts(tokens, torch.from_numpy(split.labels[rows]), int(tokenizer.pad_token_id))

    return Task(found.classes, **{name: tokenized(*part) for name, part in parts.items()})


def balanced(labels: np.ndarray, classes: int, skip: int, count: int) -> np.ndarray:
    """Rows of the `count` texts after the first `skip`, equally many of each class: fewer where one runs out.

    >>> balanced(np.array([0, 0, 1, 0, 1, 1]), 2, 2, 2).tolist()
    [1, 4]
    """
    first, many = -(-skip // classes), -(-count // classes)
    by_class = [np.flatnonzero(labels == one)[first : first + many] for one in range(classes)]
    fewest = min(map(len, by_class))
    return np.sort(np.concatenate([rows[:fewest] for rows in by_class]))
