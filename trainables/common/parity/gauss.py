"""Pooled Gauss: draw as many samples from a pool as the secret has bits, solve, look whether the solution is right.

A draw succeeds when all its samples are free of noise, with chance (1 - tau)^n. T draws, R rows
"""

import numpy as np

from trainables.common.parity.samples import LABEL, Words

SPARE_ROWS = 10  # beyond the dimension: a draw lacks rank with a chance below 2**-10


def solve(rows_TR: Words, dimension: int) -> tuple[Words, np.ndarray]:
    """Gauss-Jordan elimination over F2 of many systems at once: solutions [T], and which systems have full rank [T].

    A solution uses the first independent rows only: each column's pivot is the first row below that has the bit.

    >>> solve(np.array([[1 << 62 | 0b01, 0b11]]), 2)
    (array([3]), array([ True]))
    """
    rows, each = rows_TR.copy(), np.arange(len(rows_TR))
    whole = np.full(len(rows), rows.shape[1] >= dimension)
    for column in range(min(dimension, rows.shape[1])):
        has = (rows[:, column:] >> column) & 1
        pivot = column + has.argmax(1)
        whole &= has.any(1)
        chosen = rows[each, pivot]
        rows[each, pivot] = rows[:, column]
        rows[:, column] = chosen
        hit = (rows >> column) & 1
        hit[:, column] = 0
        rows ^= hit * chosen[:, None]
    solved = (rows[:, :dimension] >> LABEL) & 1
    return (solved << np.arange(solved.shape[1])).sum(1), whole


def candidates(pool: Words, choices_TR: Words, dimension: int) -> Words:
    """Distinct solutions of the draws `choices` (places in the pool) that have full rank."""
    solutions, whole = solve(pool[choices_TR], dimension)
    return np.unique(solutions[whole])


def expected_draws(noise_rate: float, dimension: int) -> float:
    """Mean number of draws until one is free of noise: (1 - tau)^-n.

    >>> round(expected_draws(0.45, 12))
    1305
    """
    return (1 - noise_rate) ** -dimension
