"""Sequence models in lanes against torch.nn's own layers, loops over positions and finite differences."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainables.common.sequence import selective_scan as scans
from trainables.common.sequence.mixers import MIXERS, attention, rotated
from trainables.common.sequence.network import Architecture, Decoder, dropout, initial, logits, of_part, sinusoidal
from trainables.common.sequence.scan import linear_recurrence
from trainables.common.sequence.training import AdamW, clipped, gradients, token_losses
from trainables.common.streams import Streams

SEEDS = [3, 5, 8]
NETS = {
    "transformer": Architecture(7, 20, 16, ("attention", "attention"), heads=2),
    "rotary": Architecture(7, 20, 16, ("attention",), heads=2, positions="rotary"),
    "linear": Architecture(7, 20, 16, ("attention",), positions="linear", embedding="tied", norm=False),
    "gru": Architecture(7, 20, 16, ("gru", "gru"), positions="none", embedding="sinusoidal"),
    "lstm": Architecture(7, 20, 16, ("lstm",), positions="none", hidden=0),
    "ssm": Architecture(7, 20, 16, ("ssm", "ssm"), positions="none", state=4),
    "hybrid": Architecture(7, 20, 16, ("gru", "attention"), positions="none"),
    "features": Architecture(7, 20, 16, ("attention",), features=5, positions="none", bias=False, spread=0.02),
}


def inputs_of(net, rows=4, lanes=3):
    generator = torch.Generator().manual_seed(0)
    if net.features is not None:
        return torch.randn(lanes, rows, net.length, net.features, generator=generator)
    return torch.randint(net.vocabulary, (lanes, rows, net.length), generator=generator)


@pytest.fixture(params=list(NETS))
def net(request):
    return NETS[request.param]


def test_parameters_are_those_that_are_drawn(net):
    weights = initial(net, SEEDS)
    assert sum(value[0].numel() for value in weights.values()) == net.parameters
    assert all(value.shape[0] == len(SEEDS) and value.isfinite().all() for value in weights.values())


def test_a_lane_alone_is_the_lane_in_a_pack(net):
    inputs = inputs_of(net)
    packed = logits(net, initial(net, SEEDS), inputs)
    for lane, seed in enumerate(SEEDS):
        torch.testing.assert_close(logits(net, initial(net, [seed]), inputs[lane : lane + 1])[0], packed[lane])


def test_nothing_is_predicted_from_a_later_token(net):
    inputs, weights = inputs_of(net), initial(net, SEEDS)
    changed = inputs.clone()
    changed[:, :, 13] = (inputs[:, :, 13] + 1) % 7 if net.features is None else inputs[:, :, 13] + 1
    before, after = logits(net, weights, inputs), logits(net, weights, changed)
    assert torch.equal(before[:, :, :13], after[:, :, :13])
    assert not torch.equal(before[:, :, 13:], after[:, :, 13:])


def test_reading_in_parts_is_reading_at_once(net):
    inputs, weights = inputs_of(net), initial(net, SEEDS)
    whole, decoder = logits(net, weights, inputs), Decoder(net, weights)
    for start, stop in [(0, 9), (9, 10), (10, 11), (11, 20)]:
        torch.testing.assert_close(decoder.read(inputs[:, :, start:stop]), whole[:, :, stop - 1], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="21 positions, more than the net's length 20"):
        decoder.read(inputs[:, :, :1])


def test_maps_are_the_attention_that_the_fast_path_takes(net):
    inputs, weights, maps = inputs_of(net), initial(net, SEEDS), []
    torch.testing.assert_close(logits(net, weights, inputs, maps), logits(net, weights, inputs), atol=1e-5, rtol=1e-4)
    assert len(maps) == net.mixers.count("attention")
    for map_PBHTT in maps:
        assert map_PBHTT.shape == (len(SEEDS), 4, net.heads, net.length, net.length)
        torch.testing.assert_close(map_PBHTT.sum(-1), torch.ones(len(SEEDS), 4, net.heads, net.length))
        assert map_PBHTT.triu(1).count_nonzero() == 0


def test_the_gradient_of_each_lane_is_its_own(net):
    inputs = inputs_of(net, rows=2)

    def loss(weights, inputs):
        return logits(net, weights, inputs).square().mean((1, 2, 3))

    losses, packed = gradients(lambda weights: loss(weights, inputs), initial(net, SEEDS))
    for lane, seed in enumerate(SEEDS):
        alone, found = gradients(
            lambda weights, lane=lane: loss(weights, inputs[lane : lane + 1]), initial(net, [seed])
        )
        torch.testing.assert_close(alone[0], losses[lane])
        for name, value in found.items():
            torch.testing.assert_close(value[0], packed[name][lane], atol=1e-5, rtol=1e-3)


def filled(module, weights):
    """torch.nn's recurrent layer with the weights of lane 0."""
    names = {"weight_ih_l0": "input", "weight_hh_l0": "recurrent"}
    with torch.no_grad():
        for theirs, ours in names.items():
            getattr(module, theirs).copy_(weights[ours][0].mT)
        module.bias_ih_l0.copy_(weights["input_bias"][0])
        module.bias_hh_l0.copy_(weights["recurrent_bias"][0])
    return module


