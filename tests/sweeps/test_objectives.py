"""Searches with several objectives against fronts and areas worked out by hand; one objective against how it was."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import analysis
from analysis.pareto import pareto
from search_spaces import load, parse
from search_spaces.files import read
from sweeps.engine import tuning
from sweeps.engine.launch import open_journals
from sweeps.engine.proposals import Proposals, complete, pruned
from sweeps.engine.records import Recorder, describe_spec, write_spec
from sweeps.engine.spec import Search, named_objectives
from sweeps.engine.words import Refused, make_spec
from tests.sweeps.engine_cases import open_sweep, run_shuffled, run_sweep, toy_spec
from trainables import toys, wsd
from trainables.study import Metric

FIELDS = {"peak_lr": float, "weight_decay": float, "shape": str}
SPACE = parse(
    {"peak_lr": {"low": 1e-4, "high": 1e-2, "log": True}, "weight_decay": {"low": 0.0, "high": 0.3}}, fields=FIELDS
)
LOSS, DISTANCE = Metric("select/loss", "min"), Metric("distance", "min")
RATES = {"low": 0.005, "high": 0.5, "log": True}


def measure(state, run, full):
    """The bowl's loss, and how far it is from where it began: who trains faster goes farther."""
    begun = torch.randn(state.root.dimension, generator=torch.Generator().manual_seed(state.root.seed))
    return {**toys.measure(state, run, full), "distance": float((state.position - begun).norm())}


STUDY = replace(toys.QUADRATIC, measure=measure)


def two_objectives(folder, sampler="nsga2", proposals=12, **more):
    search = Search(sampler, proposals=proposals, objectives=(LOSS, DISTANCE))
    how = dict(rates=RATES, budgets=(10, 20), decay_fraction=0.0, search=search, tuning=2, fresh=3)
    return toy_spec(folder, STUDY, **{**how, **more})


def dominated(one, others):
    """By the definition: another is as good in all and better in one."""
    return any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in others)


def heights(sweep, budget):
    """Proposal -> its mean of both objectives at a budget, from the entries alone."""
    found = {}
    for entry in sweep.entries:
        if entry.phase == "tune" and entry.trial.config.budget_steps == budget:
            row = entry.result.metrics
            found.setdefault(entry.proposal, []).append((row["select/loss"], row["distance"]))
    return {proposal: tuple(map(fmean, zip(*rows, strict=True))) for proposal, rows in found.items()}


# Proposals


def losses(values):
    if values["peak_lr"] > 7e-3:
        return pruned()
    rate = math.log10(values["peak_lr"])
    return complete((rate + 2.5) ** 2 + values["weight_decay"], (rate + 3.5) ** 2 + values["weight_decay"])


def opened(folder, sampler, count=None, **more):
    settings = {"objective": ["a", "b"], "goal": ["min", "min"], "seed": 3, "lag": 2, **more}
    count = count or (10 if sampler == "gp" else 26)
    return Proposals.open(folder, cell="all", space=SPACE, sampler=sampler, count=count, **settings)


def asked(proposals):
    return [dict(proposal.values) for proposal, _ in proposals.outcomes()]


def run_in_order(proposals, slots=1, order=None):
    flying = []
    while not proposals.finished:
        while len(flying) < slots and (proposal := proposals.ask()) is not None:
            flying.append(proposal)
        proposal = flying.pop(order.randrange(len(flying)) if order else 0)
        proposals.tell(proposal.index, losses(proposal.values))
    return asked(proposals)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "gp", "qmc"])
def test_proposals_for_two_objectives_depend_on_neither_order_nor_interruption(sampler, tmp_path):
    unbroken = run_in_order(opened(None, sampler))
    with opened(tmp_path / "shuffled", sampler) as proposals:
        assert run_in_order(proposals, slots=3, order=random.Random(1)) == unbroken
    finished, interrupted = False, set()
    while not finished:
        with opened(tmp_path / "reopened", sampler) as proposals:
            proposal = proposals.ask()
            if proposal.index % 3 != 2 or proposal.index in interrupted:
                proposals.tell(proposal.index, losses(proposal.values))
            interrupted.add(proposal.index)
            finished = proposals.finished
    with opened(tmp_path / "reopened", sampler) as proposals:
        assert asked(proposals) == unbroken


def test_a_new_search_of_generations_starts_from_what_is_known(tmp_path):
    rates = [1e-3 + k / 1e6 for k in range(30)]
    known = [({"peak_lr": rate, "weight_decay": 0.1}, losses({"peak_lr": rate, "weight_decay": 0.1})) for rate in rates]
    with opened(tmp_path, "nsga2", lag=9) as proposals:
        assert proposals.fill(known) == 30
        first = [proposals.ask().values for _ in range(10)]
    bred = [values for values in first if any(math.isclose(values["peak_lr"], rate, rel_tol=1e-9) for rate in rates)]
    assert len(bred) >= 2  # a rate of its parents, where no draw would meet one; half of all values are mutated
    with opened(tmp_path, "nsga2", lag=9) as proposals:
        assert [proposals.ask().values for _ in range(10)] == first


