"""Pareto fronts against the definition on all pairs, hypervolumes against counting, fresh means against pandas."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis
from analysis.__main__ import main
from analysis.pareto import Objective, hypervolume, non_dominated, objective_named, pareto
from analysis.records import Records, RecordsError
from tests.analysis.conftest import Maker

OBJECTIVES = (Objective("select/accuracy", "max"), Objective("trace", "min"))
PEAKS = tuple(np.geomspace(5e-4, 1e-2, 12).round(6))


def by_definition(points: np.ndarray) -> list[bool]:
    def beats(one: np.ndarray, other: np.ndarray) -> bool:
        return bool((one <= other).all() and (one < other).any())

    return [not any(beats(other, one) for other in points) for one in points]


@pytest.mark.parametrize("size", [(1, 2), (40, 2), (60, 3), (25, 4)])
@pytest.mark.parametrize("whole", [True, False])
def test_the_front_is_what_no_pair_rules_out(size: tuple[int, int], whole: bool):
    generator = np.random.default_rng(size[0])
    points = generator.integers(0, 6, size).astype(float) if whole else generator.normal(size=size)  # whole ones tie
    assert non_dominated(points).tolist() == by_definition(points)


def test_hypervolume_is_the_share_of_a_fine_grid_that_some_point_dominates():
    points = np.random.default_rng(0).uniform(0, 1.2, (15, 2))
    ticks = (np.arange(1000) + 0.5) / 1000
    below = np.zeros((1000, 1000), dtype=bool)
    for x, y in points:
        below |= (ticks[:, None] >= x) & (ticks[None, :] >= y)
    assert hypervolume(points, worst=(1.0, 1.0)) == pytest.approx(below.mean(), abs=3e-3)
    assert hypervolume([[2.0, 2.0]], worst=(1.0, 1.0)) == 0.0


@pytest.fixture
def records(maker: Maker) -> Records:
    """Two methods whose accuracy and trace both rise with the rate: all are on the front but those made worse."""
    made = maker.sweep(methods=("wsd", "cosine"), peaks=PEAKS, budgets=(500, 1000), fresh=(100, 101, 102, 103))
    generator = np.random.default_rng(7)
    for row in made.trials:
        config = json.loads(row["config"])
        rate = np.log(config["peak_lr"] / PEAKS[0])
        worse = 0.5 if PEAKS.index(config["peak_lr"]) % 4 == 3 else 0.0
        row["trace"] = float(10 + rate + worse + 0.01 * generator.normal())
        row["select/accuracy"] = float(0.5 + 0.1 * rate - 0.2 * worse + 0.001 * generator.normal())
        row["report/accuracy"] = row["select/accuracy"] - 0.05
    made.trials[0] |= {"status": "diverged"}
    return maker.open(made)


def test_fronts_of_records_are_those_of_their_seed_means(records: Records):
    found = pareto(records, OBJECTIVES, by="method")
    frame = records.to_pandas()
    tune = frame[frame["phase"] == "tune"]
    lost = tune[tune["status"] == "diverged"].iloc[0]
    for (method, budget), rows in tune.groupby(["config.method", "budget_steps"]):
        means = rows.groupby("config.peak_lr")[["select/accuracy", "trace"]].mean()
        if (method, budget) == (lost["config.method"], lost["budget_steps"]):
            means = means.drop(lost["config.peak_lr"])  # it did not complete all its seeds
        mask = by_definition(means.to_numpy() * [-1, 1])
        front = found.front((method,), int(budget))
        assert [point.values for point in front] == [
            pytest.approx(tuple(row))
            for row in means[mask].to_numpy()[::-1]  # the best accuracy first
        ]
        assert len(front) < len(means) <= len(PEAKS)


def test_fresh_seeds_are_read_on_report_data_with_their_t_interval(records: Records):
    found = pareto(records, OBJECTIVES, by="method")
    assert found.fresh_names == ("report/accuracy", "trace")
    frame = records.to_pandas()
    confirmed = [point for point in found.points if point.fresh]
    assert len(confirmed) == 4  # the best on select loss of each method and budget
    for point in confirmed:
        config = json.loads(point.config_id)
        same = frame["config.peak_lr"] == config["peak_lr"]
        same &= (frame["budget_steps"] == point.budget) & (frame["config.method"] == config["method"])
        rows = frame[same & (frame["phase"] == "confirm")]
        for one, name in zip(point.fresh, found.fresh_names, strict=True):
            values = rows[name].to_numpy()
            low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
            assert (one.mean, one.seeds) == (pytest.approx(values.mean()), 4)
            assert one.interval is not None
            assert (one.interval.low, one.interval.high) == (pytest.approx(low), pytest.approx(high))


def test_the_volume_of_a_group_is_measured_from_one_corner_for_all(records: Records):
    found = pareto(records, OBJECTIVES, by="method")
    for budget in (500, 1000):
        here = [point for point in found.points if point.budget == budget]
        worst = (max(-p.values[0] for p in here), max(p.values[1] for p in here))
        for group in (("wsd",), ("cosine",)):
            values = [(-p.values[0], p.values[1]) for p in found.front(group, budget)]
            assert found.volumes[group, budget] == pytest.approx(hypervolume(values, worst))


def test_tables_frames_and_figures_hold_the_same(records: Records, tmp_path):
    found = pareto(records, OBJECTIVES, by="method")
    frame = found.to_pandas()
    assert len(frame) == len(found.points) and frame["on_front"].sum() == sum(p.on_front for p in found.points)
    assert {"select/accuracy", "trace", "fresh.report/accuracy", "fresh.trace_low", "seeds"} <= set(frame)
    text = found.table()
    assert "select/accuracy" in text and f"peak_lr={PEAKS[10]:.3g}" in text and "configs on the front" in text
    assert r"\begin{tabular}" in found.table("latex")
    figure = found.plot()
    assert [axes.get_title() for axes in figure.axes] == ["500 steps", "1,000 steps"]
    assert "more is better" in figure.axes[0].get_xlabel() and "less is better" in figure.axes[0].get_ylabel()


def test_the_command_prints_the_table_of_the_library_and_draws(records: Records, maker: Maker, tmp_path, capsys):
    words = ["pareto", str(maker.folder), "--objective", "select/accuracy:max", "trace:min", "--by", "method"]
    assert main([*words, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.strip() == pareto(records, OBJECTIVES, by="method").table("markdown").strip()
    assert main([*words, "--figure", str(tmp_path / "front")]) == 0
    assert "front.svg" in capsys.readouterr().out and (tmp_path / "front.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "trace:min"], "a front needs two or more different objectives, got trace"),
        (
            ["--objective", "report/accuracy:max", "trace:min"],
            "found on select data, got report/accuracy; name select/",
        ),
        (["--objective", "tace:min", "trace:min"], "no metric 'tace'; they have select/accuracy, select/loss, trace"),
        (["--objective", "trace", "select/loss:min"], "NAME:min or NAME:max, got 'trace'"),
        (["--by", "methud"], "did you mean"),
    ],
)
def test_refusals_say_why(records: Records, maker: Maker, capsys, words: list[str], message: str):
    assert main(["pareto", str(maker.folder), *words]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_conditions_are_not_traded_for_each_other(maker: Maker):
    made = maker.sweep(methods=("wsd",), budgets=(500,), peaks=PEAKS[:3])
    for row in made.trials:
        row |= {"trace": 1.0, "select/accuracy": 0.5, "cell": "all"}
        config = json.loads(row["config"]) | {"noise": row["config.peak_lr"]}
        row |= {"config": json.dumps(config), "config.noise": config["noise"]}
    made.spec["conditions"] = ["noise"]
    records = maker.open(made)
    with pytest.raises(RecordsError, match="noise is a condition with 3 values in one group"):
        pareto(records)
    assert len(pareto(records, by=("cell", "noise")).groups()) == 3


def test_the_objectives_that_a_sweep_followed_are_those_of_its_front(maker: Maker):
    made = maker.sweep(methods=("wsd",), budgets=(500,))
    made.spec["objectives"] = [["select/loss", "min"], ["lr_used", "max"]]
    for row in made.trials:
        row["lr_used"] = row["config.peak_lr"]
    found = pareto(maker.open(made))
    assert [one.name for one in found.objectives] == ["select/loss", "lr_used"]
    assert isinstance(found.to_pandas(), pd.DataFrame) and analysis.open(maker.folder) is not None


def test_objectives_are_read_from_words():
    assert objective_named("a/b:max") == Objective("a/b", "max")
    with pytest.raises(RecordsError, match="NAME:min or NAME:max"):
        objective_named(":min")