@pytest.mark.parametrize(("name", "layer"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_mixers_are_torchs(name, layer):
    net = NETS[name]
    weights = of_part(of_part(initial(net, [4]), "block0"), "mixer")
    x_PBTD = torch.randn(1, 3, 20, 16, generator=torch.Generator().manual_seed(1))
    theirs, _ = filled(layer(16, 16, batch_first=True), weights)(x_PBTD[0])
    torch.testing.assert_close(
        MIXERS[name].mix(net, weights, x_PBTD, {}, None).outputs[0], theirs, atol=1e-6, rtol=1e-5
    )


def test_attention_is_torchs():
    net = NETS["transformer"]
    weights = of_part(of_part(initial(net, [4]), "block0"), "mixer")
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([weights[name][0].mT for name in ("query", "key", "value")]))
        theirs.in_proj_bias.copy_(torch.cat([weights[f"{name}_bias"][0] for name in ("query", "key", "value")]))
        theirs.out_proj.weight.copy_(weights["out"][0].mT)
        theirs.out_proj.bias.copy_(weights["out_bias"][0])
    x_BTD = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(1))
    later = torch.ones(20, 20, dtype=torch.bool).triu(1)
    expected, maps = theirs(x_BTD, x_BTD, x_BTD, attn_mask=later, average_attn_weights=False)
    mine: list[torch.Tensor] = []
    torch.testing.assert_close(
        attention(net, weights, x_BTD[None], {}, mine).outputs[0], expected, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(mine[0][0], maps, atol=1e-6, rtol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    places = rotated(torch.stack([query, key]).view(1, 1, 2, 1, 8).expand(1, 1, 2, 30, 8), 0)[0, 0]
    scores = places[0] @ places[1].T
    for distance in (0, 3, 7):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rotated(query.view(1, 1, 1, 1, 8), 5)[0, 0, 0, 0], places[0][5])


def step_by_step(decay, inputs, start=None):
    state, states = torch.zeros_like(inputs[..., 0]) if start is None else start, []
    for decay_now, now in zip(decay.unbind(-1), inputs.unbind(-1), strict=True):
        state = decay_now * state + now
        states.append(state)
    return torch.stack(states, -1)


@pytest.mark.parametrize("positions", [1, 2, 3, 64, 67, 500])
def test_the_scan_is_the_recurrence_step_by_step(positions):
    generator = torch.Generator().manual_seed(positions)
    decay, inputs = torch.rand(3, 5, positions, generator=generator), torch.randn(3, 5, positions, generator=generator)
    start = torch.randn(3, 5, generator=generator)
    for first in (None, start):
        torch.testing.assert_close(
            linear_recurrence(decay, inputs, first), step_by_step(decay, inputs, first), atol=1e-5, rtol=1e-5
        )


def test_the_gradient_of_the_scan_is_right():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(2, 3, 11, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    start = torch.rand(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_recurrence, (*parts, start))


def selective_case():
    generator = torch.Generator().manual_seed(0)
    lanes, rows, positions, width, state = 2, 3, 9, 4, 5
    shapes = [(lanes, rows, positions, width)] * 2 + [(lanes, width, state)] + [(lanes, rows, positions, state)] * 2
    u, pace, decay, write, read = (torch.randn(shape, generator=generator) for shape in shapes)
    return u, F.softplus(pace), -decay.exp(), write, read


def selective_steps(u, pace, decay, write, read):
    """y of one lane by its definition, position by position."""
    state, shown = torch.zeros(u.shape[0], *decay.shape), []
    for t in range(u.shape[1]):
        state = torch.exp(pace[:, t, :, None] * decay) * state
        state = state + (pace[:, t] * u[:, t])[..., None] * write[:, t, None]
        shown.append((state * read[:, t, None]).sum(-1))
    return torch.stack(shown, 1), state


def test_the_selective_scan_is_its_definition():
    case = selective_case()
    shown, last = scans.selective_scan(*case)
    for lane in range(2):
        expected, state = selective_steps(*(part[lane] for part in case))
        torch.testing.assert_close(shown[lane], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(last[lane], state, atol=1e-5, rtol=1e-4)


def grouped_kernel(u, delta, A, B, C, *, return_last_state):
    """What mamba-ssm's kernel computes of channels [B, D, T] with groups [B, G, N, T], slowly."""
    groups, per_group = B.shape[1], A.shape[0] // B.shape[1]
    shown, last = [], []
    for group in range(groups):
        mine = slice(group * per_group, (group + 1) * per_group)
        y, state = selective_steps(u[:, mine].mT, delta[:, mine].mT, A[mine], B[:, group].mT, C[:, group].mT)
        shown.append(y.mT)
        last.append(state)
    assert return_last_state
    return torch.cat(shown, 1), torch.cat(last, 1)


def test_lanes_are_the_groups_of_mambas_kernel():
    case = selective_case()
    shown, last = scans._by_kernel(grouped_kernel, *case)
    expected, state = scans.selective_scan(*case)
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last, state, atol=1e-5, rtol=1e-4)


def test_mambas_kernel_is_found_where_it_is_installed(monkeypatch):
    package, module = ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = grouped_kernel
    for name, value in {"mamba_ssm": package, "mamba_ssm.ops": package, module.__name__: module}.items():
        monkeypatch.setitem(sys.modules, name, value)
    scans._kernel.cache_clear()
    try:
        assert scans._kernel() is grouped_kernel
    finally:
        scans._kernel.cache_clear()


def test_adamw_is_torchs_in_each_lane():
    rates, decays = torch.tensor([1e-1, 3e-2, 1e-2]).double(), torch.tensor([0.0, 0.1, 0.3]).double()
    generator = torch.Generator().manual_seed(0)
    first = {
        name: torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for name, shape in {"matrix": (4, 5), "bias": (5,)}.items()
    }
    x_PBI = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)

    def loss(weights, x_PBI):
        return (torch.bmm(x_PBI, weights["matrix"]) + weights["bias"][:, None]).pow(4).mean((1, 2))

    weights = {name: value.clone() for name, value in first.items()}
    ours = AdamW(weights, decays, betas=(0.9, 0.98), clip=0.5)
    for _ in range(5):
        ours.step(gradients(lambda weights: loss(weights, x_PBI), weights)[1], rates)
    for lane in range(3):
        own = {name: value[lane : lane + 1].clone().requires_grad_() for name, value in first.items()}
        groups = [
            {"params": [own["matrix"]], "weight_decay": float(decays[lane])},
            {"params": [own["bias"]], "weight_decay": 0.0},
        ]
        theirs = torch.optim.AdamW(groups, lr=float(rates[lane]), betas=(0.9, 0.98))
        for _ in range(5):
            theirs.zero_grad()
            loss(own, x_PBI[lane : lane + 1]).sum().backward()
            nn.utils.clip_grad_norm_(own.values(), 0.5)
            theirs.step()
        for name, value in own.items():
            torch.testing.assert_close(weights[name][lane], value[0].detach(), atol=1e-7, rtol=1e-6)


def test_a_short_gradient_is_not_clipped_and_a_long_one_gets_the_norm():
    found = clipped({"a": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}, 1.0)["a"]
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_token_losses_are_torchs_over_the_counted_positions():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(2, 3, 5, 7, generator=generator), torch.randint(7, (2, 3, 5), generator=generator)
    counted = torch.rand(2, 3, 5, generator=generator) < 0.5
    for lane, loss in enumerate(token_losses(scores, targets, counted)):
        torch.testing.assert_close(loss, F.cross_entropy(scores[lane][counted[lane]], targets[lane][counted[lane]]))


def test_dropout_keeps_the_mean_and_a_lane_drops_alike_in_any_pack():
    net = Architecture(7, 20, 16, dropout=0.25)
    both, alone = (dropout(net, Streams(seeds, "dropout"), 4) for seeds in (SEEDS, SEEDS[1:2]))
    ones = torch.ones(3, 50, 20, 16)
    first, second = both(ones), both(ones)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 4 / 3]))
    assert first.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(alone(ones[:1])[0], first[1])
    assert dropout(Architecture(7, 20), Streams(SEEDS, "dropout"), 4) is None


