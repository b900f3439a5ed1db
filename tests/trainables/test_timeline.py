"""Timelines against a list of knob values written out step by step: values, canonical form, prefixes, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.common import timeline
from trainables.common.timeline import (
    SHAPES,
    Ramp,
    Segment,
    canonical,
    knobs_at,
    place,
    prefix_json,
    ramp,
    segment,
    total_steps,
)

knob_values = st.sampled_from([0.25, 0.5, 1.0])
ramps = st.builds(Ramp, knob_values, knob_values, st.sampled_from(["linear", "cosine"]))
constants = st.builds(lambda steps, value: segment(steps, lr=value), st.integers(0, 4), knob_values)
falls = st.builds(lambda steps, value: segment(steps, lr=value), st.integers(0, 4), ramps)
timelines = st.lists(constants | falls, min_size=1, max_size=5).map(tuple)


def by_hand(parts):
    """(what the step is part of, its value) for each step: the longhand form of a timeline."""
    steps = []
    for part in canonical(parts):
        for done in range(part.steps):
            value = dict(part.knobs)["lr"]
            if isinstance(value, Ramp):
                steps.append(("ramp", part.steps, done, value))
            else:
                steps.append(("constant", value))
    return steps


def cut(timeline, data):
    """The same timeline with its constant segments cut at drawn places."""
    parts = []
    for part in timeline:
        at = data.draw(st.integers(0, part.steps)) if part.constant else 0
        parts += [Segment(at, part.knobs), Segment(part.steps - at, part.knobs)] if part.constant else [part]
    return tuple(parts)


@given(timelines, st.data())
def test_cutting_constants_changes_no_prefix_and_no_value(timeline, data):
    other = cut(timeline, data)
    assert canonical(other) == canonical(timeline)
    assert total_steps(other) == total_steps(timeline)
    for step in range(total_steps(timeline) + 1):
        assert prefix_json(place(other), step) == prefix_json(place(timeline), step)
    for step in range(total_steps(timeline)):
        assert knobs_at(other, step) == knobs_at(timeline, step)


@settings(max_examples=300)
@given(timelines, timelines)
def test_prefixes_are_equal_exactly_where_the_steps_written_out_are(one, other):
    first, second = by_hand(one), by_hand(other)
    for step in range(min(len(first), len(second)) + 1):
        same = prefix_json(place(one), step) == prefix_json(place(other), step)
        assert same == (first[:step] == second[:step]), step


def test_an_interior_step_of_a_ramp_depends_on_its_whole_length():
    short, long = (place((segment(steps, lr=Ramp(1.0, 0.0)),)) for steps in (4, 8))
    assert prefix_json(short, 2) != prefix_json(long, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (segment(3, lr=1), segment(3, lr=1.0)),
        (segment(3, lr=-0.0), segment(3, lr=0.0)),
        (segment(3, lr=Ramp(1, 0)), segment(3, lr=Ramp(1.0, 0.0))),
        (segment(3, lr=1.0, rho=0.1), segment(3, rho=0.1, lr=1.0)),
    ],
)
def test_equal_knobs_have_equal_prefixes_however_they_are_written(one, other):
    assert one == other
    text = prefix_json(place((one,)), 2)
    timeline._segment_json.cache_clear()  # another process has not seen the first spelling
    assert prefix_json(place((other,)), 2) == text


EXPECTED_FALL = {  # from 1 to 0.25 over four steps, worked out by hand
    "linear": [1.0, 0.8125, 0.625, 0.4375],
    "cosine": [1.0, 0.25 + 0.375 * (1 + math.sqrt(0.5)), 0.625, 0.25 + 0.375 * (1 - math.sqrt(0.5))],
    "one_minus_sqrt": [1.0, 0.625, 0.25 + 0.75 * (1 - math.sqrt(0.5)), 0.25 + 0.75 * (1 - math.sqrt(3) / 2)],
    "square": [1.0, 0.25 + 0.75 * 15 / 16, 0.25 + 0.75 * 0.75, 0.25 + 0.75 * 7 / 16],
    "inverse": [1.0, 1 / 1.75, 1 / 2.5, 1 / 3.25],
    "exponential": [1.0, 2**-0.5, 0.5, 2**-1.5],
    "mirror_cosine": [1.0, 1.375 - 0.375 * math.sqrt(0.5), 0.625, 0.625 - 0.375 * (1 - math.sqrt(0.5))],
}
EXPECTED_FALL["mirror_cosine"] = [
    2 * a - b for a, b in zip(EXPECTED_FALL["linear"], EXPECTED_FALL["cosine"], strict=True)
]


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_step_of_a_fall(shape):
    found = [Ramp(1.0, 0.25, shape).value(done, 4) for done in range(4)]
    assert found == pytest.approx(EXPECTED_FALL[shape], abs=1e-15)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_falls_decrease_stay_between_their_ends_and_are_positive_at_every_step_that_trains(shape):
    low = 0.0 if shape not in ("inverse", "exponential") else 1e-6
    values = [Ramp(2.0, low, shape).value(done, 50) for done in range(50)]
    assert values[0] == 2.0
    assert all(before > after for before, after in itertools.pairwise(values))
    assert low < values[-1] and values[-1] > 0


def test_a_rise_arrives_with_its_last_step():
    assert [Ramp(0.0, 2.0).value(done, 4) for done in range(4)] == [0.5, 1.0, 1.5, 2.0]


def test_a_users_shape_is_found_by_path_and_its_source_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_decay.py").write_text(
        "def steep(x):\n    return (1 - x) ** 2\n\n\ndef upside_down(x):\n    return x\n"
    )
    mine = ramp(1.0, 0.0, "own_decay:steep")
    assert [mine.value(done, 4) for done in range(4)] == [1.0, 0.5625, 0.25, 0.0625]
    assert mine.source
    other = Ramp(1.0, 0.0, "own_decay:steep", source="another source")
    assert prefix_json(place((segment(4, lr=mine),)), 2) != prefix_json(place((segment(4, lr=other),)), 2)
    with pytest.raises(ValueError, match="must fall from 1 at x=0 to 0 at x=1"):
        ramp(1.0, 0.0, "own_decay:upside_down")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ramp(1.0, 0.0, "inverse"), "both ends above 0.*min_lr_ratio above 0"),
        (lambda: Ramp(1.0, 0.0, "exponential"), "both ends above 0"),
        (lambda: Ramp(1.0, math.inf), "finite"),
        (lambda: Ramp(math.nan, 1.0), "finite"),
        (lambda: segment(3, lr=math.nan), "finite"),
        (lambda: segment(3, lr=math.inf), "finite"),
        (lambda: segment(-1, lr=1.0), "steps >= 0, got -1"),
        (lambda: ramp(1.0, 0.5, "linaer"), "no ramp shape 'linaer'; there are linear"),
        (lambda: ramp(1.0, 0.5, "no_such_module_here:f"), "no module"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_steps_outside_a_timeline_are_refused():
    timeline = (segment(3, lr=1.0), segment(2, lr=Ramp(1.0, 0.0)))
    with pytest.raises(IndexError, match="after the timeline's end at 5"):
        knobs_at(timeline, 5)
    for step in (-1, 6):
        with pytest.raises(IndexError, match="outside the timeline"):
            prefix_json(place(timeline), step)
