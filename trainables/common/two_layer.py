"""Two-layer networks in closed form, many lanes at a time: outputs, gradients, the SAM step, sharpness.

    f(x) = sum_h v_h head(W x)_h,   grad_W f = x (df/dpre)^T,   grad_v f = df/dv

W ("inner") has a row per input and v ("outer") a weight per hidden unit. A bias is a row of W whose input is 1, so an
input of 0 there is a network without bias. Nothing here builds a graph: each head says its own two derivatives.
"""

# P lanes, B samples of a batch, N samples, D inputs (the bias' among them), H hidden units

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from trainables.common.lanes import Lanes

NORM_FLOOR = 1e-6  # below this length a hidden vector is not divided by its length
SMALLEST_GRADIENT = 1e-12  # shorter gradients have no direction to ascend in


class Sensed(NamedTuple):
    """Outputs of samples [P, B] and what they change with: preactivations and outer weights, each [P, B, H]."""

    output: torch.Tensor
    by_pre: torch.Tensor
    by_outer: torch.Tensor


class Head(NamedTuple):
    """What follows the first layer. Both are functions of preactivations [P, B, H] and outer weights [P, H].

    bend: sum_h d2f/dpre_h2 of each sample, [P, B]; what the Hessian's trace needs beside the gradients.
    """

    sensed: Callable[[torch.Tensor, torch.Tensor], Sensed]
    bend: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def relu(pre_PBH: torch.Tensor, outer_PH: torch.Tensor) -> Sensed:
    """f = v . relu(pre)."""
    hidden, outer = pre_PBH.relu(), outer_PH[:, None]
    return Sensed(torch.linalg.vecdot(hidden, outer), hidden.sign() * outer, hidden)


def relu_bend(pre_PBH: torch.Tensor, outer_PH: torch.Tensor) -> torch.Tensor:
    """Nothing, but at the kinks."""
    return torch.zeros_like(pre_PBH[..., 0])


def softplus(pre_PBH: torch.Tensor, outer_PH: torch.Tensor) -> Sensed:
    """f = v . softplus(pre)."""
    hidden, outer = F.softplus(pre_PBH), outer_PH[:, None]
    return Sensed(torch.linalg.vecdot(hidden, outer), torch.sigmoid(pre_PBH) * outer, hidden)


