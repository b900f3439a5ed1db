"""Figures of `sam_net`: error against gradients and radius, curvature at the end and along training, m-SAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import legend_below, log_x, side_by_side, style, styled
from analysis.records import Records, RecordsError
from analysis.sam_net_runs import ERROR, SPENT, TIME, TOP, TRACE, WHOLE, along, chosen, name_of
from analysis.stats import t_interval


@styled
def plot_frontier(records: Records) -> Figure:
    """Test error per arm against the gradients it took, and against the radius at equal gradients or steps."""
    rows = _compared(records)
    figure, (left, right) = side_by_side(2, width=4.2, height=3.8, share_y=True)
    for at, ((radius, start), same) in enumerate(rows.groupby(["radius", "start"])):
        name, colour, marker, dashes = style((name_of(float(str(radius)), int(str(start))),), at)
        _line(left, same, SPENT, ERROR, dict(color=colour, marker=marker, linestyle=dashes, label=name))
    log_x(left, sorted(set(rows[SPENT].astype(float))))
    left.set_xlabel("gradient evaluations (batches)")
    left.set_ylabel("test error")
    scratch = rows[rows["start"] == 0]
    for at, (spent, same) in enumerate(scratch.groupby(SPENT)):
        if same["radius"].nunique() > 1:
            name, colour, marker, dashes = style((f"{int(float(str(spent)))} gradients",), at)
            _line(right, same, "radius", ERROR, dict(color=colour, marker=marker, linestyle=dashes, label=name))
    for at, (budget, same) in enumerate(scratch.groupby("budget")):
        if same["radius"].nunique() > 1:
            look = dict(color="#9aa5b1", marker=("v", "P", "X")[at % 3], linestyle=":", label=f"{budget} steps")
            _line(right, same, "radius", ERROR, look)
    right.set_xlabel("radius (0: SGD)")
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="upper left")
    legend_below(figure, left)
    return figure


@styled
def plot_curvature(records: Records) -> Figure:
    """Top eigenvalue and trace at the end against the radius, by steps; dotted where SAM started late."""
    rows = _compared(records)
    figure, panels = side_by_side(2, width=4.0, height=3.6)
    for axes, column, label in zip(panels, (TOP, TRACE), ("top eigenvalue", "trace"), strict=True):
        for at, ((late, budget), same) in enumerate(rows.groupby([rows["start"] > 0, "budget"])):
            name, colour, marker, _ = style((f"{budget} steps" + (", late" if late else ""),), at)
            look = dict(color=colour, marker=marker, linestyle=":" if late else "-", label=name)
            _line(axes, same, "radius", column, look)
        axes.set_yscale("log")
        axes.set_xlabel("radius (0: SGD)")
        axes.set_ylabel(f"{label} of the Hessian")
    legend_below(figure, panels[0])
    return figure


@styled
def plot_along(records: Records) -> Figure:
    """Top eigenvalue against steps and, over that of SGD at the same step, against rate * radius^2 * steps."""
    rows = chosen(records)
    rows = rows[(rows["decay"] == 0) & (rows["group"] == WHOLE)]
    if rows.empty or rows["radius"].nunique() < 2:
        raise RecordsError("there are no runs of several radii at a constant rate; run preset=pace")
    curves = along(records, rows)
    figure, (left, right) = side_by_side(2, width=4.2, height=3.7)
    plain = curves[curves["radius"] == 0].set_index(["seed", "step"])[TOP]
    for at, (radius, same) in enumerate(curves.groupby("radius")):
        name, colour, _, dashes = style((name_of(float(str(radius)), int(same["start"].iloc[0])),), at)
        _band(left, same["step"], same[TOP], colour, dashes, name)
        keys = pd.MultiIndex.from_frame(same[["seed", "step"]])
        later = (same["step"] >= same["start"]).to_numpy() & keys.isin(plain.index)
        if float(str(radius)) > 0 and later.any():
            ratio = same.loc[later, TOP].to_numpy(float) / plain.loc[keys[later]].to_numpy(float)
            _band(right, same.loc[later, TIME].round(9), pd.Series(ratio), colour, dashes, name)
    left.set_yscale("log")
    left.set_xlabel("steps")
    left.set_ylabel("top eigenvalue of the Hessian")
    right.set_yscale("log")
    right.axhline(1, color="#22223b", linewidth=0.8)
    right.set_xlabel("learning rate · radius² · steps of SAM")
    right.set_ylabel("top eigenvalue / that of SGD")
    right.set_title("bands: from the lowest to the highest seed", fontsize=8.5)
    legend_below(figure, left)
    return figure


@styled
def plot_groups(records: Records) -> Figure:
    """Trace, top eigenvalue's share of it and test error against the images that share a perturbation."""
    rows = chosen(records)
    rows = rows[rows["group"] != WHOLE]
    if rows["group"].nunique() < 2:
        raise RecordsError("there are no runs of m-SAM at two sizes of group; run preset=groups")
    rows = rows.assign(images=rows["group"].astype(float), share=rows[TOP].astype(float) / rows[TRACE].astype(float))
    figure, panels = side_by_side(3, width=3.1, height=3.3)
    labels = {TRACE: "trace of the Hessian", "share": "top eigenvalue / trace", ERROR: "test error"}
    for axes, (column, label) in zip(panels, labels.items(), strict=True):
        _, colour, marker, dashes = style((label,), 0)
        _line(axes, rows, "images", column, dict(color=colour, marker=marker, linestyle=dashes))
        log_x(axes, sorted(set(rows["images"])))
        axes.set_xlabel("images that share a perturbation")
        axes.set_ylabel(label)
    return figure


def _compared(records: Records) -> pd.DataFrame:
    """The chosen runs of whole-batch arms whose rate decays."""
    rows = chosen(records)
    rows = rows[(rows["decay"] > 0) & (rows["group"] == WHOLE)]
    if rows.empty:
        raise RecordsError("there are no runs whose rate decays; run preset=default")
    return rows


def _line(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Mapping[str, Any]) -> None:
    """Means over seeds with Student's 95 % intervals, joined."""
    groups = [(float(str(at)), same[y].astype(float).to_numpy()) for at, same in rows.groupby(x)]
    places, means = [at for at, _ in groups], [float(np.mean(values)) for _, values in groups]
    axes.plot(places, means, markersize=5, linewidth=1.3, **look)
    for at, values in groups:
        ends = t_interval(values)
        if ends is not None:
            axes.vlines(at, ends.low, ends.high, color=str(look["color"]), linewidth=1.1, alpha=0.7)


def _band(axes: Axes, x: pd.Series, y: pd.Series, colour: str, dashes: Any, name: str) -> None:
    """The mean over seeds at each x, and the range."""
    table = pd.Series(y.to_numpy(float)).groupby(x.to_numpy(float)).agg(["mean", "min", "max"])
    axes.plot(table.index, table["mean"], color=colour, linestyle=dashes, label=name, linewidth=1.3)
    axes.fill_between(table.index, table["min"], table["max"], color=colour, alpha=0.13, linewidth=0)


FIGURES: Mapping[str, Callable[[Records], Figure]] = {
    "frontier": plot_frontier,
    "curvature": plot_curvature,
    "along": plot_along,
    "groups": plot_groups,
}
