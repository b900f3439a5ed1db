"""From a trained network, or any predictor, to the secret: it answers queries as a cleaner oracle, and Gauss solves.

To balance the labels a random bit r is appended to each query and xored into the answer: the secret gets one more
coordinate, which is 1, and a candidate without it is refused. What is left is verified on noisy samples by a z score.
"""

from collections.abc import Callable
from math import ceil

import numpy as np
import torch

from trainables.common.parity import gauss
from trainables.common.parity.samples import LABEL, Words, agreements, queries
from trainables.common.streams import Streams

ORACLE_QUERIES = 4096
DRAWS = 256
MIN_Z, SPARE_Z = 6.0, 3.0  # a candidate's z score must exceed the first; the secret's own is expected at their sum
Oracle = Callable[[torch.Tensor], torch.Tensor]  # queries [M] -> predicted bits [M]


def verification_samples(noise_rate: float) -> int:
    """Noisy samples that tell the secret from any candidate: ((MIN_Z + SPARE_Z) / (1 - 2 tau))^2, at least 256.

    >>> verification_samples(0.45)
    8100
    """
    return max(256, ceil(round(((MIN_Z + SPARE_Z) / (1 - 2 * noise_rate)) ** 2, 6)))


def verified(candidate: int, samples: Words, dimension: int) -> bool:
    """Does the candidate agree with noisy samples MIN_Z standard deviations more often than a coin?"""
    count = len(samples)
    agreed = int(agreements(samples, np.array([candidate]), dimension)[0])
    return (agreed - count / 2) / (0.5 * count**0.5) > MIN_Z


def worth_trying(error: float, dimension: int) -> bool:
    """Do DRAWS draws from an oracle of this error hold three clean ones, on average?

    >>> [worth_trying(error, 16) for error in (0.2, 0.25)]
    [True, False]
    """
    return DRAWS * (1 - min(max(error, 0.0), 1.0)) ** (dimension + 1) >= 3


def recover(oracle: Oracle, stream: Streams, counter: int, dimension: int, verification: Words) -> int | None:
    """The secret, if the oracle is good enough to give it away and noisy samples bear it out. One lane's stream."""
    balanced = dimension + 1
    words = queries(stream.words(2 * counter, ORACLE_QUERIES)[0], balanced)
    bit = words >> dimension
    answers = oracle(queries(words, dimension)).long() ^ bit
    pool = (words | answers << LABEL).cpu().numpy()
    rows = balanced + gauss.SPARE_ROWS
    choices = stream.integers(2 * counter + 1, ORACLE_QUERIES, DRAWS, rows)[0].cpu().numpy()
    found = gauss.candidates(pool, choices, balanced)
    found = found[found >> dimension == 1]
    if not len(found):
        return None
    best = int(found[agreements(pool, found, balanced).argmax()]) & ((1 << dimension) - 1)
    return best if verified(best, verification, dimension) else None
