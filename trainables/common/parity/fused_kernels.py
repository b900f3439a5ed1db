"""Triton kernels of `fused_mlp`: bits are unpacked, and the hidden layer computed, tile by tile in registers.

Two passes, each of which computes the hidden layer again: the first adds up a sample's score over all hidden units,
the second a tile of M over a share of the samples. Shares are added up at the end, in the same order every time.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from trainables.common.parity.samples import LABEL

# Triton comes with torch's CUDA builds alone; without it this module can be read, and nothing in it is called.
triton: Any = import_module("triton") if find_spec("triton") else None
tl: Any = import_module("triton.language") if find_spec("triton") else None
jit: Callable[[Any], Any] = triton.jit if find_spec("triton") else lambda kernel: kernel

INPUTS = 32  # rows of W in a tile: up to 31 bits and the bias
BLOCK_SAMPLES, BLOCK_HIDDEN = 128, 128
SHARES = 64  # of the samples in the second pass


@jit
def _inputs(words: tl.tensor, dimension: tl.constexpr, INPUTS: tl.constexpr) -> tl.tensor:
    place = tl.arange(0, INPUTS)
    bits = ((words[:, None] | (1 << dimension)) >> place[None, :]) & 1
    return tl.where(place[None, :] <= dimension, bits, 0).to(tl.float32)


@jit
def _weights(
    hidden: tl.tensor, columns: tl.tensor, width: tl.tensor, dimension: tl.constexpr, INPUTS: tl.constexpr
) -> tl.tensor:
    place = tl.arange(0, INPUTS)
    inside = (place[:, None] <= dimension) & (columns[None, :] < width)
    return tl.load(hidden + place[:, None] * width + columns[None, :], mask=inside, other=0.0)


@jit
def residuals(
    samples: tl.tensor, hidden: tl.tensor, readout: tl.tensor, residual: tl.tensor,
    batch: tl.tensor, width: tl.tensor, dimension: tl.constexpr, label: tl.constexpr,
    precision: tl.constexpr, INPUTS: tl.constexpr, BLOCK_SAMPLES: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
) -> None:  # fmt: skip
    """g = sigmoid(z) - y of a block of samples."""
    rows = tl.program_id(0) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    words = tl.load(samples + rows, mask=rows < batch, other=0)
    x = _inputs(words, dimension, INPUTS)
    score = tl.zeros([BLOCK_SAMPLES], tl.float32)
    for first in range(0, width, BLOCK_HIDDEN):
        columns = first + tl.arange(0, BLOCK_HIDDEN)
        active = tl.dot(x, _weights(hidden, columns, width, dimension, INPUTS), input_precision=precision)
        weight = tl.load(readout + columns, mask=columns < width, other=0.0)
        score += tl.sum(tl.maximum(active, 0.0) * weight[None, :], 1)
    score += tl.load(readout + width)
    error = 1.0 / (1.0 + tl.exp(-score)) - ((words >> label) & 1).to(tl.float32)
    tl.store(residual + rows, error, mask=rows < batch)


@jit
def shares_of_moments(
    samples: tl.tensor, hidden: tl.tensor, residual: tl.tensor, moments: tl.tensor,
    batch: tl.tensor, width: tl.tensor, share: tl.tensor, dimension: tl.constexpr,
    precision: tl.constexpr, INPUTS: tl.constexpr, BLOCK_SAMPLES: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
) -> None:  # fmt: skip
    """M of a block of hidden units over one share of the samples."""
    columns = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    weights = _weights(hidden, columns, width, dimension, INPUTS)
    total = tl.zeros([INPUTS, BLOCK_HIDDEN], tl.float32)
    start = tl.program_id(1) * share
    for first in range(start, start + share, BLOCK_SAMPLES):
        rows = first + tl.arange(0, BLOCK_SAMPLES)
        inside = (rows < batch) & (rows < start + share)
        x = _inputs(tl.load(samples + rows, mask=inside, other=0), dimension, INPUTS)
        error = tl.load(residual + rows, mask=inside, other=0.0)
        active = tl.dot(x, weights, input_precision=precision) > 0.0
        total += tl.dot(tl.trans(x * error[:, None]), active.to(tl.float32), input_precision=precision)
    place = tl.arange(0, INPUTS)
    inside = (place[:, None] <= dimension) & (columns[None, :] < width)
    corner = moments + tl.program_id(1) * (dimension + 1) * width
    tl.store(corner + place[:, None] * width + columns[None, :], total, mask=inside)


def moments_of_one(
    samples_B: torch.Tensor, hidden_DH: torch.Tensor, readout_H: torch.Tensor, dimension: int, precision: str = "tf32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """M [D, H] and the sum of g of one net, both over B. precision: of the matmuls, "tf32" or "ieee".

    Inputs are bits and lose nothing in tf32; W and g keep 10 bits of mantissa.
    """
    if dimension >= INPUTS:
        raise ValueError(f"the fused kernels hold {INPUTS - 1} bits of a query, got dimension={dimension}; use moments")
    batch, width = len(samples_B), hidden_DH.shape[1]
    residual = torch.empty(batch, device=samples_B.device)
    blocks = {"INPUTS": INPUTS, "BLOCK_SAMPLES": BLOCK_SAMPLES, "BLOCK_HIDDEN": BLOCK_HIDDEN}
    residuals[(triton.cdiv(batch, BLOCK_SAMPLES),)](
        *(samples_B, hidden_DH, readout_H, residual, batch, width),
        dimension=dimension, label=LABEL, precision=precision, **blocks,
    )  # fmt: skip
    share = triton.cdiv(triton.cdiv(batch, SHARES), BLOCK_SAMPLES) * BLOCK_SAMPLES
    shares = triton.cdiv(batch, share)
    moments = torch.empty(shares, dimension + 1, width, device=samples_B.device)
    shares_of_moments[(triton.cdiv(width, BLOCK_HIDDEN), shares)](
        *(samples_B, hidden_DH, residual, moments, batch, width, share),
        dimension=dimension, precision=precision, **blocks,
    )  # fmt: skip
    return moments.sum(0) / batch, residual.sum() / batch
