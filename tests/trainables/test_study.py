"""The training walk against single trials written out by hand, and the contract's refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from trainables import toys
from trainables.common.timeline import place
from trainables.study import (
    Branch,
    Diverged,
    LocalRun,
    Point,
    StagedStudy,
    Stopped,
    alone,
    measured_on_grid,
    state_key,
    with_values,
)
from trainables.toys import QUADRATIC
from trainables.walk import clone, train, walk


def by_hand(config):
    """The toy's position after a config, by its formula and no other code of ours."""
    curvature = torch.linspace(0.1, 1.0, config.dimension)
    position = torch.randn(config.dimension, generator=torch.Generator().manual_seed(config.seed))
    decay = round(config.decay_fraction * config.budget_steps)
    for step in range(config.budget_steps):
        done = step - (config.budget_steps - decay)
        rate = config.learning_rate if done < 0 else config.learning_rate * (1 - done / decay)
        noise = torch.randn(config.dimension, generator=torch.Generator().manual_seed(config.seed * 2**32 + step))
        position = position - rate * (curvature * position + config.noise * noise)
    return position


def test_a_trial_alone_is_the_formula():
    config = replace(QUADRATIC.tiny, budget_steps=37, decay_fraction=0.3, seed=3)
    stage = train(QUADRATIC, config, keep=True)
    assert torch.allclose(stage.tensors["position"], by_hand(config), rtol=1e-5)
    assert stage.executed_steps == 37 and [row.step for row in stage.rows] == [5, 10, 15, 20, 25, 26, 30, 35, 37]
    assert [row.step for row in stage.rows if row.full] == [26, 37]
    assert stage.rows[-1].knobs == {"lr": pytest.approx(config.learning_rate / 11)}


def forest(configs):
    """A tree of two levels: a shared trunk up to a step, then the rest of each config."""
    placed = [place(QUADRATIC.timeline(config)) for config in configs]
    root = QUADRATIC.root(configs[0])
    root_key = QUADRATIC.root_key(root)
    fork = 10

    def points(parts, start, stop):
        return tuple(Point(s, state_key(root_key, parts, s), True) for s in (start + 1, stop))

    children = tuple(
        Branch(state_key(root_key, parts, 20), fork, 20, parts, points(parts, fork, 20), keep=True) for parts in placed
    )
    trunk = Branch(
        state_key(root_key, placed[0], fork), 0, fork, placed[0], points(placed[0], 0, fork), children=children
    )
    return root, trunk


CONFIGS = [replace(QUADRATIC.tiny, budget_steps=20, decay_fraction=fraction) for fraction in (0.5, 0.25, 0.1)]


def test_branches_of_a_walk_end_where_their_trials_end_alone():
    root, trunk = forest(CONFIGS)
    stages = {}
    walk(QUADRATIC, root, [trunk], LocalRun(), commit=lambda stage: stages.setdefault(stage.branch.key, stage))
    for config in CONFIGS:
        _, branch = alone(QUADRATIC, config)
        lone = train(QUADRATIC, config, keep=True)
        assert torch.equal(stages[branch.key].tensors["position"], lone.tensors["position"])
        assert stages[branch.key].rows[-1].metrics == lone.rows[-1].metrics


def test_parents_are_committed_before_their_children():
    root, trunk = forest(CONFIGS)
    starts = []
    walk(QUADRATIC, root, [trunk], LocalRun(), commit=lambda stage: starts.append(stage.branch.start))
    assert starts == [0, 10, 10, 10]


def test_a_walk_from_a_kept_state_is_the_same_as_from_the_start():
    root, trunk = forest(CONFIGS)
    kept = []
    walk(QUADRATIC, root, [replace(trunk, keep=True)], LocalRun(), commit=lambda stage: kept.append(stage))
    again = []
    walk(QUADRATIC, root, trunk.children, LocalRun(), commit=again.append, tensors=kept[0].tensors)
    before = {stage.branch.key: stage.tensors["position"] for stage in kept[1:]}
    for stage in again:
        assert torch.equal(stage.tensors["position"], before[stage.branch.key])


