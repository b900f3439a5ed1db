"""Llama's forward pass is compared with one written out in explicit matrices, complex rotations and a full softmax."""

import pytest
import torch
import torch.nn.functional as F

from trainables.common.models.llama import Llama, LlamaShape, rotary_tables, rotate

SHAPE = LlamaShape(vocabulary=23, width=12, layers=2, heads=3, ffn_width=20, context=10)


def llama(seed: int = 0, **changes) -> Llama:
    return Llama(LlamaShape(**{**vars(SHAPE), **changes}), torch.Generator().manual_seed(seed))


def test_forward_equals_the_written_out_definition():
    model = llama().double()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the small initial weights, norms included
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    tokens_BT = torch.randint(SHAPE.vocabulary, (2, 7), generator=torch.Generator().manual_seed(2))
    expected = torch.stack([written_out(model, tokens_T) for tokens_T in tokens_BT])
    torch.testing.assert_close(model(tokens_BT), expected, rtol=0, atol=1e-6)  # the rotary tables are float32


def written_out(model: Llama, tokens_T: torch.Tensor) -> torch.Tensor:
    def rms_norm(x_TD, weight_D):
        return torch.stack([row / (row.square().mean() + 1e-5).sqrt() * weight_D for row in x_TD])

    def turned(x_TK):  # channel i and i + K/2 are the real and imaginary part of one number
        half = x_TK.shape[1] // 2
        number = torch.complex(x_TK[:, :half], x_TK[:, half:])
        speed = torch.tensor([10_000.0 ** (-2 * i / x_TK.shape[1]) for i in range(half)], dtype=torch.float64)
        angle = torch.arange(len(x_TK), dtype=torch.float64)[:, None] * speed
        number = number * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((number.real, number.imag), 1)

    positions, head = len(tokens_T), SHAPE.head_width
    x_TD = model.embedding.weight[tokens_T]
    for block in model.blocks:
        normed = rms_norm(x_TD, block.attention_norm.weight)
        queries, keys, values = (normed @ block.query_key_value.weight.T).split(SHAPE.width, dim=1)
        mixed = []
        for h in range(SHAPE.heads):
            columns = slice(h * head, (h + 1) * head)
            scores = turned(queries[:, columns]) @ turned(keys[:, columns]).T / head**0.5
            future = torch.arange(positions)[None, :] > torch.arange(positions)[:, None]
            weights = scores.exp() * ~future
            mixed.append(weights / weights.sum(1, keepdim=True) @ values[:, columns])
        x_TD = x_TD + torch.cat(mixed, 1) @ block.attention_out.weight.T
        normed = rms_norm(x_TD, block.ffn_norm.weight)
        gate, up = (normed @ block.gate_and_up.weight.T).split(SHAPE.ffn_width, dim=1)
        x_TD = x_TD + (gate * gate.sigmoid() * up) @ block.ffn_out.weight.T
    return rms_norm(x_TD, model.norm.weight) @ model.head.weight.T


def test_a_later_token_leaves_earlier_logits_as_they_are():
    model, tokens_BT = llama(), torch.arange(10)[None]
    changed = tokens_BT.clone()
    changed[0, 6] = 22
    before, after = model(tokens_BT), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=0)
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_rotary_scores_depend_on_the_distance_alone():
    cos_TK, sin_TK = rotary_tables(40, 8, torch.device("cpu"))
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    q_TK, k_TK = (rotate(vector.expand(1, 1, 40, 8), cos_TK, sin_TK)[0, 0] for vector in (query, key))
    scores = q_TK @ k_TK.T
    for distance in (0, 3, 17):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=2e-6)
    assert abs(scores[3, 0] - scores[5, 0]) > 1e-3


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = llama(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second, other = llama(seed=3), llama(seed=4)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert "norm" in name or not torch.equal(a, c)


def test_initial_spread():
    model = llama(width=96, heads=3, ffn_width=256, layers=8)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / 4 if name.endswith("_out.weight") else 0.02  # sqrt(2 * 8) = 4
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1), name
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), name


@pytest.mark.parametrize("tied", [False, True])
def test_parameter_count(tied):
    model = llama(tie_embeddings=tied)
    assert model.shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (model.head.weight is model.embedding.weight) == tied


def test_bf16_autocast_stays_near_and_keeps_the_shapes():
    model, tokens_BT = llama(), torch.arange(20).view(2, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(tokens_BT).detach()
    exact = model(tokens_BT).detach()
    assert rounded.dtype == torch.bfloat16 and rounded.shape == exact.shape
    assert float((rounded - exact).abs().max() / exact.abs().max()) < 0.03  # bf16 keeps 8 bits


def test_a_little_training_learns_a_repeating_text():
    model, tokens_BT = llama(width=24), torch.arange(80).view(8, 10) % 5
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "multiple of heads"),
        ({"width": 9}, "even width per head"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_impossible_shapes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        LlamaShape(**{**vars(SHAPE), **changes})


def test_a_sequence_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="at most context=10 tokens, got 11"):
        llama()(torch.zeros(1, 11, dtype=torch.long))
