"""Residual networks against known parameter counts, torch's FLOP counter and a network written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from trainables.common.models.resnet import ResNet, forward_flops_per_image, running_statistics_held


def made(norm="none", channels=1, classes=5, width=4, blocks=(1, 2), seed=0):
    return ResNet(channels, classes, width, blocks, norm, generator=torch.Generator().manual_seed(seed))


def images(count=3, channels=1, size=9, seed=1):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def stirred(model, seed=2):
    """The same model with every weight drawn anew: none is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def test_resnet18_in_its_cifar_form_has_the_known_number_of_parameters():
    model = made("batch", channels=3, classes=10, width=64, blocks=(2, 2, 2, 2))
    assert sum(weight.numel() for weight in model.parameters()) == 11_173_962


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize(("channels", "width", "blocks", "size"), [(3, 8, (2, 1, 1), 9), (1, 6, (1,), 8)])
def test_flops_are_those_of_torchs_counter(norm, channels, width, blocks, size):
    model, count = made(norm, channels, 7, width, blocks), 2
    ours = forward_flops_per_image(channels, 7, width, blocks, size, size)
    with FlopCounterMode(display=False) as forward:
        loss = model(images(count, channels, size)).sum()
    assert forward.get_total_flops() == count * ours
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    stem = 2 * 9 * channels * width * size * size  # the pixels have no gradient
    assert backward.get_total_flops() == count * (2 * ours - stem)


def test_the_network_is_the_formula_written_out():
    model, pictures = stirred(made("none", blocks=(1, 1))), images()
    weights = dict(model.named_parameters())

    def convolved(x, name, stride, padding):
        return F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"], stride=stride, padding=padding)

    hidden = convolved(pictures, "stem", 1, 1).clamp_min(0)
    inner = convolved(hidden, "blocks.0.first", 1, 1).clamp_min(0)
    hidden = (hidden + convolved(inner, "blocks.0.last", 1, 1)).clamp_min(0)
    inner = convolved(hidden, "blocks.1.first", 2, 1).clamp_min(0)
    hidden = (convolved(hidden, "blocks.1.shortcut", 2, 0) + convolved(inner, "blocks.1.last", 1, 1)).clamp_min(0)
    logits = hidden.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(pictures), logits)


def test_without_normalisation_every_residual_branch_starts_at_zero():
    model = made("none", blocks=(2, 2))
    hidden = images(channels=4)
    assert torch.equal(model.blocks[1](hidden), hidden.clamp_min(0))
    assert torch.equal(model(images()), torch.zeros(3, 5))


def test_without_normalisation_the_signal_keeps_its_size_through_twenty_blocks():
    model = made("none", width=32, blocks=(20,))
    picked = images(8, 1, 8)
    hidden = F.relu(model.stem(picked))
    before = float(hidden.detach().square().mean())
    for block in model.blocks:
        torch.nn.init.normal_(block.last.weight, std=(2 / block.last.weight[0].numel() / 20) ** 0.5)
        hidden = block(hidden)
    assert before < float(hidden.detach().square().mean()) < 5 * before


def test_weights_depend_on_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.random.get_rng_state()
    one, again, other = made("batch"), made("batch"), made("batch", seed=1)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_group_norm_has_at_least_two_channels_a_group():
    for width in (2, 6, 8, 64):
        norm = made("group", width=width, blocks=(1,)).stem_norm
        assert width // norm.num_groups >= 2
    assert made("group", width=64, blocks=(1,)).stem_norm.num_groups == 32
    for width in (1, 3, 5, 9):  # no group of two or more channels divides them evenly, or all channels are one
        assert made("group", width=width, blocks=(1,)).stem_norm.num_groups == 1


def test_held_statistics_do_not_move_and_change_no_output():
    free, held = made("batch"), made("batch")
    before = {name: value.clone() for name, value in held.named_buffers()}
    expected = free(images())
    with running_statistics_held(held):
        found = held(images())
    assert torch.equal(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in held.named_buffers())
    held(images())  # outside it they move again
    assert all(torch.equal(a, b) for a, b in zip(held.buffers(), free.buffers(), strict=True))


@pytest.mark.parametrize("wrong", [{"norm": "layer"}, {"width": 0}, {"blocks": ()}, {"blocks": (2, 0)}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"no norm|at least"):
        made(**wrong)
