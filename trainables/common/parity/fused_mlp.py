"""The gradient of two-layer ReLU nets on packed samples, without ever holding all hidden activations.

With x the input (bias included), z = sum_k v_k relu(x W)_k + c and g = (sigmoid(z) - y) / B, both gradients follow from
one matrix, M = sum over samples of g x outer [x W > 0]:

    dL/dW = M * v,   dL/dv = sum over inputs of W * M,   dL/dc = sum of g.

So a hidden activation is needed twice, to add up z and as a sign, and can be recomputed instead of kept.
N nets, B samples, D inputs (the bias' input of 1 included), H hidden units
"""

import os
from importlib.util import find_spec
from typing import Any

import torch

from trainables.common.parity.samples import inputs, labels

HIDDEN_BYTES = {"cpu": 2**20, "cuda": 2**30}  # of hidden activations at a time: what a core's own cache holds
FUSED_FROM_BYTES = 2**28  # smaller hidden layers are as fast by plain matmuls
FUSED_INPUTS = 32  # what the kernels hold of a query, bias included


def rows_at_a_time(width: int, device: torch.device) -> int:
    return max(1, HIDDEN_BYTES.get(device.type, HIDDEN_BYTES["cuda"]) // (4 * width))


def gradients(
    samples_NB: torch.Tensor, hidden_NDH: torch.Tensor, readout_NH: torch.Tensor, dimension: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """dL/dW of shape [N, D, H] and dL/d(v, c) of shape [N, H + 1]; by the fused kernel where it pays."""
    width, batch = hidden_NDH.shape[-1], samples_NB.shape[1]
    if fusable(samples_NB, dimension) and 4 * batch * width >= FUSED_FROM_BYTES:
        moments_NDH, residuals_N = fused_moments(samples_NB, hidden_NDH, readout_NH, dimension)
    else:
        moments_NDH, residuals_N = moments(samples_NB, hidden_NDH, readout_NH, dimension)
    readout = torch.cat([(hidden_NDH * moments_NDH).sum(1), residuals_N[:, None]], 1)
    return moments_NDH * readout_NH[:, None, :-1], readout


def moments(
    samples_NB: torch.Tensor, hidden_NDH: torch.Tensor, readout_NH: torch.Tensor, dimension: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """M [N, D, H] and the sum of g [N] in plain torch: some nets, or some samples of one net, at a time."""
    rows = rows_at_a_time(hidden_NDH.shape[-1], samples_NB.device)
    nets = max(1, rows // samples_NB.shape[1])
    found = []
    for samples, hidden, readout in zip(*(t.split(nets) for t in (samples_NB, hidden_NDH, readout_NH)), strict=True):
        parts = [_moments(part, hidden, readout, dimension) for part in samples.split(rows, 1)]
        found.append([sum(column[1:], column[0]) / samples_NB.shape[1] for column in zip(*parts, strict=True)])
    moments_NDH, residuals_N = (torch.cat(column) for column in zip(*found, strict=True))
    return moments_NDH, residuals_N


def scores(
    samples_NB: torch.Tensor, hidden_NDH: torch.Tensor, readout_NH: torch.Tensor, dimension: int
) -> torch.Tensor:
    """Outputs before the sigmoid, shape [N, B]."""
    return _scores(inputs(samples_NB, dimension), hidden_NDH, readout_NH)[0]


def _scores(
    x_NBD: torch.Tensor, hidden_NDH: torch.Tensor, readout_NH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and hidden activations; the samples lie on the last axis, where the readout is a fast matmul of rows."""
    active_NHB = torch.bmm(hidden_NDH.transpose(1, 2), x_NBD.transpose(1, 2)).relu_()
    return torch.bmm(readout_NH[:, None, :-1], active_NHB)[:, 0] + readout_NH[:, -1:], active_NHB


def _moments(
    samples_NB: torch.Tensor, hidden_NDH: torch.Tensor, readout_NH: torch.Tensor, dimension: int
) -> tuple[torch.Tensor, torch.Tensor]:
    x_NBD = inputs(samples_NB, dimension)
    scores_NB, active_NHB = _scores(x_NBD, hidden_NDH, readout_NH)
    residual_NB = torch.sigmoid(scores_NB) - labels(samples_NB)
    weighted_NBD = x_NBD.mul_(residual_NB[..., None])
    return torch.bmm(weighted_NBD.transpose(1, 2), active_NHB.sign_().transpose(1, 2)), residual_NB.sum(1)


def fusable(samples_NB: torch.Tensor, dimension: int) -> bool:
    """Whether the Triton kernels can run: on a GPU, or anywhere under Triton's interpreter."""
    somewhere = samples_NB.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return somewhere and dimension < FUSED_INPUTS and find_spec("triton") is not None


def fused_moments(
    samples_NB: torch.Tensor,
    hidden_NDH: torch.Tensor,
    readout_NH: torch.Tensor,
    dimension: int,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """M and the sum of g by kernels that read packed samples and keep hidden activations in registers."""
    from trainables.common.parity.fused_kernels import moments_of_one

    found = [
        moments_of_one(samples, hidden.contiguous(), readout.contiguous(), dimension, **options)
        for samples, hidden, readout in zip(samples_NB, hidden_NDH, readout_NH, strict=True)
    ]
    return torch.stack([moments for moments, _ in found]), torch.stack([residual for _, residual in found])
