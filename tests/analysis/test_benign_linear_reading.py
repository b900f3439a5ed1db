"""Boundaries and verdicts of made tables against crossings and effects put into them, and pictures of the same."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from analysis.benign_linear_reading import CLAIMS, READING, STATISTICS, summary
from analysis.benign_linear_runs import boundaries, boundary_of, chosen, diagram
from analysis.claims import decide
from analysis.opening import open_records
from analysis.records import RecordsError
from tests.analysis.conftest import Sweep

RATIOS, NOISES, FRESH = (1.2, 2.0, 4.0, 16.0, 32.0, 64.0), (0.0, 0.1, 0.2), range(1000, 1003)
REPAIRS = ("none", "early_stop", "self_train_hard", "self_train_soft")
PLAIN = {
    "samples": 100, "signal": 6.0, "signal_exponent": 0.0, "noise_kind": "flip", "teacher_step": None, "rounds": 1,
    "held_out": 400, "boundary_excess": 0.02, "learning_rate": 1.0, "weight_decay": 0.0, "measurements": 24,
}  # fmt: skip


def harm(ratio, noise):
    """Excess error: twice the noise rate at the threshold, less by the square root of the ratio."""
    return 2 * noise * ratio**-0.5 if noise else 0.0


def trial(ratio, noise, repair, seed, excess, *, sweep="s", **fields):
    config = (
        PLAIN | {"ratio": ratio, "noise_rate": noise, "repair": repair, "seed": seed, "budget_steps": 3000} | fields
    )
    name = json.dumps(config, sort_keys=True)
    wobble = 0.01 * harm(ratio, noise) * ((7 * seed + round(10 * ratio)) % 5 - 2)
    error = excess + wobble if repair == "none" else 0.001 + wobble / 10
    return {
        "sweep": sweep, "study": "benign_linear", "trial": name, "key": name, "root": name, "scale": "laptop",
        "phase": "confirm" if seed >= 1000 else "tune", "status": "complete", "config": json.dumps(config),
        "seed": seed, "budget_steps": config["budget_steps"], "parameters": round(100 * ratio), "tokens_per_step": 100,
        "data_sha": "", "flops_nominal": 400.0 * 100 * ratio * config["budget_steps"], "select/error": noise + error,
        "report/error": error, "report/excess_error": error, "report/scaled_loss": 0.2 + error,
        "report/excess_scaled_loss": error, "report/excess_loss": error - 0.1, "select/excess": error,
        "select/boundary": abs(error - 0.02),
    }  # fmt: skip


def grid(repairs=REPAIRS, **fields):
    return [
        trial(ratio, noise, repair, seed, harm(ratio, noise), **fields)
        for ratio in RATIOS for noise in NOISES for repair in repairs for seed in (0, *FRESH)
    ]  # fmt: skip


@pytest.fixture
def records(tmp_path):
    def write(rows, axes=None, curves=False):
        spec = {"sweep": "s", "axes": axes or {"ratio": list(RATIOS)}, "conditions": ["ratio", "noise_rate", "repair"]}
        spec |= {"select": {"name": "select/error", "goal": "min"}, "report": {"name": "report/error", "goal": "min"}}
        steps = [
            {"sweep": "s", "trial": row["trial"], "key": row["key"], "step": step, "tokens": step,
             "select/error": row["select/error"], "train/memorised": 2.0 * at, "train/flipped": 4.0}
            for row in rows for at, step in enumerate((1, 100, 3000) if curves else (3000,))
        ]  # fmt: skip
        return open_records(
            Sweep(rows, steps, [{"sweep": "s", "stage": "", "executed_steps": 1}], spec).write(tmp_path)
        )

    return write


def decided(records, *ids):
    """Decisions by claim, on all claims or on some."""
    return {one.claim.id: one for one in decide([c for c in CLAIMS if c.id in ids or not ids], records, STATISTICS)}


def test_a_boundary_lies_where_a_straight_line_in_log_ratio_crosses():
    ratios = np.geomspace(1, 64, 7)
    for level in (0.05, 0.1, 0.2):
        exact = (0.8 / level) ** 2  # 0.8 r^-1/2 = level
        fine = np.geomspace(1, 300, 4000)
        assert boundary_of(fine, 0.8 * fine**-0.5, level) == pytest.approx(exact, rel=1e-3)
        line = 1 - np.log(ratios) / np.log(64)
        assert boundary_of(ratios, line, level) == pytest.approx(64 ** (1 - level))
    assert boundary_of([1, 2, 4, 8], [0.3, 0.0, 0.3, 0.0], 0.15) == pytest.approx(4 * 2**0.5)  # the last one counts
    assert boundary_of([1, 2], [0.3, 0.3], 0.1) == np.inf and boundary_of([1, 2], [0.0, 0.0], 0.1) == 0


def test_boundaries_are_those_put_in_and_their_intervals_hold_them(records):
    found = boundaries(diagram(records(grid())), 0.1).set_index("noise rate")
    assert found["boundary"][0.0] == 0
    for noise in (0.1, 0.2):
        row, exact = found.loc[noise], (2 * noise / 0.1) ** 2
        assert row["low"] <= row["boundary"] <= row["high"] and row["seeds"] == len(FRESH)
        assert row["boundary"] == pytest.approx(exact, rel=0.08)
        assert row["high"] / row["low"] < 1.1
    assert found["boundary"].is_monotonic_increasing


def test_the_interval_of_a_boundary_is_as_wide_as_seeds_make_it():
    """Of 12 seeds whose lines are shifted by a normal number it covers the true crossing in about nine of ten tries."""
    generator, inside = np.random.default_rng(3), 0
    for _ in range(40):
        rows = [
            {"seed": seed, "config.ratio": 2**at, "config.noise_rate": 0.2, "report/excess_error": 0.3 - at / 20 + off}
            for seed, off in enumerate(generator.normal(0, 0.03, 12)) for at in range(7)
        ]  # fmt: skip
        row = boundaries(pd.DataFrame(rows), 0.1).iloc[0]
        inside += bool(row["low"] <= 2**4 <= row["high"])
    assert 33 <= inside <= 40


def test_claims_are_decided_by_what_was_put_in(records):
    rows = grid() + grid(repairs=("none",), signal_exponent=0.25)
    found = decided(records(rows))
    assert {name: one.verdict for name, one in found.items()} == {
        "BL1a": "reproduced", "BL1b": "reproduced", "BL2a": "reproduced", "BL2b": "reproduced", "BL2c": "reproduced",
        "BL3": "reproduced", "BL4a": "contradicted", "BL4b": "reproduced", "BL4c": "reproduced",
        "BL4d": "contradicted", "BL5a": "reproduced", "BL5b": "reproduced", "BL6a": "reproduced",
        "BL6b": "reproduced", "BL7a": "reproduced", "BL7b": "reproduced", "BL8": "undecided",
    }  # fmt: skip
    assert found["BL4a"].estimate == pytest.approx(0.4 / 32**0.5, rel=0.02)
    assert found["BL4c"].parts["noise=0.2"] == pytest.approx((1.2 / 32) ** 0.5, rel=0.03)
    assert found["BL2a"].parts == pytest.approx({"p/n=1.2": 0.4 / 1.2**0.5, "p/n=2": 0.4 / 2**0.5}, rel=0.02)
    assert found["BL5b"].parts == pytest.approx(
        {"p/n=1.2": 0.001 - 0.4 / 1.2**0.5, "p/n=2": 0.001 - 0.4 / 2**0.5}, rel=0.02
    )
    assert "preset=boundary" in found["BL8"].why


@pytest.mark.parametrize("cost", [-0.01, 0.0])
def test_where_the_least_ratio_costs_nothing_on_a_seed_the_share_left_decides_nothing(records, cost):
    def free(config):
        return config["ratio"] == 1.2 and config["noise_rate"] == 0.2 and config["seed"] == 1001

    rows = [
        row | ({"report/excess_scaled_loss": cost} if free(json.loads(row["config"])) else {})
        for row in (
            trial(ratio, noise, "none", seed, harm(ratio, noise))
            for ratio in (1.2, 32.0) for noise in (0.1, 0.2, 0.3) for seed in (0, *FRESH)
        )
    ]  # fmt: skip
    found = decided(records(rows), "BL4c")["BL4c"]
    assert found.verdict == "undecided" and "noise=0.2" in found.why and found.roots == len(FRESH)
    assert "at p/n = 1.2: there is no cost to take a share of on seed 1001" in found.why


def test_harm_without_noise_contradicts_and_teachers_of_fixed_steps_decide_nothing(records):
    rows = [
        row | ({"report/excess_error": 0.03} if json.loads(row["config"])["noise_rate"] == 0 else {}) for row in grid()
    ]
    rows += [
        trial(ratio, noise, "self_train_hard", seed, 0.0, teacher_step=1000) | {"report/error": 0.3}
        for ratio in RATIOS for noise in NOISES for seed in (0, *FRESH)
    ]  # fmt: skip
    found = decided(records(rows), "BL1a", "BL6a")
    assert {name: one.verdict for name, one in found.items()} == {"BL1a": "contradicted", "BL6a": "reproduced"}


def test_a_diverged_run_leaves_its_claims_undecided(records):
    rows = grid()
    lost = '"ratio": 1.2, "noise_rate": 0.2, "repair": "none", "seed": 1000'
    rows = [row | ({"status": "diverged"} if lost in str(row["config"]) else {}) for row in rows]
    extra = [trial(ratio, 0.2, "none", 1003, harm(ratio, 0.2)) for ratio in RATIOS]
    found = decided(records(rows + extra), "BL2a", "BL4a")
    assert found["BL2a"].verdict == "undecided" and "1 of 8 runs diverged" in found["BL2a"].why
    assert found["BL4a"].verdict == "contradicted"


def searched_rows(found=9.0):
    """Proposals at five ratios for each noise rate; the excess is 0.02 at `found`."""
    rows = []
    for noise in (0.1, 0.2, 0.3):
        for ratio in (1.5, 4.0, found, 20.0, 60.0):
            seeds = (*range(6), *(FRESH if ratio == found else ()))
            excess = 0.02 * (found / ratio) ** 0.5
            for seed in seeds:
                row = trial(ratio, noise, "none", seed, excess, samples=200, signal_exponent=0.25)
                rows.append(row | {"select/error": 0.5 - row["report/error"]})  # quality would choose another ratio
    return rows


def test_the_ratio_found_is_the_one_nearest_to_the_boundary_whatever_its_error(records):
    there = records(searched_rows(), axes={"ratio": {"low": 1.2, "high": 64.0, "log": True}})
    table = summary(there)
    assert table["p/n found"].tolist() == [9.0] * 3 and table["noise rate"].tolist() == [0.1, 0.2, 0.3]
    assert table["excess there"].tolist() == pytest.approx([0.02] * 3, abs=0.002)
    found = decided(there, "BL8")["BL8"]
    assert found.verdict == "reproduced" and found.parts["noise=0.2"] == pytest.approx(0.0, abs=0.002)


def test_a_boundary_found_at_the_edge_of_what_was_searched_is_undecided(records):
    there = records(searched_rows(found=64.0), axes={"ratio": {"low": 1.2, "high": 64.0, "log": True}})
    found = decided(there, "BL8")["BL8"]
    assert found.verdict == "undecided" and "space.ratio.high" in found.why


def test_the_summary_has_a_column_per_ratio_and_the_boundary_of_the_unrepaired(records):
    table = summary(records(grid()))
    assert len(table) == len(NOISES) * len(REPAIRS)
    row = table[(table["noise_rate"] == 0.2) & (table["repair"] == "none")].iloc[0]
    assert row["p/n = 16"] == pytest.approx(0.1, rel=0.02) and row["seeds"] == len(FRESH)
    name = "excess below 0.02 from p/n"
    assert row[name].startswith(">64") and set(table[table["repair"] != "none"][name]) == {""}
    assert table[table["noise_rate"] == 0].iloc[0][name].startswith("<1.2")
    twice = [row for rounds in (1, 2) for row in grid(repairs=("none", "self_train_hard"), rounds=rounds)]
    assert name not in summary(records(twice)) and len(summary(records(twice))) == 2 * 2 * len(NOISES)


def test_tuned_rates_are_chosen_on_select_data_within_each_ratio(records):
    rows = []
    for ratio, best in ((1.2, 0.5), (4.0, 1.0)):
        for rate in (0.5, 1.0):
            for seed in (0, *(FRESH if rate == best else ())):
                row = trial(ratio, 0.2, "none", seed, 0.1, learning_rate=rate)
                rows.append(row | {"select/error": 0.2 + (rate != best), "report/error": 0.1 + (rate == best)})
    seen = chosen(records(rows))
    assert dict(zip(seen["config.ratio"], seen["config.learning_rate"], strict=True)) == {1.2: 0.5, 4.0: 1.0}


def test_figures_show_what_they_need_and_say_what_is_missing(records):
    budgets = [
        trial(ratio, 0.2, repair, seed, harm(ratio, 0.2), budget_steps=budget)
        for ratio in RATIOS[::2] for repair in REPAIRS for seed in (0, *FRESH) for budget in (30, 3000)
    ]  # fmt: skip
    small = [row for row in grid() if json.loads(row["config"])["ratio"] in RATIOS[::2]]
    search = {"ratio": {"low": 1.2, "high": 64.0}}
    for rows, axes, panels in (
        (small, None, {"diagram": 2, "repairs": 2, "curves": 2}),
        (budgets, None, {"diagram": 2, "repairs": 1, "curves": 2, "frontier": 3}),
        (searched_rows(), search, {"search": 1}),
    ):
        there, drawn = records(rows, axes, curves=True), {}
        for name, draw in READING.figures.items():
            if name in panels:
                drawn[name] = len(draw(there).axes)
            else:
                with pytest.raises(RecordsError, match=r"run preset=|searched"):
                    draw(there)
        assert drawn == panels


def test_the_diagram_writes_the_means_into_its_cells_and_the_curves_end_where_all_is_memorised(records):
    there = records(grid(repairs=("none",)), curves=True)
    cells = {text.get_text() for text in READING.figures["diagram"](there).axes[0].texts}
    assert {f"{harm(16.0, 0.2):.3f}", "0.000"} <= cells and len(READING.figures["diagram"](there).axes[0].texts) == 18
    lines = READING.figures["curves"](there).axes[1].lines
    assert len(lines) == len(RATIOS) and all(line.get_ydata()[-1] == 1.0 for line in lines)


def test_a_diagram_needs_two_ratios_and_one_problem(records):
    with pytest.raises(RecordsError, match="two ratios"):
        diagram(records([row for row in grid(repairs=("none",)) if '"ratio": 4.0' in row["config"]]))
    with pytest.raises(RecordsError, match="2 diagrams"):
        diagram(records(grid(repairs=("none",)) + grid(repairs=("none",), signal=12.0)))


def test_margins_are_on_the_side_that_the_words_say():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert all(earlier.hash != later.hash for earlier, later in pairwise(CLAIMS))
    assert all(claim.seeds == "fresh" and claim.statistic in READING.statistics for claim in CLAIMS)
