"""Training in lanes by autograd: each lane's own gradient in one backward pass, and AdamW with a rate per lane."""

# P lanes, B rows, T positions, V vocabulary

from collections.abc import Callable

import torch
import torch.nn.functional as F

from trainables.common.lanes import Lanes, spread

EPSILON = 1e-8  # torch's default


def gradients(loss: Callable[[Lanes], torch.Tensor], weights: Lanes) -> tuple[torch.Tensor, Lanes]:
    """Losses [P] and each lane's gradient of its own; lanes share no weight, so that of their sum is all of them.

    >>> losses, found = gradients(lambda w: (w["w"] ** 2).sum(1), {"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])})
    >>> losses.tolist(), found["w"].tolist()
    ([5.0, 9.0], [[2.0, 4.0], [6.0, 0.0]])
    """
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    losses_P = loss(leaves)
    found = torch.autograd.grad(losses_P.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return losses_P.detach(), dict(zip(leaves, found, strict=True))


def token_losses(logits_PBTV: torch.Tensor, targets_PBT: torch.Tensor, counted_PBT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, nats, of each lane over its counted positions, [P]."""
    losses = F.cross_entropy(logits_PBTV.flatten(0, 2).float(), targets_PBT.flatten(), reduction="none")
    counted = counted_PBT.to(losses.dtype)
    return (losses.view_as(counted) * counted).sum((1, 2)) / counted.sum((1, 2))


class AdamW:
    """AdamW (arXiv:1711.05101) in place, as torch.optim.AdamW does it, with a learning rate and a decay per lane.

    Matrices decay, vectors (biases, gains) do not. `clip`: the gradient of a lane is scaled to at most this norm.
    `lanes` holds everything that has lanes, to be given to `Alive.drop`; the weights stay the caller's dict.
    """

    def __init__(
        self,
        weights: Lanes,
        weight_decay_P: torch.Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float | None = None,
    ):
        self.weights, self.betas, self.clip = weights, betas, clip
        zeros = {kind: {n: torch.zeros_like(w) for n, w in weights.items()} for kind in ("first", "second")}
        self.first, self.second = zeros["first"], zeros["second"]
        self.decay: Lanes = {"decay": weight_decay_P}
        self.steps = torch.zeros((), dtype=torch.float64, device=weight_decay_P.device)

    @property
    def lanes(self) -> tuple[Lanes, ...]:
        """All that has lanes, the weights included: `alive.drop(positions, *optimizer.lanes)`."""
        return self.weights, self.first, self.second, self.decay

    @torch.no_grad()
    def step(self, gradients: Lanes, rates_P: torch.Tensor) -> None:
        """One step of every lane at its own rate."""
        self.steps.add_(1)
        beta1, beta2 = self.betas
        first_bias, second_bias = ((1 - beta**self.steps).to(rates_P.dtype) for beta in self.betas)
        if self.clip is not None:
            gradients = clipped(gradients, self.clip)
        for name, weight in self.weights.items():
            gradient, first, second = gradients[name], self.first[name], self.second[name]
            rate = spread(rates_P, weight)
            if weight.ndim > 2:
                weight.mul_(1 - rate * spread(self.decay["decay"], weight))
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight.sub_(rate / first_bias * first / ((second / second_bias).sqrt() + EPSILON))


def clipped(gradients: Lanes, norm: float) -> Lanes:
    """Each lane's gradient, scaled down to length `norm` where it is longer."""
    squares = torch.stack([value.flatten(1).square().sum(1) for value in gradients.values()]).sum(0)
    scale = (norm / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)
    return {name: value * spread(scale, value) for name, value in gradients.items()}
