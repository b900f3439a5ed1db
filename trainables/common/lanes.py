"""What fused studies share: numbers per lane, and which lanes of a pack still train. P lanes, A of them alive."""

from collections.abc import Sequence
from typing import Any

import torch

Lanes = dict[str, torch.Tensor]


def per_lane(
    configs: Sequence[Any], name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A config field of every lane, shape [P]; off (None) is 0.

    >>> from trainables.toys import Config
    >>> per_lane([Config(noise=0.5), Config(noise=0.25)], "noise")
    tensor([0.5000, 0.2500])
    """
    values = [getattr(config, name) for config in configs]
    return torch.tensor([0.0 if value is None else value for value in values], device=device, dtype=dtype)


def spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[P] as [P, 1, ..., 1], to multiply a tensor of as many axes as `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def unit(vectors: Lanes, floor: float = 1e-12) -> tuple[Lanes, torch.Tensor]:
    """Each lane's vector over all its tensors scaled to length one, and the lengths, shape [P].

    A lane of length zero stays zero: guarded, never NaN.
    """
    scale, length = inverse_length(vectors, floor)
    return {name: value * spread(scale, value) for name, value in vectors.items()}, length


def inverse_length(vectors: Lanes, floor: float = 1e-12) -> tuple[torch.Tensor, torch.Tensor]:
    """One over the length of each lane's vector over all its tensors, and the length, shape [P]; 0 for length zero."""
    squares = sum(value.reshape(len(value), -1).square().sum(1) for value in vectors.values())
    length = torch.sqrt(torch.as_tensor(squares))
    return torch.where(length > floor, 1 / length.clamp_min(floor), torch.zeros_like(length)), length


class Alive:
    """Which lanes still train: `lane[a]` is the lane at position a of the batch.

    >>> alive = Alive(4)
    >>> weights = {"w": torch.arange(4.0)[:, None]}
    >>> alive.drop([1, 3], weights)
    tensor([0, 2])
    >>> alive.lane, weights["w"].flatten().tolist()
    ([0, 2], [0.0, 2.0])
    """

    def __init__(self, count: int, device: torch.device | str = "cpu"):
        self.lane = list(range(count))
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.lane)

    def drop(self, positions: Sequence[int], *lanes: Lanes) -> torch.Tensor:
        """Take positions out of the batch, in place in each of `lanes`; the positions that stay, shape [A]."""
        gone = set(positions)
        stay = [position for position in range(len(self.lane)) if position not in gone]
        kept = torch.tensor(stay, dtype=torch.int64, device=self.device)
        for tensors in lanes:
            for name, value in tensors.items():
                tensors[name] = value.index_select(0, kept)
        self.lane = [self.lane[position] for position in stay]
        return kept
