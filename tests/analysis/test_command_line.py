"""The command line against what the same calls give in Python, and its exit codes."""

from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.__main__ import main
from tests.analysis.conftest import Maker


@pytest.fixture
def results(maker: Maker) -> str:
    return str(
        maker.write(maker.sweep(methods=("cosine", "wsd", "cyclic_cosine"), budgets=(500, 1000), tuning=(0, 1, 2)))
    )


def test_frontier_prints_the_table_of_the_library(results: str, capsys):
    assert main(["frontier", results, "--x", "steps_family", "--format", "markdown"]) == 0
    assert (
        capsys.readouterr().out.strip() == analysis.open(results).frontier(x="steps_family").table("markdown").strip()
    )


@pytest.mark.parametrize("width", ["60", "240"])
def test_the_drawn_table_is_whole_at_any_width(results: str, capsys, monkeypatch, width: str):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["frontier", results, "--where", "method=wsd,cosine"]) == 0
    out = capsys.readouterr().out
    assert "peak_lr=0.004" in out and "vs cosine" in out and "tuning of wsd" in out
    assert "cyclic" not in out


def test_claims_replay_figures_export(results: str, capsys, tmp_path: Path):
    assert main(["claims", results]) == 0
    assert "reproduced" in capsys.readouterr().out
    assert main(["claims", results, "--only", "E1", "--format", "latex", "--out", str(tmp_path / "c.tex")]) == 0
    assert r"\begin{tabular}" in (tmp_path / "c.tex").read_text()
    assert main(["replay", results, "--brackets", "200"]) == 0
    assert "regret of stable minus decayed" in capsys.readouterr().out
    assert main(["figures", results, "--out", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures" / "frontier.svg").is_file()
    assert main(["export", results, "--out", str(tmp_path / "tables")]) == 0
    assert len(pd.read_csv(tmp_path / "tables" / "trials.csv")) == len(analysis.open(results))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--x", "flops"], "no cost axis 'flops'"),
        (["--where", "peak_rl=1"], "did you mean peak_lr"),
        (["--where", "peak_lr"], "FIELD=VALUE"),
        (["--where", "method=adam"], "no trials"),
    ],
)
def test_refusals_say_why_and_end_with_one(results: str, capsys, words: list[str], message: str):
    assert main(["frontier", results, *words]) == 1
    assert message in capsys.readouterr().err


def test_absent_folder_and_wrong_words(capsys):
    assert main(["frontier", "/absent"]) == 1
    assert "no folder /absent" in capsys.readouterr().err
    for words in ([], ["frontiers", "x"], ["replay", "x", "--brackets", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


@pytest.mark.parametrize("command", ["frontier", "pareto"])
def test_a_problem_that_cannot_be_read_is_named_and_the_others_are_shown(maker: Maker, capsys, command: str):
    good, bad = (maker.sweep(methods=("cosine",), budgets=(500,), name=name) for name in "ab")
    bad.spec["select"] = {"name": "select/absent"}
    for row in bad.trials:
        row |= {"study": "other", "key": row["key"][::-1]}
    for row in good.trials:
        row["trace"] = row["select/loss"]
    words = ["--by", "method", *(["--objective", "select/loss:min", "trace:max"] if command == "pareto" else [])]
    assert main([command, str(maker.write(bad, good)), *words]) == 0
    shown = capsys.readouterr()
    assert "cosine" in shown.out and "other: not read," in shown.err
    assert main([command, str(maker.folder), *words, "--where", "study=other"]) == 1


def test_several_problems_are_shown_one_by_one(maker: Maker, capsys):
    other = maker.sweep(methods=("cosine",), budgets=(500,), name="b")
    for row in other.trials:
        row |= {"parameters": 9, "key": row["key"][::-1]}
    results = str(maker.write(maker.sweep(methods=("cosine",), budgets=(500,), name="a"), other))
    assert main(["frontier", results]) == 0
    out = capsys.readouterr().out
    assert "parameters=9" in out and "parameters=140000" in out
