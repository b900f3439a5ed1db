"""Fully connected ReLU networks of any width and depth: samples of any shape to logits."""

# B samples, D inputs, K classes

from itertools import pairwise
from math import prod, sqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init


class MLP(nn.Module):
    """depth hidden layers of one width; depth 1 is the two-layer network, depth 0 a linear one.

    Weights are drawn from `generator` alone and in order: hidden ones normal with variance 2 / fan-in
    (arXiv:1502.01852), those of the head normal with variance 1 / fan-in; biases are zero.

    >>> model = MLP(64, 10, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 1, 8, 8)).shape, sum(parameter.numel() for parameter in model.parameters())
    (torch.Size([2, 10]), 610)
    """

    def __init__(self, inputs: int, classes: int, width: int, depth: int = 1, *, generator: torch.Generator) -> None:
        super().__init__()
        for name, value, least in (("inputs", inputs, 1), ("classes", classes, 1), ("width", width, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if depth < 0:
            raise ValueError(f"depth counts hidden layers and must be at least 0, got {depth}")
        sizes = [inputs, *[width] * depth, classes]
        layers = [skip_init(nn.Linear, before, after) for before, after in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            for layer in layers:
                gain = 1.0 if layer is layers[-1] else 2.0
                layer.weight.normal_(0.0, sqrt(gain / layer.in_features), generator=generator)
                layer.bias.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden_BD = inputs.flatten(1)
        for layer in self.layers[:-1]:
            hidden_BD = F.relu(layer(hidden_BD))
        return cast(Tensor, self.layers[-1](hidden_BD))


def mlp_parameters(shape: tuple[int, ...], classes: int, width: int, depth: int) -> int:
    """Weights and biases of an `MLP` on samples of this shape.

    >>> mlp_parameters((1, 8, 8), 10, 8, 1)
    610
    """
    sizes = [prod(shape), *[width] * depth, classes]
    return sum((before + 1) * after for before, after in pairwise(sizes))
