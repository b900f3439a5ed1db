"""The drawn tree against the plan that it draws: every stage once, at its own steps."""

from __future__ import annotations

import io
import itertools

import pytest
from matplotlib.collections import LineCollection
from rich.console import Console

from sweeps.engine.drawing import STRETCHES, as_figure, as_text, save, stretches
from sweeps.engine.plan import make_trial, plan
from tests.sweeps.engine_cases import FREE, Free, nodes
from trainables.common.timeline import Ramp, segment


def example(budgets=(100, 200), fractions=(0.1, 0.4)):
    return plan(
        make_trial(
            FREE,
            Free(
                (
                    segment(10, lr=Ramp(0.0, rate)),
                    segment(b - 10 - round(f * b), lr=rate),
                    segment(round(f * b), lr=Ramp(rate, 0.0)),
                )
            ),
        )
        for rate in (0.1, 0.2)
        for b in budgets
        for f in fractions
    )


def printed(drawing):
    console = Console(width=200, file=io.StringIO())
    console.print(drawing)
    return console.file.getvalue()


def test_stretches_cover_a_stage_without_gaps():
    for node in nodes(example()):
        parts = stretches(node)
        assert parts[0][1] == node.start and parts[-1][2] == node.stop
        assert all(one[2] == two[1] for one, two in itertools.pairwise(parts))
        assert all(kind in STRETCHES for kind, _, _ in parts)


def test_the_text_has_a_line_for_every_stage_and_names_the_trials_that_end_there():
    whole = example()
    (tree,) = whole.trees
    names = {trial.key: f"trial-{number}" for number, trial in enumerate(tree.trials)}
    text = printed(as_text(whole, names))
    for node in nodes(whole):
        assert f"{node.start:,} to {node.stop:,}" in text
    assert all(text.count(name) == 1 for name in names.values())
    assert "8 trials" in text


def test_a_large_tree_is_cut_and_says_how_much_is_left_out():
    whole = example(budgets=range(100, 2_000, 100))
    count = len(nodes(whole))
    text = printed(as_text(whole, {}, stages=5))
    assert f"and {count - 5} more stages" in text
    assert text.count(" to ") >= 5


def test_names_with_brackets_are_printed_as_they_are():
    whole = example()
    names = {trial.key: "wsd earlier=[100]" for trial in whole.trees[0].trials}
    assert "wsd earlier=[100]" in printed(as_text(whole, names))


def test_the_figure_draws_every_step_once(tmp_path):
    whole = example()
    figure = as_figure(whole)
    (axes,) = figure.axes
    lengths = 0.0
    for collection in axes.collections:
        assert isinstance(collection, LineCollection)
        for line in collection.get_segments():
            lengths += abs(line[1][0] - line[0][0])
    assert lengths == whole.steps_shared
    spans = [
        (line[0][1], line[0][0], line[1][0])
        for collection in axes.collections
        for line in collection.get_segments()
        if line[0][1] == line[1][1]
    ]
    for row, start, stop in spans:  # nothing lies on top of another stage
        assert not [
            1 for other, a, b in spans if other == row and (a, b) != (start, stop) and max(a, start) < min(b, stop)
        ]
    files = save(figure, tmp_path / "figures" / "tree")
    assert [file.suffix for file in files] == [".png", ".svg"] and all(file.stat().st_size > 1_000 for file in files)


@pytest.mark.parametrize("trials", [1, 2])
def test_the_smallest_trees_are_drawn(trials):
    whole = plan(make_trial(FREE, Free((segment(5 + n, lr=1.0),))) for n in range(trials))
    assert as_figure(whole).axes and printed(as_text(whole, {}))
