"""The reading of the masked-word study against tables whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.__main__ import main
from analysis.choice import trial_frame
from analysis.claims import Evidence, Observation, decide
from analysis.masked_lm_reading import CLAIMS, READING, STATISTICS
from analysis.records import Records, RecordsError

SEEDS = (0, 100, 101, 102)
UNIGRAM = {"report/unigram_loss": 6.8, "report/unigram_accuracy": 0.06}
SPEC = {
    "sweep": "s", "study": "masked_lm", "select": {"name": "select/loss", "goal": "min"},
    "report": {"name": "report/loss", "goal": "min"},
}  # fmt: skip


def loss(method: str, budget: int, seed: int) -> float:
    """Falls with the budget, and by 0.3 more (a little less per seed) with the decay."""
    return 7.0 - budget / 400 - (0.3 - seed / 1e4 if method == "wsd" else 0)


def made(loss=loss, methods=("wsd", "constant"), peaks=(2e-3,)) -> Records:
    """Records of budgets 200 and 400 whose decay takes a fifth: on the trunk the loss falls 0.0002 a step."""
    rows, curves = [], []
    for method, budget, peak, seed in [(m, b, p, s) for m in methods for b in (200, 400) for p in peaks for s in SEEDS]:
        config = {"method": method, "budget_steps": budget, "peak_lr": peak, "decay_fraction": 0.2, "seed": seed}
        trial, final = json.dumps(config), loss(method, budget, seed)
        rows.append(
            {"sweep": "s", "study": "masked_lm", "trial": trial, "key": trial, "status": "complete", "seed": seed,
             "phase": "tune" if seed == 0 else "confirm", "config": json.dumps(config), "root": str(seed),
             "budget_steps": budget, "budget_tokens": budget * 1024, "parameters": 10, "tokens_per_step": 1024,
             "data_sha": "x", "scale": "tiny", "name": trial, "error": None, "varying": [], "cell": "",
             "report/document_losses": None, "select/loss": final, "report/loss": final, "report/accuracy": 0.1,
             **UNIGRAM, **{f"config.{name}": value for name, value in config.items()}}
        )  # fmt: skip
        fork = budget - budget // 5
        for step in sorted({40, fork - budget // 5, fork, budget}):
            stable = final + (0.3 if method == "wsd" else 0) + (budget - max(step, 0)) * 2e-4
            value = final if step == budget else stable
            curves.append(
                {"sweep": "s", "trial": trial, "step": step, "key": f"{trial}{step}", "select/loss": value,
                 "report/loss": value if step in (fork, budget) else None, "lr": peak,
                 "phase_of_schedule": "decay" if step > fork and method == "wsd" else "stable"}
            )  # fmt: skip
    ledger = pa.table({"sweep": ["s"], "stage": ["x"], "executed_steps": [1]})
    return Records(pa.Table.from_pylist(rows), pa.Table.from_pylist(curves), ledger, sweeps=(SPEC,))


def observed(records: Records, statistic: str, **arguments) -> Observation:
    return STATISTICS[statistic](Evidence(records, trial_frame(records), {}, "any"), **arguments)


def test_the_command_line_decides_its_claims_by_its_own_statistics(tmp_path, capsys):
    records = made()
    for name in ("trials", "measurements", "ledger"):
        pq.write_table(getattr(records, name), tmp_path / f"{name}.parquet")
    (tmp_path / "sweep.json").write_text(json.dumps(SPEC))
    assert main(["claims", str(tmp_path), "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {claim.id} " in printed for claim in CLAIMS)


def test_a_difference_is_of_one_trial_per_seed_and_budget():
    records = made(methods=("wsd",))
    parts = observed(records, "final_difference", column="report/loss", reference="report/unigram_loss").parts
    assert list(parts.columns) == ["budget 200", "budget 400"] and list(parts.index) == list(SEEDS)
    assert parts.loc[100, "budget 400"] == pytest.approx(7.0 - 1.0 - 0.29 - 6.8)


def test_the_gain_of_the_decay_is_paired_by_seed_budget_and_peak():
    parts = observed(made(peaks=(1e-3, 2e-3)), "decay_gain").parts
    assert list(parts.columns) == [f"budget {b}, peak {p}" for b in (200, 400) for p in ("0.001", "0.002")]
    for seed in SEEDS:
        assert parts.loc[seed].tolist() == pytest.approx([-0.3 + seed / 1e4] * 4)
    assert "method=constant" in observed(made(methods=("wsd",)), "decay_gain").missing


def test_the_drop_in_the_decay_is_held_against_as_many_steps_before_it():
    values = observed(made(), "decay_drop_excess", factor=2.0).parts["budget 400"]
    trunk = 80 * 2e-4  # what 80 steps bring on the trunk
    assert values.tolist() == pytest.approx([0.3 + trunk - 2 * trunk] * 4)


def test_a_diverged_seed_is_left_out_said_and_forbids_a_decision():
    records = made(methods=("wsd",))
    rows = records.trials.to_pylist()
    rows[1] |= {"status": "diverged", "select/loss": float("nan")}
    seen = observed(
        replace(records, trials=pa.Table.from_pylist(rows)), "final_difference", column="report/loss",
        reference="report/unigram_loss",
    )  # fmt: skip
    assert list(seen.parts.index) == [0, 101, 102] and "1 trials did not complete" in seen.unfit


@pytest.mark.parametrize("budget", [200, 400])
def test_a_budget_whose_runs_are_all_lost_leaves_claims_undecided(budget):
    records = made(lambda m, b, s: loss(m, b, s) - 0.5 + s / 1e5)
    rows = [
        row | ({"status": "diverged", "select/loss": float("nan")} if row["budget_steps"] == budget else {})
        for row in records.trials.to_pylist()
    ]
    found = {d.claim.id: d for d in decide(CLAIMS, replace(records, trials=pa.Table.from_pylist(rows)), STATISTICS)}
    for name in ("M1", "M2", "M3"):
        assert found[name].verdict == "undecided" and f"nothing to compare at budget {budget}" in found[name].why
    assert found["M4"].verdict == ("reproduced" if budget == 200 else "undecided")


def test_the_gain_of_the_decay_is_between_trials_that_agree_in_all_else():
    records = made()
    other = made(lambda m, b, s: loss(m, b, s) + (0.5 if m == "wsd" else 1.0))
    rows = [row | {"config.warmup_steps": 10} for row in records.trials.to_pylist()]
    for row in other.trials.to_pylist():
        config = json.dumps(json.loads(row["config"]) | {"warmup_steps": 20})
        rows.append(row | {"config.warmup_steps": 20, "config": config, "trial": config, "key": config})
    parts = observed(replace(records, trials=pa.Table.from_pylist(rows)), "decay_gain").parts
    assert len(parts.columns) == 4
    assert parts.loc[0, "budget 200, warmup_steps 10"] == pytest.approx(-0.3)
    assert parts.loc[0, "budget 200, warmup_steps 20"] == pytest.approx(-0.8)


def test_two_trials_that_no_setting_tells_apart_are_refused():
    records = made(methods=("wsd",))
    first = records.trials.to_pylist()
    rows = [*first, first[0] | {"trial": "again", "key": "again"}]
    with pytest.raises(RecordsError, match="budget 200 of seed 0"):
        observed(
            replace(records, trials=pa.Table.from_pylist(rows)), "final_difference", column="report/loss",
            reference="report/unigram_loss",
        )  # fmt: skip


def test_the_claims_are_decided_as_their_numbers_say():
    def verdicts(records):
        return {d.claim.id: d.verdict for d in decide(CLAIMS, records, STATISTICS)}

    good = made(lambda m, b, s: loss(m, b, s) - 0.5 + s / 1e5)
    assert verdicts(good) == {id: "reproduced" for id in ("M1", "M2", "M3", "M4")}
    worse = made(lambda m, b, s: 7.5 - s / 1e4 + (0.2 if m == "wsd" else 0))
    rows = [row | {"report/accuracy": 0.05 - row["seed"] / 1e5} for row in worse.trials.to_pylist()]
    found = verdicts(replace(worse, trials=pa.Table.from_pylist(rows)))
    assert [found[id] for id in ("M1", "M2", "M3")] == ["contradicted"] * 3


def test_the_summary_has_a_row_per_setting_and_the_figures_show_them():
    records = made()
    table = READING.summary(records)
    assert len(table) == 4 and set(table["seeds"]) == {4} and "peak_lr" not in table
    at = table[(table["method"] == "wsd") & (table["budget_steps"] == 400)].iloc[0]
    assert at["report/loss"] == pytest.approx(sum(loss("wsd", 400, seed) for seed in SEEDS) / 4)
    assert at["tokens"] == 400 * 1024
    left, right = READING.figures["budgets"](made(peaks=(1e-3, 2e-3))).axes
    drawn = {line.get_label(): line.get_ydata() for line in left.lines}
    assert any(value[0] == 6.8 for value in drawn.values()) and right.get_ylabel() == "share filled in right"
    (axes,) = READING.figures["pretraining"](records).axes
    ends = [line.get_ydata()[-1] for line in axes.lines if str(line.get_label()).startswith("decay to")]
    assert ends == pytest.approx([loss("wsd", budget, 0) for budget in (200, 400)])
    with pytest.raises(RecordsError, match="method=wsd"):
        READING.figures["pretraining"](made(methods=("constant",)))
