"""Claims, figures and summary of `flatness` on tables whose answers were put in: effects that are there and are not."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.claims import decide
from analysis.flatness_reading import CLAIMS, READING, STATISTICS, undominated
from analysis.opening import open_records
from analysis.records import RecordsError

# (architecture, algorithm): (accuracy, trace, training loss)
PAPER = {
    ("no_bias", "sgd"): (0.6, 115.0, 1e-14),
    ("no_bias", "one_sam"): (0.998, 28.0, 3e-3),
    ("bias", "sgd"): (0.6, 117.0, 1e-14),
    ("bias", "one_sam"): (0.85, 22.9, 3e-3),
    ("bias", "gd"): (0.998, 78.0, 6e-3),
    ("sim_ln_projected", "sgd"): (0.6, 16.8, 1e-14),
    ("sim_ln_projected", "one_sam"): (0.985, 2.2, 2e-3),
}
FLOORS = {"no_bias": 4 * 30**0.5, "bias": 4 * 31**0.5, "sim_ln_projected": 2.0}
TUNING, FRESH = (0,), (100, 101, 102, 103, 104)
PROBLEM = {"data": "xor", "loss": "mse", "dimension": 30, "samples": 100, "width": 100}


def trials(values, rho=0.1, choice_bonus=0.0, hessian=1.0, seeds=(*TUNING, *FRESH)):
    """One row per name and seed; `choice_bonus` is what the select accuracy has over the report accuracy."""
    for (architecture, algorithm), (accuracy, trace, loss) in values.items():
        for seed in seeds:
            noise = np.random.default_rng([seed, *architecture.encode(), *algorithm.encode()]).normal(0, 1)
            shown = min(1.0, accuracy + 5e-4 * noise)
            config = {**PROBLEM, "architecture": architecture, "algorithm": algorithm, "rho": rho, "seed": seed}
            key = hashlib.sha256(json.dumps(config).encode()).hexdigest()
            final = {
                "select/accuracy": shown + choice_bonus, "report/accuracy": shown, "train/loss": loss,
                "trace": trace * (1 + 0.005 * noise), "top_eigenvalue": trace / 8, "points_per_neuron": 30.0,
                "trace_over_floor": trace * (1 + 0.005 * noise) / FLOORS[architecture], "signal_share": 0.5,
                "sharpness_is_hessian": hessian if loss > 1e-4 else 0.0,
            }  # fmt: skip
            yield {
                "sweep": "s", "study": "flatness", "trial": key, "key": key, "root": key, "name": key[:6],
                "phase": "tune" if seed in TUNING else "confirm", "cell": f"{architecture},{algorithm}",
                "status": "complete", "config": json.dumps(config), "seed": seed, "budget_steps": 100,
                "scale": "laptop", "parameters": 3200, "tokens_per_step": 1, "data_sha": "", **final,
                **{f"config.{name}": value for name, value in config.items()},
            }  # fmt: skip


def records(tmp_path, *groups):
    rows = [row for group in groups for row in group]
    kept = ("sweep", "trial", "select/accuracy", "trace", "trace_over_floor", "train/loss")
    curves = [
        {name: row[name] for name in kept} | {"key": f"{row['key']}{step}", "step": step, "full": step == 100}
        for row in rows
        for step in (50, 100)
    ]
    folder = tmp_path / "sweeps" / "s"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "trials.parquet")
    pq.write_table(pa.Table.from_pylist(curves), folder / "measurements.parquet")
    ledger = [{"sweep": "s", "stage": row["key"], "executed_steps": 100} for row in rows]
    pq.write_table(pa.Table.from_pylist(ledger), folder / "ledger.parquet")
    metrics = {role: {"name": f"{role}/accuracy", "goal": "max"} for role in ("select", "report")}
    spec = {"sweep": "s", "study": "flatness", "claims": [], "axes": {"rho": [0.1, 0.3]}, **metrics}
    (folder / "sweep.json").write_text(json.dumps(spec))
    return open_records(tmp_path)


def verdicts(found):
    return {decision.claim.id: decision.verdict for decision in decide(CLAIMS, found, STATISTICS)}


def test_the_papers_outcomes_are_reproduced(tmp_path):
    assert set(verdicts(records(tmp_path, trials(PAPER))).values()) == {"reproduced"}


def test_outcomes_on_the_other_side_of_a_margin_are_contradicted(tmp_path):
    other = {
        **PAPER,
        ("no_bias", "one_sam"): (0.95, 80.0, 3e-3),
        ("bias", "one_sam"): (0.999, 30.0, 3e-3),
        ("bias", "gd"): (0.9, 60.0, 6e-3),
    }
    found = verdicts(records(tmp_path, trials(other)))
    assert {id for id, verdict in found.items() if verdict == "contradicted"} == {"F1a", "F1b", "F2a", "F2b", "F2c"}


def test_missing_trials_leave_claims_undecided_with_the_command_that_makes_them(tmp_path):
    without = {name: values for name, values in PAPER.items() if name[0] == "no_bias"}
    decisions = {d.claim.id: d for d in decide(CLAIMS, records(tmp_path, trials(without)), STATISTICS)}
    assert decisions["F1a"].verdict == "reproduced"
    assert "preset=layer_norm" in decisions["F3a"].why and decisions["F2b"].verdict == "undecided"


def test_two_fresh_seeds_decide_nothing(tmp_path):
    found = verdicts(records(tmp_path, trials(PAPER, seeds=(0, 100, 101))))
    assert set(found.values()) == {"undecided"}


def test_sharpness_that_is_not_the_hessians_is_not_compared(tmp_path):
    found = verdicts(records(tmp_path, trials(PAPER, hessian=0.0)))
    assert {id for id, verdict in found.items() if verdict == "undecided"} == {"F1b", "F2a", "F2c", "F3b"}


def test_the_config_with_the_better_select_accuracy_speaks(tmp_path):
    worse = {name: (accuracy - 0.2, 2 * trace, loss) for name, (accuracy, trace, loss) in PAPER.items()}
    both = (trials(PAPER, choice_bonus=0.001), trials(worse, rho=0.3))
    between = (trials(worse, rho=0.05), *both)
    assert set(verdicts(records(tmp_path / "a", *between)).values()) == {"reproduced"}
    chosen_wrongly = (trials(PAPER), trials(worse, rho=0.3, choice_bonus=0.5), trials(worse, rho=0.5))
    assert verdicts(records(tmp_path / "b", *chosen_wrongly))["F1a"] == "contradicted"


def test_a_radius_at_the_end_of_those_tried_leaves_claims_undecided(tmp_path):
    both = (trials(PAPER, choice_bonus=0.001), trials(PAPER, rho=0.3))
    decisions = decide(CLAIMS, records(tmp_path, *both), STATISTICS)
    assert {d.verdict for d in decisions} == {"undecided"} and "space.rho=[0.033,0.1,0.3]" in decisions[0].why


def test_a_config_that_lost_a_tuning_seed_is_not_chosen(tmp_path):
    better = {name: (0.5, 500.0, loss) for name, (_, _, loss) in PAPER.items()}
    seeds = (0, 1, *FRESH)
    rows = [*trials(PAPER, seeds=seeds), *trials(better, rho=0.2, choice_bonus=0.5, seeds=seeds)]
    rows += trials(better, rho=0.05, seeds=(0, 1))
    for row in rows:
        row["phase"] = "tune" if row["seed"] in (0, 1) else "confirm"
        row["status"] = "diverged" if row["seed"] == 1 and row["config.rho"] == 0.2 else "complete"
    assert set(verdicts(records(tmp_path, rows)).values()) == {"reproduced"}


@pytest.mark.parametrize("lost", [FRESH[:1], FRESH])
def test_diverged_trials_leave_their_claims_undecided_and_are_counted(tmp_path, lost):
    rows = list(trials(PAPER))
    for row in rows:
        if row["seed"] in lost and row["cell"] == "no_bias,one_sam":
            row["status"] = "diverged"
    decisions = {d.claim.id: d for d in decide(CLAIMS, records(tmp_path, rows), STATISTICS)}
    assert {id for id, d in decisions.items() if d.verdict == "undecided"} == {"F1a", "F1b"}
    assert f"{len(lost)} trials of one_sam" in decisions["F1a"].why and "diverged" in decisions["F1a"].why


def test_a_width_without_its_seeds_leaves_claims_undecided_and_sharpness_left_out_is_told(tmp_path):
    rows = list(trials(PAPER))
    rows[-1]["sharpness_is_hessian"] = 0.0  # 1-SAM on the layer norm
    wide = [{**row, "trial": row["trial"] + "w", "config": row["config"].replace('"width": 100', '"width": 200'),
             "config.width": 200, "status": "complete" if row["seed"] == 0 else "failed"}
            for row in rows if row["cell"].startswith("no_bias")]  # fmt: skip
    decisions = {d.claim.id: d for d in decide(CLAIMS, records(tmp_path, rows, wide), STATISTICS)}
    assert decisions["F1a"].verdict == "undecided" and "(width 200, 100 steps) is left" in decisions["F1a"].why
    assert decisions["F3b"].verdict == "reproduced" and "1 trials of one_sam" in decisions["F3b"].why


def test_the_summary_is_of_fresh_seeds(tmp_path):
    table = READING.summary(records(tmp_path, trials(PAPER))).set_index(["architecture", "algorithm"])
    row = table.loc[("bias", "gradient descent with weight decay")]
    assert row["seeds"] == len(FRESH) and row["trace"] == pytest.approx(78.0, rel=0.02)
    assert len(table) == len(PAPER)


def test_figures_draw_what_there_is_and_refuse_other_studies(tmp_path):
    found = records(tmp_path, trials(PAPER))
    top, bottom = (READING.figures["training"](found).axes[place] for place in (1, 4))
    assert top.get_title() == "bias" and len(top.lines) == 3
    assert [line.get_ydata()[0] for line in bottom.lines][-1] == pytest.approx(4 * 31**0.5)
    front = READING.figures["accuracy_and_trace"](found).axes[0]
    assert front.get_xscale() == "log" and "trace" in front.get_xlabel()
    with pytest.raises(RecordsError, match="none of samples"):
        READING.figures["scan"](found)
    for draw in READING.figures.values():
        with pytest.raises(RecordsError):
            draw(found.where(architecture="none"))


def test_a_scan_has_a_row_and_a_point_per_value(tmp_path):
    sharper = {name: (accuracy, 2 * trace, loss) for name, (accuracy, trace, loss) in PAPER.items()}
    found = records(tmp_path, trials(PAPER), trials(sharper, rho=0.3))
    sam = READING.summary(found).set_index(["architecture", "algorithm"]).loc["bias"]
    assert sam.loc["1-SAM rho=0.3", "trace"] == pytest.approx(2 * sam.loc["1-SAM rho=0.1", "trace"], rel=0.02)
    right = READING.figures["scan"](found).axes[1]
    assert right.get_xlabel() == "SAM radius" and list(right.lines[0].get_xdata()) == [0.1, 0.3]


def test_undominated_agrees_with_the_definition_point_by_point():
    traces, accuracies = np.random.default_rng(0).random((2, 40)).round(1)
    for at, kept in enumerate(undominated(list(traces), list(accuracies))):
        beaten = any(
            t <= traces[at] and a >= accuracies[at] and (t, a) != (traces[at], accuracies[at])
            for t, a in zip(traces, accuracies, strict=True)
        )
        assert kept is not beaten
