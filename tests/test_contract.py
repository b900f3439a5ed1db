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
from sweeps.engine.spec import named_objectives
from trainables import wsd_schedules
from trainables.common.timeline import place, total_steps
from trainables.pack import train_pack
from trainables.registry import STUDIES
from trainables.study import AnyStudy, FusedStudy, LocalRun, Span, StagedStudy, alone
from trainables.toys import LANES, QUADRATIC
from trainables.walk import train, walk

ALL = {**STUDIES, QUADRATIC.name: QUADRATIC, LANES.name: LANES}
STAGED = {name: study for name, study in ALL.items() if isinstance(study, StagedStudy)}
FUSED = {name: study for name, study in ALL.items() if isinstance(study, FusedStudy)}

# Values for fields whose other values cannot be guessed from their type.
SCHEDULED = {"method": "cosine", "earlier_budgets": (20,), "decay_shape": "cosine", "accounting": "budget"}
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
    },
    "lanes": {"target": 0.5, "measure_every": 4},
    "river_valley": {**SCHEDULED, "valley": "hyperbola"},
    "bigram": SCHEDULED,
    "flatness": {
        "architecture": "no_bias",
        "algorithm": "gd",
        "data": "ball",
        "loss": "logistic",
        "later_learning_rates": (0.02,),
        "later_rhos": (0.3,),
        "phase_parts": (1.0, 2.0),
        "interpolated_below": 1e3,
        "dimension": 8,
    },
    "sam_bias": {
        "problem": "quadratic",
        "mode": "one_sam",
        "precision": "float32",
        "groups": 1,
        "time_per_step": 1e-3,
    },
    "lpn": {
        "setting": "restricted",
        "network": "norm_mlp",
        "activation": "cosine",
        "output": "cosine",
        "loss": "l1",
        "optimizer": "sgd",
    },
    "cot_parity": {
        "train_size": 16,
        "initialisation": "gpt2",
        "start": "constructed",
        "schedule": "linear",
        "clip_norm": None,
        "success_at": 0.02,  # tiny has exact matches between 0 and 1
        "held_out_rows": 8,
        "secret_seed": 7,
        "entropy_bonus": 1.0,
    },
    "rnn_retrieval": {
        "task": "index",
        "graph": "random",
        "body": "none",
        "model": "gru",
        "size": "4k",
        "positions": "learned",
        "embedding": "sinusoidal",
        "train_rows": 16,
        "clip": 0.01,
        "gram": 2,
        "values": 16,
    },
    "dyck": {
        "ood_lengths": (16, 20),
        "first_layer": "trigonometric",
        "positions": "linear",
        "trains": "around_map",
        "train_open_rate": 0.4,
        "prefix_length": 4,
        "contrast": 0.5,
        "kinds": 3,
        "depth": 2,
        "score_spread": 2.0,
        "keep_rate": 0.25,
        "network_seed": 7,
        "length": 10,
        "probe_length": 5,
    },
    "benign_linear": {"noise_kind": "symmetric", "repair": "early_stop", "signal_exponent": 0.25},
    "benign": {
        "data": None,  # needs files; their checksum enters the root (tests/trainables/test_benign.py)
        "image_size": 32,
        "noise_kind": "flip",
        "noise_rate": 0.2,
        "model": "resnet",
        "norm": "group",
        "blocks": (1, 2),
        "repair": "early_stop",
        "rounds": 2,
        "teacher_step": 20,
        "train_size": 250,
        "test_size": 150,
        "batch_size": 100,
        "optimizer": "sgd",
        "momentum": 0.5,
    },
    "sam_net": {
        "data": None,  # needs a folder; its content enters the images' checksum (tests/trainables/test_sam_net.py)
        "blocks": (1, 2),
        "norm": "group",
        "group": 8,
        "budget_steps": 20,
        "pool": 2,
        "momentum": 0.5,
    },
    "masked_lm": {
        "method": "constant",
        "decay_shape": "cosine",
        "corpus": None,  # needs text; its content enters the corpus' checksum (tests/trainables/test_masked_lm.py)
        "tokenizer": None,  # the same
        "precision": "bf16",
    },
    "skill_neurons": {
        "task": None,  # needs other texts; their content enters the root (tests/trainables/test_skill_neurons.py)
        "encoder": None,  # the same, of files
        "readout": "first",
        "verbaliser": "bad,good",
        "action": "probe",
        "tuning": "adapter",
        "kind": "zero",
        "first_layer": 1,
        "dev_size": 8,
        "batch_size": 8,
    },
}
# The method under which a schedule field is read.
POOL = dict(setting="moderate", samples=4096)
ONE_RUN = [{}, dict(method="wsd_s"), dict(method="wsd_s", earlier_budgets=(20,))]
VARIANTS = {
    "wsd": [dict(method=method) for method in get_args(wsd_schedules.Method)],
    "river_valley": ONE_RUN,
    "bigram": ONE_RUN,
    "flatness": [
        {},
        dict(algorithm="sgd"),
        dict(algorithm="label_noise"),
        dict(loss="logistic"),
        dict(architecture="sim_ln_projected"),
        dict(architecture="sim_bn"),
        dict(phase_parts=(1.0, 1.0), later_learning_rates=(0.01,), later_rhos=(0.1,)),
    ],
    "sam_bias": [
        {},
        {"problem": "quadratic"},
        {"problem": "mlp_small"},
        {"mode": "m_sam", "problem": "mlp_small"},
        {"mode": "worst"},
    ],
    "lpn": [
        {},
        POOL,
        {**POOL, "xor_rounds": 1, "block_bits": 1},
        dict(setting="restricted"),
        dict(network="sparse_mlp", keep_rate=0.8),
    ],
    "cot_parity": [
        {},
        dict(chain_of_thought=False, norm=False),  # start=constructed is refused elsewhere
        dict(success_at=0.02),  # where confirmations matter
    ],
    "rnn_retrieval": [
        {},
        dict(model="gru"),
        dict(task="grams", values=32, length=12),
        dict(task="istree", body="none"),
        dict(task="istree", body="cot", length=6),
    ],
    "dyck": [
        {},
        dict(first_layer="learned"),
        dict(prefix_length=4, contrast=0.1),
        dict(trains="around_map", score_spread=1.0),
        dict(trains="mask", keep_rate=0.5, network_seed=3),
    ],
    "benign_linear": [{}, dict(repair="self_train_hard", teacher_step=4), dict(repair="self_train_soft")],
    "benign": [{}, dict(model="resnet"), dict(repair="self_train_hard"), dict(optimizer="sgd")],
    "skill_neurons": [
        {},
        dict(tuning="adapter", backbone_steps=4),
        dict(action="prune", retune_steps=4),
    ],
}
# What makes a lane of a fused study diverge.
DIVERGING = {
    "lanes": dict(learning_rate=1e30),
    "river_valley": dict(peak_lr=1e9),
    "bigram": dict(peak_lr=1e300),
    "lpn": dict(learning_rate=1e39),
    "flatness": dict(learning_rate=1e30),
    "cot_parity": dict(learning_rate=1e39),
    "rnn_retrieval": dict(learning_rate=1e30),
    "dyck": dict(learning_rate=1e30),
    "benign_linear": dict(learning_rate=1e308),
}


