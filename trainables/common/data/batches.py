"""Batches for training, a function of seed and step alone, and fixed windows for evaluation."""

# B sequences in a batch, T positions, N evaluation windows

from dataclasses import dataclass
from hashlib import shake_128
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.common.data.corpora import Split


def batch(
    tokens: np.ndarray,
    step: int,
    seed: int,
    batch_size: int,
    context: int,
    device: torch.device | str = "cpu",
    *,
    rank: int = 0,
    workers: int = 1,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, T] of a training step: windows that start anywhere in `tokens`, each place equally likely.

    A function of (seed, step) through `draws`, so there is no loader whose state a fork would have to carry. Windows
    are drawn with replacement and may cross documents. Of several workers each gets its own `worker_rows` of the same
    batch. Raises ValueError when the text is too short.

    >>> inputs, targets = batch(np.arange(100, dtype=np.uint8), step=3, seed=0, batch_size=2, context=4)
    >>> bool((targets == inputs + 1).all())
    True
    """
    starts_B = window_starts(len(tokens), step, seed, batch_size, context)[worker_rows(batch_size, rank, workers)]
    return gather(tokens, starts_B, context, device)


def window_starts(length: int, step: int, seed: int, batch_size: int, context: int) -> np.ndarray:
    """Where the windows of a step's batch start [B]: `draws` modulo the places there are."""
    places = length - context
    if places < 1:
        raise ValueError(
            f"a window needs context + 1 = {context + 1:,} tokens, the text has {length:,}; "
            f"lower the context or give more text"
        )
    return (draws(batch_size, "batch", seed, step) % np.uint64(places)).astype(np.int64)


def draws(count: int, *key: str | int) -> np.ndarray:
    """Uniform 64-bit numbers [count]: SHAKE-128 (FIPS 202) of the key, so keys never meet and every machine agrees."""
    return np.frombuffer(shake_128(repr(key).encode()).digest(8 * count), "<u8")


def worker_rows(batch_size: int, rank: int, workers: int) -> slice:
    """The rows of the global batch that a worker trains on: contiguous, equally many for all.

    >>> [worker_rows(8, rank, 2) for rank in (0, 1)]
    [slice(0, 4, None), slice(4, 8, None)]
    """
    if batch_size % workers:
        raise ValueError(f"batch_size must be a multiple of the workers, got {batch_size} sequences for {workers}")
    share = batch_size // workers
    return slice(rank * share, (rank + 1) * share)


def equal_rows(root: Any, workers: int) -> None:
    """Raise ValueError unless so many workers get equally many rows of each batch (`root.batch_size`)."""
    worker_rows(root.batch_size, 0, workers)


def gather(tokens: np.ndarray, starts_B: np.ndarray, context: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The windows at these starts as inputs and targets, int64 on the device."""
    windows = torch.from_numpy(tokens[starts_B[:, None] + np.arange(context + 1)].astype(np.int64))
    if torch.device(device).type == "cuda":
        windows = windows.pin_memory().to(device, non_blocking=True)
    else:
        windows = windows.to(device)
    return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True, eq=False)
class Windows:
    """Full windows, nothing padded. `bytes_N` lets a sum of nats become bits per byte."""

    inputs_NT: Tensor  # int64, CPU
    targets_NT: Tensor
    document_N: Tensor  # the document of each window: 0, 1, ... when grouped by document, else its number in the split
    bytes_N: Tensor | None  # float64: bytes of text behind the targets; None when the corpus does not say

    @property
    def tokens(self) -> int:
        """Targets in all windows."""
        return self.targets_NT.numel()

    @property
    def bytes(self) -> float | None:
        """Bytes of text behind all targets; None when the corpus does not say."""
        return None if self.bytes_N is None else float(self.bytes_N.sum())

    def per_document(self, values_N: Tensor) -> Tensor:
        """Mean of a value per window over the windows of each document, in the order of their numbers."""
        _, group_N = torch.unique(self.document_N, return_inverse=True)
        group_N = group_N.to(values_N.device)
        zeros = values_N.new_zeros(int(group_N.max()) + 1)
        return zeros.index_add(0, group_N, values_N) / zeros.index_add(0, group_N, torch.ones_like(values_N))


def evaluation_windows(
    split: Split,
    *,
    context: int,
    tokens: int | None = None,
    documents: int | None = None,
    windows_per_document: int = 1,
    seed: int = 0,
) -> Windows:
    """Fixed windows of a split: either a sample of `tokens` targets, or some windows of each of the first `documents`.

    The sample is one window at a place drawn by `seed` in each of tokens / context equal parts of the split, so windows
    do not overlap, and may cross documents as in training. By document, each window lies within one document, and
    windows_per_document of them lie apart at equal distances; documents too short for them are passed over (the order
    of documents is that of their hashes, so this takes the same ones for everybody). Raises ValueError with the numbers
    when the split has too little text.
    """
    if (tokens is None) == (documents is None):
        raise ValueError(f"give tokens or documents, got tokens={tokens} and documents={documents}")
    if tokens is not None:
        starts_N = _spread(split, tokens, context, seed)
        document_N = np.searchsorted(split.boundaries, starts_N, side="right") - 1
    else:
        assert documents is not None
        starts_N = _within_documents(split, documents, windows_per_document, context)
        document_N = np.repeat(np.arange(documents), windows_per_document)
    inputs_NT, targets_NT = gather(split.tokens, starts_N, context, "cpu")
    sizes = [split.text_bytes(row) for row in targets_NT.numpy()]
    known = [size for size in sizes if size is not None]
    bytes_N = torch.tensor(known, dtype=torch.float64) if len(known) == len(sizes) else None
    return Windows(inputs_NT, targets_NT, torch.from_numpy(document_N.astype(np.int64)), bytes_N)


def _spread(split: Split, tokens: int, context: int, seed: int) -> np.ndarray:
    count, length = tokens // context, len(split.tokens)
    if count < 1 or count * context + 1 > length:
        raise ValueError(
            f"an evaluation on {tokens:,} tokens in windows of {context:,} needs at least one window and no overlap; "
            f"the {split.name} split has {length:,} tokens; change the number of tokens or the context"
        )
    edges = np.linspace(0, length - 1, count + 1).astype(np.int64)  # parts are at least `context` long
    room = edges[1:] - edges[:-1] - context
    offsets = draws(count, "evaluation", seed) % (room + 1).astype(np.uint64)
    return edges[:-1] + offsets.astype(np.int64)


def _within_documents(split: Split, documents: int, per_document: int, context: int) -> np.ndarray:
    lengths = np.diff(split.boundaries)
    needed = per_document * context + 1
    long_enough = np.flatnonzero(lengths >= needed)[:documents]
    if len(long_enough) < documents:
        raise ValueError(
            f"the {split.name} split has {len(long_enough)} documents of at least {needed:,} tokens "
            f"({per_document} windows of {context:,}), {documents} were asked for; lower the number of documents, "
            f"the windows per document or the context, or take a larger corpus"
        )
    slack = lengths[long_enough] - needed
    gaps = slack[:, None] * np.arange(per_document) // max(per_document - 1, 1)
    return (split.boundaries[long_enough][:, None] + gaps + context * np.arange(per_document)).ravel()
