"""Data of a linear classification with label noise, drawn as Gram matrices: their size does not know the dimension.

An input is x = signal * y e_1 + N(0, I_p) with clean label y; its given label may be wrong. Among n inputs only their
inner products matter. Those of the p - 1 coordinates without signal are Wishart, L L^T with L lower triangular
(Bartlett 1933): normal below the diagonal, and chi of p - 1 - j degrees of freedom at its place j, counted from 0.
A further input has with them the inner products L z, z ~ N(0, I). Both hold in law for every p, with p - 1 < n columns
where the others are zero; so lanes of any dimension make one batch, and no array has p columns.
"""

# P lanes, N training inputs, M held-out inputs, J triangular coordinates (as many as N)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import special

from trainables.common.streams import Streams

NoiseKind = Literal["flip", "symmetric"]
CLASSES = 2
CHUNK_NUMBERS = 2**22  # of a Gram matrix or its held-out part, drawn at once; triangular inputs are not kept


def effective_rate(noise_rate: float, kind: NoiseKind, classes: int = CLASSES) -> float:
    """Chance that a given label is wrong: a symmetric draw over all classes may meet the clean one again.

    >>> effective_rate(0.25, "flip"), effective_rate(0.25, "symmetric"), effective_rate(0.25, "symmetric", classes=5)
    (0.25, 0.125, 0.2)
    """
    return noise_rate if kind == "flip" else noise_rate * (1 - 1 / classes)


@dataclass(frozen=True)
class Problem:
    """What a lane's data is drawn from."""

    seed: int
    dimension: int  # p, at least 2
    signal: float  # distance of a class mean from the origin
    noise_rate: float  # share of labels that are flipped or drawn anew
    noise_kind: NoiseKind


@dataclass(frozen=True)
class Split:
    """Inputs of the lanes as far as a dual model sees them, with their labels -1 and +1 (m of N or M)."""

    signal_Pm: torch.Tensor  # coordinate along e_1
    clean_Pm: torch.Tensor
    given_Pm: torch.Tensor
    gram_PNm: torch.Tensor  # inner products with the training inputs


def draw(
    problems: Sequence[Problem], samples: int, held_out: int, device: torch.device | str = "cpu"
) -> tuple[Split, Split]:
    """Training and held-out inputs of every lane; all numbers are functions of the lane's seed."""
    lanes = max(1, CHUNK_NUMBERS // (samples * max(samples, held_out)))
    parts = [_draw(problems[at : at + lanes], samples, held_out) for at in range(0, len(problems), lanes)]
    train, held = (
        Split(*(torch.cat(tensors).to(device) for tensors in zip(*map(_tensors, splits), strict=True)))
        for splits in zip(*parts, strict=True)
    )
    return train, held


def _tensors(split: Split) -> tuple[torch.Tensor, ...]:
    return split.signal_Pm, split.clean_Pm, split.given_Pm, split.gram_PNm


def _draw(problems: Sequence[Problem], samples: int, held_out: int) -> tuple[Split, Split]:
    clean_PN, given_PN, signal_PN = _labelled(problems, samples, "train")
    clean_PM, given_PM, signal_PM = _labelled(problems, held_out, "held out")
    lower_PNJ = triangular(problems, samples)
    coordinates_PMJ = _streams(problems, "held-out inputs").normal(0, held_out, samples, dtype=torch.float64)
    gram_PNN = lower_PNJ @ lower_PNJ.mT + signal_PN[:, :, None] * signal_PN[:, None, :]
    gram_PNM = lower_PNJ @ coordinates_PMJ.mT + signal_PN[:, :, None] * signal_PM[:, None, :]
    return Split(signal_PN, clean_PN, given_PN, gram_PNN), Split(signal_PM, clean_PM, given_PM, gram_PNM)


def triangular(problems: Sequence[Problem], samples: int) -> torch.Tensor:
    """L of the coordinates without signal: L L^T is Wishart of p - 1 degrees of freedom, shape [P, N, J]."""
    freedom_PJ = np.array([problem.dimension - 1 for problem in problems])[:, None] - np.arange(samples)
    uniform_PJ = _streams(problems, "triangular diagonal").uniform(0, samples, dtype=torch.float64).numpy()
    there_PJ = freedom_PJ > 0
    chi_PJ = np.sqrt(2 * special.gammaincinv(np.where(there_PJ, freedom_PJ, 1) / 2, uniform_PJ))
    lower_PNJ = _streams(problems, "training inputs").normal(0, samples, samples, dtype=torch.float64).tril(-1)
    return (lower_PNJ + torch.diag_embed(torch.from_numpy(chi_PJ))) * torch.from_numpy(there_PJ)[:, None, :]


def _labelled(problems: Sequence[Problem], count: int, split: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean labels, given labels and signal coordinates of a split, each [P, count].

    The noise rate is met exactly, as far as it divides the count: chance alone would make it another problem per seed.
    More noise hits the same labels and others.
    """
    clean = _streams(problems, f"{split} labels").signs(0, count, dtype=torch.float64)
    rates = torch.tensor([problem.noise_rate for problem in problems], dtype=torch.float64)
    order = _streams(problems, f"{split} noise").uniform(0, count, dtype=torch.float64).argsort(1).argsort(1)
    noisy = order < torch.round(rates * count)[:, None]
    any_class = _streams(problems, f"{split} random labels").signs(0, count, dtype=torch.float64)
    symmetric = torch.tensor([problem.noise_kind == "symmetric" for problem in problems])[:, None]
    given = torch.where(noisy, torch.where(symmetric, any_class, -clean), clean)
    signals = torch.tensor([problem.signal for problem in problems], dtype=torch.float64)[:, None]
    spread = _streams(problems, f"{split} signal coordinates").normal(0, count, dtype=torch.float64)
    return clean, given, signals * clean + spread


def _streams(problems: Sequence[Problem], purpose: str) -> Streams:
    return Streams([problem.seed for problem in problems], purpose)