@pytest.fixture(params=list(ALL))
def study(request) -> AnyStudy:
    return ALL[request.param]


@pytest.fixture(params=list(STAGED))
def staged(request) -> StagedStudy:
    return STAGED[request.param]


@pytest.fixture(params=list(FUSED))
def fused(request) -> FusedStudy:
    return FUSED[request.param]


def run(study, config):
    run = LocalRun()
    stage = train(study, config, run, keep=True)
    return stage, run.rows


def test_the_registry_names_studies_by_their_names():
    assert all(name == study.name for name, study in STUDIES.items())
    assert all(study.paper for study in STUDIES.values())


def test_tiny_ends_in_seconds(study):
    began = time.process_time()
    run(study, study.tiny)
    assert time.process_time() - began < 20  # CPU seconds, torch's late imports included


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(study):
    first, second = run(study, study.tiny), run(study, study.tiny)
    assert first[0].rows == second[0].rows and first[1] == second[1]
    if isinstance(study, StagedStudy):
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
def test_measuring_leaves_state_and_generators_untouched(staged, full):
    root = staged.root(staged.tiny)
    state = staged.start(root, LocalRun())
    placed = place(staged.timeline(staged.tiny))[0]
    staged.advance(state, placed, Span(0, min(3, placed.stop)), LocalRun())
    before = {name: value.clone() for name, value in state.tensors().items()}
    random_before = generators()
    first = staged.measure(state, LocalRun(), full)
    assert staged.measure(state, LocalRun(), full) == first
    assert generators() == random_before
    after = state.tensors()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_state_is_all_that_training_changes(staged):
    """Its tensors, put into a new state made elsewhere, give the same rows: nothing else is remembered."""
    stage, _ = run(staged, staged.tiny)
    placed = place(staged.timeline(staged.tiny))
    middle = total_steps(staged.timeline(staged.tiny)) // 2
    root, branch = alone(staged, staged.tiny)
    first = replace(branch, stop=middle, points=tuple(p for p in branch.points if p.step <= middle), keep=True)
    rest = replace(branch, start=middle, points=tuple(p for p in branch.points if p.step > middle))
    halves = []
    walk(staged, root, [first], LocalRun(), commit=halves.append)
    torch.manual_seed(987)
    walk(staged, root, [rest], LocalRun(), commit=halves.append, tensors=halves[0].tensors)
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