def softplus_bend(pre_PBH: torch.Tensor, outer_PH: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(torch.sigmoid(pre_PBH) * torch.sigmoid(-pre_PBH), outer_PH[:, None])


def layer_norm(pre_PBH: torch.Tensor, outer_PH: torch.Tensor) -> Sensed:
    """f = v . u with u = a / max(|a|, NORM_FLOOR) and a = relu(pre): a layer norm without mean, gain or shift."""
    hidden, outer = pre_PBH.relu(), outer_PH[:, None]
    length = torch.linalg.vector_norm(hidden, dim=2, keepdim=True)
    divisor = length.clamp_min(NORM_FLOOR)
    direction = hidden / divisor
    output = torch.linalg.vecdot(direction, outer)
    turning = output[..., None] * (length > NORM_FLOOR)  # below the floor nothing is kept at length one
    return Sensed(output, hidden.sign() * torch.addcmul(outer, -turning, direction) / divisor, direction)


def layer_norm_bend(pre_PBH: torch.Tensor, outer_PH: torch.Tensor) -> torch.Tensor:
    """Over the active units, (3 f u_h^2 - 2 u_h v_h - f) / |a|^2."""
    hidden, outer = pre_PBH.relu(), outer_PH[:, None]
    length = torch.linalg.vector_norm(hidden, dim=2)
    direction = hidden / length.clamp_min(NORM_FLOOR)[..., None]
    output = torch.linalg.vecdot(direction, outer)
    active = hidden.sign().sum(2)
    bend = (output * (3 - active) - 2 * output) / length.clamp_min(NORM_FLOOR) ** 2  # sum u_h^2 = 1, sum u_h v_h = f
    return torch.where(length > NORM_FLOOR, bend, 0)


HEADS: Mapping[str, Head] = {
    "relu": Head(relu, relu_bend),
    "softplus": Head(softplus, softplus_bend),
    "layer_norm": Head(layer_norm, layer_norm_bend),
}


class Loss(NamedTuple):
    """A loss per sample as a function of (output, label, smoothing): its value, its slope and curvature in the output.

    target: (label, smoothing) -> the output of least loss.
    """

    value: Callable[..., torch.Tensor]
    slope: Callable[..., torch.Tensor]
    curvature: Callable[..., torch.Tensor]
    target: Callable[..., torch.Tensor]


def chance_of_plus(label: torch.Tensor, smoothing: torch.Tensor) -> torch.Tensor:
    """What the label -1 or +1 says about +1: `smoothing` or one minus it."""
    return torch.where(label > 0, 1 - smoothing, smoothing)


LOSSES: Mapping[str, Loss] = {
    "mse": Loss(
        lambda output, label, smoothing: (output - label) ** 2,
        lambda output, label, smoothing: 2 * (output - label),
        lambda output, label, smoothing: torch.full_like(output, 2.0),
        lambda label, smoothing: label,
    ),
    "logistic": Loss(
        lambda output, label, smoothing: F.softplus(output) - chance_of_plus(label, smoothing) * output,
        lambda output, label, smoothing: torch.sigmoid(output) - chance_of_plus(label, smoothing),
        lambda output, label, smoothing: torch.sigmoid(output) * torch.sigmoid(-output),
        lambda label, smoothing: torch.logit(chance_of_plus(label, smoothing)),
    ),
}


Slope = Callable[[torch.Tensor], torch.Tensor]


def sense(head: Head, weights: Lanes, inputs_PBD: torch.Tensor) -> Sensed:
    return head.sensed(torch.bmm(inputs_PBD, weights["inner"]), weights["outer"])


def gradient(head: Head, slope: Slope, weights: Lanes, inputs_PBD: torch.Tensor) -> Lanes:
    """Gradient of the mean loss of a batch; `slope` maps outputs [P, B] to each sample's dloss/doutput."""
    seen = sense(head, weights, inputs_PBD)
    pull_PB1 = slope(seen.output)[..., None] / inputs_PBD.shape[1]
    inner = torch.bmm(inputs_PBD.transpose(1, 2), pull_PB1 * seen.by_pre)
    return {"inner": inner, "outer": torch.bmm(pull_PB1.transpose(1, 2), seen.by_outer)[:, 0]}


def descend_one_sample(
    head: Head,
    slope: Slope,
    weights: Lanes,
    inputs_P1D: torch.Tensor,
    rate: torch.Tensor,
    radius: torch.Tensor,
    keep: torch.Tensor | None = None,
) -> None:
    """One step of 1-SAM (arXiv:2211.05729) on one sample per lane, in place; radius 0 is SGD. rate, radius: [P].

    `keep` [P] is what weight decay leaves of the weights, 1 - rate * decay. The ascended weights are never written
    down: W + s x g^T with g = df/dpre has preactivations pre + s |x|^2 g, where s = radius sign(dloss/df) / |grad f|
    since the loss' gradient is a multiple of the output's.
    """
    inner, outer = weights["inner"], weights["outer"]
    pre = torch.bmm(inputs_P1D, inner)
    seen = head.sensed(pre, outer)
    steepness = slope(seen.output)
    size, by_pre, by_outer = (torch.linalg.vector_norm(part, dim=2) for part in (inputs_P1D, *seen[1:]))
    length = torch.hypot(size * by_pre, by_outer)
    uphill = torch.sign(steepness) * (steepness.abs() * length > SMALLEST_GRADIENT)
    reach = (radius[:, None] * uphill / length.clamp_min(SMALLEST_GRADIENT))[..., None]  # P, 1, 1
    pre = torch.addcmul(pre, reach * size[..., None] ** 2, seen.by_pre)
    seen = head.sensed(pre, torch.addcmul(outer, reach[:, 0], seen.by_outer[:, 0]))
    pull = (-rate[:, None] * slope(seen.output))[..., None]
    if keep is not None:
        inner.mul_(keep[:, None, None])
        outer.mul_(keep[:, None])
    inner.addcmul_(inputs_P1D.transpose(1, 2), pull * seen.by_pre)
    outer.addcmul_(pull[:, 0], seen.by_outer[:, 0])


def gram(inputs_PND: torch.Tensor, seen: Sensed) -> torch.Tensor:
    """Products of the samples' output gradients, grad f(x_i) . grad f(x_j): shape [P, N, N]."""
    inner = torch.bmm(inputs_PND, inputs_PND.transpose(1, 2)) * torch.bmm(seen.by_pre, seen.by_pre.transpose(1, 2))
    return inner + torch.bmm(seen.by_outer, seen.by_outer.transpose(1, 2))


def bend_trace(head: Head, slope: Slope, weights: Lanes, inputs_PND: torch.Tensor) -> torch.Tensor:
    """Trace of the Hessian's other part, 1/N sum_i dloss/df_i hess f_i, shape [P]: 0 in ReLU networks.

    No output bends along an outer weight, and along a row of W it bends as the preactivation does, times x^2.
    """
    pre, outer = torch.bmm(inputs_PND, weights["inner"]), weights["outer"]
    steepness = slope(head.sensed(pre, outer).output)
    return (steepness * torch.linalg.vecdot(inputs_PND, inputs_PND) * head.bend(pre, outer)).mean(1)


def gram_sharpness(gram_PNN: torch.Tensor, curvature_PN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Trace and top eigenvalue, each [P], of 1/N sum_i c_i grad f_i grad f_i^T, from the N x N matrix instead.

    c_i is the curvature of a sample's loss in its output, 2 for squared loss. Where every sample is at its least loss
    this is the Hessian; elsewhere 1/N sum_i dloss/df_i hess f_i is missing. A lane that is not finite gives NaN.
    """
    root = curvature_PN.sqrt()
    scaled = gram_PNN * root[:, :, None] * root[:, None, :] / gram_PNN.shape[1]
    bad = ~scaled.isfinite().flatten(1).all(1)  # LAPACK refuses them, for all lanes of the call
    eigenvalues = torch.linalg.eigvalsh(torch.where(bad[:, None, None], 0, scaled))
    trace = scaled.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where(bad, torch.nan, trace), torch.where(bad, torch.nan, eigenvalues[:, -1])
