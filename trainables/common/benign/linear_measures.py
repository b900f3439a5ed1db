"""What a linear model is worth on inputs signal * y e_1 + N(0, I): by closed form or quadrature, not by samples."""

# P lanes, M held-out inputs, Q points of the quadrature

import torch
from torch.nn import functional

QUADRATURE_POINTS = 1001
QUADRATURE_REACH = 8.5  # standard deviations
LARGEST_LOG_SCALE = 30.0  # of one over the temperature
HALVINGS = 60


def clean_error(mean_P: torch.Tensor, spread_P: torch.Tensor) -> torch.Tensor:
    """Share of fresh inputs on the wrong side of their clean label: Phi(-mean / spread).

    Their margins y w.x are normal: mean = signal * w_1, spread = |w|.
    """
    return torch.special.ndtr(-mean_P / spread_P)


def expected_loss(mean_P: torch.Tensor, spread_P: torch.Tensor) -> torch.Tensor:
    """Mean logistic loss log(1 + exp(-z)) of margins z ~ N(mean, spread^2), by the trapezoidal rule."""
    points_Q = torch.linspace(
        -QUADRATURE_REACH, QUADRATURE_REACH, QUADRATURE_POINTS, dtype=mean_P.dtype, device=mean_P.device
    )
    weights_Q = torch.exp(-(points_Q**2) / 2)
    margins_PQ = mean_P[:, None] + spread_P[:, None] * points_Q
    return (functional.softplus(-margins_PQ) * weights_Q).sum(1) / weights_Q.sum()


def fitted_scale(outputs_PM: torch.Tensor, labels_PM: torch.Tensor) -> torch.Tensor:
    """One over the temperature at which the outputs' logistic loss on these labels is least, shape [P].

    A label counts as right with chance (M + 1) / (M + 2) (Platt 1999), so that outputs that separate the labels have a
    temperature too. The loss is convex in the scale: its slope is halved in on a log axis. Outputs that know nothing of
    the labels end at the largest temperature.
    """
    count = outputs_PM.shape[1]
    doubt = 1 / (count + 2)
    margins_PM = outputs_PM * labels_PM
    low_P = torch.full_like(margins_PM[:, 0], -LARGEST_LOG_SCALE)
    high_P = -low_P
    for _ in range(HALVINGS):
        middle_P = (low_P + high_P) / 2
        scaled_PM = margins_PM * middle_P.exp()[:, None]
        slope_P = (margins_PM * (torch.sigmoid(scaled_PM) - (1 - doubt))).sum(1)
        low_P, high_P = torch.where(slope_P < 0, middle_P, low_P), torch.where(slope_P < 0, high_P, middle_P)
    return ((low_P + high_P) / 2).exp()
