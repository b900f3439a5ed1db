"""Fewer coordinates for more noise or more samples, in front of a solver (Blum, Kalai and Wasserman 2003).

Dropping keeps the samples whose query is zero on some bits: 2^-bits of them, no more noise.
Xoring adds up pairs of samples that agree on a block of bits, so that the block vanishes: each round halves the
samples and turns the noise rate tau into (1 - (1 - 2 tau)^2) / 2.
Bits are taken from the top: dropped ones first, then a block per round. What is left are the lowest bits.
"""

from dataclasses import dataclass

import numpy as np
import torch

from trainables.common.parity import walsh
from trainables.common.parity.samples import LABEL, Words, noise_after_xors


@dataclass(frozen=True)
class Reduction:
    """How many bits go: `dropped_bits` by keeping zeros, `block_bits` in each of `xor_rounds`."""

    dimension: int
    dropped_bits: int = 0
    xor_rounds: int = 0
    block_bits: int = 0

    @property
    def remaining(self) -> int:
        """Dimension that is left for the solver behind.

        >>> Reduction(20, dropped_bits=2, xor_rounds=2, block_bits=4).remaining
        10
        """
        return self.dimension - self.dropped_bits - self.xor_rounds * self.block_bits

    def noise_rate(self, noise_rate: float) -> float:
        return noise_after_xors(noise_rate, self.xor_rounds)

    def levels(self, samples: Words) -> list[Words]:
        """The samples after dropping, then after each round of xors; the last are for the solver."""
        found = [dropped(samples, self.dimension, self.dropped_bits)]
        top = self.dimension - self.dropped_bits
        for _ in range(self.xor_rounds):
            top -= self.block_bits
            found.append(xored(found[-1], top, self.block_bits))
        return found

    def whole_secret(self, known: int, samples: Words) -> int:
        """The secret from its lowest `remaining` bits: one block after the other by Walsh-Hadamard, dropped bits last.

        With the lower bits known, a sample of an earlier level is a sample of the block alone, with that level's noise.
        """
        levels, low = self.levels(samples), self.remaining
        for level in reversed(levels[:-1]):
            known |= _block(level, known, low, self.block_bits) << low
            low += self.block_bits
        if self.dropped_bits:
            known |= _block(samples, known, low, self.dropped_bits) << low
        return known


def dropped(samples: Words, dimension: int, bits: int) -> Words:
    """The samples whose highest `bits` are zero."""
    return samples[(samples >> (dimension - bits)) & ((1 << bits) - 1) == 0]


def xored(samples: Words, low: int, bits: int) -> Words:
    """Xors of disjoint pairs that agree on the block of `bits` from bit `low`; a class of odd size loses one.

    >>> [bin(word) for word in xored(np.array([0b101, 0b110, 0b011, 0b010]), 2, 1)]
    ['0b1', '0b11']
    """
    block = (samples >> low) & ((1 << bits) - 1)
    order = np.argsort(block, kind="stable")
    ordered, block = samples[order], block[order]
    first = np.flatnonzero(np.r_[True, block[1:] != block[:-1]])
    place = np.arange(len(block)) - np.repeat(first, np.diff(np.r_[first, len(block)]))  # within its class
    left = np.flatnonzero((place[:-1] % 2 == 0) & (block[1:] == block[:-1]))
    return ordered[left] ^ ordered[left + 1]


def _block(samples: Words, known: int, low: int, bits: int) -> int:
    """The secret's bits low .. low + bits - 1, given all below and none that matters above."""
    label = ((samples >> LABEL) & 1) ^ (np.bitwise_count(samples & known & ((1 << low) - 1)) & 1)
    block = (samples >> low) & ((1 << bits) - 1)
    return walsh.likeliest([torch.from_numpy(block | label.astype(np.int64) << LABEL)], bits)