def test_evolution_comes_closer_to_the_front_than_chance():
    """The front of `losses` is weight_decay = 0, peak_lr between 10**-3.5 and 10**-2.5."""

    def last_half(sampler, seed):
        values = run_in_order(opened(None, sampler, count=64, seed=seed, lag=7))[32:]
        return fmean(each["weight_decay"] for each in values)

    gains = [last_half("random", seed) - last_half("nsga2", seed) for seed in range(12)]
    assert fmean(gains) > 2 * stdev(gains) / math.sqrt(len(gains))


def test_the_journal_holds_all_objectives_as_optuna_reads_them(tmp_path):
    with opened(tmp_path, "random", count=2, goal=["min", "max"]) as proposals:
        for _ in range(2):
            proposals.ask()
        proposals.tell(1, complete(2.0, 3.0))
        with pytest.raises(ValueError, match=r"has 2 objectives, so it cannot be complete with 1\.0"):
            proposals.tell(0, complete(1.0))
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(proposals.path))))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.trials[1].values == [2.0, 3.0]
    assert study.user_attrs["header"]["objective"] == ["a", "b"] and study.user_attrs["header"]["goal"] == [
        "min",
        "max",
    ]


def test_cmaes_follows_one_objective():
    with pytest.raises(ValueError, match="follows one objective, got 2; take sampler=nsga2"):
        opened(None, "cmaes")


def test_journals_and_sweeps_of_one_objective_have_the_names_they_always_had(tmp_path):
    def names(search, **more):
        spec = toy_spec(tmp_path, search=search, **more)
        return spec.sweep, open_journals(spec, 2, record=False)("all", spec.space).path.stem

    rates = {"low": 0.01, "high": 0.5, "log": True}
    assert names(Search()) == ("toy-default-tiny-2c1c87", "2765daf10f477e7b")
    assert names(Search("tpe", proposals=5), rates=rates) == ("toy-default-tiny-617d84", "08f127887803d863")
    assert (
        len({names(Search(objectives=found)) for found in [(), (DISTANCE,), (LOSS, DISTANCE), (DISTANCE, LOSS)]}) == 4
    )


# Sweeps


def test_an_outcome_is_the_area_of_each_objective_and_the_front_of_each_budget_is_confirmed(tmp_path):
    sweep = run_sweep(two_objectives(tmp_path))
    at = {budget: heights(sweep, budget) for budget in (10, 20)}
    (cell,) = sweep.tuning.cells
    for proposal, outcome in cell.proposals.outcomes():
        areas = [(at[10][proposal.index][k] + at[20][proposal.index][k]) / 2 for k in (0, 1)]
        assert outcome.values == pytest.approx(areas)
    confirmed = [entry for entry in sweep.entries if entry.phase == "confirm"]
    for budget, points in at.items():
        front = {proposal for proposal, one in points.items() if not dominated(one, points.values())}
        found = {entry.proposal for entry in confirmed if entry.trial.config.budget_steps == budget}
        assert 2 <= len(found) <= tuning.FRONT_CONFIRMED and found <= front
        assert len(front) > tuning.FRONT_CONFIRMED or {points[p] for p in found} == {points[p] for p in front}
        for place in (0, 1):  # both ends of the front
            assert min(points[p][place] for p in found) == min(points[p][place] for p in points)
        seeds = {e.trial.config.seed for e in confirmed if e.trial.config.budget_steps == budget}
        assert seeds == {1000, 1001, 1002}

    recorder = Recorder(sweep.spec, sweep.entries, "cpu")
    recorder.tables(sweep.driver.index).write(sweep.spec.folder)
    write_spec(sweep.spec, describe_spec(sweep.spec, [], {}))
    read_again = pareto(analysis.open(tmp_path), objectives=(LOSS, DISTANCE))
    for budget, points in at.items():
        front = {one for one in points.values() if not dominated(one, points.values())}
        there = read_again.front(("all",), budget)
        assert sorted(point.values for point in there) == [pytest.approx(one) for one in sorted(front)]
        assert sum(bool(point.fresh) for point in there) == len(
            {e.trial.config.learning_rate for e in confirmed if e.trial.config.budget_steps == budget}
        )


def test_a_long_front_is_confirmed_at_its_ends_and_evenly_between(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "FRONT_CONFIRMED", 3)
    sweep = run_sweep(two_objectives(tmp_path, "qmc", proposals=10, budgets=(20,), fresh=1, tuning=1))
    points = heights(sweep, 20)
    front = sorted((one, proposal) for proposal, one in points.items() if not dominated(one, points.values()))
    expected = {front[place][1] for place in (0, round((len(front) - 1) / 2), len(front) - 1)}
    assert len(front) > 3
    assert {entry.proposal for entry in sweep.entries if entry.phase == "confirm"} == expected


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_a_rerun_proposes_the_same_for_two_objectives(tmp_path, sampler):
    def proposed(sweep):
        return [(p.values, outcome) for p, outcome in sweep.tuning.cells[0].proposals.outcomes()]

    def spec(folder):
        return two_objectives(tmp_path / folder, sampler, proposals=9, budgets=(10,), tuning=1, fresh=1)

    calm = run_sweep(spec("calm"), slots=3)
    shuffled = run_shuffled(spec("shuffled"), random.Random(1), slots=3)
    assert proposed(shuffled) == proposed(calm) and shuffled.results() == calm.results()
    again = run_sweep(spec("calm"), slots=3)
    assert again.executed == 0 and proposed(again) == proposed(calm)


