"""Rungs and survivors against counts written out by hand and a brute-force choice over all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.engine.rungs import brackets, rungs, steps, survivors


def test_counts_of_a_bracket_written_out():
    assert [(r.budget, r.proposals, r.keep) for r in rungs(27, (1, 3, 9, 27), eta=3)] == [
        (1, 27, 9), (3, 9, 3), (9, 3, 1), (27, 1, 0),
    ]  # fmt: skip
    assert [r.proposals for r in rungs(10, (400, 800, 1600), eta=2)] == [10, 5, 2]
    assert [r.proposals for r in rungs(2, (400, 800, 1600), eta=3)] == [2, 1, 1]


def test_steps_count_every_proposal_once_up_to_its_last_budget():
    last = [400] * 5 + [800] * 3 + [1600] * 2  # 10 proposals: 10 reach 400, 5 reach 800, 2 reach 1600
    assert steps(rungs(10, (400, 800, 1600), eta=2)) == sum(last)


scores = st.dictionaries(st.integers(0, 9), st.none() | st.integers(-3, 3).map(float), max_size=8)


@given(scores, st.integers(1, 5))
def test_survivors_are_the_subset_with_the_smallest_sum_and_the_lowest_indices(scores, keep):
    finite = sorted(index for index, score in scores.items() if score is not None)
    size = min(keep, len(finite))
    best = min(combinations(finite, size), key=lambda chosen: (sum(scores[i] for i in chosen), chosen))
    assert survivors(scores, keep) == list(best)


@given(scores, st.integers(1, 5), st.randoms())
def test_survivors_do_not_depend_on_the_order_of_arrival(scores, keep, random):
    items = list(scores.items())
    random.shuffle(items)
    assert survivors(dict(items), keep) == survivors(scores, keep)


def test_the_higher_score_survives_when_the_goal_is_max():
    assert survivors({0: 0.1, 1: 0.9, 2: None}, 1, goal="max") == [1]


def test_a_rung_in_which_all_were_lost_has_no_survivors():
    assert survivors({0: None, 1: None}, keep=1) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rungs(8, (400,)), "two rungs"),
        (lambda: rungs(8, ()), "two rungs"),
        (lambda: rungs(8, (800, 400)), "increase"),
        (lambda: rungs(8, (400, 400)), "increase"),
        (lambda: rungs(8, (400, 800), eta=1), "eta >= 2"),
        (lambda: rungs(1, (400, 800)), "two proposals"),
        (lambda: survivors({0: float("nan")}, 1), "score None"),
        (lambda: survivors({0: 1.0}, 0), "at least one"),
        (lambda: brackets(6, 4), "proposals=8"),
        (lambda: brackets(2, 4), "proposals=4"),
    ],
)
def test_refusals_name_the_way_out(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_more_proposals_leave_earlier_brackets_as_they_were():
    assert brackets(12, 4)[:2] == brackets(8, 4)
