"""The linear recurrence h_t = a_t h_{t-1} + b_t over all positions at once, by an associative scan in plain torch.

(a, b) followed by (c, d) is (c a, c b + d), which is associative, so prefixes are combined in 2 log2 T rounds of O(T)
work in all (Blelloch 1990). Its gradient is the same recurrence run backwards, so nothing but a and h is kept.
"""

# [..., T] positions last

from typing import Any

import torch


def _scanned(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """h of the recurrence that starts from h = 0, without a gradient."""
    if inputs.shape[-1] == 1:
        return inputs
    pairs = inputs.shape[-1] // 2
    first_decay, second_decay = decay[..., 0 : 2 * pairs : 2], decay[..., 1 : 2 * pairs : 2]
    merged = torch.addcmul(inputs[..., 1 : 2 * pairs : 2], second_decay, inputs[..., 0 : 2 * pairs : 2])
    odd = _scanned(second_decay * first_decay, merged)
    states = torch.empty_like(inputs)
    states[..., 1 : 2 * pairs : 2] = odd
    states[..., 0] = inputs[..., 0]
    evens = inputs.shape[-1] - pairs - 1  # after the first
    states[..., 2::2] = torch.addcmul(inputs[..., 2::2], decay[..., 2::2], odd[..., :evens])
    return states


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        states = _scanned(decay, inputs)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With g the gradient of h: d_t = g_t + a_{t+1} d_{t+1} is that of b_t, and d_t h_{t-1} that of a_t."""
        decay, states = ctx.saved_tensors
        following = torch.cat([decay[..., 1:], torch.zeros_like(decay[..., :1])], -1)
        of_inputs = _scanned(following.flip(-1), gradients[0].flip(-1)).flip(-1)
        before = torch.cat([torch.zeros_like(states[..., :1]), states[..., :-1]], -1)
        return of_inputs * before, of_inputs


def linear_recurrence(decay: torch.Tensor, inputs: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
    """h_t = decay_t h_{t-1} + inputs_t along the last axis, from h = `start` (without that axis; None: 0).

    >>> linear_recurrence(torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1.0, 1.0, 0.0]))
    tensor([1.0000, 1.5000, 3.0000])
    """
    if start is not None:
        first = torch.addcmul(inputs[..., :1], decay[..., :1], start[..., None])
        inputs = torch.cat([first, inputs[..., 1:]], -1)
    states: torch.Tensor = _Scan.apply(decay, inputs)
    return states
