"""The stage tree against a brute-force trie over single steps, published counts and an exhaustive check of parts."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import files
from sweeps.engine.items import items
from sweeps.engine.plan import NothingKnown, common_steps, make_trial, marginal_steps, plan
from sweeps.engine.words import make_spec
from tests.sweeps.engine_cases import FREE, Free, Memory, nodes, running, stages_of
from trainables import wsd
from trainables.common.timeline import Ramp, Segment, canonical, segment
from trainables.study import state_key


def steps_of(timeline):
    """A timeline step by step, each step by what trains alike: a constant by its value, a ramp by all of it."""
    steps = []
    for part in canonical(timeline):
        ramp = not part.constant
        steps += [(part.knobs, part.steps, done) if ramp else part.knobs for done in range(part.steps)]
    return steps


def trie_size(timelines):
    """Steps of the prefix tree, by brute force: every prefix of every timeline, once."""
    return len({tuple(map(repr, steps[:n])) for steps in map(steps_of, timelines) for n in range(1, len(steps) + 1)})


rates = st.sampled_from([1.0, 2.0])
constants = st.builds(lambda steps, rate: segment(steps, lr=rate), st.integers(0, 5), rates)
ramps = st.builds(
    lambda steps, start, end: segment(steps, lr=Ramp(start, end)), st.integers(1, 4), rates, st.sampled_from([0.0, 2.0])
)
timelines = st.lists(constants | ramps, min_size=1, max_size=4).map(tuple)
timelines = timelines.filter(lambda timeline: sum(part.steps for part in timeline) > 0)
forests = st.lists(st.builds(Free, timelines, st.integers(0, 1), st.integers(1, 4)), min_size=1, max_size=7)


def trials_of(configs):
    return [make_trial(FREE, config) for config in configs]


@settings(max_examples=60, deadline=None)
@given(forests, st.none() | st.integers(1, 6))
def test_shared_steps_are_those_of_a_trie_over_single_steps(configs, checkpoint_every):
    by_root = {}
    for config in configs:
        by_root.setdefault((config.seed, config.measure_every), []).append(config.timeline)
    found = plan(trials_of(configs), checkpoint_every=checkpoint_every)
    assert found.steps_shared == sum(trie_size(members) for members in by_root.values())
    assert found.steps_to_run == found.steps_shared  # nothing is known yet


@settings(max_examples=50, deadline=None)
@given(forests, st.data())
def test_stages_measure_what_every_trial_wants_and_states_have_the_keys_of_their_trials(configs, data):
    trials = trials_of(configs)
    every = data.draw(st.none() | st.integers(1, 6))
    found = plan(trials, checkpoint_every=every)
    points = {point.key: point.full for node in nodes(found) for point in node.points}
    for trial in trials:
        for point in trial.points:
            assert points[point.key] or not point.full
    for node in nodes(found):
        for trial in node.trials:
            assert node.key == state_key(trial.root_key, trial.placed, node.stop)
        assert all(node.start < point.step <= node.stop for point in node.points)
        assert all(child.start == node.stop for child in node.children)
        if every is not None:
            assert node.start // every == (node.stop - 1) // every  # no stage crosses the grid
    assert {trial.key for trial in trials} <= {node.key for node in nodes(found)}


@settings(max_examples=50, deadline=None)
@given(forests, st.data())
def test_cutting_constants_anywhere_changes_no_stage(configs, data):
    def cut(config):
        parts = []
        for part in config.timeline:
            at = data.draw(st.integers(0, part.steps)) if part.constant else 0
            parts += [Segment(at, part.knobs)] * part.constant + [Segment(part.steps - at, part.knobs)]
        return Free(tuple(parts), config.seed, config.measure_every)

    once, again = plan(trials_of(configs)), plan(trials_of([cut(config) for config in configs]))
    assert Counter(node.key for node in nodes(once)) == Counter(node.key for node in nodes(again))


def brute_force_needed(tree, known):
    """Keys of the stages that have to run: those with a wanted measurement, and the way to them from a kept state."""
    kept = known.kept(tree.root_key)
    needed = set()

    def visit(node, ancestors):
        wanted = any(known.measured(p.key) is None or (p.full and not known.measured(p.key)) for p in node.points)
        if wanted:
            needed.add(node.key)
            for ancestor in reversed(ancestors):
                if ancestor.key in kept:
                    break
                needed.add(ancestor.key)
        for child in node.children:
            visit(child, [*ancestors, node])

    for top in tree.tops:
        visit(top, [])
    return needed


def some_knowledge(trials, data):
    """A store that has some measurements and some kept states, drawn freely."""
    first = plan(trials)
    points, states = {}, {}
    for tree in first.trees:
        for node in tree.nodes():
            there = data.draw(st.sampled_from(["all", "all", "some", "none"]))
            for point in node.points:
                if there == "all" or (there == "some" and data.draw(st.booleans())):
                    points[point.key] = point.full and (there == "all" or data.draw(st.booleans()))
            if data.draw(st.booleans()):
                states.setdefault(tree.root_key, {})[node.key] = node.stop
    return Memory(points, states)


@settings(max_examples=60, deadline=None)
@given(forests, st.data())
def test_what_runs_is_what_lacks_a_measurement_and_the_way_to_it_from_a_kept_state(configs, data):
    trials = trials_of(configs)
    known = some_knowledge(trials, data)
    for tree in plan(trials, known).trees:
        assert set(running(tree)) == brute_force_needed(tree, known)


@settings(max_examples=60, deadline=None)
@given(forests, st.data(), st.integers(1, 30))
def test_parts_cover_every_running_stage_once_start_from_a_state_and_respect_the_cap(configs, data, longest):
    trials = trials_of(configs)
    known = some_knowledge(trials, data)
    for tree in plan(trials, known).trees:
        parts = items(tree, longest)
        assert sorted(branch.key for branch in stages_of(parts)) == sorted(running(tree))
        kept = set(known.kept(tree.root_key)) | {branch.key for branch in stages_of(parts) if branch.keep}
        for part in parts:
            assert part.steps == part.branch.total_steps
            assert part.branch.start == 0 if part.start_key is None else part.start_key in kept
            path = len(part.branch.children) <= 1 and all(len(b.children) <= 1 for b in part.branch.stages())
            assert part.steps <= longest or path
            for branch in part.branch.stages():
                assert all(child.start == branch.stop for child in branch.children)
        wanted = {point.key for node in tree.nodes() if node.runs for point in node.missing}
        assert {point.key for branch in stages_of(parts) for point in branch.points} == wanted


@settings(max_examples=50, deadline=None)
@given(forests)
def test_a_tree_below_the_cap_is_not_split(configs):
    for tree in plan(trials_of(configs)).trees:
        assert len(items(tree, 10**6)) == len(tree.tops)


def test_a_lost_state_is_trained_again_from_the_nearest_kept_one_and_the_plan_counts_it():
    small = Free((segment(40, lr=1.0), segment(10, lr=Ramp(1.0, 0.0))), measure_every=10)
    large = Free((segment(90, lr=1.0), segment(10, lr=Ramp(1.0, 0.0))), measure_every=10)
    trials = trials_of([small, large])
    done = {point.key: point.full for point in trials[0].points}
    lost = plan(trials, Memory(done, {}))
    assert (lost.steps_to_run, lost.steps_retrained) == (100, 40)
    trunk = state_key(trials[0].root_key, trials[0].placed, 40)
    kept = plan(trials, Memory(done, {trials[0].root_key: {trunk: 40}}))
    assert (kept.steps_to_run, kept.steps_retrained) == (60, 0)
    assert plan([trials[0]], Memory(done, {})).steps_to_run == 0  # states are not missed where nothing needs them


def test_steps_before_the_first_missing_measurement_count_as_trained_again():
    long = make_trial(FREE, Free((segment(100, lr=1.0),), measure_every=10))
    done = {point.key: False for point in long.points if point.step <= 60}
    found = plan([long], Memory(done, {}))
    assert (found.steps_to_run, found.steps_retrained) == (100, 60)
    cut = plan([long], Memory(done, {}), checkpoint_every=25)  # 25..50 lies wholly, 50..75 partly before it
    assert (cut.steps_to_run, cut.steps_retrained) == (100, 60)


def test_branches_behind_a_kept_state_run_even_where_the_stage_before_it_only_lacks_a_measurement():
    def trial(budget, shape="linear"):
        return make_trial(
            FREE, Free((segment(budget - 10, lr=1.0), segment(10, lr=Ramp(1.0, 0.0, shape))), measure_every=10)
        )

    small, large, other_shape = trial(50), trial(100), trial(100, "cosine")
    trunk = state_key(large.root_key, large.placed, 90)
    known = Memory({point.key: point.full for point in large.points}, {large.root_key: {trunk: 90}})
    (tree,) = plan([small, large, other_shape], known).trees
    parts = items(tree, 1_000)
    assert [(part.branch.start, part.steps, part.start_key) for part in parts] == [(0, 50, None), (90, 10, trunk)]


def test_the_trunk_goes_first_and_is_its_heaviest_path():
    def wsd_trial(budget, decay):
        return make_trial(FREE, Free((segment(budget - decay, lr=1.0), segment(decay, lr=Ramp(1.0, 0.0)))))

    (tree,) = plan([wsd_trial(budget, decay) for budget in (200, 400, 800) for decay in (20, 40)]).trees
    parts = items(tree, 100)
    assert parts[0].start_key is None and parts[0].steps == 800
    assert sum(part.steps for part in parts) == plan(tree.trials).steps_shared


def test_divergence_and_failure_lose_all_that_follows_and_nothing_else():
    trunk = segment(40, lr=1.0)
    one = make_trial(FREE, Free((trunk, segment(10, lr=Ramp(1.0, 0.0))), measure_every=20))
    other = make_trial(FREE, Free((trunk, segment(40, lr=1.0)), measure_every=20))
    apart = make_trial(FREE, Free((segment(50, lr=2.0),), measure_every=20))
    at_40 = state_key(one.root_key, one.placed, 40)
    diverged = plan([one, other, apart], Memory({at_40: True}, {}, bad=frozenset({at_40})))
    assert {node.lost for node in nodes(diverged) if apart not in node.trials} == {"diverged"}
    assert diverged.steps_to_run == 50
    failed = plan([one, other, apart], Memory({}, {}, failed={one.key: "boom"}))
    assert [node.lost for node in nodes(failed) if node.key == one.key] == ["boom"]
    assert failed.steps_to_run == 40 + 40 + 50


# Published step counts


def wsd_grid(rates, budgets, fractions, shapes):
    return [
        wsd.Config(
            budget_steps=budget,
            peak_lr=rate,
            decay_fraction=fraction,
            decay_shape=shape,
            min_lr_ratio=0.1,
            warmup_steps=0,
        )
        for rate in [1e-3 * 1.5**n for n in range(rates)]
        for budget in budgets
        for fraction in fractions
        for shape in ["linear", "cosine", "one_minus_sqrt"][:shapes]
    ]


def closed_form(rates, budgets, fractions, shapes):
    """L [max(T - fT) + |S| sum fT]: trunk once, every decay once (studies of the throughput of stage trees)."""
    decays = [round(fraction * budget) for budget in budgets for fraction in fractions]
    trunk = max(budget - round(fraction * budget) for budget in budgets for fraction in fractions)
    return rates * (trunk + shapes * sum(decays))


DOUBLING = [100, 200, 400, 800, 1600, 3200]


@pytest.mark.parametrize(
    ("rates", "budgets", "fractions", "shapes", "trials", "alone", "shared", "saving"),
    [
        (5, DOUBLING, [0.05, 0.1, 0.2, 0.4], 3, 360, 378_000, 86_075, 4.39),
        (5, DOUBLING, [0.05, 0.1, 0.2, 0.4], 1, 120, 126_000, 38_825, 3.25),
        (5, DOUBLING, [0.1, 0.2, 0.3, 0.4], 3, 360, 378_000, 108_900, 3.47),
        (8, [100, 200, 400], [0.1, 0.2, 0.3], 2, 144, 33_600, 9_600, 3.50),
        (5, DOUBLING, [0.1], 1, 30, 31_500, 17_550, 1.79),
        (5, DOUBLING, [0.2], 1, 30, 31_500, 19_100, 1.65),
        (3, [320 * n for n in range(1, 11)], [0.1], 1, 30, 52_800, 13_920, 3.79),
    ],
)
def test_published_grids_cost_what_the_table_and_the_closed_form_say(
    rates, budgets, fractions, shapes, trials, alone, shared, saving
):
    grid = wsd_grid(rates, budgets, fractions, shapes)
    found = plan(make_trial(FREE, Free(wsd.timeline(config))) for config in grid)
    assert (found.trials, found.steps_alone, found.steps_shared) == (trials, alone, shared)
    assert round(found.saving, 2) == saving
    assert found.steps_shared == closed_form(rates, budgets, fractions, shapes)


def test_preset_grid360_is_that_grid():
    spec, _ = make_spec(wsd.STUDY, ["preset=grid360", "scale=tiny"], "wsd_budget")
    configs = [
        config
        for point in spec.space.grid()
        for values in spec.space.enumerations((*spec.space.cell_axes, "budget_steps"))
        for config in wsd.STUDY.configs(
            {**spec.resolved.study_in({"method": "wsd"}), **spec.space.pinned, **point, **values, "seed": 0},
            spec.budgets,
        )
    ]
    found = plan(make_trial(FREE, Free(wsd.timeline(config))) for config in configs)
    assert (found.trials, found.steps_shared, found.steps_alone) == (360, 86_075, 378_000)
    assert files.load("wsd").presets["grid360"]


# Costs (87,500 steps of cosine oracles is the author's baseline)


def family(method, **values):
    configs = wsd.family({"method": method, "warmup_steps": 2_000, **values}, [12_500, 25_000, 50_000])
    return [make_trial(FREE, Free(wsd.timeline(config))) for config in configs]


@pytest.mark.parametrize(
    ("method", "values", "steps", "ends"),
    [
        ("wsd", {}, 53_750, [12_500, 25_000, 50_000]),
        ("wsd_s", {"accounting": "family"}, 53_750, [12_500, 26_250, 53_750]),
        ("wsd_s", {"accounting": "budget"}, 50_000, [12_500, 25_000, 50_000]),
        ("cyclic_cosine", {}, 50_000, [12_500, 25_000, 50_000]),
    ],
)
def test_a_familys_cost_is_the_published_one(method, values, steps, ends):
    trials = family(method, **values)
    assert sum(marginal_steps(trials)) == steps
    assert [trial.steps for trial in trials] == ends


def test_cosine_oracles_share_nothing_but_their_warm_up():
    trials = family("cosine")
    assert sum(trial.steps for trial in trials) == 87_500
    assert sum(marginal_steps(trials)) == 87_500 - 2 * 2_000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(Free, timelines), min_size=1, max_size=6), st.randoms())
def test_marginal_steps_add_up_to_the_tree_in_any_order(configs, random):
    trials = trials_of(configs)
    random.shuffle(trials)
    assert sum(marginal_steps(trials)) == plan(trials).steps_shared


@settings(max_examples=50, deadline=None)
@given(st.builds(Free, timelines), st.builds(Free, timelines))
def test_common_steps_are_the_longest_common_prefix(one, other):
    first, second = steps_of(one.timeline), steps_of(other.timeline)
    length = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    assert common_steps(*trials_of([one, other])) == length


def test_a_plan_of_a_thousand_trials_takes_seconds():
    grid = [
        Free(
            (
                segment(20, lr=Ramp(0.0, rate)),
                segment(budget - 20 - round(fraction * budget), lr=rate),
                segment(round(fraction * budget), lr=Ramp(rate, rate / 10, shape)),
            ),
            measure_every=100,
        )
        for rate in [1e-3 * 1.3**n for n in range(5)]
        for budget in [100 * 2**n for n in range(7)]
        for fraction in [0.05, 0.1, 0.2, 0.3, 0.35, 0.4]
        for shape in ["linear", "cosine", "one_minus_sqrt", "square", "exponential"]
    ]
    assert len(grid) == 1_050
    trials = trials_of(grid)
    began = time.process_time()
    found = plan(trials, NothingKnown())
    parts = [part for tree in found.trees for part in items(tree, 1_000)]
    assert time.process_time() - began < 4.0  # CPU seconds; 2 on an idle core
    assert sum(part.steps for part in parts) == found.steps_shared


def test_a_plan_against_a_store_with_many_kept_states_takes_seconds():
    trials = trials_of(
        [
            Free((segment(budget - 50, lr=1.0), segment(50, lr=Ramp(1.0, 0.0, shape))), measure_every=100)
            for budget in range(100, 10_100, 100)
            for shape in ["linear", "cosine", "square"]
        ]
    )
    root, longest = trials[0].root_key, trials[-1]
    states = {state_key(root, longest.placed, step): step for step in range(50, 10_000, 50)}
    began = time.process_time()
    plan(trials, Memory({}, {root: states}))
    assert time.process_time() - began < 4.0
