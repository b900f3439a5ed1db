"""Logits of the last positions alone: in the last block no other position needs a query, an MLP or a readout."""

# P lanes, B rows, T positions, S last positions, V vocabulary

from dataclasses import replace

import torch

from trainables.common.lanes import Lanes
from trainables.common.sequence.mixers import linear
from trainables.common.sequence.network import Architecture, blocks, embedded, normed, of_part, read_out


def last_logits(net: Architecture, weights: Lanes, inputs: torch.Tensor, count: int) -> torch.Tensor:
    """`logits` at the last `count` positions, [P, B, S, V], of attention nets without rotary positions or dropout.

    The last block's keys and values of the positions before are its memory, as if they had been read already.
    """
    x_PBTD = embedded(net, weights, inputs)
    if len(net.mixers) > 1:
        x_PBTD = blocks(replace(net, mixers=net.mixers[:-1]), weights, x_PBTD)
    last = f"block{len(net.mixers) - 1}"
    block = of_part(weights, last)
    before = normed(net, block, "mixer_norm", x_PBTD[:, :, :-count])
    memory = {
        name: linear(before, of_part(block, "mixer"), name).unflatten(-1, (net.heads, -1)).transpose(2, 3)
        for name in ("key", "value")
    }
    alone = {f"block0.{name}": value for name, value in block.items()}
    x_PBSD = blocks(replace(net, mixers=net.mixers[-1:]), alone, x_PBTD[:, :, -count:], [memory])
    return read_out(net, weights, x_PBSD)
