"""The reading of SAM's bias against tables whose truth is known, and against the study's own functions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from analysis.choice import trial_frame
from analysis.claims import Evidence, Observation
from analysis.records import Records, RecordsError
from analysis.sam_bias_reading import (
    CLAIMS,
    HEIGHTS,
    MINIMIZED,
    NAMES,
    READING,
    STATISTICS,
    TOY_MINIMA,
    half_fall,
)
from analysis.stats import claim_p
from trainables.common.curvature import gram_spectrum, jacobian
from trainables.common.zero_loss import toy4d
from trainables.sam_modes import MODES

SEEDS = (0, 10, 11, 12)
CONFIG = dict(
    problem="toy4d", mode="full_sam", radius=0.2, learning_rate=0.01, group=1, warm_steps=10, budget_steps=100
)
SPEC = {
    "sweep": "s", "study": "sam_bias", "select": {"name": "select/sharpness", "goal": "min"},
    "report": {"name": "report/sharpness", "goal": "min"},
}  # fmt: skip


def made(trials) -> Records:
    """Records of (config changes, final metrics, curve as {step: metrics}) for every seed; metrics of the seed."""
    rows, measurements = [], []
    for changes, final, curve in trials:
        for seed in SEEDS:
            config = {**CONFIG, **changes, "seed": seed}
            trial = json.dumps(config, sort_keys=True)
            metrics = {"loss": 1e-3, "lambda_1": 16.0, "lambda_min": 2.0, "trace": 22.0, "top_share": 0.7,
                       "alignment": 1.0, "norm": 1.0} | final(seed)  # fmt: skip
            rows.append(
                {"sweep": "s", "study": "sam_bias", "trial": trial, "key": trial, "status": "complete", "seed": seed,
                 "phase": "tune" if seed == 0 else "confirm", "config": json.dumps(config), "root": str(seed),
                 "budget_steps": 100, "parameters": 4, "tokens_per_step": 2, "data_sha": "", "scale": "tiny",
                 "name": trial, "error": None, "varying": [], "report/document_losses": None, "cell": "",
                 **{f"config.{name}": value for name, value in config.items()}, **metrics,
                 "select/sharpness": metrics["trace"], "report/sharpness": metrics["trace"]}
            )  # fmt: skip
            for step, values in curve(seed).items():
                measurements.append(
                    {"sweep": "s", "trial": trial, "step": step, "key": f"{trial}{step}", "x1": 0.1, "x2": 0.1,
                     "phase2_time": max(0, step - 11) * 4e-4, **metrics, **values}
                )  # fmt: skip
    ledger = pa.table({"sweep": ["s"], "stage": ["x"], "executed_steps": [1]})
    return Records(pa.Table.from_pylist(rows), pa.Table.from_pylist(measurements), ledger, sweeps=(SPEC,))


def observed(records: Records, statistic: str, **arguments) -> Observation:
    return STATISTICS[statistic](Evidence(records, trial_frame(records), {}, "any"), **arguments)


def falling(rate: float, steps=range(0, 4001, 5)):
    """lambda_1 = 16 + 4 exp(-rate t) after the trunk, t steps from its end at step 11."""
    return lambda seed: {5: {"lambda_1": 99.0}} | {11 + t: {"lambda_1": 16 + 4 * np.exp(-rate * t)} for t in steps}


def test_an_excess_is_relative_to_the_least_value_per_radius_and_seed():
    records = made(
        [({"radius": radius}, lambda seed, r=radius: {"lambda_1": 16 * (1 + r / 10 + seed / 1e4)}, lambda seed: {})
         for radius in (0.1, 0.2)]
    )  # fmt: skip
    parts = observed(records, "excess_over_minimum", column="lambda_1").parts
    assert list(parts.columns) == ["radius 0.1", "radius 0.2"] and list(parts.index) == list(SEEDS)
    assert parts.loc[10, "radius 0.2"] == pytest.approx(0.021)


def test_the_pace_has_the_exponent_it_was_made_with():
    for power in (1.0, 2.0):
        records = made(
            [({"radius": radius}, lambda seed: {}, falling(0.01 * (radius / 0.2) ** power))
             for radius in (0.1, 0.2, 0.4)]
        )  # fmt: skip
        found = observed(records, "pace_exponent", field="radius", expected=power).parts["exponent"]
        assert found.abs().max() < 0.02  # half the fall is found on straight lines between measurements
    flat = made([({"radius": r}, lambda seed: {}, lambda seed: {11: {}, 50: {}}) for r in (0.1, 0.2)])
    assert "falling sharpness" in observed(flat, "pace_exponent", field="radius", expected=2.0).missing


def test_half_of_a_straight_fall_is_half_way_and_a_rise_has_none():
    steps = np.arange(7.0) + 3
    assert half_fall(steps, 10 - np.arange(7.0)) == pytest.approx(3)
    assert half_fall(steps, np.arange(7.0)) is None


def test_a_limit_norm_is_compared_with_the_closed_form():
    rate, radius, top = 0.2, 0.1, 3.0
    exact = rate * radius * top / (2 - rate * top)
    records = made(
        [({"problem": "quadratic", "learning_rate": rate, "radius": radius},
          lambda seed: {"lambda_1": top, "norm": exact * (1 + 1e-7)}, lambda seed: {})]
    )  # fmt: skip
    parts = observed(records, "limit_norm_error").parts
    assert parts["all"].tolist() == pytest.approx([1e-7] * 4, rel=1e-6)


def test_changes_count_from_the_end_of_the_trunk_and_angles_over_the_last_half():
    curve = {5: {"top_share": 9.0}, 11: {"top_share": 0.2}, 61: {"alignment": 0.5}, 111: {"top_share": 0.5}}
    records = made([({}, lambda seed: {}, lambda seed: curve)])
    assert observed(records, "change_along_training", column="top_share").parts["all"].tolist() == pytest.approx(
        [0.3] * 4
    )
    assert observed(records, "misalignment").parts["all"].tolist() == pytest.approx([0.25] * 4)


def test_the_slope_on_groups_is_per_doubling():
    records = made(
        [({"mode": "m_sam", "group": m}, lambda seed, m=m: {"top_share": 0.4 - 0.05 * np.log2(m)}, lambda seed: {})
         for m in (1, 2, 8)]
    )  # fmt: skip
    assert observed(records, "slope_on_group", column="top_share").parts["per doubling"].tolist() == pytest.approx(
        [-0.05] * 4
    )


def test_a_diverged_trial_has_no_value():
    records = made([({}, lambda seed: {}, lambda seed: {})])
    rows = records.trials.to_pylist()
    rows[1] |= {"status": "diverged", "select/sharpness": float("nan")}
    seen = observed(replace(records, trials=pa.Table.from_pylist(rows)), "excess_over_minimum", column="trace")
    assert list(seen.parts.index) == [0, 11, 12] and "1 trials did not complete" in seen.exploratory


def test_the_claims_are_decided_as_their_numbers_say():
    """Statistic, direction and margin together, on numbers on either side."""
    by_id = {claim.id: claim for claim in CLAIMS}
    for id, good, bad in (("S1", 0.001, 0.5), ("S8", 0.05, 1.0), ("S11", -0.1, 0.1), ("S12", 0.1, -0.1)):
        claim = by_id[id]
        for value, side in ((good, 0), (bad, 1)):
            values = value * (1 + 0.01 * np.arange(4))
            assert claim_p(values, claim.direction, claim.margin)[side] < 0.01
    assert len(by_id) == len(CLAIMS) and all(claim.statistic in STATISTICS for claim in CLAIMS)
    assert {claim.condition["mode"] for claim in CLAIMS} <= set(MODES)


def test_heights_minima_and_names_are_the_studys():
    """The functions restated for the figure, against the Gauss-Newton matrix of the study's problem."""
    problem = toy4d(0)
    values = {"lambda_1": lambda s: s.top, "lambda_min": lambda s: s.smallest_positive, "trace": lambda s: s.trace}
    for height, least, name in HEIGHTS.values():
        for x, y in ((0.2, 0.7), least):
            at = torch.tensor([x, y, 0.0, 0.0], dtype=torch.float64)
            spectrum = gram_spectrum(jacobian(lambda w: problem.residuals(w["x"]), {"x": at}), 2)
            assert 2 * height(x, y) == pytest.approx(float(values[name](spectrum)), rel=1e-12)
        assert 2 * height(*least) == pytest.approx(TOY_MINIMA[name], rel=1e-12)
        grid = np.meshgrid(np.linspace(-1, 2, 61), np.linspace(-1, 2, 61))
        assert (height(*grid) >= height(*least) - 1e-12).all()
    assert set(NAMES) == set(MODES) and set(MINIMIZED) == set(MODES) - {"gd", "m_sam"}


def test_the_summary_has_a_row_per_setting_and_figures_are_drawn_or_say_why_not():
    toy = made([({"mode": mode}, lambda seed: {}, falling(0.05)) for mode in ("full_sam", "one_sam")]
               + [({"radius": 0.4}, lambda seed: {}, falling(0.2))])  # fmt: skip
    table = READING.summary(toy)
    assert len(table) == 3 and set(table["seeds"]) == {4} and list(table["minimizes"])[:2] == ["lambda_1", "trace"]
    for name in ("paths", "limits", "pace"):
        assert READING.figures[name](toy).axes
    with pytest.raises(RecordsError, match="problem=mlp_small"):
        READING.figures["top_share"](toy)
    net = made([({"problem": "mlp_small", "mode": mode}, lambda seed: {}, falling(0.05)) for mode in ("gd", "one_sam")])
    assert READING.figures["top_share"](net).axes
    with pytest.raises(RecordsError, match="problem=toy4d"):
        READING.figures["paths"](net)
