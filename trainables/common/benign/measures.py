"""What is read off logits: errors and losses, margins, memorised labels, and one temperature that mends confidence."""

# N samples, K classes

from collections.abc import Mapping
from math import exp, isfinite, log, nan

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

SHARPEST = 1e3  # the temperature is sought between 1 / SHARPEST and SHARPEST


def error(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of samples whose largest logit is not that of their label; nan where a logit is not finite."""
    if not bool(logits_NK.isfinite().all()):
        return nan  # the net has diverged, and argmax would call its logits class 0
    return float((logits_NK.argmax(1) != labels_N).double().mean())


def loss(logits_NK: Tensor, labels_N: Tensor, temperature: float = 1.0) -> float:
    """Mean cross-entropy of softmax(logits / temperature), in nats."""
    return float(F.cross_entropy(logits_NK.double() / temperature, labels_N))


def fitted_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """The temperature T with the least mean cross-entropy of softmax(logits / T) (arXiv:1706.04599, section 4.2).

    A label counts as right with chance (N + 1) / (N + 2), else as any class (Platt 1999), so that logits which make no
    mistake have a temperature too. With these targets q the loss is convex in b = 1 / T, of slope
    mean_n sum_k (p_nk - q_nk) z_nk, p = softmax(b z); the root is sought by Brent's method in log b. Logits that know
    nothing of the labels get the largest temperature.
    """
    z_NK = logits_NK.double()
    doubt = 1 / (len(z_NK) + 2)
    own_N = z_NK.gather(1, labels_N[:, None])[:, 0]
    wanted = float(((1 - doubt) * own_N + doubt * z_NK.mean(1)).mean())

    def slope(log_b: float) -> float:
        return float((torch.softmax(exp(log_b) * z_NK, 1) * z_NK).sum(1).mean()) - wanted

    ends = -log(SHARPEST), log(SHARPEST)
    if not isfinite(slope(0.0)):  # the net has diverged
        return nan
    if slope(ends[0]) >= 0:
        return SHARPEST
    return 1 / SHARPEST if slope(ends[1]) <= 0 else exp(-brentq(slope, *ends))


def margins(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Logit of the label less the largest other one, [N]: negative where the label is missed.

    >>> margins(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0])).tolist()
    [2.0, -2.0]
    """
    own_N1 = logits_NK.gather(1, labels_N[:, None])
    others_NK = logits_NK.scatter(1, labels_N[:, None], -torch.inf)
    return (own_N1 - others_NK.amax(1, keepdim=True))[:, 0]


def training_measures(logits_NK: Tensor, given_N: Tensor, clean_N: Tensor) -> dict[str, float]:
    """Of training samples, against the labels that were given and the clean ones.

    memorised: share of the wrong labels that the net gives back (0 where none is wrong); margins on the given labels,
    their mean and 5 % quantile.
    """
    wrong_N = given_N != clean_N
    memorised_N = (logits_NK.argmax(1) == given_N) & wrong_N
    margins_N = margins(logits_NK, given_N).double()
    return {
        "train/noisy_error": error(logits_NK, given_N),
        "train/noisy_loss": loss(logits_NK, given_N),
        "train/clean_error": error(logits_NK, clean_N),
        "train/clean_loss": loss(logits_NK, clean_N),
        "train/wrong_labels": float(wrong_N.double().mean()),
        "train/memorised": float(memorised_N.sum()) / max(1, int(wrong_N.sum())),
        "train/margin_mean": float(margins_N.mean()),
        "train/margin_low": float(torch.quantile(margins_N, 0.05)),
    }


def clean_measures(
    final_NK: Tensor, early_NK: Tensor, clean_N: Tensor, temperatures: tuple[float, float]
) -> Mapping[str, float]:
    """Of test samples with clean labels: a net, the one that early stopping keeps, and by how much the first is worse.

    Each net's losses are raw and at its own temperature, which was fitted elsewhere.
    """
    found: dict[str, float] = {}
    for name, logits_NK, temperature in zip(("", "early_"), (final_NK, early_NK), temperatures, strict=True):
        found[f"report/{name}error"] = error(logits_NK, clean_N)
        found[f"report/{name}loss"] = loss(logits_NK, clean_N)
        found[f"report/{name}scaled_loss"] = loss(logits_NK, clean_N, temperature)
    for kind in ("error", "loss", "scaled_loss"):
        found[f"report/excess_{kind}"] = found[f"report/{kind}"] - found[f"report/early_{kind}"]
    return found