def test_one_named_objective_takes_the_place_of_the_select_metric(tmp_path):
    spec = toy_spec(
        tmp_path,
        STUDY,
        rates=(0.05, 0.1, 0.2),
        tuning=1,
        fresh=1,
        search=Search(objectives=(Metric("distance", "max"),)),
    )
    sweep = run_sweep(spec)
    for budget in (20, 40):
        points = {proposal: one[1] for proposal, one in heights(sweep, budget).items()}
        found = [e for e in sweep.entries if e.phase == "confirm" and e.trial.config.budget_steps == budget]
        assert {entry.proposal for entry in found} == {max(points, key=points.__getitem__)}


def test_a_metric_that_the_trials_lack_is_refused_with_those_there_are(tmp_path):
    spec = toy_spec(tmp_path, STUDY, search=Search(objectives=(LOSS, Metric("trace", "min"))))
    with pytest.raises(
        Refused, match="objective=trace is no metric of the trials of quadratic; they have distance, sel"
    ):
        run_sweep(spec)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"noise": [0.1, 0.2]}, "noise is enumerated; pin it with space.noise=VALUE, or name it among the cells"),
        ({"search": Search(proposals=3, bracket=3, objectives=(LOSS, DISTANCE))}, "halved by one objective.*bracket=3"),
    ],
)
def test_what_needs_one_number_per_proposal_is_refused(tmp_path, more, words):
    with pytest.raises(ValueError, match=words):
        open_sweep(two_objectives(tmp_path, **more))
    spec = two_objectives(tmp_path, noise=[0.1, 0.2], cells=("noise",), proposals=3)
    sweep = open_sweep(spec)
    assert len(sweep.tuning.cells) == 2
    sweep.tuning.close()


# Packs


@pytest.mark.parametrize(("sampler", "bracket", "at_once"), [("tpe", None, 8), ("nsga2", None, 8), ("qmc", None, 64)])
def test_a_fused_study_is_asked_for_an_eighth_of_an_adaptive_search_at_once(tmp_path, sampler, bracket, at_once):
    def spec(study):
        search = Search(sampler, proposals=64, bracket=bracket)
        return toy_spec(tmp_path, study, rates=RATES, budgets=(20,), search=search)

    for study, expected in ((toys.LANES, at_once), (toys.QUADRATIC, 64 if sampler == "qmc" else 3)):
        sweep = open_sweep(spec(study), slots=2)
        assert sorted({entry.proposal for entry in sweep.entries}) == list(range(expected))
        sweep.tuning.close()


# Words


@pytest.mark.parametrize(
    ("argument", "objectives"),
    [
        ("objective=select/loss", ()),
        ("objective=select/loss:min", ()),
        ("objective=[select/loss]", ()),
        ("objective=trace:max", (Metric("trace", "max"),)),
        ('objective=["select/loss","trace:min"]', (LOSS, Metric("trace", "min"))),
        ("objective=[select/loss:min,train/loss:min]", (LOSS, Metric("train/loss", "min"))),
    ],
)
def test_objectives_of_a_command(argument, objectives):
    spec, _ = make_spec(wsd.STUDY, ["scale=tiny", argument], "wsd_budget")
    assert spec.search.objectives == objectives
    assert spec.objectives == (objectives or (LOSS,))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("objective=[select/loss,report/loss:min]", "report/loss:min is measured on report data, which must not guide"),
        ("objective=trace", "does not say whether less or more is better; say trace:min or trace:max"),
        ("objective=trace:low", "say trace:min or trace:max"),
        ("objective=select/loss:max", "turns the goal of wsd around; say select/loss:min"),
        ("objective=[trace:min,trace:max]", "trace is named twice"),
    ],
)
def test_objectives_that_are_refused(argument, words):
    with pytest.raises(Refused, match=words):
        make_spec(wsd.STUDY, ["scale=tiny", argument], "wsd_budget")


def test_a_space_file_may_name_objectives():
    content = {
        "study": "toy",
        "axes": {},
        "scales": {"tiny": {"seeds": {"tuning": 1, "fresh": 1}}},
        "presets": {"default": {"search": {"sampler": "nsga2", "objective": ["select/loss", "trace:min"]}}},
    }
    found = read(content).presets["default"].search["objective"]
    assert named_objectives(toys.QUADRATIC, found) == (LOSS, Metric("trace", "min"))
    assert "objective" not in load("wsd").presets["default"].search
