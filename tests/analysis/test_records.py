"""What is read back against the rows that were written, and each refusal against the words it must say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis import RecordsError
from tests.analysis.conftest import Maker

SMALL = {"methods": ("cosine", "wsd"), "budgets": (500, 1000), "tuning": (0,), "fresh": ()}


def test_written_rows_are_read_back(maker: Maker):
    made = maker.sweep(**SMALL)
    records = maker.open(made)
    assert len(records) == len(made.trials)
    assert records.to_pandas()["report/loss"].tolist() == [row["report/loss"] for row in made.trials]
    assert records.measurements.num_rows == len(made.measurements)
    assert "20 trials of 1 sweeps" in repr(records)


def test_results_folder_sweep_folder_and_list_are_the_same(maker: Maker):
    root = maker.write(maker.sweep(**SMALL, name="a"), maker.sweep(**SMALL, name="b"))
    folders = [root / "sweeps" / "s0", root / "sweeps" / "s1"]
    assert len(analysis.open(root)) == len(analysis.open(folders)) == 2 * len(analysis.open(folders[0]))
    assert len(analysis.open([root, folders[0]])) == len(analysis.open(root))  # named twice, taken once
    copy = analysis.open(folders[0])
    assert len(analysis.combine([copy, copy])) == len(copy)


def test_parts_of_one_sweep_in_several_folders_are_all_taken(maker: Maker):
    """As by the same command with other values of an axis, in a results folder of its own."""
    whole = maker.open(maker.sweep(**SMALL))
    cosine, wsd = whole.where(method="cosine"), whole.where(method="wsd")
    both = analysis.combine([cosine, whole, wsd])
    assert both.to_pandas()["trial"].tolist() == [*cosine.to_pandas()["trial"], *wsd.to_pandas()["trial"]]
    assert both.measurements.num_rows == whole.measurements.num_rows
    assert both.ledger.num_rows == whole.ledger.num_rows


def test_of_two_copies_of_a_trial_the_one_that_got_further_is_taken(maker: Maker):
    made = maker.sweep(**SMALL)
    done = maker.open(made)
    for row in made.trials[:3]:
        row |= {"status": "pending", "report/loss": None}
    before = maker.open(made)
    assert before.to_pandas()["status"].value_counts()["pending"] == 3
    for many in ([before, done], [done, before]):
        assert set(analysis.combine(many).to_pandas()["status"]) == {"complete"}
        assert len(analysis.combine(many)) == len(done)


@pytest.mark.parametrize("value", [3, True, 0.5])
def test_a_field_that_is_text_in_one_study_and_not_in_another_is_text_until_one_of_them_is_taken(maker: Maker, value):
    made = maker.sweep(**SMALL)
    for row in made.trials:
        row["config.first_layer"] = "onehot"
        row["config"] = json.dumps(json.loads(row["config"]) | {"first_layer": "onehot"})
    words = maker.open(made)
    values = [None] + [value] * (len(made.trials) - 1)
    for row, one in zip(made.trials, values, strict=True):
        row |= {"config.first_layer": one, "sweep": "another", "study": "other", "trial": f"{row['trial']}x"}
        row["config"] = json.dumps(json.loads(row["config"]) | {"first_layer": one})
    others = maker.open(made)
    both = analysis.combine([words, others])
    assert both.trials.schema.field("config.first_layer").type == pa.string()
    assert both.where(study="other").trials.column("config.first_layer").to_pylist() == values
    assert set(both.where(study="wsd").to_pandas()["config.first_layer"]) == {"onehot"}


def test_unknown_columns_are_carried(maker: Maker, tmp_path: Path):
    made = maker.sweep(**SMALL)
    for row in made.trials:
        row["reader/own"] = 7
    assert maker.open(made).to_pandas()["reader/own"].eq(7).all()


def test_filter_keeps_only_what_belongs(maker: Maker):
    records = maker.open(maker.sweep(**SMALL))
    wsd = records.where(method="wsd", budget_steps=[1000])
    frame = wsd.to_pandas()
    assert set(frame["config.method"]) == {"wsd"}
    assert set(frame["budget_steps"]) == {1000}
    assert set(wsd.to_pandas("measurements")["trial"]) == set(frame["trial"])
    assert 0 < wsd.ledger.num_rows < records.ledger.num_rows
    assert len(records.where(method="none of them")) == 0


def test_a_config_that_was_not_flattened_can_be_filtered(maker: Maker):
    made = maker.sweep(**SMALL)
    for row in made.trials:
        for name in [c for c in row if c.startswith("config.")]:
            del row[name]
    assert set(maker.open(made).where(peak_lr=4e-3).to_pandas()["config.peak_lr"]) == {4e-3}


def test_a_filter_keeps_the_sweeps_of_its_trials_alone(maker: Maker):
    other = maker.sweep(**SMALL, name="other")
    for row in other.trials:
        row["study"] = "toy"
    records = maker.open(maker.sweep(**SMALL), other)
    assert [spec["sweep"] for spec in records.where(study="toy").sweeps] == ["other"]
    assert len(records.where(seed=[0, 100]).sweeps) == 2


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_export_holds_the_same_trials(maker: Maker, tmp_path: Path, format: str):
    records = maker.open(maker.sweep(**SMALL))
    records.export(tmp_path / "out", format)
    readers = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}
    frame = readers[format](tmp_path / "out" / f"trials.{format}")
    assert np.allclose(frame["report/loss"], records.to_pandas()["report/loss"])
    if format == "parquet":
        assert len(analysis.open(tmp_path / "out")) == len(records)
    if format == "csv":
        assert len(json.loads(frame["report/document_losses"][0])) == 16


def test_export_to_json_has_no_nan(maker: Maker, tmp_path: Path):
    made = maker.sweep(**SMALL)
    made.trials[0]["report/loss"] = float("nan")
    maker.open(made).export(tmp_path / "out", "json")
    assert json.loads((tmp_path / "out" / "trials.json").read_text())[0]["report/loss"] is None


def refusal(path: Path) -> str:
    with pytest.raises(RecordsError) as caught:
        analysis.open(path)
    return str(caught.value)


def test_damaged_parquet_names_the_file_and_the_way_out(maker: Maker):
    root = maker.write(maker.sweep(**SMALL))
    file = root / "sweeps" / "s0" / "measurements.parquet"
    file.write_bytes(file.read_bytes()[:200])
    assert str(file) in refusal(root) and "run the sweep's command again" in refusal(root)


def test_foreign_parquet_says_what_it_lacks(tmp_path: Path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "trials.parquet")
    assert "lacks the column sweep" in refusal(tmp_path)


def test_empty_and_absent_folders(tmp_path: Path):
    assert "holds no sweep" in refusal(tmp_path)
    assert "no folder" in refusal(tmp_path / "absent")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("status", "finished", "status must be one of complete, diverged"),
        ("phase", "test", "phase must be one of tune, confirm"),
        ("config", "not json", "not a JSON object"),
        ("config", "[1]", "not a JSON object"),
        ("seed", None, "'seed' has 1 empty rows"),
    ],
)
def test_values_that_mean_nothing_are_refused(maker: Maker, column: str, value: object, words: str):
    made = maker.sweep(**SMALL)
    made.trials[3][column] = value
    assert words in refusal(maker.write(made))


def test_a_column_of_the_wrong_type_is_named(maker: Maker):
    made = maker.sweep(**SMALL)
    for row in made.trials:
        row["budget_steps"] = "many"
    assert "'budget_steps' must be int64" in refusal(maker.write(made))


def test_a_sweep_without_tables_is_left_out_aloud(maker: Maker):
    root = maker.write(maker.sweep(**SMALL))
    (root / "sweeps" / "running").mkdir()
    (root / "sweeps" / "running" / "sweep.json").write_text("{}")
    (root / "sweeps" / "s0" / "ledger.parquet").unlink()
    notes = analysis.open(root).notes
    assert any("running has no trials.parquet yet" in note for note in notes)
    assert any("ledger.parquet is missing" in note for note in notes)


def test_a_misspelt_field_gets_a_suggestion(maker: Maker):
    with pytest.raises(RecordsError, match="did you mean peak_lr"):
        maker.open(maker.sweep(**SMALL)).where(peak_rl=1e-3)


def test_imported_curve_is_a_trial_like_any_other(tmp_path: Path):
    steps = np.arange(100, 1100, 100)
    lr = np.where(steps < 300, steps / 300, np.where(steps <= 800, 1.0, (1100 - steps) / 300)) * 3e-3
    pd.DataFrame({"step": steps, "lr": lr, "loss": 5 * steps**-0.1}).to_csv(tmp_path / "c.csv", index=False)
    records = analysis.import_curves(tmp_path / "c.csv", method="cosine", tokens_per_step=512, parameters=1000)
    trial = records.to_pandas().iloc[0]
    assert trial["report/loss"] == pytest.approx(5 * 1000**-0.1)
    assert (trial["tokens_nominal"], trial["flops_nominal"]) == (512_000, 6 * 1000 * 512_000)
    phases = records.to_pandas("measurements")["phase_of_schedule"].tolist()
    assert phases == ["warmup"] * 2 + ["stable"] * 6 + ["decay"] * 2
    (point,) = records.frontier(x="tokens_nominal").points
    assert (point.budget, point.fresh, point.interval) == (1000, False, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step,loss\n1,2\n", "lacks the column lr"),
        ("step,lr,loss\n1,2,x\n", "must be numbers"),
        ("step,lr,loss\n2,1,1\n1,1,1\n", "increasing whole numbers"),
        ("", "cannot be read as CSV"),
    ],
)
def test_curves_that_cannot_be_read_are_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(RecordsError, match=words):
        analysis.import_curves(tmp_path / "c.csv", method="wsd", tokens_per_step=1)
