"""Figures: every label has its unit, nothing drawn lies outside its figure, greys differ; curves against their rows."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import analysis
from analysis import plots
from analysis.figures import by_groups, draw_all
from tests.analysis.conftest import Maker, hill


@pytest.fixture
def records(make_records):
    return make_records(methods=("cosine", "wsd", "wsd_s"), tuning=(0, 1, 2), fractions=(0.05, 0.1, 0.2), measured=6)


def texts_inside(figure: Figure) -> None:
    """No text of a figure is cut off, and no two tick labels of an axis touch."""
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for axes in figure.axes:
        for text in (
            axes.title,
            axes.xaxis.label,
            axes.yaxis.label,
            *figure.legends,
            *filter(None, [axes.get_legend()]),
        ):
            box = text.get_window_extent()
            if isinstance(text, Text) and not text.get_text():
                continue
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
        for axis, ends in ((axes.xaxis, ("x0", "x1")), (axes.yaxis, ("y0", "y1"))):
            labels = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            labels.sort(key=lambda box: getattr(box, ends[0]))
            for before, after in pairwise(labels):
                assert getattr(before, ends[1]) <= getattr(after, ends[0]) + 1, axis


def test_every_figure_is_written_twice_and_nothing_is_cut_off(records, tmp_path: Path):
    written = draw_all(records, tmp_path, by_groups())
    assert len(written) == 12, written
    for line in written:
        file = Path(line)
        if file.suffix == ".svg":
            ElementTree.parse(file)
        else:
            assert file.read_bytes().startswith(b"\x89PNG")


def test_texts_stay_inside_and_apart(records):
    nominal, family = records.frontier(), records.frontier(x="flops_family")
    line = {"from_step": 900, "to_step": 1000, "alpha": [0, 0.5, 1], "loss": [2.0, 1.9, 1.7]}
    interpolation = pd.concat([pd.DataFrame({"pair": kind, **line}) for kind in ("stable to stable", "to its decayed")])
    curves = analysis.axis_curves(records, "peak_lr")
    for figure in (
        plots.plot_frontier(nominal, family), plots.plot_frontier(family), plots.plot_differences(nominal),
        plots.plot_trunk(analysis.trunk(records)), plots.plot_axis_curves(curves), plots.plot_best_of_k(nominal),
        plots.plot_hill_and_river(analysis.hill_and_river(records)), plots.plot_interpolation(interpolation),
    ):  # fmt: skip
        texts_inside(figure)


def test_losses_carry_their_unit(records):
    figure = plots.plot_frontier(records.frontier())
    assert "nats per token" in figure.axes[0].get_ylabel()
    assert "FLOPs" in figure.axes[0].get_xlabel()
    assert all("seed" in text.get_text() for text in figure.legends[0].get_texts())


def test_styles_differ_in_grey_print():
    greys = sorted(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for _, colour, _, _ in plots.STYLES.values())
    markers = {marker for _, _, marker, _ in plots.STYLES.values()}
    assert len(markers) == len(plots.STYLES)
    main = [
        np.dot(to_rgb(plots.STYLES[m][1]), (0.2126, 0.7152, 0.0722))
        for m in ("cosine", "wsd", "wsd_s", "cyclic_cosine")
    ]
    assert min(np.diff(sorted(main))) > 0.08
    assert greys[-1] < 0.85


def test_trunk_has_one_branch_per_budget(records):
    found = analysis.trunk(records, decay_fraction=0.1, seed=0)
    assert [(b.budget, b.fork_step) for b in found.branches] == [(500, 450), (1000, 900), (2000, 1800)]
    assert (found.curve["phase_of_schedule"] != "decay").all()
    assert found.curve["step"].is_monotonic_increasing


def test_hill_is_the_height_of_the_truth(records):
    split = analysis.hill_and_river(records, decay_fraction=0.1, peak_lr=4e-3, seed=0)
    for row in split.itertuples():
        river_during_decay = 12 * (row.fork_step**-0.4 - row.budget_steps**-0.4)
        assert row.hill == pytest.approx(hill(4e-3) + river_during_decay, abs=1e-6)


def test_what_cannot_be_drawn_is_said(make_records, tmp_path: Path):
    lines = draw_all(make_records(methods=("cosine",), peaks=(1e-3,), tuning=(0,)), tmp_path, by_groups())
    assert any(line.startswith("trunk: not drawn") for line in lines)
    assert any(line.startswith("best_values: not drawn") for line in lines)


def test_an_interpolation_table_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="lacks alpha, from_step, loss, to_step"):
        plots.plot_interpolation(pd.DataFrame({"pair": []}))


def test_every_trial_failed_still_draws(maker: Maker):
    made = maker.sweep(methods=("cosine",), budgets=(500,), fresh=())
    for row in made.trials:
        row |= {"status": "failed", "select/loss": None, "report/loss": None}
    assert isinstance(maker.open(made).frontier().plot(), Figure)
