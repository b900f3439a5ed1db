"""The queue's schedule against closed bounds, the best of all orders where they can be counted, and real walks."""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.engine.dry_run import dry_run
from sweeps.engine.items import in_walk_order, items, work_of
from sweeps.engine.jobs import SMALLEST_JOB_STEPS, Queue
from sweeps.engine.plan import make_trial, plan
from sweeps.engine.schedule import expected_schedule
from sweeps.engine.words import make_spec
from sweeps.engine.worker import run_job
from tests.sweeps.engine_cases import FREE, Free, nodes, open_sweep, toy_spec
from trainables import toys, wsd
from trainables.common.timeline import Ramp, segment
from trainables.study import LocalRun
from trainables.walk import walk


def decays(budgets, fractions, seeds=1):
    """Trunks with a decay per budget and fraction."""
    return plan(
        make_trial(FREE, Free((segment(b - round(f * b), lr=1.0), segment(round(f * b), lr=Ramp(1.0, 0.0))), seed=seed))
        for seed in range(seeds)
        for b in budgets
        for f in fractions
    )


def sequences(trials):
    """A tree with a trial per sequence of (rate, steps): equal beginnings are shared."""
    return plan(make_trial(FREE, Free(tuple(segment(steps, lr=rate) for rate, steps in trial))) for trial in trials)


def least_of(whole, slots):
    """The bound of all orders, from the trials and stages alone; every step of these costs the same."""
    return max(max(trial.steps for tree in whole.trees for trial in tree.trials), whole.steps_shared / slots)


TREES = st.lists(
    st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.integers(20, 4_000)), min_size=1, max_size=4),
    min_size=1,
    max_size=12,
).map(sequences)


@settings(max_examples=150, deadline=None)
@given(TREES, st.integers(1, 9))
def test_no_schedule_is_longer_than_grahams_bound(whole, slots):
    found = expected_schedule(whole, slots)
    assert found.work == pytest.approx(whole.steps_shared)
    assert found.least == pytest.approx(least_of(whole, slots))
    assert found.least <= found.makespan * (1 + 1e-9)
    # (2 - 1/slots) x the least possible; small stages that share a job for its start-up's sake may add that job
    assert found.makespan <= (2 - 1 / slots) * found.least + SMALLEST_JOB_STEPS


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_one_slot_takes_all_work_and_many_slots_little_more_than_the_longest_way(whole):
    assert expected_schedule(whole, 1).makespan == pytest.approx(whole.steps_shared)
    longest = max(trial.steps for trial in whole.trees[0].trials)
    assert expected_schedule(whole, 64).makespan <= longest + max(SMALLEST_JOB_STEPS, whole.steps_shared / 256)


def best_of_all_orders(whole, slots):
    """The shortest schedule that starts a ready stage whenever a slot is free; no other kind is shorter here."""
    stages = nodes(whole)
    parent = {id(child): node for node in stages for child in node.children}
    best = float("inf")
    for order in permutations(stages):
        place = {id(node): at for at, node in enumerate(order)}
        if any(place[id(node)] > place[id(child)] for node in stages for child in node.children):
            continue  # the same as an order with parents first
        waiting, ended, running, now = list(order), set(), [], 0.0
        while waiting or running:
            ready = [node for node in waiting if id(node) not in parent or id(parent[id(node)]) in ended]
            while ready and len(running) < slots:
                node = ready.pop(0)
                waiting.remove(node)
                heapq.heappush(running, (now + node.steps, id(node)))
            now, finished = heapq.heappop(running)
            ended.add(finished)
        best = min(best, now)
    return best


def test_on_small_trees_it_is_near_the_best_of_all_orders():
    ratios = []
    for budgets, fractions, slots in product(
        [(1_000, 2_000), (700, 3_000), (900, 1_100)], [(0.4,), (0.1, 0.6)], (2, 3)
    ):
        whole = decays(budgets, fractions)
        assert len(nodes(whole)) <= 8
        ratios.append(expected_schedule(whole, slots).makespan / best_of_all_orders(whole, slots))
    assert min(ratios) > 1 - 1e-9  # or the enumeration misses orders
    assert max(ratios) < 1.2 and sum(ratios) / len(ratios) < 1.05


