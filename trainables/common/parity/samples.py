"""Samples of parities with noise: (a, <a, s> + e mod 2), a uniform in F2^n, e = 1 with the noise rate.

P lanes, M samples, D inputs
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainables.common.streams import Streams

LABEL = 62  # the bit of a sample that holds its label
NOISE_BITS = 24  # of a word, its highest; the noise rate is honoured to 2**-24
MAX_DIMENSION = 64 - NOISE_BITS  # the query lies in the lowest bits of the same word
CHUNK = 2**20  # samples per counter of a stream
Words = np.ndarray[Any, np.dtype[np.int64]]  # packed samples or queries on the CPU


def parity(words: torch.Tensor) -> torch.Tensor:
    """Xor of the bits of each word, 0 or 1; words at least 0.

    >>> parity(torch.tensor([0, 1, 3, 2**40 + 6])).tolist()
    [0, 1, 0, 1]
    """
    for half in (32, 16, 8, 4, 2, 1):
        words = words ^ (words >> half)
    return words & 1


def labels(samples: torch.Tensor) -> torch.Tensor:
    return (samples >> LABEL) & 1


def queries(samples: torch.Tensor, dimension: int) -> torch.Tensor:
    return samples & ((1 << dimension) - 1)


def inputs(samples: torch.Tensor, dimension: int) -> torch.Tensor:
    """The query's bits as 0.0 or 1.0 and a last coordinate of 1, which carries the bias: shape [..., D + 1].

    >>> inputs(torch.tensor([6]), 3)
    tensor([[0., 1., 1., 1.]])
    """
    kind = torch.int32 if dimension < 31 else torch.int64  # the narrower, the faster
    words, places = queries(samples, dimension) | 1 << dimension, torch.arange(dimension + 1, device=samples.device)
    return ((words.to(kind)[..., None] >> places.to(kind)) & 1).float()


def secrets(seeds: Sequence[int], dimension: int, weights: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """A secret per lane with exactly `weights` ones at random places, int64, shape [P]."""
    order = Streams(seeds, "secret", device).uniform(0, dimension, dtype=torch.float64).argsort(1).argsort(1)
    ones = order < torch.tensor(weights, device=device)[:, None]
    return (ones.long() << torch.arange(dimension, device=device)).sum(1)


def labelled(words: torch.Tensor, secret_P: torch.Tensor, noise_rate_P: torch.Tensor, dimension: int) -> torch.Tensor:
    """Samples from uniform words of shape [P, M]: the low bits are the query, the highest decide about the noise."""
    query = queries(words, dimension)
    uniform = (words >> (64 - NOISE_BITS)) & ((1 << NOISE_BITS) - 1)
    noise = uniform < (noise_rate_P * 2.0**NOISE_BITS).long()[:, None]
    return query | (parity(query & secret_P[:, None]) ^ noise.long()) << LABEL


def pool(
    stream: Streams, secret_P: torch.Tensor, noise_rate_P: torch.Tensor, dimension: int, count: int
) -> torch.Tensor:
    """The first `count` samples of each lane, shape [P, count]; a smaller pool is the start of a larger one."""
    parts = []
    for counter, start in enumerate(range(0, count, CHUNK)):
        words = stream.words(counter, min(CHUNK, count - start))
        parts.append(labelled(words, secret_P, noise_rate_P, dimension))
    return torch.cat(parts, 1)


def agreements(samples: Words, candidates: Words, dimension: int) -> Words:
    """For each candidate secret, on how many samples its parity is the label: shape [candidates]."""
    low, label = samples & ((1 << dimension) - 1), (samples >> LABEL) & 1
    counts = [len(samples) - int(np.count_nonzero((np.bitwise_count(low & one) & 1) ^ label)) for one in candidates]
    return np.array(counts, dtype=np.int64)


def noise_after_xors(noise_rate: float, rounds: int) -> float:
    """Noise rate of the xor of 2^rounds samples: (1 - (1 - 2 tau)^(2^rounds)) / 2.

    >>> round(noise_after_xors(0.25, 3), 5)
    0.49805
    """
    return (1 - (1 - 2 * noise_rate) ** 2**rounds) / 2
