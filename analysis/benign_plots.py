"""Figures of nets on noisy labels: the phase diagram, curves along training, clean error against compute."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from analysis.benign_runs import arms, boundary, chosen_arms, fitting_width
from analysis.claims import Evidence
from analysis.plots import legend_below, side_by_side, style, styled
from analysis.records import Records, RecordsError

HARM = 0.05  # excess error from which on the boundary is drawn
NAMES = {
    "none": "left as it is", "early_stop": "early stopping", "self_train_hard": "self-training, hard labels",
    "self_train_soft": "self-training, soft labels",
}  # fmt: skip
INK = "#22223b"


def _chosen(records: Records) -> tuple[Evidence, pd.DataFrame]:
    """The chosen runs of the setting that has most of them."""
    evidence = Evidence.of(records, chosen=False)
    rows = chosen_arms(evidence, every_budget=True, tuned_as_well=True)
    return evidence, rows[rows["setting"] == rows["setting"].value_counts().index[0]]


@styled
def plot_phase(records: Records) -> Figure:
    """Clean error and excess of unrepaired nets over noise rate and weights per sample, and where harm begins."""
    evidence, rows = _chosen(records)
    rows = rows[(rows["repair"] == "none") & (rows["budget"] == rows["budget"].max())]
    rows = rows.assign(ratio=rows["parameters"] / rows["config.train_size"])
    panels_of = {"report/error": "clean error", "report/excess_error": "excess over the early-stopped net"}
    tables = {c: rows.pivot_table(index="noise", columns="ratio", values=c) for c in panels_of}
    if min(tables["report/error"].shape) < 2:  # none without unrepaired nets
        raise RecordsError("a phase diagram needs several noise rates and several widths; run preset=default")
    figure, panels = side_by_side(3, width=3.5, height=3.5)
    for axes, (column, title) in zip(panels, panels_of.items(), strict=False):
        table = tables[column]
        shown = axes.pcolormesh(table.to_numpy(), cmap="magma_r", vmin=0, vmax=float(np.nanmax(table.to_numpy())))
        for row, values in enumerate(table.to_numpy()):
            for place, value in enumerate(values):
                dark = value > 0.48 * np.nanmax(table.to_numpy())
                text = "" if np.isnan(value) else f"{value:.3f}"
                axes.text(place + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else INK)
        axes.set_xticks(np.arange(table.shape[1]) + 0.5, [f"{ratio:.3g}" for ratio in table.columns])
        axes.set_yticks(np.arange(table.shape[0]) + 0.5, [f"{noise:g}" for noise in table.index])
        axes.set_xlabel("weights per training sample")
        axes.set_title(title)
        axes.grid(visible=False)
        figure.colorbar(shown, ax=axes, shrink=0.8)
    panels[0].set_ylabel("noise rate")
    _draw_boundary(panels[2], evidence, str(rows["setting"].iloc[0]))
    return figure


def _draw_boundary(axes: Axes, evidence: Evidence, setting: str) -> None:
    found = boundary(evidence, setting, HARM)
    x = found["parameters"] / found["samples"]
    known = found["noise"].notna()
    axes.vlines(x[known], found["low"][known], found["high"][known].fillna(found["most"]), color="#b5179e", linewidth=2)
    axes.plot(x[known], found["noise"][known], "o", color="#b5179e", markersize=6, label="noise rate, 95 % over seeds")
    axes.plot(x[~known], found["most"][~known], "^", color="#b5179e", mfc="white", markersize=7, label="not reached")
    axes.set_xscale("log")
    axes.set_xticks(x.tolist(), [f"{ratio:.3g}" for ratio in x])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, float(found["most"].max()) * 1.08)
    axes.set_xlabel("weights per training sample")
    axes.set_title(f"where the excess passes {HARM:g}")
    axes.legend(loc="best", fontsize=7)


@styled
def plot_curves(records: Records) -> Figure:
    """Along training, by noise rate: clean error; below, labels fitted and wrong labels memorised; a line per width."""
    _, rows = _chosen(records)
    rows = rows[(rows["repair"] == "none") & (rows["budget"] == rows["budget"].max())]
    if rows.empty:
        raise RecordsError("there are no unrepaired nets; run preset=default")
    wanted = ["trial", "seed", "width", "noise"]
    measured = records.to_pandas("measurements").drop_duplicates(["trial", "step"])
    curves = measured.merge(rows[wanted].drop_duplicates("trial"), on="trial").sort_values("step")
    noises, widths = sorted(rows["noise"].unique()), sorted(rows["width"].unique())
    figure = Figure(figsize=(3.1 * len(noises) + 0.4, 5.6), layout="constrained")
    grid = figure.subplots(2, len(noises), sharex=True, sharey="row", squeeze=False)
    for column, noise in enumerate(noises):
        for place, width in enumerate(widths):
            same = curves[(curves["noise"] == noise) & (curves["width"] == width)]
            name, colour, marker, _ = style((f"width {width}",), place)
            _band(grid[0, column], same, "report/error", colour, marker, "-", name)
            _band(grid[1, column], same.assign(fits=1 - same["train/noisy_error"]), "fits", colour, "", "-", None)
            if noise > 0:
                _band(grid[1, column], same, "train/memorised", colour, "", ":", None)
        grid[0, column].set_title(f"noise rate {noise:g}")
        grid[1, column].set_xscale("log")
        grid[1, column].set_xlabel("steps")
        grid[1, column].xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:g}"))
        grid[1, column].xaxis.set_minor_formatter(NullFormatter())
    grid[0, 0].set_ylabel("clean test error")
    grid[1, 0].set_ylabel("labels fitted (line),\nwrong labels memorised (dots)")
    legend_below(figure, grid[0, 0])
    return figure


def _band(axes: Axes, rows: pd.DataFrame, column: str, colour: str, marker: str, dashes: str, name: str | None) -> None:
    curve = rows.dropna(subset=[column]).groupby("step")[column].agg(["mean", "min", "max"])
    axes.plot(
        *(curve.index, curve["mean"]),
        color=colour,
        linestyle=dashes,
        marker=marker or "None",
        markersize=3.5,
        label=name,
    )
    axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.12, linewidth=0)


@styled
def plot_compute(records: Records) -> Figure:
    """Clean error against the FLOPs of a trial alone: each repair near the threshold, and the widest net."""
    evidence, rows = _chosen(records)
    noises = [noise for noise in sorted(rows["noise"].unique()) if noise > 0]
    if not noises or not {"none", "early_stop"} <= set(rows["repair"]):
        raise RecordsError("repairs are compared under noise; run preset=default")
    figure, panels = side_by_side(len(noises), width=4.1, height=3.9, share_y=True)
    frame, widest = arms(evidence.frame), int(rows["width"].max())
    for axes, noise in zip(panels, noises, strict=True):
        noisy = rows[rows["noise"] == noise]
        plain = noisy[(noisy["repair"] == "none") & (noisy["budget"] == noisy["budget"].max())]
        narrow = fitting_width(evidence.records, frame, str(plain["setting"].iloc[0]), plain)
        drawn = [(narrow, repair) for repair in NAMES]
        drawn += [(widest, repair) for repair in ("none", "early_stop") if widest != narrow]
        for place, (width, repair) in enumerate(drawn):
            same = noisy[(noisy["width"] == width) & (noisy["repair"] == repair)]
            if same.empty:
                continue
            points = same.groupby("budget").agg(
                flops=("flops_nominal", "mean"), error=("report/error", "mean"), spread=("report/error", "sem")
            )
            look = style((f"{width} {repair}",), place % len(NAMES))
            face = look[1] if width == narrow else "white"
            axes.errorbar(
                *(points["flops"], points["error"], points["spread"].fillna(0)),
                color=look[1], marker=look[2], linestyle="-" if width == narrow else ":", markerfacecolor=face,
                markersize=5, linewidth=1.3, label=f"{NAMES[repair]}, width {width}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("training FLOPs of a net with all its teachers")
        axes.set_title(f"noise rate {noise:g}; bars: standard error over seeds")
    panels[0].set_ylabel("clean test error")
    legend_below(figure, panels[-1])
    return figure
