"""Points on the straight line between two checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate(tensors_a: Mapping[str, Tensor], tensors_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * a + alpha * b for each float tensor; all others must be equal in both and are passed on.

    `alpha` 0 and 1 give a and b exactly, and values outside [0, 1] lie beyond them. Names, shapes and dtypes must
    agree, else ValueError. Nothing of the result shares memory with a or b.

    >>> interpolate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if tensors_a.keys() != tensors_b.keys():
        lone = sorted(tensors_a.keys() ^ tensors_b.keys())
        raise ValueError(f"both ends need the same names; only one has {', '.join(lone[:5])}")
    between = {}
    for name, a in tensors_a.items():
        b = tensors_b[name].to(a.device)
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"{name} is {a.dtype} {list(a.shape)} at one end and {b.dtype} {list(b.shape)} at the other"
            )
        if a.is_floating_point():
            between[name] = torch.lerp(a, b, alpha)
        elif torch.equal(a, b):
            between[name] = a.clone()
        else:
            raise ValueError(f"{name} is {a.dtype}, which has no values in between, and differs at the two ends")
    return between
