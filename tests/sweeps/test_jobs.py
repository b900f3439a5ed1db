"""The queue against an exhaustive check of what it hands out: all once, starts there, none above its cap."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.engine.jobs import RETRIES, SMALLEST_JOB_STEPS, Queue
from sweeps.engine.plan import make_trial, plan
from sweeps.engine.words import default_slots, make_spec
from tests.sweeps.engine_cases import FREE, Free, stages_of
from trainables import wsd
from trainables.common.timeline import Ramp, segment


def wsd_plan(budgets, fractions, seeds=1):
    return plan(
        make_trial(FREE, Free((segment(b - round(f * b), lr=1.0), segment(round(f * b), lr=Ramp(1.0, 0.0))), seed=seed))
        for seed in range(seeds)
        for b in budgets
        for f in fractions
    )


def drain(queue, data=None):
    """All jobs, each ended before the next is asked for, or any of several when `data` draws; states appear at ends."""
    states, jobs, running = set(), [], []

    def there(item):
        return item.start_key if item.start_key in states else None

    while True:
        job = queue.take(there)
        if job is not None:
            jobs.append(job)
            running.append(job)
        if not running:
            return jobs
        if job is None or data is None or data.draw(st.booleans()):
            ended = running.pop(0 if data is None else data.draw(st.integers(0, len(running) - 1)))
            queue.ended(ended.name)
            states |= {branch.key for branch in stages_of(item for item, _ in ended.items) if branch.keep}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(20, 3_000), min_size=1, max_size=5, unique=True),
    st.lists(st.sampled_from([0.1, 0.2, 0.4]), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
    st.integers(1, 8),
    st.data(),
)
def test_every_stage_runs_once_from_a_state_that_is_there_in_jobs_no_longer_than_the_cap(
    budgets, fractions, seeds, slots, data
):
    whole = wsd_plan(budgets, fractions, seeds)
    queue = Queue(slots)
    queue.offer(whole)
    jobs = drain(queue, data)
    assert not queue.waiting and not queue.running
    ran = Counter(branch.key for job in jobs for branch in stages_of(item for item, _ in job.items))
    assert ran == Counter(node.key for tree in whole.trees for node in tree.nodes())
    cap = max(whole.steps_to_run / (4 * slots), SMALLEST_JOB_STEPS)
    for job in jobs:
        assert job.steps <= cap or len(job.items) == 1
        assert all((start is None) == (item.start_key is None) for item, start in job.items)
    assert len({job.name for job in jobs}) == len(jobs)


def test_trunks_go_first_and_then_the_longest():
    queue = Queue(slots=1)
    queue.offer(wsd_plan([400, 800, 1600], [0.1, 0.4]))
    jobs = drain(queue)
    assert jobs[0].items[0][0].start_key is None
    lengths = [job.steps for job in jobs[1:]]
    assert lengths == sorted(lengths, reverse=True)


def test_small_branches_share_a_job():
    queue = Queue(slots=2)
    queue.offer(wsd_plan([100], [0.1, 0.2, 0.4], seeds=8))
    assert len(drain(queue)) < 8 * 2


def test_no_job_takes_what_another_free_slot_could_begin():
    few = wsd_plan([100], [0.1, 0.2, 0.4], seeds=2)
    queue = Queue(slots=8)
    queue.offer(few)
    jobs = [queue.take(lambda item: None) for _ in range(2)]
    assert [len(job.items) for job in jobs] == [1, 1]  # six slots are free: nothing is worth waiting for
    queue = Queue(slots=1)
    queue.offer(few)
    assert len(queue.take(lambda item: None).items) == 1  # 4 x slots jobs at least


@pytest.mark.parametrize(("gpus_each", "workers", "there", "slots"), [(0.25, 1, 2, 8), (0.5, 1, 1, 2), (1, 2, 8, 4)])
def test_small_trials_share_a_gpu_and_large_ones_take_several(gpus_each, workers, there, slots):
    words = ["scale=gpu", f"resources.gpus={gpus_each}", f"resources.workers={workers}"]
    _, given = make_spec(wsd.STUDY, words, "wsd_budget")
    assert default_slots(given, there) == slots


def test_an_item_is_given_up_after_its_retries():
    queue = Queue(slots=1)
    queue.offer(wsd_plan([100], [0.1]))
    (item,) = queue.waiting
    assert [queue.may_retry(item) for _ in range(RETRIES + 1)] == [True] * RETRIES + [False]
