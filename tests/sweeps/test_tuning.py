"""Which trials a sweep makes and which configs it chooses, against the choice worked out from all results by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean

import pytest

from sweeps.engine.spec import Search
from tests.sweeps.engine_cases import open_sweep, run_shuffled, run_sweep, toy_spec
from trainables import toys
from trainables.study import Metric

RATES = (0.05, 0.1, 0.2, 0.4)
FRACTIONS = [0.1, 0.5]


def misleading(state, run, full):
    """Report loss with the opposite order of select loss: who chooses on report data chooses the worst."""
    loss = toys.measure(state, run, False)["select/loss"]
    return {"select/loss": loss, "report/loss": -loss} if full else {"select/loss": loss}


MISLEADING = replace(toys.QUADRATIC, measure=misleading)


def of(sweep, phase):
    return [entry for entry in sweep.entries if entry.phase == phase]


def test_a_proposal_makes_every_enumeration_seed_and_budget(tmp_path):
    sweep = open_sweep(toy_spec(tmp_path, rates=RATES, tuning=2, decay_fraction=FRACTIONS, search=Search(proposals=3)))
    found = sorted(
        (e.proposal, e.trial.config.budget_steps, e.trial.config.decay_fraction, e.trial.config.seed)
        for e in sweep.entries
    )
    assert found == [(p, b, f, s) for p in range(3) for b in (20, 40) for f in FRACTIONS for s in (0, 1)]
    sweep.tuning.close()


@pytest.mark.parametrize("goal", ["min", "max"])
def test_fresh_seeds_go_to_the_config_that_is_best_on_select_data_at_each_budget(tmp_path, goal):
    study = replace(MISLEADING, select=Metric("select/loss", goal))
    sweep = run_sweep(toy_spec(tmp_path, study, rates=RATES, tuning=2, fresh=3, decay_fraction=FRACTIONS))
    losses = {}
    for entry in of(sweep, "tune"):
        config = entry.trial.config
        point = (config.learning_rate, config.decay_fraction)
        losses.setdefault(config.budget_steps, {}).setdefault(point, []).append(entry.result.metrics["select/loss"])
    confirmed = of(sweep, "confirm")
    assert len(confirmed) == 2 * 3
    for budget, by_point in losses.items():
        best = (min if goal == "min" else max)(by_point, key=lambda point: fmean(by_point[point]))
        chosen = [entry.trial.config for entry in confirmed if entry.trial.config.budget_steps == budget]
        assert {(config.learning_rate, config.decay_fraction) for config in chosen} == {best}
        assert sorted(config.seed for config in chosen) == [1000, 1001, 1002]
    assert not {entry.trial.config.seed for entry in confirmed} & {
        entry.trial.config.seed for entry in of(sweep, "tune")
    }


def test_each_compared_value_gets_its_own_choice(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, rates=RATES, fresh=1, decay_fraction=FRACTIONS, compare=("decay_fraction",)))
    chosen = of(sweep, "confirm")
    found = {(entry.trial.config.budget_steps, entry.trial.config.decay_fraction) for entry in chosen}
    assert len(chosen) == len(found) == 2 * 2
    for entry in chosen:
        config = entry.trial.config
        rivals = [
            e
            for e in of(sweep, "tune")
            if (e.trial.config.budget_steps, e.trial.config.decay_fraction)
            == (config.budget_steps, config.decay_fraction)
        ]
        best = min(rivals, key=lambda e: e.result.metrics["select/loss"])
        assert config.learning_rate == best.trial.config.learning_rate


def test_cells_are_tuned_apart_and_adding_one_moves_nothing_of_the_others(tmp_path):
    shape = dict(rates=RATES, budgets=(20, 40), fresh=1, cells=("noise",))
    both = run_sweep(toy_spec(tmp_path / "both", noise=[0.1, 1.0], **shape))
    one = run_sweep(toy_spec(tmp_path / "one", noise=[0.1], **shape))
    assert {cell.name for cell in both.tuning.cells} == {"noise=0.1", "noise=1.0"}
    found = {key: result for key, result in both.results().items() if key[1].noise == 0.1}
    assert found == one.results()


def test_the_objective_is_the_area_under_the_best_of_each_budget_over_log_budget(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, rates=RATES, budgets=(20, 40, 160), decay_fraction=FRACTIONS, tuning=2))
    (cell,) = sweep.tuning.cells
    for proposal, outcome in cell.proposals.outcomes():
        heights = []
        for budget in (20, 40, 160):
            by_fraction = {}
            for entry in of(sweep, "tune"):
                config = entry.trial.config
                if config.learning_rate == proposal.values["learning_rate"] and config.budget_steps == budget:
                    by_fraction.setdefault(config.decay_fraction, []).append(entry.result.metrics["select/loss"])
            heights.append(min(map(fmean, by_fraction.values())))
        xs = [math.log(budget) for budget in (20, 40, 160)]
        area = sum((xs[i + 1] - xs[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(2))
        assert outcome.value in (pytest.approx(area), pytest.approx(area / (xs[-1] - xs[0])))


def test_a_proposal_that_lacks_one_budget_is_pruned_and_not_averaged_over_fewer(tmp_path):
    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        if placed.segment.falling and span.stop == 40 and placed.at(placed.start)["lr"] == 0.1:
            state.position.fill_(float("inf"))

    sweep = run_sweep(
        toy_spec(tmp_path, replace(toys.QUADRATIC, advance=advance), rates=(0.1, 0.2), decay_fraction=0.25)
    )
    (cell,) = sweep.tuning.cells
    states = {proposal.values["learning_rate"]: outcome.state for proposal, outcome in cell.proposals.outcomes()}
    assert states == {0.1: "pruned", 0.2: "complete"}


def test_one_bad_branch_of_several_does_not_prune_a_proposal(tmp_path):
    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        if placed.segment.falling and placed.segment.steps == 20:
            state.position.fill_(float("nan"))

    study = replace(toys.QUADRATIC, advance=advance)
    sweep = run_sweep(toy_spec(tmp_path, study, rates=(0.1, 0.2), decay_fraction=FRACTIONS, fresh=1))
    (cell,) = sweep.tuning.cells
    assert {outcome.state for _, outcome in cell.proposals.outcomes()} == {"complete"}
    assert {(e.trial.config.budget_steps, e.trial.config.decay_fraction) for e in of(sweep, "confirm")} >= {(40, 0.1)}


# Rungs


def halving(tmp_path, **more):
    rates = tuple(0.02 * 1.5**n for n in range(8))
    how = dict(rates=rates, budgets=(20, 40, 80), decay_fraction=0.25, search=Search(proposals=8, bracket=4, eta=2))
    return toy_spec(tmp_path, MISLEADING, **{**how, **more})


def test_a_bracket_trains_all_to_the_first_budget_and_the_best_on_select_data_go_on(tmp_path):
    sweep = run_sweep(halving(tmp_path))
    whole = run_sweep(halving(tmp_path / "whole", search=Search()))
    loss = {(e.proposal, e.trial.config.budget_steps): e.result.metrics["select/loss"] for e in whole.entries}
    rate = {entry.proposal: entry.trial.config.learning_rate for entry in whole.entries}
    assert rate == {p.index: p.values["learning_rate"] for p, _ in sweep.tuning.cells[0].proposals.outcomes()}
    expected = set()
    for bracket in (range(4), range(4, 8)):
        alive = list(bracket)
        for keep, budget in ((4, 20), (2, 40), (1, 80)):
            alive = sorted(alive, key=lambda p: loss[p, 20 if budget <= 40 else 40])[:keep]
            expected |= {(proposal, budget) for proposal in alive}
    assert {(entry.proposal, entry.trial.config.budget_steps) for entry in sweep.entries} == expected
    states = [outcome.state for _, outcome in sweep.tuning.cells[0].proposals.outcomes()]
    assert (states.count("complete"), states.count("pruned")) == (2, 6)
    assert {entry.status for entry in sweep.entries} == {"complete"}


def test_a_rung_starts_from_the_trunks_that_were_trained_for_the_one_before(tmp_path):
    sweep = run_sweep(halving(tmp_path))
    for entry in sweep.entries:
        if entry.trial.config.budget_steps == 40:
            starts = [c.start for c in sweep.told.commits if c.root_key == entry.trial.root_key and c.stop == 40]
            assert 0 not in starts
    by_hand = 8 * 20 + 4 * (30 - 15 + 10) + 2 * (60 - 30 + 20)  # a trunk never runs twice, each rung adds its decay
    assert sweep.executed == by_hand


def test_the_order_in_which_rungs_fill_changes_nothing(tmp_path):
    calm = run_sweep(halving(tmp_path / "calm"))
    for seed in range(3):
        shuffled = run_shuffled(halving(tmp_path / str(seed)), random.Random(seed), slots=4)
        assert shuffled.results() == calm.results()
        assert [o for _, o in shuffled.tuning.cells[0].proposals.outcomes()] == [
            o for _, o in calm.tuning.cells[0].proposals.outcomes()
        ]


def test_the_same_halving_again_runs_nothing(tmp_path):
    first, again = run_sweep(halving(tmp_path)), run_sweep(halving(tmp_path))
    assert again.executed == 0 and again.results() == first.results()


def test_another_bracket_leaves_the_first_as_it_was(tmp_path):
    small = run_sweep(halving(tmp_path, search=Search(proposals=4, bracket=4)))
    large = run_sweep(halving(tmp_path, search=Search(proposals=8, bracket=4)))
    shared = {key: result for key, result in large.results().items() if key in small.results()}
    assert shared == small.results()
    assert large.executed < small.executed + large.executed


# Samplers


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_a_rerun_proposes_the_same_whatever_finished_first(tmp_path, sampler):
    def spec(folder):
        rates = {"low": 0.01, "high": 0.5, "log": True}
        return toy_spec(tmp_path / folder, rates=rates, search=Search(sampler, proposals=7), decay_fraction=0.25)

    def proposed(sweep):
        return [(p.values, outcome) for p, outcome in sweep.tuning.cells[0].proposals.outcomes()]

    calm = run_sweep(spec("calm"), slots=3)
    for seed in range(2):
        assert proposed(run_shuffled(spec(str(seed)), random.Random(seed), slots=3)) == proposed(calm)
    again = run_sweep(spec("calm"), slots=3)
    assert again.executed == 0 and proposed(again) == proposed(calm)


def test_more_proposals_of_an_adaptive_sampler_continue_the_shorter_search(tmp_path):
    def spec(count):
        rates = {"low": 0.01, "high": 0.5, "log": True}
        return toy_spec(tmp_path, rates=rates, search=Search("tpe", proposals=count), decay_fraction=0.25)

    first, second = run_sweep(spec(3)), run_sweep(spec(5))
    one, two = ([p.values for p, _ in s.tuning.cells[0].proposals.outcomes()] for s in (first, second))
    assert two[:3] == one and len(two) == 5
    assert second.executed == 2 * (30 + 5 + 10)


LOSSES = {0.05: (3.0, 3.0, 3.0), 0.1: (1.0, 2.0, 9.0), 0.2: (2.5, 2.5, 2.5), 0.4: (9.0, 9.0, 9.0)}


def table_of_losses(configs, run):
    """Made-up trials whose mean and median over the seeds 0, 1 and 2 choose different rates."""
    for lane, config in enumerate(configs):
        loss = LOSSES[round(config.learning_rate, 6)][config.seed % 1000 % 3]
        run.report(lane=lane, step=config.budget_steps, full=True, **{"select/loss": loss, "report/loss": loss})


@pytest.mark.parametrize(("centre", "best"), [("mean", 0.2), ("median", 0.1)])
def test_a_study_says_whether_the_mean_or_the_median_over_seeds_chooses(tmp_path, centre, best):
    study = replace(toys.LANES, train=table_of_losses, centre=centre)
    sweep = run_sweep(toy_spec(tmp_path, study, rates=RATES, tuning=3, fresh=1, budgets=(20,)))
    assert [entry.trial.config.learning_rate for entry in of(sweep, "confirm")] == [pytest.approx(best)]
