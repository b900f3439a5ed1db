"""Interpolated tensors against the definition, and the loss of a quadratic along the line against its parabola."""

import pytest
import torch

from trainables.common.interpolation import interpolate

A = {"weight": torch.tensor([[1.0, -2.0], [0.1, 5.0]]), "step": torch.tensor(7)}
B = {"weight": torch.tensor([[3.0, 2.0], [0.7, -5.0]]), "step": torch.tensor(7)}


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_the_line(alpha):
    between = interpolate(A, B, alpha)
    torch.testing.assert_close(between["weight"], (1 - alpha) * A["weight"] + alpha * B["weight"])
    assert between["step"] == 7


def test_ends_are_exact_and_nothing_is_shared():
    for alpha, end in ((0.0, A), (1.0, B)):
        between = interpolate(A, B, alpha)
        assert all(torch.equal(between[name], end[name]) for name in end)
        between["weight"].zero_()
        between["step"].zero_()
        assert end["weight"].abs().sum() > 0 and end["step"] == 7


def test_a_quadratic_loss_along_the_line_is_a_parabola():
    losses = [float(interpolate(A, B, alpha)["weight"].square().sum()) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    curvature = float((A["weight"] - B["weight"]).square().sum())
    second_differences = [losses[i] - 2 * losses[i + 1] + losses[i + 2] for i in range(3)]
    assert second_differences == pytest.approx([2 * curvature / 16] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": torch.tensor(8)}, "step is torch.int64, which has no values in between"),
        ({"weight": torch.zeros(3)}, "weight is torch.float32"),
        ({"more": torch.zeros(1)}, "only one has more"),
    ],
)
def test_ends_that_do_not_match_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        interpolate(A, {**B, **change}, 0.5)
