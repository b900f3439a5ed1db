"""Random numbers for lanes: each is a function of (lane's seed, purpose, counter) and of nothing else.

A lane draws the same alone, in any pack, on any device and after any interruption, and all lanes draw in one call.
Words are splitmix64's (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195): finalisers of a counter in golden
steps, here keyed twice, by seed and purpose and by counter.
"""

import hashlib
from collections.abc import Sequence
from math import pi, prod

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(word: int) -> int:
    """An unsigned 64-bit constant as the int64 of the same bits.

    >>> _signed(2**64 - 1)
    -1
    """
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: int64 shifts keep the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    words = (words ^ _shifted(words, 30)) * _signed(_MIX[0])
    words = (words ^ _shifted(words, 27)) * _signed(_MIX[1])
    return words ^ _shifted(words, 31)


class Streams:
    """One stream of random numbers per lane. P lanes.

    `purpose` keeps streams of one seed apart ("data", "init", "noise"); seeds may be any Python int.
    `counter` says where in the stream to draw, usually the step: the numbers of another counter are independent.

    >>> both, alone = Streams([3, 7], "noise"), Streams([7], "noise")
    >>> torch.equal(both.normal(5, 4)[1], alone.normal(5, 4)[0])
    True
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu"):
        keys = [hashlib.sha256(f"{purpose} {int(seed)}".encode()).digest()[:8] for seed in seeds]
        self.keys = torch.tensor([int.from_bytes(key, "big", signed=True) for key in keys], device=device)
        self.device = torch.device(device)

    def words(self, counter: int | torch.Tensor, *shape: int) -> torch.Tensor:
        """Uniform 64-bit words as int64, shape [P, *shape]."""
        count = prod(shape)
        places = torch.arange(1, count + 1, device=self.device) * _signed(_GOLDEN)
        start = _mixed(self.keys + _mixed(torch.as_tensor(counter, device=self.device) * _signed(_GOLDEN) + 1))
        return _mixed(start[:, None] + places).view(len(self.keys), *shape)

    def uniform(self, counter: int | torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform in [0, 1), shape [P, *shape]."""
        bits = 24 if dtype == torch.float32 else 53
        return _shifted(self.words(counter, *shape), 64 - bits).to(dtype) * 2.0**-bits

    def normal(self, counter: int | torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Standard normal (Box and Muller), shape [P, *shape]."""
        half = (prod(shape) + 1) // 2
        pairs = self.uniform(counter, 2, half, dtype=torch.float64)
        radius, angle = torch.sqrt(-2 * torch.log1p(-pairs[:, 0])), 2 * pi * pairs[:, 1]
        both = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 2).flatten(1)
        return both[:, : prod(shape)].reshape(len(self.keys), *shape).to(dtype)

    def integers(self, counter: int | torch.Tensor, below: int, *shape: int) -> torch.Tensor:
        """Whole numbers in [0, below), int64, shape [P, *shape]; below at most 2**31 (bias below 2**-32)."""
        return (_shifted(self.words(counter, *shape), 32) * below) >> 32

    def bits(self, counter: int | torch.Tensor, *shape: int) -> torch.Tensor:
        """Fair bits as int64 0 or 1, shape [P, *shape]: 64 to a word."""
        count = prod(shape)
        words = self.words(counter, (count + 63) // 64)
        spread = (words[:, :, None] >> torch.arange(64, device=self.device)) & 1
        return spread.flatten(1)[:, :count].reshape(len(self.keys), *shape)

    def signs(self, counter: int | torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Fair -1 or +1, shape [P, *shape]."""
        return (2 * self.bits(counter, *shape) - 1).to(dtype)

    def kept(self, positions: torch.Tensor) -> "Streams":
        """The streams of these positions, for a pack from which lanes were dropped."""
        new = object.__new__(Streams)
        new.keys, new.device = self.keys[positions], self.device
        return new
