"""Frontier points against plain numpy on the written rows and against the known truth of the synthetic sweep."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis
from analysis import RecordsError
from analysis.choice import best_config
from tests.analysis.conftest import Maker, best_peak, family_steps, true_loss

METHODS = ("cosine", "wsd", "wsd_s", "cyclic_cosine")


def by_place(frontier: analysis.Frontier) -> dict:
    return {(point.group[0], point.budget): point for point in frontier.points}


def test_value_and_band_are_those_of_the_fresh_seeds(maker: Maker):
    made = maker.sweep()
    points = by_place(maker.open(made).frontier())
    rows = pd.DataFrame(made.trials)
    rows["method"] = rows["config.method"]
    for (method, budget), point in points.items():
        tune = rows[(rows.phase == "tune") & (rows.method == method) & (rows.budget_steps == budget)]
        peak = tune.groupby("config.peak_lr")["select/loss"].mean().idxmin()
        fresh = rows[(rows.phase == "confirm") & (rows.method == method) & (rows.budget_steps == budget)]
        fresh = fresh[fresh["config.peak_lr"] == peak]["report/loss"]
        assert point.loss == pytest.approx(fresh.mean())
        low, high = stats.t.interval(0.95, 3, fresh.mean(), stats.sem(fresh))
        assert (point.interval.low, point.interval.high) == pytest.approx((low, high))
        assert (point.roots, point.fresh, point.choice.tried, point.choice.proposals) == (4, True, 10, 5)
        assert abs(np.log(peak / best_peak(budget))) < np.log(2)


def test_difference_is_paired_by_seed_and_document(maker: Maker):
    made = maker.sweep()
    point = by_place(maker.open(made).frontier())["wsd", 1000]
    rows = pd.DataFrame(made.trials)
    rows = rows[(rows.phase == "confirm") & (rows.budget_steps == 1000)].set_index("seed")
    mine, theirs = (rows[rows["config.method"] == m] for m in ("wsd", "cosine"))
    difference = mine["report/loss"] - theirs["report/loss"]
    assert point.difference == pytest.approx(difference.mean())
    assert point.difference_interval.high - point.difference_interval.low < 0.02  # the roots themselves spread by 0.02
    documents = np.array(mine["report/document_losses"].tolist()) - np.array(theirs["report/document_losses"].tolist())
    low, high = stats.t.interval(0.95, 15, documents.mean(), stats.sem(documents.mean(axis=0)))
    assert (point.documents_interval.low, point.documents_interval.high) == pytest.approx((low, high), abs=1e-6)
    assert (point.pairs, point.documents) == (4, 16)


def test_multiplier_of_the_reference_is_one_and_others_invert_its_curve(make_records):
    points = by_place(make_records(noise=1e-9).frontier(x="steps_nominal"))
    for budget in (500, 1000, 2000):
        assert points["cosine", budget].multiplier == pytest.approx(1)
    costs, losses = zip(*[(points["cosine", b].cost, points["cosine", b].loss) for b in (500, 1000, 2000)], strict=True)
    wsd = points["wsd", 1000]
    reached = np.exp(np.interp(-np.log(wsd.loss), -np.log(losses), np.log(costs)))
    assert wsd.multiplier == pytest.approx(reached / 1000)
    assert (points["wsd", 2000].multiplier_bound, points["wsd", 2000].multiplier) == (">", pytest.approx(1))
    assert (points["cyclic_cosine", 500].multiplier_bound, points["cyclic_cosine", 500].multiplier) == ("<", 1.0)


def test_family_axis_counts_the_family(make_records):
    points = by_place(make_records().frontier(x="steps_family"))
    for method in METHODS:
        assert points[method, 2000].cost == family_steps(method, [500, 1000, 2000], 0.1)


def test_tuning_effort_is_what_the_ledger_executed(make_records):
    efforts = {effort.group[0]: effort for effort in make_records().frontier().efforts}
    for method, effort in efforts.items():  # five peaks, two seeds
        assert effort.executed_steps == 10 * family_steps(method, [500, 1000, 2000], 0.1)
        assert (effort.trials, effort.proposals) == (30, 5)


def test_stages_are_given_to_methods_by_their_trials_where_the_ledger_names_them(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), tuning=(0,), fresh=(), peaks=(1e-3, 2e-3))
    for row, trial in zip(made.ledger, made.trials, strict=True):
        row["stage"], row["trials"] = f"nobody measured {trial['trial']}", [trial["trial"]]
    frontier = maker.open(made).frontier()
    assert frontier.efforts[0].executed_steps == 1000
    assert not any("no trial was measured" in note for note in frontier.notes)


def test_without_fresh_seeds_the_value_is_marked(make_records):
    frontier = make_records(fresh=()).frontier()
    assert not any(point.fresh for point in frontier.points)
    assert "2 tuning" in frontier.table()
    assert "no fresh seeds yet" in frontier.table()
    assert all(point.interval is None for point in frontier.points)  # two seeds: no band


def test_a_confirm_trial_on_a_tuning_seed_is_not_fresh(make_records):
    frontier = make_records(tuning=(0, 100), fresh=(100, 101, 102, 103)).frontier()
    assert {point.roots for point in frontier.points if point.fresh} == {3}


def test_a_diverged_fresh_seed_is_counted_and_takes_the_band(maker: Maker):
    made = maker.sweep()
    lost = next(row for row in made.trials if row["phase"] == "confirm" and row["config.method"] == "cosine")
    lost |= {"status": "diverged", "select/loss": None, "report/loss": None}
    frontier = maker.open(made).frontier()
    point = by_place(frontier)["cosine", lost["budget_steps"]]
    assert (point.roots, point.interval) == (3, None)
    assert "1 diverged" in frontier.table()


def test_a_nan_loss_counts_as_diverged(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    for row in made.trials:
        if row["config.peak_lr"] == 8e-3:
            row["select/loss"] = row["report/loss"] = float("nan")
    (point,) = maker.open(made).frontier().points
    assert point.choice.counts == {"complete": 8, "diverged": 2}
    assert np.isfinite(point.loss)


def test_when_every_trial_failed_the_frontier_says_so(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    for row in made.trials:
        row |= {"status": "failed", "error": "out of memory", "select/loss": None, "report/loss": None}
    frontier = maker.open(made).frontier()
    assert frontier.points == ()
    assert "no point, no trial completed (10 failed)" in frontier.table()


def test_one_budget_one_seed(make_records):
    frontier = make_records(methods=("wsd", "cosine"), budgets=(500,), tuning=(0,), fresh=(9,)).frontier()
    assert all((p.roots, p.interval) == (1, None) for p in frontier.points)
    assert by_place(frontier)["wsd", 500].difference is not None


def test_a_choice_at_the_edge_says_how_to_widen(make_records):
    frontier = make_records(methods=("cosine",), budgets=(500,), peaks=(5e-4, 1e-3, 2e-3)).frontier()
    (edge,) = frontier.points[0].edges
    assert (edge.axis, edge.side) == ("peak_lr", "highest")
    assert edge.words == "space.peak_lr=[0.0005,0.001,0.002,0.004]"
    assert edge.words in frontier.table()


def test_a_declared_range_is_widened_by_its_own_words(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), peaks=(5e-4, 1e-3, 2e-3))
    made.spec["axes"] = {"peak_lr": {"low": 5e-4, "high": 2e-3, "log": True, "points": 3}}
    (edge,) = maker.open(made).frontier().points[0].edges
    assert edge.words == "space.peak_lr.high=0.004 space.peak_lr.points=4"


def test_ties_go_to_the_first_proposal(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    for row in made.trials:
        row["select/loss"] = 2.0
    (point,) = maker.open(made).frontier().points
    assert point.config == "peak_lr=0.0005"


def test_without_cosine_there_are_no_differences(make_records):
    frontier = make_records(methods=("wsd", "wsd_s")).frontier()
    assert frontier.reference is None
    assert all(p.difference is None and p.multiplier is None for p in frontier.points)
    assert "no cosine among the groups" in frontier.table()


def test_unknown_axis_is_refused_with_the_list(make_records):
    records = make_records(methods=("cosine",), budgets=(500,), tuning=(0,))
    with pytest.raises(RecordsError, match="steps_nominal, steps_family"):
        records.frontier(x="flops")
    with pytest.raises(RecordsError, match="dedicated run only"):
        records.frontier(x="device_seconds_alone")


def test_device_seconds_of_two_devices_are_refused(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), tuning=(0,))
    for at, row in enumerate(made.trials):
        row |= {"device_seconds_alone": 3.0, "device": "cpu" if at else "NVIDIA H100"}
    with pytest.raises(RecordsError, match="NVIDIA H100, cpu"):
        maker.open(made).frontier(x="device_seconds_alone")


def test_two_problems_are_refused_together_and_drawn_apart(maker: Maker):
    small = {"methods": ("cosine", "wsd"), "budgets": (500,), "tuning": (0,)}
    other = maker.sweep(**small, name="b")
    for row in other.trials:
        row |= {"parameters": 9, "key": row["key"][::-1]}
    records = maker.open(maker.sweep(**small, name="a"), other)
    with pytest.raises(RecordsError, match=r"parameters=140000.*parameters=9"):
        records.frontier()
    assert len(analysis.frontiers(records)) == 2


def test_methods_are_never_mixed_unasked(make_records):
    with pytest.raises(RecordsError, match="would mix the methods"):
        make_records().frontier(by="decay_fraction")


def test_a_condition_is_never_tuned_over(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    made.spec["conditions"] = ["peak_lr"]
    with pytest.raises(RecordsError, match="peak_lr is a condition"):
        maker.open(made).frontier()
    assert len(analysis.open(maker.folder).frontier(by=["method", "peak_lr"]).points) == 5


def test_fields_that_no_sweep_searched_are_not_tuned_over(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    made.spec["axes"] = {"decay_fraction": 0.1}
    with pytest.raises(RecordsError, match="peak_lr differs"):
        maker.open(made).frontier()


def test_a_failed_trial_that_was_run_again_counts_once(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    made.trials.insert(0, made.trials[0] | {"status": "failed", "select/loss": None, "report/loss": None})
    (point,) = maker.open(made).frontier().points
    assert point.choice.counts == {"complete": 10}


def test_near_best_set_of_the_peak(make_records):
    curves = analysis.axis_curves(make_records(noise=1e-5), "peak_lr")
    for curve in curves:
        assert curve.best == min(curve.values, key=lambda peak: abs(np.log(peak / best_peak(curve.budget))))
        losses = [true_loss(curve.group[0], peak, curve.budget) for peak in curve.values]
        assert list(curve.near) == [loss <= min(losses) + 3e-3 for loss in losses]


@pytest.mark.parametrize("format", ["text", "markdown", "latex"])
def test_tables_hold_every_point(make_records, format):
    table = make_records(methods=("wsd", "cosine")).frontier().table(format)
    assert sum("peak_lr" in line or r"peak\_lr" in line for line in table.splitlines()) >= 6
    assert ("wsd & peak\\_lr" in table) == (format == "latex")


def test_ten_thousand_trials_take_seconds(maker: Maker):
    folder = maker.write(maker.sweep(tuning=(0,), fresh=(), documents=4)) / "sweeps" / "s0"
    for file in ("trials.parquet", "measurements.parquet"):
        table = pd.read_parquet(folder / file)
        many = table.loc[table.index.repeat(170)].reset_index(drop=True)
        copy = many.groupby(["trial"] if file.startswith("trials") else ["trial", "step"]).cumcount()
        many["trial"], many["key"] = many["trial"] + "-" + copy.astype(str), many["key"] + "-" + copy.astype(str)
        if file.startswith("trials"):
            many["seed"], many["root"] = copy, copy.astype(str)
            assert len(many) > 10_000
        many.to_parquet(folder / file)
    start = time.process_time()
    frontier = analysis.open(maker.folder).frontier()
    assert time.process_time() - start < 5
    assert {point.roots for point in frontier.points} == {170}


def test_configs_are_chosen_by_the_centre_that_their_sweep_declares():
    rows = pd.DataFrame(
        [
            {"config_id": name, "seed": seed, "select": value, "phase": "tune"}
            for name, values in {"mean": (2.5, 2.5, 2.5), "median": (1.0, 2.0, 9.0)}.items()
            for seed, value in enumerate(values)
        ]
    )
    assert {centre: best_config(rows, centre) for centre in ("mean", "median")} == {"mean": "mean", "median": "median"}