@pytest.mark.parametrize(
    ("preset", "slots", "most"), [("grid360", 2, 1.01), ("grid360", 8, 1.02), ("default", 2, 1.01)]
)
def test_shipped_sweeps_come_near_the_least_possible(tmp_path, preset, slots, most):
    words = ["scale=laptop", f"preset={preset}", f"slots={slots}", f"results={tmp_path}"]
    driver, tuning = dry_run(*make_spec(wsd.STUDY, words, "wsd_budget"), slots)
    tuning.close()
    found = expected_schedule(driver.current_plan(), slots)
    assert 1 - 1e-9 <= found.makespan / found.least < most


def test_a_branch_is_handed_out_when_its_fork_is_committed_not_when_the_trunk_ends(tmp_path):
    spec = toy_spec(tmp_path, rates=(0.1, 0.2), budgets=(1_000, 4_000), fixed={"decay_fraction": 0.2})
    sweep = open_sweep(spec, slots=3)
    trunk, other = sweep.driver.next_job(), sweep.driver.next_job()
    assert len(trunk.items) == len(other.items) == 1 and sweep.driver.next_job() is None
    handed = []

    def tell(told):
        sweep.driver.heard(told)
        if told.committed and not handed:
            handed.append(sweep.driver.next_job())

    run_job(trunk, sweep.place, LocalRun(), tell)
    sweep.tuning.close()
    (branch,) = handed
    assert branch is not None and trunk.name in sweep.driver.queue.running
    item, start = branch.items[0]
    assert item.start_key == start.key and item.branch.start == 800


def test_parts_are_walked_in_the_order_that_the_schedule_assumes():
    values = [dict(budget_steps=b, decay_fraction=f) for b in (40, 80, 160) for f in (0.1, 0.25, 0.5)]
    study = toys.QUADRATIC
    (tree,) = plan(make_trial(study, study.config(**value)) for value in values).trees
    (part,) = items(tree, float("inf"))
    walked = []
    walk(study, tree.root, [part.branch], LocalRun(), commit=lambda stage: walked.append(stage.branch.key))
    assert walked == [stage.key for stage in in_walk_order(part.branch)]
    assert len(walked) == len(list(tree.nodes()))


def test_a_level_is_the_longest_chain_that_starts_with_an_item():
    whole = decays([400, 800, 1_600, 4_000], [0.1, 0.4])
    (tree,) = whole.trees
    for item in items(tree, 1):
        start = item.branch.start
        below = [trial.steps - start for node in tree.nodes() if node.key == item.branch.key for trial in node.trials]
        assert item.level == max(below)
        assert item.work == item.steps


def test_the_costlier_root_goes_first_though_its_steps_are_fewer():
    study = toys.QUADRATIC
    priced = replace(study, units=lambda root: {"flops": float(root.dimension)})
    cheap = make_trial(priced, study.config(budget_steps=4_000, dimension=1))
    costly = make_trial(priced, study.config(budget_steps=1_000, dimension=100))
    queue = Queue(1)
    queue.offer(plan([cheap, costly]))
    (first, *_) = queue.take(lambda item: None).items
    assert first[0].root_key == costly.root_key and first[0].work == 100_000


def test_a_step_with_two_gradients_counts_twice():
    study = replace(toys.QUADRATIC, step_cost=lambda knobs: 2.0 if knobs["lr"] == 0.1 else 1.0, units=lambda root: {})
    (tree,) = plan([make_trial(study, study.config(budget_steps=100, decay_fraction=0.25, learning_rate=0.1))]).trees
    assert [work_of(study, tree.root, node) for node in tree.nodes()] == [150, 50]
    (item,) = items(tree, 1)
    assert (item.steps, item.work) == (100, 200)
