"""Lanes' helpers against numpy on each lane by itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainables.common.lanes import Alive, per_lane, spread, unit


def test_a_field_of_every_lane_off_is_0():
    configs = [SimpleNamespace(rate=0.25, flag=True), SimpleNamespace(rate=None, flag=False)]
    assert per_lane(configs, "rate").tolist() == [0.25, 0.0]
    assert per_lane(configs, "flag", dtype=torch.float64).tolist() == [1.0, 0.0]
    with pytest.raises(AttributeError):
        per_lane(configs, "no_such_field")


def test_spread_multiplies_each_lane_by_its_own_number():
    values, like = torch.tensor([2.0, 3.0]), torch.ones(2, 4, 5)
    assert torch.equal(spread(values, like) * like, torch.stack([2 * torch.ones(4, 5), 3 * torch.ones(4, 5)]))


def test_unit_vectors_and_lengths_are_numpys_lane_by_lane():
    generator = torch.Generator().manual_seed(0)
    vectors = {"a": torch.randn(3, 4, 2, generator=generator), "b": torch.randn(3, 5, generator=generator)}
    scaled, length = unit(vectors)
    for lane in range(3):
        flat = np.concatenate([value[lane].flatten().numpy() for value in vectors.values()])
        assert float(length[lane]) == pytest.approx(np.linalg.norm(flat), rel=1e-6)
        got = np.concatenate([value[lane].flatten().numpy() for value in scaled.values()])
        assert np.allclose(got, flat / np.linalg.norm(flat), rtol=1e-6)


def test_a_zero_lane_stays_zero_and_a_nan_lane_touches_no_other():
    vectors = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0]])}
    scaled, length = unit(vectors)
    assert torch.allclose(scaled["a"][:2], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert length[:2].tolist() == [5.0, 0.0] and bool(length[2].isnan())


def test_dropping_lanes_keeps_the_names_of_those_that_stay():
    alive = Alive(6)
    weights, rates = {"w": torch.arange(12.0).view(6, 2)}, {"rate": torch.arange(6.0)}
    assert alive.drop([0, 4], weights, rates).tolist() == [1, 2, 3, 5]
    assert alive.drop([1], weights, rates).tolist() == [0, 2, 3]  # positions now, not names
    assert alive.lane == [1, 3, 5] == rates["rate"].tolist() and len(alive) == 3
    assert torch.equal(weights["w"], torch.arange(12.0).view(6, 2)[[1, 3, 5]])
    assert alive.drop([], weights).tolist() == [0, 1, 2]
    alive.drop([0, 1, 2], weights)
    assert len(alive) == 0 and weights["w"].shape == (0, 2)
