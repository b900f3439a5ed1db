"""Normalised entropy against hand-made attention, and against the definition in plain Python."""

from math import log

import pytest
import torch

from trainables.common.sequence.entropy import normalised_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_uniform_attention_has_entropy_one_and_attention_to_one_position_none(dtype):
    length = 8  # sums of powers of two: exact in every dtype but for the shares of 3, 5, 6 and 7
    uniform = (torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]).to(dtype)
    found = normalised_entropy(uniform)
    assert found.shape == (length - 1,) and found.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    one_hot = torch.zeros(length, length, dtype=dtype)
    one_hot[torch.arange(length), torch.tensor([0, 1, 0, 3, 2, 2, 6, 0])] = 1
    assert normalised_entropy(one_hot).tolist() == [0] * (length - 1)


def test_entropy_is_that_of_the_definition():
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 6, 6, dtype=torch.float64).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf)
    attention = scores.softmax(-1)
    found = normalised_entropy(attention)
    for lane in range(2):
        for head in range(3):
            for row in range(1, 6):
                shares = attention[lane, head, row, : row + 1].tolist()
                expected = -sum(share * log(share) for share in shares) / log(row + 1)
                assert abs(found[lane, head, row - 1].item() - expected) < 1e-12


def test_half_of_the_positions_by_hand():
    """Two of four positions alike: ln 2 / ln 4."""
    attention = torch.eye(4)
    attention[3] = torch.tensor([0.5, 0, 0.5, 0])
    torch.testing.assert_close(normalised_entropy(attention), torch.tensor([0, 0, 0.5]))


def test_gradients_reach_attention_with_zeros_without_becoming_nan():
    """A causal softmax has exact zeros, where x ln x has no derivative; scores get one all the same."""
    scores = torch.zeros(4, 4, requires_grad=True)
    attention = scores.masked_fill(~torch.ones(4, 4).tril().bool(), -torch.inf).softmax(-1)
    normalised_entropy(attention).sum().backward()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 1)])
def test_what_is_no_attention_is_refused(shape):
    with pytest.raises(ValueError, match=r"T, T\] with T at least 2"):
        normalised_entropy(torch.ones(shape))
