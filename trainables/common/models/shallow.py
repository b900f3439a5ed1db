"""Shallow networks as functions of one lane's weights, for `torch.func` (arXiv:2307.11007, section 2).

    two layers    v . head(W x + b)        three layers    v . relu(M relu(W x + b))

An input of 1 stands for the bias, which is the last row of W ("inner"); v is "outer", M "middle". None has an output
bias. `training` are the inputs that a batch norm takes its statistics over, in training and in evaluation alike.
"""

# B samples, N training samples, D inputs (the bias' among them), H hidden units

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from trainables.common.two_layer import NORM_FLOOR

Weights = Mapping[str, torch.Tensor]
Network = Callable[[Weights, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def relu(weights: Weights, inputs_BD: torch.Tensor, training_ND: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.relu(inputs_BD @ weights["inner"]) @ weights["outer"]


def softplus(weights: Weights, inputs_BD: torch.Tensor, training_ND: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.softplus(inputs_BD @ weights["inner"]) @ weights["outer"]


def batch_norm(
    weights: Weights, inputs_BD: torch.Tensor, training_ND: torch.Tensor, gain: torch.Tensor
) -> torch.Tensor:
    """Each unit over its root mean square on the training set, times `gain`; no mean is taken off, nothing shifted.

    The gradient goes through the root mean square. A unit that no training sample activates stays as it is.
    """
    square = F.relu(training_ND @ weights["inner"]).square().mean(0)
    scale = gain * torch.rsqrt(torch.where(square > NORM_FLOOR**2, square, 1))
    return (scale * F.relu(inputs_BD @ weights["inner"])) @ weights["outer"]


def layer_norm(
    weights: Weights, inputs_BD: torch.Tensor, training_ND: torch.Tensor, gain: torch.Tensor
) -> torch.Tensor:
    """The hidden vector of each sample over its length, or over NORM_FLOOR if it is shorter."""
    hidden = F.relu(inputs_BD @ weights["inner"])
    square = hidden.square().sum(1, keepdim=True)
    # where, not clamp: the root of 0 has no slope
    return (hidden * torch.rsqrt(torch.where(square > NORM_FLOOR**2, square, NORM_FLOOR**2))) @ weights["outer"]


def three_layer(
    weights: Weights, inputs_BD: torch.Tensor, training_ND: torch.Tensor, gain: torch.Tensor
) -> torch.Tensor:
    return F.relu(F.relu(inputs_BD @ weights["inner"]) @ weights["middle"]) @ weights["outer"]


NETWORKS: Mapping[str, Network] = {
    "relu": relu,
    "softplus": softplus,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "three_layer": three_layer,
}
