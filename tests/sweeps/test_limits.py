"""A simulated sweep of 1,000 trials and 10,000 measurements against bounds in CPU seconds and memory, four times those
that are promised, and against a quarter of itself: what grows with the square of the trials would show.

The promises themselves are judged by `python -m tests.benchmarks limits`.
"""

from __future__ import annotations

import pytest

from tests.benchmarks import limits, meter

SLACK = 4.0  # a loaded machine's caches; the promises are 2 s, 5 s and 1 GB


@pytest.fixture(scope="module")
def swept():
    """The sweep, and a quarter of it, each in a process of its own."""
    return [meter.run_arm(limits.__name__, "sweep_of", {"peaks": peaks, "figures": False})[1] for peaks in (16, 4)]


def test_a_thousand_trials_are_planned_driven_and_read_in_seconds(swept):
    whole, _ = swept
    assert whole["trials"] >= 1000 and whole["measurements"] >= 10_000 and whole["incomplete"] == 0
    assert whole["plan_seconds"] < 2 * SLACK
    assert whole["drive_seconds"] < 2 * SLACK
    assert whole["read_seconds"] < 5 * SLACK
    assert whole["memory_gigabytes"] < 1


@pytest.mark.parametrize("name", limits.TIMED)
def test_four_times_the_trials_take_less_than_six_times_the_time(swept, name):
    whole, quarter = swept
    assert whole["trials"] > 3.5 * quarter["trials"]
    assert whole[name] < 6 * quarter[name] + 0.5
