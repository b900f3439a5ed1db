"""Figures of the toy studies of schedules: maps of who wins, terms of the loss along training, best peaks.

The map's colours rise in lightness from "first is lower" (dark) to "second is lower" (pale), so that a grey print says
the same; the zero line is drawn and labelled, and what seeds cannot tell from zero is hatched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.paired_schedules import Cell, mapped, tuned
from analysis.plots import LABELS, STYLES, styled
from analysis.records import Records, RecordsError

NAMES = {
    **LABELS,
    "config.peak_lr": "peak learning rate",
    "config.noise": "noise",
    "config.zipf": "Zipf exponent",
    "budget_steps": "budget (steps)",
    "select/loss": "loss",
    "hill": "hill",
    "river": "river",
    "kl_uncertain": "KL, uncertain rows (nats)",
    "kl_deterministic": "KL, deterministic rows (nats)",
    "hessian_share_uncertain": "Hessian trace,\nuncertain share",
}
WINS = LinearSegmentedColormap.from_list("wins", ["#0b2545", "#3f6c9b", "#9aa0ad", "#f0b76b", "#fff3d6"])
WIDE = 10  # terms that fall by more than this factor are drawn on a log scale
SMALLEST = 1e-3  # of the colour scale's linear middle, as a share of its reach


@styled
def plot_map(table: pd.DataFrame, *, rows: str, columns: str, panels: str | None = None) -> Figure:
    """Mean `difference` (WSD minus cosine) over two columns of a table of seeds, a panel per value of a third."""
    if table.empty:
        raise RecordsError("a map of who wins needs trials of wsd and cosine at the same conditions")
    groups = [(0.0, table)] if panels is None else [(float(str(key)), part) for key, part in table.groupby(panels)]
    cells = [mapped(part, [rows, columns]) for _, part in groups]
    finite = [abs(cell.difference) for part in cells for cell in part.values() if np.isfinite(cell.difference)]
    reach = max(finite, default=1.0) or 1.0
    norm = SymLogNorm(linthresh=SMALLEST * reach, vmin=-reach, vmax=reach)
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    figure = Figure(figsize=(1.2 + 2.9 * across, 1.3 + 2.7 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes, (value, _), part in zip(grid.flat, groups, cells, strict=False):
        _draw_map(axes, part, norm)
        if panels is not None:
            axes.set_title(f"{NAMES.get(panels, panels)} {value:g}")
    for axes in list(grid.flat)[len(groups) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(NAMES.get(rows, rows))
    for at, axes in enumerate(grid.flat):
        if at + across >= len(groups):
            axes.set_xlabel(NAMES.get(columns, columns))
    shown = grid.flat[0].collections[0]
    decades = [10.0**power for power in range(-12, 12) if 2 * norm.linthresh < 10.0**power < reach]
    ticks = [*(-one for one in reversed(decades)), 0.0, *decades]
    bar = figure.colorbar(shown, ax=grid.ravel().tolist(), shrink=0.8, ticks=ticks, format="%g")
    bar.ax.minorticks_off()
    bar.set_label("report loss, WSD minus cosine (dark: WSD lower)")
    hatched = Patch(facecolor="white", edgecolor="#22223b", hatch="////", label="95 % interval over seeds holds zero")
    figure.legend(handles=[hatched], loc="outside lower center")
    return figure


def _draw_map(axes: Axes, cells: dict[tuple[float, ...], Cell], norm: SymLogNorm) -> None:
    ys, xs = (sorted({key[at] for key in cells}) for at in (0, 1))
    values = np.array([[cells[y, x].difference if (y, x) in cells else np.nan for x in xs] for y in ys])
    axes.pcolormesh(np.arange(len(xs)), np.arange(len(ys)), values, cmap=WINS, norm=norm, shading="nearest")
    axes.grid(False)
    for (y, x), cell in cells.items():
        corner = xs.index(x) - 0.5, ys.index(y) - 0.5
        if not np.isfinite(cell.difference):
            axes.text(corner[0] + 0.5, corner[1] + 0.5, "×", ha="center", va="center", fontsize=7)
        elif not cell.clear:
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="#22223b", linewidth=0))
    known = np.ma.masked_invalid(values)
    if min(values.shape) > 1 and known.count() and known.min() < 0 < known.max():
        zero = axes.contour(np.arange(len(xs)), np.arange(len(ys)), known, [0.0], colors="white", linewidths=2.4)
        zero = axes.contour(np.arange(len(xs)), np.arange(len(ys)), known, [0.0], colors="black", linewidths=1.2)
        axes.clabel(zero, fmt={0.0: "equal"}, fontsize=7)
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs], fontsize=7)
    shown = range(0, len(ys), 2 if len(ys) > 7 else 1)
    axes.set_yticks(list(shown), [f"{ys[at]:.2g}" for at in shown], fontsize=7)


@styled
def plot_components(records: Records, frame: pd.DataFrame, terms: Sequence[str], title: str = "") -> Figure:
    """The select loss and its terms along training, and the rate below, of WSD and cosine at the largest budget.

    Both at the peak that is best for WSD, mean over the tuning seeds.
    """
    frame = frame[frame["phase"] == "tune"]
    largest = frame[frame["budget_steps"] == frame["budget_steps"].max()]
    best = next((choice for choice in tuned(largest) if choice.method == "wsd"), None)
    if best is None:
        raise RecordsError("terms of the loss along training need completed trials of wsd")
    curves = records.to_pandas("measurements")
    panels = ["select/loss", *terms, "lr"]
    figure = Figure(figsize=(6.4, 1.1 + 1.45 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=[*[1.3] * (len(panels) - 1), 0.8])
    for method in ("cosine", "wsd"):
        rows = largest[(largest["config.method"] == method) & np.isclose(largest["config.peak_lr"], best.peak)]
        mine = curves.merge(rows[["sweep", "trial"]], on=["sweep", "trial"])
        mean = mine.groupby("step")[panels].mean()
        name, colour, _, dashes = STYLES[method]
        for axes, column in zip(grid, panels, strict=True):
            axes.plot(mean.index, mean[column], color=colour, linestyle=dashes, linewidth=1.4, label=name)
    for axes, column in zip(grid, panels, strict=True):
        axes.set_ylabel(NAMES.get(column, column), fontsize=8)
        drawn = np.concatenate([line.get_ydata() for line in axes.lines])
        if column != "lr" and drawn.min() > 0 and drawn.max() > WIDE * drawn.min():
            axes.set_yscale("log")
    grid[-1].set_xlabel("training steps")
    words = [*([title] if title else []), f"peak {best.peak:.2g}", f"{rows['seed'].nunique()} tuning seeds"]
    grid[0].set_title(", ".join(words))
    grid[0].legend(loc="upper right")
    return figure


@styled
def plot_best_peaks(frame: pd.DataFrame, by: Sequence[str]) -> Figure:
    """The peak that tuning chooses per budget and method, a panel per condition; hollow at an end of those tried."""
    choices = tuned(frame, by)
    if not choices:
        raise RecordsError("best peaks need completed tuning trials")
    conditions = sorted({choice.condition for choice in choices})
    shown = sorted({choice.budget for choice in choices})
    across = min(3, len(conditions))
    down = -(-len(conditions) // across)
    figure = Figure(figsize=(1.0 + 2.7 * across, 1.2 + 2.3 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True, sharex=True)
    for axes, condition in zip(grid.flat, conditions, strict=False):
        for at, method in enumerate(name for name in STYLES if name in {choice.method for choice in choices}):
            mine = [c for c in choices if c.condition == condition and c.method == method]
            name, colour, marker, dashes = STYLES[method]
            budgets = [choice.budget * 1.06**at for choice in mine]  # equal choices side by side
            axes.plot(budgets, [c.peak for c in mine], color=colour, linestyle=dashes, linewidth=1.2)
            for budget, choice in zip(budgets, mine, strict=True):
                face = "white" if choice.peak in (choice.tried[0], choice.tried[-1]) else colour
                axes.plot(budget, choice.peak, marker=marker, color=colour, markerfacecolor=face, markersize=5)
            axes.plot([], [], color=colour, linestyle=dashes, marker=marker, label=name)
        axes.set_title(", ".join(f"{name} {value:g}" for name, value in zip(by, condition, strict=True)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(shown, [f"{budget:g}" for budget in shown])
        axes.minorticks_off()
    for axes in list(grid.flat)[len(conditions) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("best peak learning rate")
    for axes in grid[-1]:
        axes.set_xlabel(NAMES["budget_steps"])
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title="hollow: at an end of the peaks tried")
    return figure