def test_every_field_of_the_config_is_in_the_root_or_changes_the_timeline(staged):
    idle = []
    for item in fields(staged.config):
        value = another(staged, item, field_types(staged.config)[item.name])
        if value is None:
            continue
        moved = False
        for variant in VARIANTS.get(staged.name, [{}]):
            for earlier in ({}, {"earlier_budgets": (20,)}):
                try:
                    base = replace(staged.tiny, **{**variant, **earlier})
                    changes = {item.name: value}
                    if item.name == "decay_fractions":
                        changes["decay_fraction"] = value[-1]
                    changed = replace(base, **changes)
                except (ValueError, TypeError):
                    continue
                try:
                    roots = staged.root_key(staged.root(base)) != staged.root_key(staged.root(changed))
                except ValueError:
                    continue
                moved |= roots or place(staged.timeline(base)) != place(staged.timeline(changed))
        if not moved:
            idle.append(item.name)
    assert not idle, f"these fields change nothing that a key would show: {idle}"


def test_roots_are_hashable_and_hold_what_the_walk_needs(staged):
    root = staged.root(staged.tiny)
    assert hash(root) == hash(staged.root(staged.tiny)) and root.seed == staged.tiny.seed and root.measure_every >= 1


def test_advance_and_measure_see_no_config(staged):
    for value in vars(staged.root(staged.tiny)).values():
        assert not isinstance(value, staged.config)


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
            objectives = [metric.name for metric in named_objectives(study, resolved.search.get("objective"))]
            locates = study.boundary in objectives
            space = parse(
                resolved.axes,
                fields=types,
                conditions=study.conditions,
                cells=resolved.cells,
                locates_boundary=locates,
            )
            used = {*space.searched, *space.enumerated, *space.pinned, *resolved.study}
            used |= {field for part in resolved.within.values() for field in part}
            assert used <= set(types), (scale, preset)
            assert locates or not set(space.searched) & set(study.conditions), (scale, preset)
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


def packed(study, configs):
    stages = {}
    train_pack(study, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    return [stages[lane] for lane in range(len(configs))]


def assert_agree(study, stage, other):
    assert stage.status == other.status, (stage.error, other.error)
    assert [(row.key, row.step, row.full) for row in stage.rows] == [
        (row.key, row.step, row.full) for row in other.rows
    ]
    for ours, theirs in zip(stage.rows, other.rows, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, rel=study.agreement, abs=study.agreement)


def test_a_lane_in_a_pack_agrees_with_itself_alone(fused):
    configs = [replace(fused.tiny, seed=fused.tiny.seed + lane) for lane in range(3)]
    for config, stage in zip(configs, packed(fused, configs), strict=True):
        assert_agree(fused, stage, packed(fused, [config])[0])


def test_a_lane_that_diverges_leaves_the_others_untouched(fused):
    healthy = replace(fused.tiny, seed=fused.tiny.seed + 1)
    ill = replace(fused.tiny, **DIVERGING[fused.name])
    assert fused.shape(ill) == fused.shape(healthy)
    first, second = packed(fused, [ill, healthy])
    assert first.status == "diverged"
    assert_agree(fused, second, packed(fused, [healthy])[0])


def test_a_shape_is_hashable_and_says_how_long_it_trains(fused):
    shape = fused.shape(fused.tiny)
    assert hash(shape) == hash(fused.shape(replace(fused.tiny, seed=fused.tiny.seed + 1)))
    longer = replace(fused.tiny, **{fused.budget: 2 * getattr(fused.tiny, fused.budget)})
    assert fused.shape(longer) != shape and fused.steps(longer) > fused.steps(fused.tiny)


def test_what_stands_for_a_pack_in_a_measurement_has_its_shape_but_for_the_steps(fused):
    longer = replace(fused.tiny, **{fused.budget: 8 * getattr(fused.tiny, fused.budget)})
    short = fused.short(longer)
    assert fused.steps(short) < fused.steps(longer) and packed(fused, [short])[0].status == "complete"


def test_every_field_of_a_fused_config_changes_its_shape_or_its_rows(fused):
    """A field that changes neither would make a new trial of the same training."""
    rows = {}
    idle = []
    for item in fields(fused.config):
        value = another(fused, item, field_types(fused.config)[item.name])
        for variant in VARIANTS.get(fused.name, [{}]):
            try:
                base = replace(fused.tiny, **variant)
                changed = replace(base, **{item.name: value})
            except ValueError:
                continue
            if fused.shape(base) != fused.shape(changed):
                break
            if repr(base) not in rows:
                rows[repr(base)] = [row[1:] for row in packed(fused, [base])[0].rows]
            if [row[1:] for row in packed(fused, [changed])[0].rows] != rows[repr(base)]:
                break
        else:
            idle.append(item.name)
    assert not idle, f"these fields change neither shape nor rows: {idle}"