def test_state_bits_are_what_a_decoder_carries():
    for net in NETS.values():
        decoder = Decoder(net, initial(net, [0]))
        decoder.read(inputs_of(net, rows=1, lanes=1)[:, :, :12])
        carried = sum(value.numel() for memory in decoder.memories for value in memory.values())
        assert net.state_numbers(12) == carried and net.state_bits(12) == 32 * carried


def test_flops_are_those_that_torch_counts():
    for name in ("transformer", "gru", "lstm"):
        net, counter = NETS[name], FlopCounterMode(display=False)
        with counter:
            logits(net, initial(net, [0]), inputs_of(net, rows=1, lanes=1), maps=[])
        attentions = net.mixers.count("attention")
        masked = attentions * 2 * net.length * (net.length - 1) * net.width  # scores that a causal mask throws away
        assert net.flops(net.length) + masked == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixers": ("attention", "conv")}, "mixers out of"),
        ({"mixers": ()}, "mixers out of"),
        ({"heads": 3}, "heads divide width"),
        ({"width": 6, "heads": 2, "positions": "rotary"}, "even width per head"),
        ({"width": 7, "embedding": "sinusoidal"}, "even width, got 7"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_odd_nets_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Architecture(**{"vocabulary": 7, "length": 20, "width": 16, **values})


def test_sinusoidal_vectors_differ_and_have_one_length():
    table = sinusoidal(100, 16)
    torch.testing.assert_close(table.norm(dim=1), torch.full((100,), 8**0.5))
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1
