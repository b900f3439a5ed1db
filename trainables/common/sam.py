"""Sharpness-aware gradients: the gradient taken where the loss is higher nearby (Foret et al., arXiv:2010.01412).

All of it on lanes (see `lanes.py`), each with its own radius. There is no closure and no optimizer to wrap: these
functions answer with a gradient, which any rule may then apply.
"""

# P lanes, G groups of M samples

from collections.abc import Callable

import torch

from trainables.common.lanes import Lanes, inverse_length, spread, unit

Gradient = Callable[[Lanes], Lanes]
SampleGradient = Callable[[Lanes, torch.Tensor], Lanes]


def moved(weights: Lanes, direction: Lanes, radius: torch.Tensor) -> Lanes:
    """weights + radius * direction, radius of shape [P]."""
    return {name: value + spread(radius, value) * direction[name] for name, value in weights.items()}


def ascent(weights: Lanes, gradient: Lanes, radius: torch.Tensor, adaptive: bool = False) -> Lanes:
    """Weights moved by `radius` [P] uphill, w + radius g / |g| (arXiv:2010.01412, eq. 2).

    Adaptive: w + radius T^2 g / |T g| with T = |w|, coordinate by coordinate (arXiv:2102.11600): what rescaling the
    weights does to the loss it does to the ball. A weight of 0 then stays 0. A lane without a gradient stays as it is.

    >>> weights, gradient = {"w": torch.tensor([[1.0, 1.0], [1.0, 1.0]])}, {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}
    >>> ascent(weights, gradient, torch.tensor([0.5, 0.5]))["w"]
    tensor([[1.3000, 1.4000],
            [1.0000, 1.0000]])
    """
    if not adaptive:
        reach = radius * inverse_length(gradient)[0]  # one pass over the weights: it is most of a small step
        return {name: torch.addcmul(value, spread(reach, value), gradient[name]) for name, value in weights.items()}
    scaled, _ = unit({name: value.abs() * gradient[name] for name, value in weights.items()})
    return moved(weights, {name: value.abs() * scaled[name] for name, value in weights.items()}, radius)


def sam_gradient(
    gradient: Gradient, weights: Lanes, radius: torch.Tensor, adaptive: bool = False, ascents: int = 1
) -> Lanes:
    """The gradient at the ascended weights, the way there held fixed (arXiv:2010.01412, eq. 3).

    More `ascents` turn the direction towards the worst one on the sphere: each starts from the weights again and goes
    along the gradient of the point before, a power iteration where the loss is quadratic. A step takes one gradient
    more than ascents. Where the radius is 0 it is that lane's plain gradient, bit for bit.

    >>> sam_gradient(lambda weights: weights, {"w": torch.tensor([[3.0, 4.0]])}, torch.tensor([5.0]))["w"]
    tensor([[6., 8.]])
    """
    point = weights
    for _ in range(ascents):
        point = ascent(weights, gradient(point), radius, adaptive)
    return gradient(point)


def gradient_through(
    loss: Callable[[Lanes], torch.Tensor], weights: Lanes, radius: torch.Tensor, ascents: int = 1
) -> Lanes:
    """The gradient of the ascended loss itself, which `sam_gradient` cuts short; `loss` gives one number per lane, [P].

    With y = w + r u and u = g(w) / |g(w)| it is g(y) + r / |g(w)| H(w) (I - u u') g(y), and so on down the ascents:
    one Hessian-vector product for each. A lane without a gradient has the plain one.

    >>> bowl = lambda weights: 0.5 * (weights["w"] ** 2).sum(1)  # its ascended loss is (|w| + r)^2 / 2
    >>> gradient_through(bowl, {"w": torch.tensor([[3.0, 4.0]])}, torch.tensor([5.0]))["w"]
    tensor([[6., 8.]])
    """
    names, point, passed = list(weights), weights, []
    for _ in range(ascents):
        leaves = [point[name].detach().requires_grad_() for name in names]
        slopes = torch.autograd.grad(loss(dict(zip(names, leaves, strict=True))).sum(), leaves, create_graph=True)
        direction, length = unit({name: slope.detach() for name, slope in zip(names, slopes, strict=True)})
        passed.append((leaves, slopes, direction, torch.where(length > 0, radius / length, 0 * length)))
        point = moved(weights, direction, radius)
    leaves = [point[name].detach().requires_grad_() for name in names]
    pulled = list(torch.autograd.grad(loss(dict(zip(names, leaves, strict=True))).sum(), leaves))
    total = pulled
    for leaves, slopes, direction, scale in reversed(passed):
        along = sum((direction[name] * pull).flatten(1).sum(1) for name, pull in zip(names, pulled, strict=True))
        across = [
            spread(scale, pull) * (pull - spread(torch.as_tensor(along), pull) * direction[name])
            for name, pull in zip(names, pulled, strict=True)
        ]
        # What the loss does not depend on twice (a linear term) has no graph: its product is zero.
        products = torch.autograd.grad(slopes, leaves, across, materialize_grads=True)
        pulled = list(products)
        total = [one + more for one, more in zip(total, pulled, strict=True)]
    return dict(zip(names, total, strict=True))


def m_sam_gradient(
    gradient: SampleGradient, weights: Lanes, radius: torch.Tensor, groups: torch.Tensor, adaptive: bool = False
) -> Lanes:
    """Mean over groups of samples of each group's own SAM gradient; `groups` are sample numbers, shape [P, G, M].

    M = 1 perturbs every sample by itself (1-SAM where G = 1 too), G = 1 is plain SAM on these samples. All groups are
    taken at once as P * G lanes: `gradient(weights, samples)` gets weights of that many lanes and samples [P * G, M],
    where lane q belongs to lane q // G of the pack.

    >>> centres = torch.tensor([0.0, 4.0])  # two samples, losses (w - centre)^2 / 2
    >>> gradient = lambda weights, samples: {"w": weights["w"] - centres[samples].mean(1, keepdim=True)}
    >>> w, radius = {"w": torch.tensor([[1.0]])}, torch.tensor([0.5])
    >>> m_sam_gradient(gradient, w, radius, torch.tensor([[[0], [1]]]))["w"]  # pushed to 1.5 and to 0.5
    tensor([[-1.]])
    >>> m_sam_gradient(gradient, w, radius, torch.tensor([[[0, 1]]]))["w"]  # both pushed to 0.5
    tensor([[-1.5000]])
    """
    lanes, count = groups.shape[:2]
    samples = groups.flatten(0, 1)
    if count == 1:
        return sam_gradient(lambda where: gradient(where, samples), weights, radius, adaptive)
    repeated = {name: value.repeat_interleave(count, 0) for name, value in weights.items()}
    radii = radius.repeat_interleave(count)
    each = sam_gradient(lambda where: gradient(where, samples), repeated, radii, adaptive)
    return {name: value.unflatten(0, (lanes, count)).mean(1) for name, value in each.items()}
