"""The reading of SAM on a net: made tables against the ratios, slopes and crossings that were put into them."""

import json
from math import exp, log

import numpy as np
import pandas as pd
import pytest

from analysis.claims import decide
from analysis.opening import open_records
from analysis.records import RecordsError
from analysis.sam_net_reading import CLAIMS, READING, STATISTICS, summary
from analysis.sam_net_runs import ERROR, SPENT, TIME, TOP, TRACE, along, by_seed, chosen, name_of
from tests.analysis.conftest import Sweep

FRESH = (1000, 1001, 1002, 1003)
RATES = (0.02, 0.05, 0.1)


def trial(seed, radius=0.0, budget=200, *, rate=0.05, fresh=True, error=0.2, top=8.0, trace=40.0, **more):
    config = {"radius": radius, "sam_start_step": 0, "group": None, "decay_fraction": 0.2, "budget_steps": budget}
    config |= {"learning_rate": rate, "weight_decay": 5e-4, "seed": seed}
    config |= {name: more.pop(name) for name in list(more) if name in config}
    spent = budget if radius == 0 else 2 * budget - config["sam_start_step"]
    return {
        "sweep": "s", "study": "sam_net", "trial": json.dumps(config), "key": json.dumps(config),
        "phase": "confirm" if fresh else "tune", "status": "complete", "config": json.dumps(config), "root": str(seed),
        "scale": "laptop", "seed": seed, "budget_steps": budget, "budget_tokens": 32 * budget, "parameters": 10,
        "tokens_per_step": 32, "device": "a cpu", "data_sha": "", "cell": f"radius={radius}", "proposal": 0,
        "select/error": error + abs(log(rate / 0.05)), "train/error": 0.1, ERROR: error, TOP: top, TRACE: trace,
        "report/trace_standard_error": 1.0, SPENT: float(spent), TIME: 0.0, **more,
    }  # fmt: skip


def arm(radius, budget, value=lambda seed: {}, rates=RATES, **options):
    """Tuning trials at three rates, of which 0.05 is best, and fresh ones at the best."""
    tuned = [trial(0, radius, budget, rate=rate, fresh=False, **options) for rate in rates]
    return tuned + [trial(seed, radius, budget, rate=0.05, **{**options, **value(seed)}) for seed in FRESH]


@pytest.fixture
def opened(tmp_path):
    def write(rows, measurements=()):
        step = {"sweep": "s", "trial": "", "key": "", "step": 1, TOP: 1.0, TRACE: 1.0, SPENT: 1.0, TIME: 0.0}
        spec = {"sweep": "s", "study": "sam_net", "select": {"name": "select/error", "goal": "min"}}
        spec |= {"report": {"name": ERROR, "goal": "min"}, "conditions": ["budget_steps", "sam_start_step"]}
        spec |= {"axes": {"learning_rate": {"low": 0.02, "high": 0.1, "log": True, "points": 3}}}
        ledger = [{"sweep": "s", "stage": "x", "executed_steps": 1}]
        Sweep(rows, [*measurements] or [step], ledger, spec).write(tmp_path / "sweeps" / "s")
        return open_records(tmp_path)

    return write


def verdicts(records):
    return {one.claim.id: one for one in decide(CLAIMS, records, STATISTICS)}


def test_curvatures_and_errors_are_compared_with_sgd_by_seed_at_equal_steps_and_at_equal_gradients(opened):
    wobble = {seed: 0.01 * at for at, seed in enumerate(FRESH)}
    rows = [
        *arm(0.0, 200, lambda seed: {"top": 8.0 * exp(wobble[seed]), "error": 0.30 + wobble[seed]}),
        *arm(0.0, 400, lambda seed: {"top": 6.0, "error": 0.20 + 2 * wobble[seed]}),
        *arm(0.1, 200, lambda seed: {"top": 4.0 * exp(2 * wobble[seed]), "trace": 50.0, "error": 0.25 + wobble[seed]}),
        *arm(0.1, 400, lambda seed: {"top": 2.0, "trace": 20.0 + wobble[seed], "error": 0.19 + wobble[seed]}),
    ]
    found = verdicts(opened(rows))
    flat = found["SN1"]
    assert flat.verdict == "reproduced" and flat.parts == pytest.approx(
        {"SAM 0.1 at 200 steps": log(0.5) + 0.015, "SAM 0.1 at 400 steps": log(1 / 3)}
    )
    assert found["SN2"].verdict != "reproduced"  # the trace rises at 200 steps
    steps, gradients = found["SN3"], found["SN4"]
    assert steps.parts["SAM 0.1 at 200 steps"] == pytest.approx(-0.05)
    assert steps.parts["SAM 0.1 at 400 steps"] == pytest.approx(-0.01 - 0.015)
    assert gradients.parts == pytest.approx({"SAM 0.1 at 400 gradients": 0.05 - 0.015})
    assert gradients.verdict == "contradicted"
    assert found["SN6"].verdict == found["SN8"].verdict == "undecided" and "preset=groups" in found["SN6"].why


