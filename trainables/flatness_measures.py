"""What a flatness trial measures: fit, accuracy, what its neurons do, and how sharp its minimum is (arXiv:2307.11007).

Every function takes a pack and gives one number per lane alive.
"""

# A lanes alive, N training samples, D inputs (the bias' among them), H hidden units

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from trainables.common import two_layer, vmapped
from trainables.common.curvature import Hessian, top_eigenvalues
from trainables.common.lanes import Lanes

if TYPE_CHECKING:
    from trainables.flatness import Pack

EIGENVALUE_TOLERANCE = 1e-4  # relative, of Lanczos in float32


def measure(pack: Pack, full: bool) -> list[dict[str, float]]:
    """The metrics of every lane alive."""
    found = {**fit(pack), **evaluated(pack, "select"), **neurons(pack)}
    found |= sharpness(pack, found["train/loss"] - found["least loss"], full)
    found["trace_over_floor"] = found["trace"] / least_trace(pack)
    if full:
        found |= evaluated(pack, "report")
    del found["least loss"]
    rows = torch.stack([value.double() for value in found.values()], 1).tolist()
    return [dict(zip(found, row, strict=True)) for row in rows]


def fit(pack: Pack) -> Lanes:
    output, labels, smoothing = pack.outputs("train"), pack.data["train labels"], pack.knobs["label_smoothing"][:, None]
    target = pack.loss.target(labels, smoothing)
    return {
        "train/loss": pack.loss.value(output, labels, smoothing).mean(1),
        "train/interpolation_error": (output - target).abs().amax(1),
        "least loss": pack.loss.value(target, labels, smoothing).mean(1),
    }


def evaluated(pack: Pack, split: str) -> Lanes:
    """Share of samples with the right sign, and the squared distance to the output of least loss."""
    output, labels = pack.outputs(split), pack.data[f"{split} labels"]
    error = (output - pack.loss.target(labels, pack.knobs["label_smoothing"][:, None])).square().mean(1)
    accuracy = torch.where(error.isfinite(), (output * labels > 0).float().mean(1), torch.nan)
    return {f"{split}/accuracy": accuracy, f"{split}/mse": error}


def neurons(pack: Pack) -> Lanes:
    """What the first layer's units are for; a unit counts by its path norm |w_h| times what leaves it.

    points_per_neuron: training points that activate a unit; 1 where each unit remembers a point.
    signal_share: of the first layer's squared weights, bias aside, those on x_1 and x_2; 2 / d at the start.
    """
    inner, leaving = pack.weights["inner"], pack.weights["outer"].abs()
    if "middle" in pack.weights:
        leaving = torch.bmm(pack.weights["middle"].abs(), leaving[:, :, None])[..., 0]
    path = torch.linalg.vector_norm(inner, dim=1) * leaving
    points = (torch.bmm(pack.data["train inputs"], inner) > 0).float().sum(1)
    squares = inner[:, :-1].square().sum(2)
    return {
        "path_norm": path.sum(1),
        "points_per_neuron": (points * path).sum(1) / path.sum(1),
        "signal_share": squares[:, :2].sum(1) / squares.sum(1),
    }


def sharpness(pack: Pack, excess: torch.Tensor, full: bool) -> Lanes:
    """Trace and top eigenvalue of the loss' Hessian at the training set.

    The Gram matrix of the samples' gradients gives the part that is left where all are interpolated. The trace of the
    other part is added exactly: in closed form for two layers, 0 for ReLU layers, and for a batch norm, where it takes
    a Hessian-vector product per weight, at the end alone. The top eigenvalue is the whole Hessian's, by Lanczos, at the
    end of a lane whose loss is not below `interpolated_below`: there sharpness_is_hessian is 1, else 0.
    """
    inputs, labels = pack.data["train inputs"], pack.data["train labels"]
    smoothing = pack.knobs["label_smoothing"][:, None]
    data = pack.lane_data(inputs, labels)
    if pack.head is not None:
        seen = two_layer.sense(pack.head, pack.weights, inputs)
        output, products = seen.output, two_layer.gram(inputs, seen)
        rest = two_layer.bend_trace(
            pack.head, lambda output: pack.loss.slope(output, labels, smoothing), pack.weights, inputs
        )
    else:
        output, rest = pack.outputs("train"), torch.zeros(len(inputs), device=pack.device)
        products = vmapped.lane_grams(
            lambda weights, one: pack.network(weights, one["inputs"], one["training"], one["gain"]), pack.weights, data
        )
    trace, top = two_layer.gram_sharpness(products, pack.loss.curvature(output, labels, smoothing))
    trace = trace + rest
    apart = (excess >= pack.knobs["interpolated_below"]) & trace.isfinite() & torch.tensor(full, device=pack.device)
    for position in apart.nonzero()[:, 0].tolist():
        weights, one = ({name: value[position] for name, value in part.items()} for part in (pack.weights, data))
        hessian = Hessian(partial(_loss_on, pack, one), weights)
        top[position] = top_eigenvalues(hessian, tolerance=EIGENVALUE_TOLERANCE).values[0]
        if pack.first.architecture == "sim_bn":
            batch = [{name: value[None] for name, value in part.items()} for part in (weights, one)]
            trace[position] = vmapped.hessian_traces(pack.lane_loss, batch[0], batch[1])[0]
    return {"trace": trace, "top_eigenvalue": top, "sharpness_is_hessian": apart.float()}


def _loss_on(pack: Pack, data: Lanes, weights: Lanes) -> torch.Tensor:
    return pack.lane_loss(weights, data)


def least_trace(pack: Pack) -> torch.Tensor:
    """What the trace of an interpolating network cannot be below, [A].

    Mean over samples of loss curvature times the least |grad f|^2: 2 |x| |f| for two ReLU layers, with (x, 1) in place
    of x where there is a bias (|grad f|^2 = |gated v|^2 |x|^2 + |a|^2, arXiv:2307.11007, proof of theorem 4.1); 1 for a
    layer norm, the length of its hidden vector. On the cube, with a bias and squared loss, 4 sqrt(d + 1). For the other
    architectures the bound with a bias is a yardstick and no bound.
    """
    labels, smoothing = pack.data["train labels"], pack.knobs["label_smoothing"][:, None]
    target = pack.loss.target(labels, smoothing)
    least = 2 * torch.linalg.vector_norm(pack.data["train inputs"], dim=2) * target.abs()
    if pack.network_name == "layer_norm":
        least = torch.ones_like(least)
    return (pack.loss.curvature(target, labels, smoothing) * least).mean(1)
