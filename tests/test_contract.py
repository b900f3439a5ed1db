"""What every study promises, on each: two runs against each other, a trial against its parts, fields against use."""

from __future__ import annotations

import random
import time
from dataclasses import fields, replace
from math import isfinite
from typing import get_args, get_origin

import numpy as np
import pytest
import torch

from search_spaces import load, parse, resolve
from search_spaces.fields import SpaceError, field_comments, field_types
from sweeps.engine.plan import make_trial, plan
from trainables import wsd
from trainables.common.timeline import place, total_steps
from trainables.registry import STUDIES
from trainables.study import LocalRun, Span, StagedStudy, alone
from trainables.toys import QUADRATIC
from trainables.walk import train, walk

ALL = {**STUDIES, QUADRATIC.name: QUADRATIC}

# Values for fields whose other values cannot be guessed from their type.
OTHER_VALUES = {
    "wsd": {
        "method": "constant",
        "earlier_budgets": (20,),
        "decay_fractions": (0.1, 0.2),
        "decay_shape": "cosine",
        "decay_basis": "period",
        "accounting": "budget",
        "min_lr_ratio": 0.3,
        "decay_fraction": 0.2,
        "model": "trainables.common.models.llama:Llama",
        "optimizer": "trainables.common.optimizers:make_optimizer",
        "tokenizer": None,  # needs a file; its content enters the corpus' checksum (tests/trainables/test_corpora.py)
        "corpus": None,  # the same
        "precision": "bf16",
        "heads": 4,
    }
}
# The method under which a schedule field is read.
VARIANTS = {"wsd": [dict(method=method) for method in get_args(wsd.Method)], "quadratic": [{}]}


@pytest.fixture(params=list(ALL))
def study(request) -> StagedStudy:
    return ALL[request.param]


def run(study, config):
    run = LocalRun()
    stage = train(study, config, run, keep=True)
    return stage, run.rows


def test_the_registry_names_studies_by_their_names():
    assert all(name == study.name for name, study in STUDIES.items())
    assert len({study.paper for study in STUDIES.values()}) == len(STUDIES)


def test_tiny_ends_in_seconds(study):
    began = time.process_time()
    run(study, study.tiny)
    assert time.process_time() - began < 20  # CPU seconds, torch's late imports included


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(study):
    first, second = run(study, study.tiny), run(study, study.tiny)
    assert first[0].rows == second[0].rows and first[1] == second[1]
    assert all(torch.equal(first[0].tensors[name], second[0].tensors[name]) for name in first[0].tensors)
    other = run(study, replace(study.tiny, seed=study.tiny.seed + 1))[0]
    assert other.rows[-1].metrics[study.select.name] != first[0].rows[-1].metrics[study.select.name]


def test_each_row_has_its_objective_and_report_data_only_shows_in_full_measurements(study):
    stage, _ = run(study, study.tiny)
    assert stage.rows[-1].full and any(not row.full for row in stage.rows)
    for row in stage.rows:
        assert isfinite(row.metrics[study.select.name])
        reported = [name for name in (*row.metrics, *row.arrays) if name.startswith("report/")]
        assert (study.report.name in row.metrics) == row.full and bool(reported) == row.full
    light, full = (next(row for row in stage.rows if row.full == wanted) for wanted in (False, True))
    assert set(light.metrics) == {name for name in full.metrics if not name.startswith("report/")}
    assert study.select.name.startswith("select/") and study.report.name.startswith("report/")


def generators():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), repr(random.getstate())


@pytest.mark.parametrize("full", [False, True])
def test_measuring_leaves_state_and_generators_untouched(study, full):
    root = study.root(study.tiny)
    state = study.start(root, LocalRun())
    placed = place(study.timeline(study.tiny))[0]
    study.advance(state, placed, Span(0, min(3, placed.stop)), LocalRun())
    before = {name: value.clone() for name, value in state.tensors().items()}
    random_before = generators()
    first = study.measure(state, LocalRun(), full)
    assert study.measure(state, LocalRun(), full) == first
    assert generators() == random_before
    after = state.tensors()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_state_is_all_that_training_changes(study):
    """Its tensors, put into a new state made elsewhere, give the same rows: nothing else is remembered."""
    stage, _ = run(study, study.tiny)
    placed = place(study.timeline(study.tiny))
    middle = total_steps(study.timeline(study.tiny)) // 2
    root, branch = alone(study, study.tiny)
    first = replace(branch, stop=middle, points=tuple(p for p in branch.points if p.step <= middle), keep=True)
    rest = replace(branch, start=middle, points=tuple(p for p in branch.points if p.step > middle))
    halves = []
    walk(study, root, [first], LocalRun(), commit=halves.append)
    torch.manual_seed(987)
    walk(study, root, [rest], LocalRun(), commit=halves.append, tensors=halves[0].tensors)
    assert [*halves[0].rows, *halves[1].rows] == stage.rows
    assert placed[-1].stop == stage.rows[-1].step


