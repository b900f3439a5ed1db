"""Figures of the linear models with wrong labels: phase diagram, repairs, training curves, frontier, search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.benign_linear_runs import (
    BUDGET,
    ERROR,
    EXCESS,
    NOISE,
    RATIO,
    REPAIR,
    boundaries,
    chosen,
    diagram,
    located,
    searched,
)
from analysis.choice import trial_frame
from analysis.claims import Evidence
from analysis.plots import legend_below, log_x, side_by_side, style, styled
from analysis.records import Records, RecordsError
from analysis.stats import t_interval

REPAIRS: dict[str, tuple[str, str, str, Any]] = {
    "none": ("trained to the end", "#1d3557", "o", "-"),
    "early_stop": ("stopped early", "#e9a03b", "s", "--"),
    "self_train_hard": ("student of classes", "#c1121f", "^", "-."),
    "self_train_soft": ("student of chances", "#4895ef", "D", ":"),
}
SHOWN_NOISE = 0.2  # of the curves: the noise rate nearest to it
ROOM = 2e-4  # added to errors on log axes, so that zero has a place
RATIO_TICKS = (1.2, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
EXCESS_TICKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
RATIO_LABEL = "dimensions per training sample p / n"


@styled
def plot_diagram(records: Records) -> Figure:
    """Noise rate times ratio: final error and excess over the early stop, with the boundary and its 95 % interval."""
    rows = diagram(records)
    noises, ratios = sorted(rows[NOISE].unique()), sorted(rows[RATIO].unique())
    level = float(rows["config.boundary_excess"].iloc[0])
    figure, panels = side_by_side(2, width=4.9, height=1.5 + 0.48 * len(noises), share_y=True)
    titles = ("clean error after training to the end", "excess over the early stop")
    for axes, metric, title in zip(panels, (ERROR, EXCESS), titles, strict=True):
        means = rows.pivot_table(index=NOISE, columns=RATIO, values=metric).loc[noises, ratios].to_numpy(dtype=float)
        axes.pcolormesh(
            np.arange(len(ratios) + 1) - 0.5, np.arange(len(noises) + 1) - 0.5, means, cmap="Blues", vmin=0, vmax=0.35
        )
        for y, row in enumerate(means):
            for x, value in enumerate(row):
                colour = "white" if value > 0.2 else "#22223b"
                axes.text(x, y + 0.22, f"{value:.3f}", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
        axes.set_yticks(range(len(noises)), [f"{noise:g}" for noise in noises])
        axes.grid(False)
        axes.set_xlabel(RATIO_LABEL)
        axes.set_title(title)
    panels[0].set_ylabel("share of wrong labels")
    _draw_boundaries(panels[1], boundaries(rows, level), ratios, noises)
    panels[1].set_title(f"{titles[1]} (red: below {level:g} from here on)")
    return figure


def _draw_boundaries(axes: Axes, found: pd.DataFrame, ratios: Sequence[float], noises: Sequence[float]) -> None:
    """Diamonds with intervals between the columns; an arrow where the boundary lies beyond the ratios that were run."""

    def place(value: float) -> float:
        return float(np.interp(np.log(max(value, 1e-9)), np.log(ratios), np.arange(len(ratios))))

    for row in found.to_dict("records"):
        y = list(noises).index(row["noise rate"]) - 0.2
        if row["boundary"] == 0:
            continue  # benign at every ratio
        if np.isinf(row["boundary"]):
            beyond = {"arrowstyle": "->", "color": "#c1121f", "lw": 1.6}
            axes.annotate("", (len(ratios) - 0.52, y), (len(ratios) - 1.1, y), arrowprops=beyond)
            continue
        if not np.isnan(row["low"]):
            ends = (-0.45 if row["low"] == 0 else place(row["low"]), min(place(min(row["high"], 1e9)), len(ratios) - 1))
            axes.plot(ends, (y, y), color="#c1121f", linewidth=1.6)
        axes.plot(place(row["boundary"]), y, "D", color="#c1121f", markersize=5, markeredgecolor="white")


@styled
def plot_repairs(records: Records) -> Figure:
    """Clean error against the ratio, a panel per noise rate and a line per repair; bars are t intervals over seeds."""
    rows = chosen(records)
    rows = rows[rows[BUDGET] == rows[BUDGET].max()]
    noises = [noise for noise in sorted(rows[NOISE].unique()) if noise > 0]
    if rows[REPAIR].nunique() < 2 or rows[RATIO].nunique() < 2 or not noises:
        raise RecordsError("there is one repair or ratio only, or no noise; run preset=default")
    figure, panels = side_by_side(len(noises), width=3.3, height=3.5, share_y=True)
    for axes, noise in zip(panels, noises, strict=True):
        for repair in _present(rows):
            same = rows[(rows[NOISE] == noise) & (rows[REPAIR] == repair)]
            _line(axes, same, RATIO, repair)
        log_x(axes, rows[RATIO].tolist())
        _log_errors(axes)
        axes.set_xlabel(RATIO_LABEL)
        axes.set_title(f"{noise:g} of the labels wrong")
    panels[0].set_ylabel(f"clean error + {ROOM:g}")
    legend_below(figure, panels[0])
    return figure


@styled
def plot_frontier(records: Records) -> Figure:
    """Clean error against compute, a panel per ratio and a line per repair over budgets; grey: wider, not repaired."""
    rows = chosen(records)
    rows = rows[rows[NOISE] > 0].dropna(subset="flops_nominal")
    if rows.empty or rows[BUDGET].nunique() < 2:
        raise RecordsError("there is one budget only; run preset=budgets")
    noise = min(set(rows[NOISE]), key=lambda rate: abs(rate - SHOWN_NOISE))
    rows = rows[rows[NOISE] == noise]
    ratios = sorted(rows[RATIO].unique())
    figure, panels = side_by_side(len(ratios), width=3.0, height=3.6, share_y=True)
    wider = rows[(rows[REPAIR] == "none") & (rows[BUDGET] == rows[BUDGET].max())]
    widened = wider.groupby("flops_nominal")[ERROR].mean()
    for axes, ratio in zip(panels, ratios, strict=True):
        axes.plot(widened.index, widened + ROOM, "-", color="#b6bcc6", linewidth=3, zorder=1, label="widened")
        for repair in _present(rows):
            _line(axes, rows[(rows[RATIO] == ratio) & (rows[REPAIR] == repair)], "flops_nominal", repair)
        axes.set_xscale("log")
        _log_errors(axes)
        axes.set_xlabel("FLOPs of the run")
        axes.set_title(f"p / n = {ratio:g}, {noise:g} of the labels wrong", fontsize=8.5)
    panels[0].set_ylabel(f"clean error + {ROOM:g}")
    legend_below(figure, panels[0])
    return figure


@styled
def plot_curves(records: Records) -> Figure:
    """Along training to the end: held-out error on noisy labels, and the share of wrong labels that are fitted."""
    rows = diagram(records)
    rows = rows[rows[NOISE] > 0]
    if rows.empty:
        raise RecordsError("no label is wrong in these trials")
    noise = min(set(rows[NOISE]), key=lambda rate: abs(rate - SHOWN_NOISE))
    rows = rows[rows[NOISE] == noise]
    curves = records.to_pandas("measurements").drop_duplicates(["trial", "step"])
    curves = curves.merge(rows[["trial", RATIO]], on="trial")
    curves = curves.assign(memorised=curves["train/memorised"] / curves["train/flipped"])
    figure, panels = side_by_side(2, width=4.3, height=3.6)
    for place, (ratio, same) in enumerate(curves.groupby(RATIO)):
        name, colour = f"p / n = {ratio:g}", _shade(place, curves[RATIO].nunique())
        for axes, metric in zip(panels, ("select/error", "memorised"), strict=True):
            seen = same.groupby("step")[metric].mean()
            axes.plot(seen.index, seen, color=colour, label=name, linewidth=1.5)
    for axes, title in zip(panels, ("error on held-out noisy labels", "share of wrong labels fitted"), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel("training steps")
        axes.set_title(title)
    panels[0].axhline(noise, color="#555555", linewidth=0.9, linestyle=":")
    panels[0].annotate("share of wrong labels", (1, noise), (-2, -9), xycoords=("axes fraction", "data"),
                       textcoords="offset points", ha="right", fontsize=7)  # fmt: skip
    panels[1].legend(loc="best")
    return figure


@styled
def plot_search(records: Records) -> Figure:
    """What the search of the ratio saw: excess on select data by proposal, and on fresh seeds where it ended."""
    if not searched(records):
        raise RecordsError("the ratio was enumerated here, not searched; run preset=boundary")
    frame = trial_frame(records)
    tune = frame[(frame["phase"] == "tune") & (frame["status"] == "complete")]
    figure, (axes,) = side_by_side(1, width=6.0, height=3.8)
    for place, (noise, same) in enumerate(tune.groupby(NOISE)):
        name, colour, marker, _ = style((f"{noise:g} of the labels wrong",), place)
        seen = same.groupby(RATIO)["select/excess"].mean()
        axes.plot(seen.index, seen, marker, color=colour, markersize=4.5, alpha=0.75, label=name)
    for place, (_, same) in enumerate(located(Evidence(records, frame, {}, "fresh")).rows.groupby(NOISE)):
        ends = t_interval(same[EXCESS].to_numpy())
        x, y = float(same[RATIO].iloc[0]), float(same[EXCESS].mean())
        colour = style(("",), place)[1]
        if ends is not None:
            axes.plot((x, x), (ends.low, ends.high), color="#22223b", linewidth=1.4, zorder=6)
        axes.plot(x, y, "*", color=colour, markersize=12, markeredgecolor="white", zorder=5)
    axes.axhline(float(frame["config.boundary_excess"].iloc[0]), color="#22223b", linewidth=1, linestyle="--")
    log_x(axes, [*tune[RATIO], *RATIO_TICKS])
    axes.set_xticks([ratio for ratio in RATIO_TICKS if tune[RATIO].min() / 1.1 <= ratio <= tune[RATIO].max() * 1.1])
    axes.set_yscale("symlog", linthresh=0.02)
    axes.set_ylim(bottom=-0.004)
    axes.set_yticks(EXCESS_TICKS)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(RATIO_LABEL)
    axes.set_ylabel("excess error (select data; stars: fresh)")
    axes.legend(loc="best")
    return figure


def _line(axes: Axes, rows: pd.DataFrame, along: str, repair: str) -> None:
    """Means over seeds against a column, with t intervals."""
    name, colour, marker, dashes = REPAIRS[repair]
    groups = {float(str(x)): same[ERROR].to_numpy(dtype=float) for x, same in rows.groupby(along)}
    means = np.array([values.mean() for values in groups.values()])
    axes.plot(list(groups), means + ROOM, marker, color=colour, linestyle=dashes, markersize=4, label=name, zorder=3)
    for x, values in groups.items():
        ends = t_interval(values)
        if ends is not None:
            axes.plot((x, x), (max(ends.low, 0.0) + ROOM, ends.high + ROOM), color=colour, linewidth=0.9, zorder=2)


def _log_errors(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _present(rows: pd.DataFrame) -> list[str]:
    return [repair for repair in REPAIRS if repair in set(rows[REPAIR])]


def _shade(place: int, count: int) -> tuple[float, float, float]:
    """From light to dark blue, so that wider is darker."""
    share = 0.15 + 0.85 * place / max(1, count - 1)
    return (0.72 - 0.6 * share, 0.82 - 0.62 * share, 0.95 - 0.62 * share)
