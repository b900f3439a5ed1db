"""The reading of noisy labels against tables whose truth is known: excesses, thresholds, repairs, boundaries, edges."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from analysis.benign_reading import CLAIMS, READING, STATISTICS
from analysis.benign_runs import arms, boundary, chosen_arms, crossing, fitting_width
from analysis.choice import trial_frame
from analysis.claims import Evidence, decide, rule
from analysis.records import Records, RecordsError

FRESH = (1000, 1001, 1002, 1003, 1004)
CONFIG = dict(
    data="fashion_mnist", model="mlp", depth=1, blocks=[1, 1, 1], train_size=600, noise_kind="symmetric", width=16,
    noise_rate=0.0, repair="none", rounds=1, teacher_step=None, learning_rate=2e-3, weight_decay=0.0,
)  # fmt: skip
SPEC = {
    "sweep": "s", "study": "benign", "select": {"name": "select/least_error", "goal": "min"},
    "report": {"name": "report/error", "goal": "min"}, "axes": {"learning_rate": {"low": 1e-3, "high": 4e-3}},
    "conditions": ["width", "repair"],
}  # fmt: skip
RATES = {1e-3: 0.32, 2e-3: 0.30, 4e-3: 0.33}  # held-out error by learning rate: the middle one is chosen


def made(trials, budget=800, rates=RATES) -> Records:
    """Records of (config changes, seed -> metrics): on a tuning seed at each rate, and on fresh seeds at the best."""
    rows, measurements = [], []
    best = min(rates, key=rates.get)
    for changes, final in trials:
        runs = [(0, rate) for rate in rates] + [(seed, best) for seed in FRESH]
        for seed, rate in runs:
            config = {**CONFIG, "budget_steps": budget, **changes, "learning_rate": rate, "seed": seed}
            trial = json.dumps(config, sort_keys=True)
            excess = final(seed).get("excess", 0.0)
            error = final(seed).get("error", 0.2 + excess)
            metrics = {"select/error": rates[rate], "select/least_error": rates[rate], "train/noisy_error": 0.0,
                       "train/memorised": 1.0, **{k: v for k, v in final(seed).items() if "/" in k}}  # fmt: skip
            for kind in ("error", "loss", "scaled_loss"):
                metrics |= {f"report/{kind}": error, f"report/early_{kind}": error - excess}
                metrics[f"report/excess_{kind}"] = excess
            rows.append(
                {"sweep": "s", "study": "benign", "trial": trial, "key": trial, "status": "complete", "seed": seed,
                 "phase": "tune" if seed == 0 else "confirm", "config": json.dumps(config), "root": str(seed),
                 "budget_steps": config["budget_steps"], "parameters": 800 * config["width"], "tokens_per_step": 100,
                 "data_sha": "", "scale": "laptop", "name": trial, "error": None, "varying": [], "cell": "",
                 "flops_nominal": 1e9 * config["budget_steps"], "report/document_losses": None,
                 **{f"config.{name}": value for name, value in config.items()}, **metrics}
            )  # fmt: skip
            for step in (100, 400, 800):
                measurements.append({"sweep": "s", "trial": trial, "step": step, "key": f"{trial}{step}", **metrics})
    ledger = pa.table({"sweep": ["s"], "stage": ["x"], "executed_steps": [1]})
    return Records(pa.Table.from_pylist(rows), pa.Table.from_pylist(measurements), ledger, sweeps=(SPEC,))


def evidence_of(records: Records) -> Evidence:
    return Evidence(records, trial_frame(records), {}, "fresh")


def observed(records: Records, statistic: str, **arguments):
    return STATISTICS[statistic](evidence_of(records), **arguments)


def wiggle(seed: int) -> float:
    return (seed % 5 - 2) / 1000


HARMED = [
    ({"noise_rate": 0.4, "width": 4}, lambda seed: {"excess": 0.01, "train/noisy_error": 0.5}),
    ({"noise_rate": 0.4, "width": 16}, lambda seed: {"excess": 0.16 + wiggle(seed), "train/noisy_error": 0.08}),
    ({"noise_rate": 0.4, "width": 64}, lambda seed: {"excess": 0.05 - wiggle(seed)}),
]


def test_the_threshold_is_the_narrowest_net_that_fits_and_excess_is_read_there_per_seed():
    records = made(HARMED)
    seen = observed(records, "excess", kind="error", at="threshold")
    assert list(seen.parts.columns) == ["fashion_mnist mlp, width 16"] and list(seen.parts.index) == list(FRESH)
    assert seen.parts.iloc[:, 0].tolist() == pytest.approx([0.16 + wiggle(seed) for seed in FRESH])
    assert list(observed(records, "excess", kind="error", at="widest").parts) == ["fashion_mnist mlp, width 64"]
    assert observed(records, "excess", kind="error", at="all").parts.shape == (5, 3)
    assert not seen.edges and not seen.unfit
    with pytest.raises(RecordsError, match=r"no net fits 0.9 of its labels \(width 4 fits 0.50\)"):
        observed(made(HARMED[:1]), "excess", kind="error", at="threshold")


def test_widening_is_paired_by_seed():
    parts = observed(made(HARMED), "widening", kind="error").parts
    assert parts["fashion_mnist mlp"].tolist() == pytest.approx([0.11 + 2 * wiggle(seed) for seed in FRESH])


def test_what_a_repair_takes_away_is_a_share_of_what_noise_costs():
    """Errors 0.2 without noise, 0.4 with it; early stopping 0.25 and the students 0.3 and 0.35: shares by hand."""
    errors = {"none": 0.4, "early_stop": 0.25, "self_train_hard": 0.3, "self_train_soft": 0.35}
    noisy = [
        ({"noise_rate": 0.4, "repair": repair}, lambda seed, e=error: {"error": e + wiggle(seed)})
        for repair, error in errors.items()
    ]
    records = made([*noisy, ({}, lambda seed: {"error": 0.2 + wiggle(seed)})])
    repairs = ["early_stop", "self_train_hard", "self_train_soft"]
    parts = observed(records, "removed", kind="error", noise=0.4, repairs=repairs).parts
    assert parts.mean().tolist() == pytest.approx([0.75, 0.5, 0.25]) and len(parts) == 5
    against = observed(records.where(noise_rate=0.4), "against_early_stop", kind="error", repairs=repairs[1:]).parts
    assert against.mean().tolist() == pytest.approx([0.05, 0.10])
    with pytest.raises(RecordsError, match="no trial of self_train_soft has ended"):
        observed(made(noisy[:3]), "against_early_stop", kind="error", repairs=["self_train_soft"])


@pytest.mark.parametrize("calm", [0.45, 0.4])
def test_where_noise_costs_nothing_on_a_seed_its_share_decides_nothing(calm):
    """Errors 0.4 with noise, 0.2 without, but for one seed, whose net without noise is worse or as good."""
    errors = {"none": 0.4, "early_stop": 0.21, "self_train_hard": 0.21, "self_train_soft": 0.21}
    errors["early_stop"] = 0.4 if calm == 0.4 else 0.21  # 0 / 0 at that seed
    noisy = [
        ({"noise_rate": 0.4, "repair": repair}, lambda seed, e=error: {"error": e}) for repair, error in errors.items()
    ]
    records = made([*noisy, ({}, lambda seed: {"error": calm if seed == 1001 else 0.2})])
    words = "width 16, error with noise less that without: there is no cost to take a share of on seed 1001"
    for repairs in (["early_stop"], ["self_train_hard", "self_train_soft"]):
        seen = observed(records, "removed", kind="error", noise=0.4, repairs=repairs)
        assert list(seen.parts.index) == list(FRESH) and seen.parts.notna().all(axis=None)
        assert words in seen.unfit
    (ruling,) = rule([c for c in CLAIMS if c.id == "B6"], [seen])
    assert ruling.verdict == "undecided" and words in ruling.why


def test_training_longer_is_the_change_between_two_budgets():
    records = made(
        [({"budget_steps": b, "noise_rate": 0.2}, lambda seed, b=b: {"error": b / 1e4 + wiggle(seed)})
         for b in (900, 1600, 3200)]
    )  # fmt: skip
    parts = observed(records, "longer", kind="error", budgets=[900, 1600]).parts
    assert parts["fashion_mnist mlp, width 16"].tolist() == pytest.approx([0.07] * 5)


def test_claims_are_decided_on_their_own_side_of_the_margin():
    harmed = decide([c for c in CLAIMS if c.id in ("B2", "B4")], made(HARMED), STATISTICS)
    assert {one.claim.id: one.verdict for one in harmed} == {"B2": "reproduced", "B4": "contradicted"}
    calm = made([({"width": w}, lambda seed: {"excess": wiggle(seed)}) for w in (16, 64)])
    (decision,) = decide([c for c in CLAIMS if c.id == "B1"], calm, STATISTICS)
    assert decision.verdict == "reproduced" and abs(decision.estimate) < 0.001


def test_an_edge_counts_unless_a_config_inside_is_nearly_as_good():
    for low, counted in ((0.29, False), (0.2, True)):
        records = made(HARMED[1:2], rates={**RATES, 1e-3: low})
        edges = observed(records, "excess", kind="error", at="all").edges
        assert bool(edges) == counted and all("learning_rate.low" in words for words in edges)


def test_the_chosen_config_is_the_best_on_the_tuning_seed_and_settings_do_not_mix():
    records = made([*HARMED, ({"noise_rate": 0.4, "train_size": 300}, lambda seed: {"excess": 0.3})])
    rows = chosen_arms(evidence_of(records))
    assert set(rows["config.learning_rate"]) == {2e-3} and rows["fresh"].all()
    assert set(rows["setting"]) == {"fashion_mnist mlp n 600", "fashion_mnist mlp n 300"}
    frame = arms(trial_frame(records))
    small = rows[rows["setting"].str.endswith("300")]
    assert fitting_width(records, frame, "fashion_mnist mlp n 300", small) == 16


def test_the_boundary_is_where_the_line_between_noise_rates_crosses():
    """Excess = 0.4 * noise exactly: it passes 0.05 at 0.125; a net without harm never does."""
    records = made(
        [({"noise_rate": r}, lambda seed, r=r: {"excess": 0.4 * r + wiggle(seed)}) for r in (0.0, 0.2, 0.4)]
        + [({"noise_rate": r, "width": 64}, lambda seed: {"excess": wiggle(seed)}) for r in (0.0, 0.4)]
    )
    found = boundary(evidence_of(records), "fashion_mnist mlp", 0.05).set_index("width")
    assert found.loc[16, "noise"] == pytest.approx(0.125, abs=1e-9) and found.loc[16, "seeds"] == 5
    assert found.loc[16, "low"] < 0.125 < found.loc[16, "high"]
    # A seed's wiggle of 2e-3 at most moves the crossing by 2e-3 / 0.4.
    assert found.loc[16, "high"] - found.loc[16, "low"] < 2 * 2e-3 / 0.4
    assert np.isnan(found.loc[64, "noise"]) and np.isnan(found.loc[64, "high"])


def test_a_crossing_is_the_first():
    rates = np.array([0.0, 0.2, 0.4, 0.6])
    assert crossing(rates, np.array([0.0, 0.1, 0.0, 0.2]), 0.05) == pytest.approx(0.1)
    assert crossing(rates, np.array([0.1, 0.0, 0.0, 0.0]), 0.05) == 0.0


def test_students_of_students_are_arms_of_their_own():
    frame = trial_frame(made([({"repair": "self_train_hard", "rounds": 2, "teacher_step": 50.0}, lambda seed: {})]))
    assert set(arms(frame)["repair"]) == {"self_train_hard x2 from 50"}


def test_figures_draw_what_the_tables_hold_and_say_what_is_missing():
    noisy = [
        ({"noise_rate": r, "width": w, "repair": p}, lambda seed: {"excess": 0.1})
        for r in (0.0, 0.4) for w in (16, 64) for p in ("none", "early_stop", "self_train_hard")
    ]  # fmt: skip
    records = made(noisy)
    phase = READING.figures["phase"](records)
    texts = [text.get_text() for text in phase.axes[0].texts]
    assert texts == ["0.300"] * 4
    compute = READING.figures["compute"](records)
    labels = {text.get_text() for text in compute.legends[0].get_texts()}
    assert labels == {"left as it is, width 16", "early stopping, width 16", "self-training, hard labels, width 16",
                      "left as it is, width 64", "early stopping, width 64"}  # fmt: skip
    curves = READING.figures["curves"](records)
    assert [axes.get_title() for axes in curves.axes[:2]] == ["noise rate 0", "noise rate 0.4"]
    assert curves.axes[0].lines[0].get_xdata().tolist() == [100, 400, 800]
    with pytest.raises(RecordsError, match="several noise rates and several widths"):
        READING.figures["phase"](made(HARMED))
    students = made([({"noise_rate": 0.4, "repair": "self_train_hard"}, lambda seed: {})])
    for name in ("phase", "curves", "compute"):
        with pytest.raises(RecordsError, match="run preset=default"):
            READING.figures[name](students)
    with pytest.raises(RecordsError, match="repairs are compared under noise"):
        READING.figures["compute"](made([({}, lambda seed: {})]))


def test_the_summary_has_a_row_per_arm_and_means_over_fresh_seeds():
    table = READING.summary(made(HARMED))
    assert table["width"].tolist() == [4, 16, 64] and set(table["seeds"]) == {5}
    assert table["excess"].tolist() == pytest.approx([0.01, 0.16, 0.05])
    assert table["fits"].tolist() == pytest.approx([0.5, 0.92, 1.0])


def test_every_claim_has_a_statistic_and_an_own_name():
    assert {claim.statistic for claim in CLAIMS} <= set(STATISTICS)
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) and all(
        "preset=" in c.command or "B" in c.id for c in CLAIMS
    )
