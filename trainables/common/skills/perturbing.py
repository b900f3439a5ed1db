"""Perturbing chosen neurons of a forward pass, and the controls to compare with.

noise: h + size * unit * N(0, 1), one draw per text and neuron, the same at all positions of the text
zero, mean: h replaced by 0 or by its mean over training texts
"""

# B texts, T positions, L layers, F neurons

from collections.abc import Callable
from typing import Literal

import torch

Kind = Literal["noise", "noise_sigma", "zero", "mean"]
KINDS: tuple[Kind, ...] = ("noise", "noise_sigma", "zero", "mean")
RANDOM_KINDS: tuple[Kind, ...] = ("noise", "noise_sigma")
NEIGHBOURS = 5  # a matched control is one of so many nearest neurons


def top_neurons(order_LF: torch.Tensor, fraction: float, first_layer: int = 0) -> torch.Tensor:
    """The best of each layer from `first_layer` on, at least one, as a mask [L, F]."""
    count = max(1, round(fraction * order_LF.shape[1]))
    chosen = order_LF < count
    chosen[:first_layer] = False
    return chosen


def random_neurons(skill_LF: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many others of each layer, at random. Raises ValueError where fewer others are left."""
    chosen = torch.zeros_like(skill_LF)
    for layer, skill in enumerate(skill_LF):
        others = _others(skill)
        chosen[layer, others[torch.randperm(len(others), generator=generator)[: int(skill.sum())]]] = True
    return chosen


def matched_neurons(
    skill_LF: torch.Tensor, spread_LF: torch.Tensor, output_norm_LF: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """For each skill neuron another of its layer that is like it in spread of activation and in output norm.

    One of the `NEIGHBOURS` nearest that are not taken yet, in logarithms divided by their standard deviations.
    """
    chosen = torch.zeros_like(skill_LF)
    for layer, skill in enumerate(skill_LF):
        features = torch.stack([spread_LF[layer], output_norm_LF[layer]], 1).clamp_min(1e-12).log()
        features = features / features.std(0).clamp_min(1e-12)
        others = _others(skill)
        free = torch.ones(len(others), dtype=torch.bool)
        own = skill.nonzero()[:, 0]
        for neuron in own[torch.randperm(len(own), generator=generator)]:
            distance = (features[others] - features[neuron]).square().sum(1).masked_fill(~free, torch.inf)
            nearest = distance.topk(min(NEIGHBOURS, int(free.sum())), largest=False).indices
            taken = nearest[torch.randint(len(nearest), (1,), generator=generator)]
            free[taken] = False
            chosen[layer, others[taken]] = True
    return chosen


def _others(skill_F: torch.Tensor) -> torch.Tensor:
    others = (~skill_F).nonzero()[:, 0]
    if len(others) < int(skill_F.sum()):
        raise ValueError(f"controls need as many other neurons as chosen ones, got fraction above 0.5: {len(others)}")
    return others


def disturbance(
    kind: Kind, chosen_LF: torch.Tensor, size: float, mean_LF: torch.Tensor, spread_LF: torch.Tensor, seed: int
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """What is done to the activations [B, T, F] of a layer. Noise is a function of the seed and the order of calls."""
    generator = torch.Generator().manual_seed(seed)
    weight = chosen_LF.to(mean_LF.dtype)
    unit = size * (spread_LF if kind == "noise_sigma" else torch.ones_like(spread_LF)) * weight

    def disturb(layer: int, values: torch.Tensor) -> torch.Tensor:
        if kind in RANDOM_KINDS:
            # On the CPU, so that every device draws the same.
            drawn = torch.randn(len(values), values.shape[-1], generator=generator).to(values.device)
            return values + (drawn * unit[layer])[:, None]
        target = mean_LF[layer] if kind == "mean" else torch.zeros_like(mean_LF[layer])
        return torch.where(chosen_LF[layer], target, values)

    return disturb
