"""Feed-forward blocks cut down to some neurons, the others replaced by their mean activation.

    W_out h + b  ->  W_out[:, kept] h[kept] + (b + W_out[:, removed] mean[removed])

The mean is folded over the removed neurons only: one that is kept must not count twice.
"""

# L layers, F neurons, D width

from collections.abc import Sequence
from typing import Any

import torch


class Prunable:
    """The blocks of an encoder, with their whole weights kept aside, so that they can be cut and made whole again."""

    def __init__(self, blocks: Sequence[Any]):
        self.blocks = list(blocks)
        self._whole = [(block.intermediate.dense, block.output.dense) for block in self.blocks]

    @property
    def output_norm(self) -> torch.Tensor:
        """Length of each neuron's column of output weights, [L, F]."""
        return torch.stack([outwards.weight.detach().norm(dim=0) for _, outwards in self._whole])

    @torch.no_grad()
    def keep(self, kept_LF: torch.Tensor, mean_LF: torch.Tensor) -> None:
        """Real smaller matrices with the kept neurons; all of them where all are kept."""
        for block, (inwards, outwards), kept, mean in zip(self.blocks, self._whole, kept_LF, mean_LF, strict=True):
            if bool(kept.all()):
                block.intermediate.dense, block.output.dense = inwards, outwards
                continue
            count, width = int(kept.sum()), outwards.weight.shape[0]
            small_in = torch.nn.Linear(width, count, device=mean.device)
            small_out = torch.nn.Linear(count, width, device=mean.device)
            small_in.weight.copy_(inwards.weight[kept])
            small_in.bias.copy_(inwards.bias[kept])
            small_out.weight.copy_(outwards.weight[:, kept])
            small_out.bias.copy_(outwards.bias + outwards.weight[:, ~kept] @ mean[~kept])
            block.intermediate.dense = small_in.requires_grad_(False)
            block.output.dense = small_out.requires_grad_(False)


def block_parameters(layers: int, width: int, neurons: int) -> int:
    """Weights and biases of attention and whole feed-forward blocks, norms left out."""
    return layers * (4 * width * (width + 1) + 2 * width * neurons + neurons + width)