def another(study, item, hint):
    """Another value that a field may take; None where there is none to be had here."""
    given = OTHER_VALUES.get(study.name, {})
    if item.name in given:
        return given[item.name]
    value = getattr(study.tiny, item.name)
    if get_origin(hint) is not None and type(None) in get_args(hint):
        value, hint = value or 1, next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return not value
    if hint is int:
        return value * 2 or 2
    if hint is float:
        return value / 2 if value else 0.5
    raise AssertionError(f"say in OTHER_VALUES another value of {study.name}.{item.name}")


def test_every_field_of_the_config_is_in_the_root_or_changes_the_timeline(study):
    idle = []
    for item in fields(study.config):
        value = another(study, item, field_types(study.config)[item.name])
        if value is None:
            continue
        moved = False
        for variant in VARIANTS.get(study.name, [{}]):
            for earlier in ({}, {"earlier_budgets": (20,)}):
                try:
                    base = replace(study.tiny, **{**variant, **earlier})
                    changes = {item.name: value}
                    if item.name == "decay_fractions":
                        changes["decay_fraction"] = value[-1]
                    changed = replace(base, **changes)
                except (ValueError, TypeError):
                    continue
                try:
                    roots = study.root_key(study.root(base)) != study.root_key(study.root(changed))
                except ValueError:
                    continue
                moved |= roots or place(study.timeline(base)) != place(study.timeline(changed))
        if not moved:
            idle.append(item.name)
    assert not idle, f"these fields change nothing that a key would show: {idle}"


def test_roots_are_hashable_and_hold_what_the_walk_needs(study):
    root = study.root(study.tiny)
    assert hash(root) == hash(study.root(study.tiny)) and root.seed == study.tiny.seed and root.measure_every >= 1


def test_advance_and_measure_see_no_config(study):
    for value in vars(study.root(study.tiny)).values():
        assert not isinstance(value, study.config)


def test_units_and_names_are_there_for_the_tables(study):
    units = study.units(study.root(study.tiny))
    assert units["tokens"] > 0 and units["flops"] > 0 and units["parameters"] > 0
    name = study.describe(study.tiny, [study.budget, "seed"])
    assert str(getattr(study.tiny, study.budget)) in name and "\n" not in name and len(name) < 80


def test_a_family_has_one_config_per_budget_and_shares_what_it_can(study):
    first = getattr(study.tiny, study.budget)
    given = {item.name: getattr(study.tiny, item.name) for item in fields(study.config) if item.name != study.budget}
    configs = study.configs(given, [first, 2 * first])
    assert [getattr(config, study.budget) for config in configs] == [first, 2 * first]
    trials = [make_trial(study, config) for config in configs]
    assert plan(trials).steps_shared <= sum(trial.steps for trial in trials)


def test_fields_say_what_they_are(study):
    comments = field_comments(study.config)
    said = [item.name for item in fields(study.config) if item.name in comments]
    assert len(said) >= len(fields(study.config)) // 2


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_space_names_only_fields_that_exist_at_every_scale_and_preset(name):
    study, file = STUDIES[name], load(name)
    types = field_types(study.config)
    assert file.study == name
    for scale in file.scales:
        for preset in file.presets_at(scale):
            resolved = resolve(file, scale, preset)
            space = parse(resolved.axes, fields=types, conditions=study.conditions, cells=resolved.cells)
            used = {*space.searched, *space.enumerated, *space.pinned, *resolved.study}
            used |= {field for part in resolved.within.values() for field in part}
            assert used <= set(types), (scale, preset)
            assert not set(space.searched) & set(study.conditions), (scale, preset)
            assert study.budget in {*space.enumerated, *space.pinned}


@pytest.mark.parametrize("name", list(ALL))
def test_conditions_are_never_searched(name):
    study = ALL[name]
    types = field_types(study.config)
    for condition in study.conditions:
        if types[condition] in (int, float):
            with pytest.raises(SpaceError, match=f"{condition} is a condition"):
                parse({condition: {"low": 1, "high": 2}}, fields=types, conditions=study.conditions)
    assert not set(study.conditions) & {"seed"} and study.budget in study.field_names


def test_the_config_refuses_a_name_that_it_lacks(study):
    with pytest.raises(TypeError):
        study.config(no_such_field=1)
