"""Whole commands against their exit status, what they print and the files that they leave."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sweeps.engine import launch
from sweeps.engine.launch import Question, main, sweep
from sweeps.engine.words import Refused, Words, make_spec
from sweeps.nodes import ground
from sweeps.nodes.ground import find_ground, own_rooms
from trainables import wsd

CLONE = Path(__file__).resolve().parents[2]
QUESTION = Question("wsd_budget", wsd.STUDY, about="What is asked?")
TINY = ["scale=tiny", "executor=local", "tracking=none", "space.method=wsd", "space.budget_steps=[20,40]", "seeds=1"]


def say(results, *arguments):
    console = Console(file=io.StringIO(), width=200)
    found = sweep(QUESTION, [*TINY, f"results={results}", *arguments], console)
    return found, console.file.getvalue()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    results = tmp_path_factory.mktemp("launch")
    return results, *say(results)


def test_plan_only_prints_the_plan_and_the_tree_and_writes_nothing(tmp_path):
    found, text = say(tmp_path / "results", "plan_only=true")
    assert found is None and not (tmp_path / "results").exists()
    for words in (
        r"4 trials in \d+ jobs?, 2 proposals",
        r"\d+ stages",
        r"x\b",
        r"to run now: \d+ steps",
        r"MB of disk",
        "lr=3e-3",
    ):
        assert re.search(words, text), words


def test_a_sweep_leaves_tables_figures_and_nothing_half_written(done):
    results, found, text = done
    (folder,) = (results / "sweeps").iterdir()
    names = files(folder)
    assert {"trials.parquet", "measurements.parquet", "ledger.parquet", "sweep.json"} <= set(names)
    assert "figures/stage_tree.png" in names and "figures/stage_tree.svg" in names
    assert not [name for name in files(results) if ".writing" in name or name.endswith("/stop")]
    assert "6 trials" in repr(found)
    assert re.search(r"training \d+ %", text)


def test_the_plan_is_the_bill(done):
    results, _, text = done
    (folder,) = (results / "sweeps").iterdir()
    ledger = pq.read_table(folder / "ledger.parquet").to_pylist()
    planned = int(re.search(r"to run now: ([\d,]+) steps", text)[1].replace(",", ""))
    confirmed = pq.read_table(folder / "trials.parquet").to_pylist()
    fresh = [row["steps_marginal"] for row in confirmed if row["phase"] == "confirm"]
    assert sum(row["executed_steps"] for row in ledger) == planned + sum(fresh)


def test_rows_of_a_language_model_carry_bits_per_byte_and_documents(done):
    results, _, _ = done
    (folder,) = (results / "sweeps").iterdir()
    for row in pq.read_table(folder / "trials.parquet").to_pylist():
        losses = row["report/document_losses"]
        assert row["status"] == "complete" and len(losses) == 8
        assert row["report/bits_per_byte"] > 0 and row["data_sha"] and row["flops_nominal"] > 0
        assert row["budget_tokens"] == row["budget_steps"] * 4 * 16
        assert row["name"].startswith("wsd lr=")


def test_the_same_command_again_runs_nothing_and_more_runs_only_what_is_missing(done):
    results, _, _ = done
    before = set(files(results / "store"))
    _, text = say(results)
    assert "to run now: 0 steps" in text and set(files(results / "store")) == before
    _, text = say(results, "seeds=2")
    trials = re.search(r"(\d+) trials .*to run now: (\d+) steps", text, re.DOTALL)
    assert trials[1] == "8" and 0 < int(trials[2]) <= 20 + 40  # one more seed of the two chosen configs
    assert set(files(results / "store")) > before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["plan_only=true"], 0, ""),
        (["--help"], 0, ""),
        (["scal=tiny"], 2, "refused: no word 'scal'"),
        (["study.warmup_steps=39"], 2, "refused: .*warmup"),
        (["scale=gpu", "space.budget_steps=[400]"], 2, "refused: scale=gpu needs 1 GPUs per trial"),
    ],
)
def test_exit_status_and_one_clear_message(tmp_path, capsys, arguments, status, words):
    found = main(QUESTION, [*TINY, *arguments, f"results={tmp_path / 'results'}"])
    said = capsys.readouterr().err
    assert found == status and re.search(words, " ".join(said.split())), said
    assert "Traceback" not in said and not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_written_is_one_clear_error(tmp_path, capsys):
    (tmp_path / "results").write_text("a file")
    assert main(QUESTION, [*TINY, f"results={tmp_path / 'results'}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot write to" in said and "results=FOLDER" in said and "Traceback" not in said


def test_a_disk_that_fills_up_in_mid_run_is_one_clear_error_and_keeps_what_was_finished(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        assert main(QUESTION, [*TINY, f"results={disk}"]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "cannot write to" in said and "No space left" in said and "Traceback" not in said
        assert "What was finished is kept." in said
        assert list((disk / "store" / "stages").glob("*/*.json"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert main(QUESTION, [*TINY, f"results={disk}"]) == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_damage_in_the_store_is_said_and_trained_again(done, tmp_path):
    results, _, _ = done
    shutil.copytree(results, tmp_path / "copy")
    victims = sorted((tmp_path / "copy" / "store" / "rows").glob("*.json"))
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:-2])
    _, text = say(tmp_path / "copy")
    assert text.count("damaged, counts as never written") == len(victims)
    assert not re.search(r"to run now: 0 steps", text)


def test_another_open_sweep_on_the_same_journal_is_refused(tmp_path):
    spec, _ = make_spec(wsd.STUDY, [*TINY, f"results={tmp_path}"], "wsd_budget")
    say(tmp_path)
    before = files(tmp_path), (spec.folder / "sweep.json").read_bytes()
    opened = launch.open_journals(spec, 1, record=True)("method=wsd", spec.space)
    try:
        with pytest.raises(Refused, match="another process has the journal"):
            say(tmp_path)
    finally:
        opened.close()
    assert (files(tmp_path), (spec.folder / "sweep.json").read_bytes()) == before  # nobody has looked at the results


def test_more_gpus_per_trial_than_there_are_is_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(ground.torch.cuda, "device_count", lambda: 1)
    words = Words(scale="paper", cluster="local")
    words.resources.gpus, words.resources.workers = 1, 8
    with pytest.raises(Refused, match="scale=paper needs 8 GPUs per trial, this machine has 1; take scale=laptop"):
        find_ground(words, print).check(words, tmp_path)
    assert not any(tmp_path.iterdir())


def test_somebody_elses_analysis_folder_is_one_clear_error(monkeypatch, tmp_path):
    (tmp_path / "analysis").mkdir()
    monkeypatch.setattr(ground.analysis, "__file__", str(tmp_path / "analysis" / "__init__.py"))
    with pytest.raises(Refused, match="the name 'analysis' means"):
        own_rooms()


def test_a_continued_sweep_is_mirrored_whole(tmp_path):
    """Trials that the store answers before anything runs reach MLflow too."""
    from mlflow.tracking import MlflowClient

    words = [word for word in TINY if not word.startswith(("tracking", "seeds"))]
    for seeds in (1, 2):
        sweep(QUESTION, [*words, f"results={tmp_path}", f"seeds={seeds}"], Console(file=io.StringIO()))
    (folder,) = (tmp_path / "sweeps").iterdir()
    trials = pq.read_table(folder / "trials.parquet").to_pylist()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("wsd")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(trials) == 8 and len(children) == 8
    assert {run.data.tags["anabranch.trial"] for run in children} == {row["trial"] for row in trials}


def test_idle_gpus_are_said_with_the_hours_of_the_scale_that_would_use_them(tmp_path, monkeypatch):
    """Hours against the plan of that scale on as many slots, GPU-hours against hours times GPUs."""
    monkeypatch.setattr(ground.torch.cuda, "device_count", lambda: 4)
    words = ["executor=local", "plan_only=true", "tracking=none", f"results={tmp_path}", "space.method=wsd"]
    console = Console(file=io.StringIO(), width=500)
    sweep(QUESTION, [*words, "scale=laptop"], console)
    line = re.search(
        r"4 idle GPUs: scale=gpu would use (\d) of them, .* ([\d.]+) hours and ([\d.]+) GPU-hours",
        console.file.getvalue(),
    )
    assert line, console.file.getvalue()
    spec, there = make_spec(wsd.STUDY, [*words, "scale=gpu"], "wsd_budget")
    driver, _ = launch.dry_run(spec, there, 4)
    seconds = launch.estimate(driver.current_plan(), driver.index, 4, "gpu").seconds
    assert float(line[2]) == pytest.approx(seconds / 3600, abs=0.05) and line[1] == "4"
    assert float(line[3]) == pytest.approx(4 * seconds / 3600, abs=0.05)
    for quiet in (["scale=tiny"], ["scale=laptop", "resources.gpus=1"]):
        console = Console(file=io.StringIO(), width=500)
        sweep(QUESTION, [*words, *quiet], console)
        assert "idle GPU" not in console.file.getvalue()


def test_a_scale_that_cannot_take_the_command_is_said_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(ground.torch.cuda, "device_count", lambda: 1)
    console = Console(file=io.StringIO(), width=500)
    words = ["scale=laptop", "preset=grid360", "executor=local", "plan_only=true", f"results={tmp_path}"]
    sweep(QUESTION, words, console)
    assert (
        "1 idle GPU: scale=gpu would use them, but cannot take this command: preset=grid360" in console.file.getvalue()
    )


def test_a_sweep_of_which_every_trial_fails_says_so_and_ends(tmp_path):
    """Its tables are empty but readable, and its own script's figures and verdicts have nothing to show."""

    def out_of_memory(*arguments):
        raise MemoryError("no room")

    question = launch.question_of(CLONE / "sweeps" / "wsd_budget.py")
    broken = replace(question, study=replace(wsd.STUDY, advance=out_of_memory))
    console = Console(file=io.StringIO(), width=200)
    found = sweep(broken, [*TINY, f"results={tmp_path}"], console)
    assert "failed: MemoryError: no room" in console.file.getvalue()
    assert found.measurements.num_rows == 0 and set(found.trials["status"].to_pylist()) == {"failed"}