def test_a_stage_that_raises_or_diverges_ends_its_branch_and_the_others_go_on():
    root, trunk = forest(CONFIGS)

    def advance(state, placed, span, run):
        toys.advance(state, placed, span, run)
        if placed.segment.falling and placed.segment.steps == 10:
            state.position.fill_(float("inf"))
        if placed.segment.falling and placed.segment.steps == 5:
            raise ZeroDivisionError("in the study")

    stages = {}
    walk(
        replace(QUADRATIC, advance=advance),
        root,
        [trunk],
        LocalRun(),
        commit=lambda s: stages.setdefault(s.branch.key, s),
    )
    ends = [stages[branch.key] for branch in trunk.children]
    assert [stage.status for stage in ends] == ["diverged", "failed", "complete"]
    assert "not finite" in ends[0].error or "diverged: at step" in ends[0].error
    assert "ZeroDivisionError: in the study" in ends[1].error
    assert torch.equal(ends[2].tensors["position"], train(QUADRATIC, CONFIGS[2], keep=True).tensors["position"])


def test_a_walk_stops_when_it_is_asked_to_and_commits_nothing_half_done():
    root, trunk = forest(CONFIGS)
    committed = []
    run = LocalRun(stop=lambda: bool(committed))
    with pytest.raises(Stopped, match="step 10"):
        walk(QUADRATIC, root, [trunk], run, commit=committed.append)
    assert [stage.branch.start for stage in committed] == [0]


def test_train_says_at_which_step_a_trial_diverged_and_what_a_study_raised():
    with pytest.raises(Diverged, match="at step 5 select/loss = inf") as caught:
        train(QUADRATIC, toys.diverging(QUADRATIC.tiny))
    assert caught.value.step == 5

    def start(root, run):
        raise KeyError("weights")

    def advance(state, placed, span, run):
        raise KeyError("batch")

    with pytest.raises(KeyError, match="weights"):
        train(replace(QUADRATIC, start=start), QUADRATIC.tiny)
    with pytest.raises(RuntimeError, match=r"quadratic failed on .*\n.*Traceback"):
        train(replace(QUADRATIC, advance=advance), QUADRATIC.tiny)


def test_measurements_are_a_function_of_the_trials_own_timeline():
    timeline = QUADRATIC.timeline(replace(QUADRATIC.tiny, budget_steps=22, decay_fraction=0.5))
    assert measured_on_grid(QUADRATIC.root(QUADRATIC.tiny), timeline) == {
        5: False,
        10: False,
        11: True,
        15: False,
        20: False,
        22: True,
    }


def test_a_clone_does_not_move_with_what_it_was_taken_from():
    tensors = {"a": torch.zeros(3)}
    copy = clone(tensors)
    tensors["a"] += 1
    assert torch.equal(copy["a"], torch.zeros(3))


def test_root_keys_differ_by_study_version_and_every_keyed_field():
    root = QUADRATIC.root(QUADRATIC.tiny)
    keys = {
        QUADRATIC.root_key(root),
        replace(QUADRATIC, version=2).root_key(root),
        replace(QUADRATIC, name="other").root_key(root),
        QUADRATIC.root_key(replace(root, seed=1)),
        QUADRATIC.root_key(replace(root, noise=0.2)),
        QUADRATIC.root_key(replace(root, measure_every=6)),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("budgets", [[40, 20], [20, 20]])
def test_budgets_that_do_not_increase_are_refused(budgets):
    with pytest.raises(ValueError, match=r"budgets must increase, got .*; sort them and drop repeats"):
        QUADRATIC.configs({}, budgets)


def test_names_that_the_config_lacks_are_refused():
    with pytest.raises(ValueError, match="names \\['nose'\\], which its config lacks"):
        replace(QUADRATIC, conditions=("nose",))
    with pytest.raises(ValueError, match="quadratic has no field \\['nose'\\]"):
        with_values(QUADRATIC, nose=1)
    assert with_values(QUADRATIC, noise=0.5).noise == 0.5


def test_a_study_of_ones_own_is_a_record_of_functions():
    @dataclass(frozen=True)
    class Own:
        budget_steps: int = 3
        seed: int = 0

    study: StagedStudy = replace(QUADRATIC, name="own", config=Own, tiny=Own(), conditions=())
    assert study.field_names == ["budget_steps", "seed"] and study.hyper_parameters == ["budget_steps"]
