"""Lanes of any small network, written for one lane: `torch.func` makes of it gradients and curvature of many.

A network is a function of one lane's weights; `vmap` runs it for all lanes at once. It costs a few times what closed
forms cost (`two_layer.py`), and below about four lanes more than plain autograd.
"""

# P lanes, N samples, K basis vectors of a chunk

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch.func import grad, jacrev, jvp, vmap

from trainables.common.lanes import Lanes

LaneLoss = Callable[..., torch.Tensor]  # (one lane's weights, *one lane's data) -> its loss
BASIS_CHUNK = 64  # Hessian columns at a time


def lane_gradients(loss: LaneLoss, weights: Lanes, *data: Any) -> Lanes:
    """Gradient of every lane's own loss; `data` are tensors (or dicts of them) with the lanes first.

    >>> lane_gradients(lambda w, x: (w["w"] * x).sum() ** 2, {"w": torch.ones(2, 1)}, torch.tensor([[1.0], [3.0]]))["w"]
    tensor([[ 2.],
            [18.]])
    """
    return vmap(grad(loss))(weights, *data)


def lane_grams(outputs: LaneLoss, weights: Lanes, *data: Any) -> torch.Tensor:
    """Products of the output gradients, grad f(x_i) . grad f(x_j), shape [P, N, N]; `outputs` gives one lane's [N]."""

    def one(weights: Lanes, *data: Any) -> torch.Tensor:
        jacobian = torch.cat([part.flatten(1) for part in jacrev(outputs)(weights, *data).values()], 1)
        return jacobian @ jacobian.mT

    return torch.stack([one(*lane) for lane in _each(weights, *data)])  # a lane at a time: a Jacobian is large


def hessian_traces(loss: LaneLoss, weights: Lanes, *data: Any) -> torch.Tensor:
    """Exact trace of every lane's Hessian, [P]: a Hessian-vector product per weight, so only for small networks."""
    return torch.stack([_hessian_trace(loss, *lane) for lane in _each(weights, *data)])


def _hessian_trace(loss: LaneLoss, weights: Lanes, *data: Any) -> torch.Tensor:
    flat = torch.cat([value.flatten() for value in weights.values()])

    def flat_loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([value.numel() for value in weights.values()])
        named = {name: part.view_as(value) for (name, value), part in zip(weights.items(), parts, strict=True)}
        return loss(named, *data)

    def diagonal(place: torch.Tensor) -> torch.Tensor:
        basis = torch.zeros_like(flat).index_fill(0, place, 1)
        return jvp(grad(flat_loss), (flat,), (basis,))[1].gather(0, place[None])[0]

    places = torch.arange(len(flat), device=flat.device)
    return torch.stack([vmap(diagonal)(chunk).sum() for chunk in places.chunk(ceil(len(flat) / BASIS_CHUNK))]).sum()


def _each(*lanes: Any) -> list[tuple[Any, ...]]:
    """The lanes one by one: tensors and dicts of tensors without their first axis."""

    def at(value: Any, lane: int) -> Any:
        return {name: part[lane] for name, part in value.items()} if isinstance(value, dict) else value[lane]

    count = len(next(iter(lanes[0].values())))
    return [tuple(at(value, lane) for value in lanes) for lane in range(count)]