def test_a_rate_at_the_end_of_its_range_leaves_claims_undecided_and_says_how_to_widen_it(opened):
    rows = [*arm(0.0, 200), *arm(0.1, 200, lambda seed: {"top": 4.0 + seed / 1e6})]
    whole = verdicts(opened(rows))["SN1"]
    assert whole.verdict == "reproduced"
    for row in rows:
        if row["phase"] == "tune" and '"radius": 0.1' in row["config"]:
            row["select/error"] -= 2.0 * ('"learning_rate": 0.02' in row["config"])
    for row in rows:
        if row["phase"] == "confirm" and '"radius": 0.1' in row["config"]:
            row["config"] = row["config"].replace('"learning_rate": 0.05', '"learning_rate": 0.02')
    edge = verdicts(opened(rows))["SN1"]
    assert edge.verdict == "undecided" and "space.learning_rate.low" in edge.why


def test_a_lost_seed_leaves_claims_undecided(opened):
    rows = [*arm(0.0, 200), *arm(0.1, 200, lambda seed: {"top": 4.0 + seed / 1e6})]
    rows[-1]["status"] = "diverged"
    lost = verdicts(opened(rows))["SN1"]
    assert lost.verdict == "undecided" and "diverged" in lost.why


def test_late_sam_is_compared_with_sam_from_scratch(opened):
    rows = [
        *arm(0.1, 200, lambda seed: {"top": 4.0}),
        *arm(0.1, 200, lambda seed: {"top": 4.4 + seed / 1e5}, sam_start_step=80),
    ]
    late = verdicts(opened(rows))["SN5"]
    assert late.verdict == "reproduced"
    assert late.parts == pytest.approx({"from step 80 at 200 steps": log(4.41 / 4.0)}, abs=1e-3)
    assert name_of(0.1, 80) == "late SAM 0.1"


def test_slopes_on_group_are_those_put_in(opened):
    rows = []
    for at, group in enumerate((4, 16, 32)):
        doublings = (2, 4, 5)[at]

        def value(seed, doublings=doublings):
            trace = 40.0 * exp(0.1 * doublings + 0.01 * (seed - 1000) * doublings)
            return {"trace": trace, "top": trace * exp(-0.3 * doublings + (seed - 1000))}

        rows += arm(0.1, 200, value, rates=(0.05,), group=group)
    found = verdicts(opened(rows))
    assert found["SN6"].parts == pytest.approx({"200 steps": -0.3}) and found["SN6"].verdict == "reproduced"
    assert found["SN7"].parts == pytest.approx({"200 steps": 0.1 + 0.015}) and found["SN7"].verdict == "reproduced"


def test_m_sam_in_the_same_folder_changes_no_comparison_of_whole_batches(opened):
    rows = [
        *arm(0.0, 200, lambda seed: {"error": 0.3}),
        *arm(0.0, 400, lambda seed: {"error": 0.2}),
        *arm(0.1, 200, lambda seed: {"top": 4.0 + seed / 1e6, "error": 0.25 + seed / 1e6}),
    ]
    alone = verdicts(opened(rows))
    groups = [row for group in (4, 16) for row in arm(0.1, 200, rates=(0.05,), group=group, top=1.0, error=0.9)]
    both = verdicts(opened([*groups, *rows]))
    for name in ("SN1", "SN2", "SN3", "SN4"):
        assert both[name].parts == pytest.approx(alone[name].parts) and both[name].parts


def test_several_runs_in_one_cell_are_refused_with_what_differs():
    rows = pd.DataFrame([{"seed": 1, "budget": 200, "config.group": group, "group": group} for group in ("4", "16")])
    with pytest.raises(RecordsError, match=r"2 runs .* seed=1, budget=200; they differ in group"):
        by_seed(rows, pd.Series([1.0, 2.0]), ["budget"])
    assert by_seed(rows, pd.Series([1.0, 2.0]), "group").loc[1, "16"] == 2.0


def test_a_curvature_without_a_logarithm_leaves_claims_undecided(opened):
    rows = [*arm(0.0, 200), *arm(0.1, 200, lambda seed: {"trace": -1.0 if seed == 1003 else 20.0 + seed / 1e6})]
    for group in (4, 16):
        rows += arm(0.1, 200, lambda seed: {"top": -1.0 if seed == 1003 else 2.0}, rates=(0.05,), group=group)
    found = verdicts(opened(rows))
    assert found["SN2"].verdict == "undecided" and "1 of 8 rows have no trace above 0" in found["SN2"].why
    assert found["SN6"].verdict == "undecided" and "2 of 8 rows have no top eigenvalue or" in found["SN6"].why


def test_slopes_on_group_are_of_one_schedule_each(opened):
    rows = []
    for group in (4, 16):
        for decay, slope in ((0.0, 0.1), (0.2, -0.2)):
            trace = 40.0 * exp(slope * np.log2(group))
            rows += arm(0.1, 200, rates=(0.05,), group=group, trace=trace, top=1.0, decay_fraction=decay)
    found = verdicts(opened(rows))["SN7"].parts
    assert found == pytest.approx({"200 steps, decay 0.0": 0.1, "200 steps, decay 0.2": -0.2})


