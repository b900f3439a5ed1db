"""The scan of a selective state space: by mamba-ssm's CUDA kernel where that is installed, else by `scan`."""

# P lanes, B rows, T positions, D channels, S states per channel

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from trainables.common.sequence.scan import linear_recurrence


@cache
def _kernel() -> Callable[..., Any] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def selective_scan(
    inputs_PBTD: torch.Tensor,
    pace_PBTD: torch.Tensor,
    decay_PDS: torch.Tensor,
    write_PBTS: torch.Tensor,
    read_PBTS: torch.Tensor,
    start_PBDS: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y_t = read_t . h_t with h_t = exp(pace_t decay) h_{t-1} + pace_t write_t u_t; y [P, B, T, D], the last h_PBDS."""
    kernel = _kernel() if inputs_PBTD.is_cuda and start_PBDS is None else None
    if kernel is not None:
        return _by_kernel(kernel, inputs_PBTD, pace_PBTD, decay_PDS, write_PBTS, read_PBTS)
    pace_PBDT, inputs_PBDT = pace_PBTD.transpose(2, 3), inputs_PBTD.transpose(2, 3)
    write_PBST = write_PBTS.transpose(2, 3)
    decays = torch.exp(pace_PBDT[:, :, :, None] * decay_PDS[:, None, :, :, None])  # [P, B, D, S, T]
    enters = (pace_PBDT * inputs_PBDT)[:, :, :, None] * write_PBST[:, :, None]
    states = linear_recurrence(decays, enters, start_PBDS)
    return torch.einsum("pbdst,pbts->pbtd", states, read_PBTS), states[..., -1]


def _by_kernel(
    kernel: Callable[..., Any],
    inputs_PBTD: torch.Tensor,
    pace_PBTD: torch.Tensor,
    decay_PDS: torch.Tensor,
    write_PBTS: torch.Tensor,
    read_PBTS: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel knows groups of channels that share write and read: a lane is a group."""
    lanes, _, _, width = inputs_PBTD.shape

    def channels(x_PBTD: torch.Tensor) -> torch.Tensor:
        return x_PBTD.permute(1, 0, 3, 2).flatten(1, 2).contiguous()  # [B, P D, T]

    def groups(x_PBTS: torch.Tensor) -> torch.Tensor:
        return x_PBTS.permute(1, 0, 3, 2).contiguous()  # [B, P, S, T]

    shown, last = kernel(
        channels(inputs_PBTD),
        channels(pace_PBTD),
        decay_PDS.flatten(0, 1).contiguous(),
        groups(write_PBTS),
        groups(read_PBTS),
        return_last_state=True,
    )
    shown_PBTD = shown.unflatten(1, (lanes, width)).permute(1, 0, 3, 2)
    return shown_PBTD, last.unflatten(1, (lanes, width)).transpose(0, 1)
