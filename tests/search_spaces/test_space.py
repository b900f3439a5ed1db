"""Parsed spaces against written-out products and closed forms; refusals against random wrong input."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import AxisRow, SpaceError, field_comments, field_types, parse


@dataclass(frozen=True)
class Config:
    method: Literal["wsd", "cosine"] = "wsd"
    peak_lr: float = 1e-3  # learning rate of the stable stretch, above 0
    layers: int = 2
    clip_norm: float | None = None  # largest gradient norm; None: off
    earlier_budgets: tuple[int, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    budget_steps: int = 400  # optimizer steps
    compile: bool = False
    shape: str = "linear"
    optimizer: Callable[..., Any] | str = "adamw"
    seed: int = 0


FIELDS = field_types(Config)
RATE = {"low": 1e-3, "high": 1e-2, "log": True, "points": 3}


def space(mapping, **more):
    return parse(mapping, fields=FIELDS, conditions=("budget_steps",), **more)


def test_what_is_written_decides_what_is_done():
    found = space(
        {
            "method": ["wsd", "cosine"], "peak_lr": RATE, "layers": {"low": 1, "high": 4}, "clip_norm": None,
            "earlier_budgets": [100, 200], "budget_steps": [400, 800], "shape": {"choices": ["linear", "sqrt"]},
            "compile": {"enumerate": [True, False]},
        },
        cells=("method",),
    )  # fmt: skip
    assert found.distributions() == {
        "peak_lr": FloatDistribution(1e-3, 1e-2, log=True),
        "layers": IntDistribution(1, 4),
        "shape": CategoricalDistribution(("linear", "sqrt")),
    }
    assert found.pinned == {"clip_norm": None, "earlier_budgets": (100, 200)}
    assert found.enumerated == {"method": ("wsd", "cosine"), "budget_steps": (400, 800), "compile": (True, False)}
    assert found.cells() == [{"method": "wsd"}, {"method": "cosine"}]
    assert found.enumerations() == [
        {"budget_steps": budget, "compile": on} for budget in (400, 800) for on in (True, False)
    ]
    assert len(found.enumerations(excluding=())) == 8
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_list_pins_a_field_that_holds_a_list_and_enumerates_any_other():
    assert space({"earlier_budgets": [100, 200]}).pinned["earlier_budgets"] == (100, 200)
    assert space({"earlier_budgets": []}).pinned["earlier_budgets"] == ()
    assert space({"earlier_budgets": [[], [100]]}).enumerated["earlier_budgets"] == ((), (100,))
    assert space({"betas": [[0.9, 0.95], [0.9, 0.99]]}).enumerated["betas"] == ((0.9, 0.95), (0.9, 0.99))
    assert space({"layers": [2]}).enumerated["layers"] == (2,)


def test_a_pinned_cell_axis_is_one_cell_and_no_cells_are_one_cell():
    assert space({"method": "wsd", "peak_lr": RATE}, cells=("method",)).cells() == [{"method": "wsd"}]
    assert space({"peak_lr": RATE}).cells() == [{}]
    assert space({"peak_lr": RATE}).enumerations() == [{}]


def test_values_take_the_type_of_their_field():
    found = space({"peak_lr": 1, "clip_norm": [1, None], "layers": {"low": 1, "high": 9, "log": True, "points": 3}})
    assert type(found.pinned["peak_lr"]) is float and found.enumerated["clip_norm"] == (1.0, None)
    assert found.grid() == [{"layers": 3}, {"layers": 1}, {"layers": 9}]
    assert all(type(point["layers"]) is int for point in found.grid())


def test_the_grid_is_geometric_or_linear_and_reads_well():
    points = sorted(point["peak_lr"] for point in space({"peak_lr": {**RATE, "points": 5}}).grid())
    assert points == [0.001, 0.00177828, 0.00316228, 0.00562341, 0.01]
    assert np.allclose(np.diff(np.log(points)), math.log(10) / 4, rtol=1e-5)
    linear = space({"clip_norm": {"low": 0.5, "high": 2.0, "points": 4}}).grid()
    assert sorted(point["clip_norm"] for point in linear) == [0.5, 1.0, 1.5, 2.0]
    stepped = space({"layers": {"low": 2, "high": 8, "step": 3}})
    assert sorted(point["layers"] for point in stepped.grid()) == [2, 5, 8]
    assert space({"layers": 3}).grid() == [{}]


def test_the_grid_is_the_product_of_its_axes_each_point_once():
    found = space({"peak_lr": RATE, "layers": {"low": 1, "high": 4, "points": 4}, "shape": {"choices": ["a", "b"]}})
    expected = set(itertools.product([0.001, 0.00316228, 0.01], [1, 2, 3, 4], "ab"))
    assert len(found.grid()) == 24 and {tuple(point.values()) for point in found.grid()} == expected


@given(st.integers(2, 40))
def test_a_first_part_of_the_grid_is_spread_over_all_of_it(points):
    order = [point["clip_norm"] for point in space({"clip_norm": {"low": 0, "high": 1, "points": points}}).grid()]
    assert abs(order[0] - 0.5) <= 0.5 / (points - 1) + 1e-6
    for first in range(3, points + 1):
        gaps = np.diff(np.sort(order[:first]))
        assert min(order[:first]) == 0 and max(order[:first]) == 1
        assert gaps.max() <= 4.01 / (first - 1) + 1 / (points - 1)


def test_edges_of_ranges_and_the_words_that_widen_them():
    found = space({"peak_lr": RATE, "layers": {"low": 2, "high": 20}, "shape": ["a", "b"]})
    assert found.at_edge({"peak_lr": 1e-3, "layers": 10}) == ["peak_lr"]
    assert found.at_edge({"peak_lr": 0.00316228, "layers": 20, "shape": "a"}) == ["layers"]
    assert found.at_edge({"peak_lr": 9.8e-3}) == ["peak_lr"]
    assert found.widen({"peak_lr": 1e-2, "layers": 2}) == ["space.peak_lr.high=0.022", "space.layers.low=-4"]
    many = space({"peak_lr": {**RATE, "points": 101}})
    flagged = [point for point in many.grid() if many.at_edge(point)]
    assert sorted(point["peak_lr"] for point in flagged) == [0.001, 0.01]


def test_the_rows_of_help():
    rows = space({"budget_steps": [400, 800], "peak_lr": RATE, "compile": False}).describe(field_comments(Config))
    assert rows == [
        AxisRow("budget_steps", "enumerated", "400, 800", "optimizer steps"),
        AxisRow("peak_lr", "searched", "1e-3 to 0.01 (log, 3 points)", "learning rate of the stable stretch, above 0"),
        AxisRow("compile", "pinned", "false", ""),
    ]


REFUSALS = [
    ({"peak_rl": 1e-3}, "did you mean peak_lr"),
    ({"nonsense": 1}, "There are: method, peak_lr"),
    ({"seed": [0, 1]}, "seeds=N"),
    ({"peak_lr": "3e-3"}, "write a dot"),
    ({"peak_lr": "high"}, "must be number, got 'high'"),
    ({"peak_lr": True}, "must be number"),
    ({"peak_lr": math.nan}, "must be number"),
    ({"layers": 2.0}, "whole number, got 2.0"),
    ({"layers": [1, 2.5]}, r"layers\[1\] must be whole number"),
    ({"compile": 1}, "true or false"),
    ({"compile": None}, "true or false"),
    ({"method": "wds"}, "did you mean wsd"),
    ({"method": ["wsd", "cosin"]}, "did you mean cosine"),
    ({"betas": [[0.9]]}, "betas"),
    ({"layers": []}, "empty list"),
    ({"shape": {"choices": []}}, "empty list"),
    ({"layers": [1, 2, 1]}, "names 1 twice"),
    ({"peak_lr": [1, 1.0]}, "names 1 twice"),
    ({"peak_lr": {"low": 1e-2, "high": 1e-3}}, "low < high"),
    ({"peak_lr": {"low": 1e-2, "high": 1e-2}}, "single value 0.01; pin it: peak_lr=0.01"),
    ({"shape": {"choices": ["linear"]}}, "single value"),
    ({"peak_lr": {"low": 0, "high": 1, "log": True}}, "log axis needs low > 0"),
    ({"peak_lr": {"low": 1e-3}}, "needs high"),
    ({"peak_lr": {}}, "needs low and high"),
    ({"peak_lr": {**RATE, "pionts": 3}}, "did you mean points"),
    ({"peak_lr": {**RATE, "points": 1}}, "points >= 2"),
    ({"peak_lr": {**RATE, "points": 2.5}}, "whole number"),
    ({"peak_lr": {"low": 0, "high": 1, "step": 0.3}}, "divide high - low"),
    ({"peak_lr": {"low": 0, "high": 1, "step": 0.5, "points": 3}}, "drop one"),
    ({"peak_lr": {"low": 1, "high": 4, "step": 1, "log": True}}, "drop one"),
    ({"peak_lr": {"low": 0, "high": 1, "choices": [1]}}, "mixes choices with"),
    ({"shape": {"choices": "linear"}}, "must be a list"),
    ({"shape": {"low": 0, "high": 1}}, "numeric field"),
    ({"compile": {"low": 0, "high": 1}}, "numeric field"),
    ({"betas": {"choices": [[0.9, 0.95], [0.9, 0.99]]}}, "enumerate such values"),
    ({"budget_steps": {"low": 100, "high": 800}}, "is a condition.*maximise quality"),
    ({"budget_steps": {"choices": [100, 800]}}, "is a condition"),
]


@pytest.mark.parametrize(("mapping", "words"), REFUSALS)
def test_what_cannot_be_honoured_is_refused_with_the_way_out(mapping, words):
    with pytest.raises(SpaceError, match=words):
        space(mapping)


def test_conditions_may_be_searched_for_a_boundary_and_shape_fields_never():
    budget = {"budget_steps": {"low": 100, "high": 800}}
    assert "budget_steps" in space(budget, locates_boundary=True).searched
    with pytest.raises(SpaceError, match="shape of a batch"):
        space({"layers": {"low": 1, "high": 4}}, shape_fields=("layers",))


def test_cells_must_be_axes_that_are_not_searched():
    with pytest.raises(SpaceError, match=r"tuning cells are made of 'metod'.*did you mean method"):
        space({"method": "wsd"}, cells=("metod",))
    with pytest.raises(SpaceError, match="makes the tuning cells"):
        space({"method": {"choices": ["wsd", "cosine"]}}, cells=("method",))


def test_grids_that_cannot_be():
    with pytest.raises(SpaceError, match=r"peak_lr has none; set space.peak_lr.points=4"):
        space({"peak_lr": {"low": 0.1, "high": 1}}).grid()
    with pytest.raises(SpaceError, match="fewer whole numbers"):
        space({"layers": {"low": 1, "high": 3, "points": 5}}).grid()
    with pytest.raises(SpaceError, match="sampler=qmc"):
        space({name: {"low": 0.1, "high": 1, "points": 200} for name in ("peak_lr", "clip_norm")}).grid()


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["wsd", "x", "1e-3", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["low", "high", "log", "points", "step", "choices", "enumerate", "x"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), anything, max_size=3))
def test_anything_is_either_a_space_of_fitting_values_or_one_clear_refusal(mapping):
    try:
        found = space(mapping)
    except SpaceError as error:
        assert len(str(error)) > 20
        return
    assert set(found.searched) | set(found.enumerated) | set(found.pinned) == set(mapping)
    for axis in found.distributions().values():
        assert not axis.single()
    assert all(len(values) >= 1 for values in found.enumerated.values())
    found.describe()
    found.identity()


@given(
    st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.booleans(), st.integers(2, 30)
)  # fmt: skip
def test_every_grid_point_lies_in_its_range_and_the_ends_belong_to_it(low, ratio, log, points):
    high = low * ratio
    found = space({"peak_lr": {"low": low, "high": high, "log": log, "points": points}})
    values = [point["peak_lr"] for point in found.grid()]
    assert len(values) == points and min(values) == low and max(values) == high
    assert all(found.distributions()["peak_lr"]._contains(value) for value in values)
