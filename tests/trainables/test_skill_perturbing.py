"""Noise, replacement and control neurons against their definitions, on made tensors."""

import pytest
import torch

from trainables.common.skills.perturbing import disturbance, matched_neurons, random_neurons, top_neurons


def test_noise_is_in_units_of_each_neurons_own_spread_and_one_draw_per_text():
    spread = torch.tensor([[0.1, 1.0, 10.0, 5.0]])
    chosen = torch.tensor([[True, True, True, False]])
    disturb = disturbance("noise_sigma", chosen, 0.5, torch.zeros(1, 4), spread, seed=3)
    added = disturb(0, torch.zeros(4000, 3, 4))
    assert torch.equal(added[:, 0], added[:, 1]) and torch.equal(added[:, 0], added[:, 2])
    assert torch.allclose(added[:, 0].std(0) / spread[0], torch.tensor([0.5, 0.5, 0.5, 0.0]), atol=0.02)
    absolute = disturbance("noise", chosen, 0.5, torch.zeros(1, 4), spread, seed=3)(0, torch.zeros(4000, 1, 4))
    assert torch.allclose(absolute[:, 0].std(0), torch.tensor([0.5, 0.5, 0.5, 0.0]), atol=0.02)


def test_replacing_changes_the_chosen_neurons_only():
    chosen, mean = torch.tensor([[True, False]]), torch.tensor([[3.0, 4.0]])
    values = torch.ones(1, 2, 2)
    replaced = {
        kind: disturbance(kind, chosen, 1.0, mean, mean, 0)(0, values)[0, 0].tolist() for kind in ("zero", "mean")
    }
    assert replaced == {"zero": [0.0, 1.0], "mean": [3.0, 1.0]}


def test_controls_are_as_many_others_and_matched_ones_are_alike():
    generator = torch.Generator().manual_seed(0)
    spread, norm = (torch.rand(2, 400, generator=generator).add(0.01) for _ in range(2))
    # Skill neurons of large spread, so that others at random are unlike them.
    skill = top_neurons((-spread).argsort(dim=-1).argsort(dim=-1), 0.1)
    off = {}
    for name, control in (
        ("random", random_neurons(skill, generator)),
        ("matched", matched_neurons(skill, spread, norm, generator)),
    ):
        assert not (control & skill).any() and torch.equal(control.sum(1), skill.sum(1))
        off[name] = float((spread[control].mean() - spread[skill].mean()).abs())
    assert off["matched"] < off["random"] / 3
    with pytest.raises(ValueError, match="as many other neurons"):
        random_neurons(torch.ones(1, 4, dtype=torch.bool), generator)
