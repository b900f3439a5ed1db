"""Least-squares problems that many weights solve exactly, to watch what training prefers among the solutions.

Each is a mean of squared residuals with closed-form gradients, of samples picked per lane. Weights are one flat vector,
so that its Hessian is a plain matrix.
"""

# P lanes, M samples of a step, N samples in all, D weights, I inputs, H hidden

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainables.common.streams import Streams

Residuals = Callable[[torch.Tensor], torch.Tensor]  # of one vector of weights [D]
SelectedGradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of weights [P, D] and samples [P, M]


@dataclass(frozen=True)
class Problem:
    """start: weights [D] before training. residuals: of all samples, [D] -> [N], whose mean square is the loss.

    gradient: of the mean over picked samples, weights [P, D] and sample numbers [P, M] -> [P, D].
    select, report: residuals on points that are never trained on; without data, those that are trained.
    """

    start: torch.Tensor
    residuals: Residuals
    gradient: SelectedGradient
    samples: int
    select: Residuals
    report: Residuals


def toy4d(seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Problem:
    """L = F1(x1, x2) x3^2 + F2(x1, x2) x4^2: zero wherever x3 = x4 = 0, with Hessian eigenvalues 2 F1 > 2 F2 there.

    F1 = x1^2 + 6 x2^2 + 8 and F2 = 4 (1 - x1)^2 + (1 - x2)^2 + 1 are our choice; F1 > F2 on the unit square. Their
    minima lie apart: F1 = 8 at (0, 0), F2 = 1 at (1, 1), F1 + F2 = 10.657 at (4/5, 1/7).
    Two samples, sqrt(2 F1) x3 and sqrt(2 F2) x4, so that the mean of their squares is L.
    """
    start = torch.cat(
        [
            Streams([seed], "place", device).uniform(0, 2, dtype=dtype),
            0.3 * Streams([seed], "distance", device).normal(0, 2, dtype=dtype),
        ],
        1,
    )[0]

    # F_k = squares_k . (x1^2, x2^2) + linear_k . (x1, x2) + constant_k
    squares, linear, constant = (
        torch.tensor(values, device=device, dtype=dtype)
        for values in ([[1.0, 6.0], [4.0, 1.0]], [[0.0, 0.0], [-8.0, -2.0]], [8.0, 6.0])
    )
    both = torch.arange(2, device=device)

    def heights(place: torch.Tensor) -> torch.Tensor:
        return place**2 @ squares.T + place @ linear.T + constant

    def residuals(x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(2 * heights(x[..., :2])) * x[..., 2:]

    def gradient(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        place, across = x[:, :2], x[:, 2:]
        weighted = 2 * (samples[:, :, None] == both).to(dtype).mean(1) * across
        lost = weighted * across  # the loss is F . lost
        return torch.cat([2 * place * (lost @ squares) + lost @ linear, 2 * heights(place) * weighted], 1)

    return Problem(start, residuals, gradient, 2, residuals, residuals)


def quadratic(
    seed: int, dimension: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> Problem:
    """L = x'Ax / 2 with eigenvalues 1, 1 - 0.9 / (D - 1), ..., 0.1 along random axes; D samples, one along each."""
    streams = Streams([seed], "axes", device)
    axes = torch.linalg.qr(streams.normal(0, dimension, dimension, dtype=torch.float64)[0])[0].to(dtype)
    eigenvalues = torch.linspace(1.0, 0.1, dimension, device=device, dtype=dtype)
    rows_ND = torch.sqrt(dimension / 2 * eigenvalues)[:, None] * axes
    start = Streams([seed], "place", device).normal(0, dimension, dtype=dtype)[0]

    def gradient(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        chosen_PMD = rows_ND[samples]
        left_PM1 = chosen_PMD @ x[:, :, None]
        return 2 / samples.shape[1] * (chosen_PMD.mT @ left_PM1).squeeze(-1)

    def residuals(x: torch.Tensor) -> torch.Tensor:
        return rows_ND @ x

    return Problem(start, residuals, gradient, dimension, residuals, residuals)


def tanh_net(
    seed: int,
    *,
    samples: int,
    inputs: int,
    hidden: int,
    held_out: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """f(x) = w2 . tanh(W1 x) fitted to random labels -1 and +1 of normal inputs; W1 ~ N(0, 1 / I), w2 ~ N(0, 1 / H)."""
    streams = {name: Streams([seed], name, device) for name in ("first", "second", "inputs", "labels")}
    start = torch.cat(
        [
            streams["first"].normal(0, hidden, inputs, dtype=dtype).flatten() / inputs**0.5,
            streams["second"].normal(0, hidden, dtype=dtype).flatten() / hidden**0.5,
        ]
    )
    points = streams["inputs"].normal(0, samples + 2 * held_out, inputs, dtype=dtype)[0]
    labels = streams["labels"].signs(0, samples + 2 * held_out, dtype=dtype)[0]
    size = hidden * inputs

    def residuals_of(rows: slice) -> Residuals:
        def residuals(weights: torch.Tensor) -> torch.Tensor:
            hidden_NH = torch.tanh(points[rows] @ weights[:size].view(hidden, inputs).T)
            return hidden_NH @ weights[size:] - labels[rows]

        return residuals

    def gradient(weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        x_PMI, first_PHI = points[chosen], weights[:, :size].view(-1, hidden, inputs)
        second_P1H = weights[:, None, size:]
        hidden_PMH = torch.tanh(x_PMI @ first_PHI.mT)
        left_PM1 = 2 / chosen.shape[1] * ((hidden_PMH * second_P1H).sum(2, True) - labels[chosen][:, :, None])
        back_PMH = left_PM1 * second_P1H * (1 - hidden_PMH**2)
        return torch.cat([(back_PMH.mT @ x_PMI).flatten(1), (left_PM1 * hidden_PMH).sum(1)], 1)

    parts = [slice(0, samples), slice(samples, samples + held_out), slice(samples + held_out, None)]
    trained, select, report = map(residuals_of, parts)
    return Problem(start, trained, gradient, samples, select, report)