def paced(radius, pace, budget=40, start=10):
    """Runs whose log lambda_1 falls by `pace` per unit of time below SGD's, measured every 10 steps."""
    rows, measurements = [], []
    for seed in (0, *FRESH):
        options = {"fresh": seed != 0, "decay_fraction": 0.0, "sam_start_step": start if radius else 0}
        rows.append(trial(seed, radius, budget, **options))
        for step in range(10, budget + 1, 10):
            time = 0.05 * radius**2 * max(0, step - start) if radius else 0.0
            top = (9.0 + seed % 7 - 0.1 * step) * exp(-pace * time)
            measurements.append(
                {"sweep": "s", "trial": rows[-1]["trial"], "key": "", "step": step, TOP: top, TRACE: 3 * top,
                 SPENT: float(step), TIME: time}
            )  # fmt: skip
    return rows, measurements


def test_gaps_at_equal_time_are_those_put_in(opened):
    parts = [paced(0.0, 0.0), paced(0.1, 100.0), paced(0.2, 160.0)]
    records = opened([row for rows, _ in parts for row in rows], [m for _, measured in parts for m in measured])
    found = verdicts(records)["SN8"]
    time = 0.05 * 0.1**2 * 30  # that of the smallest radius, all of it
    assert found.parts == pytest.approx({"0.2 against 0.1": -60.0 * time})
    assert found.verdict == ("reproduced" if 60 * time < log(1.5) else "contradicted")
    curves = along(records, chosen(records))
    assert set(curves["step"]) == {10, 20, 30, 40} and set(curves["radius"]) == {0.0, 0.1, 0.2}
    figure = READING.figures["along"](records)
    half = next(line for line in figure.axes[1].lines if line.get_label() == "late SAM 0.2")
    assert np.asarray(half.get_ydata())[-1] == pytest.approx(exp(-160.0 * 0.05 * 0.2**2 * 30))


def test_gaps_of_two_budgets_in_one_folder_are_kept_apart(opened):
    parts = [paced(radius, pace, budget) for radius, pace in ((0.0, 0.0), (0.1, 100.0), (0.2, 160.0))
             for budget in (40, 60)]  # fmt: skip
    records = opened([row for rows, _ in parts for row in rows], [m for _, measured in parts for m in measured])
    expected = {
        f"0.2 against 0.1, budget {budget}": -60.0 * 0.05 * 0.1**2 * steps for budget, steps in ((40, 30), (60, 50))
    }
    assert verdicts(records)["SN8"].parts == pytest.approx(expected)


def test_a_summary_has_a_row_per_arm_with_what_it_cost(opened):
    rows = [*arm(0.0, 200), *arm(0.1, 200, lambda seed: {"error": 0.1 + (seed - 1000) / 100}), *arm(0.1, 400)]
    table = summary(opened(rows))
    assert table["arm"].tolist() == ["SGD", "SAM 0.1", "SAM 0.1"] and table["gradients"].tolist() == [200, 400, 800]
    assert table["test error"].tolist() == pytest.approx([0.2, 0.115, 0.2]) and (table["seeds"] == 4).all()
    assert (table["learning rate"] == 0.05).all()


def test_figures_show_the_means_of_the_chosen_runs(opened):
    rows = [
        *arm(0.0, 200, lambda seed: {"error": 0.30 + (seed - 1000) / 100}),
        *arm(0.0, 400, lambda seed: {"error": 0.20}),
        *arm(0.1, 200, lambda seed: {"error": 0.25, "top": 4.0}),
    ]
    records = opened(rows)
    left, right = READING.figures["frontier"](records).axes
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in left.lines}
    assert drawn["SGD"] == [[200.0, pytest.approx(0.315)], [400.0, pytest.approx(0.2)]]
    assert drawn["SAM 0.1"] == [[400.0, pytest.approx(0.25)]]
    equal = next(line for line in right.lines if line.get_label() == "400 gradients")
    assert np.asarray(equal.get_xydata()).tolist() == [[0.0, pytest.approx(0.2)], [0.1, pytest.approx(0.25)]]
    top = READING.figures["curvature"](records).axes[0].lines[0]
    assert np.asarray(top.get_xydata()).tolist() == [[0.0, 8.0], [0.1, 4.0]]
    for name, words in (("along", "preset=pace"), ("groups", "preset=groups")):
        with pytest.raises(RecordsError, match=words):
            READING.figures[name](records)


def test_m_sam_is_drawn_against_the_images_that_share(opened):
    rows = [row for group in (4, 16) for row in arm(0.1, 200, rates=(0.05,), group=group, top=group / 2.0)]
    panels = READING.figures["groups"](opened(rows)).axes
    assert np.asarray(panels[1].lines[0].get_xydata()).tolist() == [[4.0, 2 / 40], [16.0, 8 / 40]]


def test_claims_name_statistics_that_exist_and_have_margins_and_commands():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.statistic in STATISTICS and claim.command.startswith("python sweeps/sam_budget.py")
        assert claim.seeds == "fresh" and (claim.direction != "equal" or claim.margin > 0)
