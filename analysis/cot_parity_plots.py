"""Figures of `cot_parity`: samples to success, over layers and heads, and what attention does along training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis.chosen_runs import column
from analysis.cot_parity_runs import chosen, plain
from analysis.plots import legend_below, side_by_side, style, styled
from analysis.records import Records, RecordsError
from analysis.survival import median_time

_MAIN = "python sweeps/parity_samples.py"
SAID = {"chain": "with a chain of thought", "direct": "without"}
AXES = {"secret_bits": "secret bits, k", "input_bits": "input bits, n"}
TRACES = {
    "least_entropy": "least normalised entropy of a row\n(each head; mean over select rows)",
    "secret_mass": "attention on the secret\n(each head)",
}


@styled
def plot_against(records: Records, name: str) -> Figure:
    """Median samples to success with 95 % intervals, a line per layout; arrows where censoring leaves them open."""
    rows = plain(chosen(records))
    sizes = column(rows, f"config.{name}")
    if sizes.nunique() < 2:
        raise RecordsError(f"all runs have one number of {AXES[name]}: `{_MAIN} preset=against_n` varies n, others k")
    rest = rows["pair"].str.replace(rf"\b{AXES[name][-1]}=\S+\s*", "", regex=True).str.strip()
    figure, panels = side_by_side(rest.nunique(), width=4.8, height=3.8, share_y=True)
    for axes, (part, same) in zip(panels, rows.groupby(rest, sort=False), strict=True):
        for at, (layout, line) in enumerate(same.groupby("layout", sort=True)):
            _line(axes, line, name, str(layout), at)
        axes.set_yscale("log")
        axes.set_xticks(sorted(sizes.unique()))
        axes.set_xlabel(AXES[name])
        axes.set_title(f"{part}; hollow, arrow: open above")
    panels[0].set_ylabel("training samples to success (median)")
    legend_below(figure, panels[0])
    return figure


def _line(axes: Axes, rows: pd.DataFrame, name: str, layout: str, at: int) -> None:
    _, colour, marker, dashes = style((SAID[layout],), at)
    points = []
    for size, same in rows.groupby(f"config.{name}"):
        median, drawn = median_time(same["time"], same["observed"]), float(same["time"].max())
        x = float(str(size)) * (1 + 0.012 * (2 * at - 1))
        high = drawn if np.isinf(median.high) else median.high
        axes.plot([x, x], [median.low, high], color=colour, linewidth=1.4)
        if np.isinf(median.high):
            axes.plot(x, 1.12 * drawn, marker="^", color=colour, markersize=7, linestyle="")
        if np.isinf(median.value):
            axes.plot(x, drawn, marker=marker, color=colour, markerfacecolor="white", zorder=4)
        else:
            axes.plot(x, median.value, marker=marker, color=colour, zorder=4)
        points.append((x, min(median.value, drawn)))
    axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, linewidth=1.2, alpha=0.7)
    seeds = rows.groupby(f"config.{name}")["seed"].nunique()
    label = f"{SAID[layout]} ({seeds.min()} seeds)"
    axes.plot([], [], color=colour, marker=marker, linestyle=dashes, label=label)


@styled
def plot_layers_and_heads(records: Records) -> Figure:
    """Median samples to success over layers and heads, a panel per problem and layout; `>`: median not reached."""
    rows = plain(chosen(records))
    grid = rows.groupby(["config.layers", "config.heads"]).ngroups
    if grid < 2:
        raise RecordsError(f"all runs have one net: `{_MAIN} preset=layers_and_heads` varies it")
    names = rows["problem"].str.replace(r" [LH]=\d+", "", regex=True)
    figure, panels = side_by_side(names.nunique(), width=2.9, height=2.9)
    ends = np.log10(rows["time"].min()), np.log10(rows["time"].max())
    for axes, (name, same) in zip(panels, rows.groupby(names, sort=False), strict=True):
        layers, heads = (sorted(same[f"config.{axis}"].unique()) for axis in ("layers", "heads"))
        table = np.full((len(layers), len(heads)), np.nan)
        for (layer, head), cell in same.groupby(["config.layers", "config.heads"]):
            median, drawn = median_time(cell["time"], cell["observed"]), float(cell["time"].max())
            place = layers.index(layer), heads.index(head)
            table[place] = np.log10(min(median.value, drawn))
            text = f"{'> ' if np.isinf(median.value) else ''}{min(median.value, drawn):.2g}".replace("e+0", "e")
            dark = table[place] > sum(ends) / 2
            axes.text(
                place[1], place[0], text, ha="center", va="center", color="white" if dark else "black", fontsize=7
            )
        axes.imshow(table, cmap="viridis_r", vmin=ends[0], vmax=ends[1], origin="lower")
        axes.set_xticks(range(len(heads)), heads)
        axes.set_yticks(range(len(layers)), layers)
        axes.set_xlabel("heads")
        axes.grid(False)
        axes.set_title(str(name))
    panels[0].set_ylabel("layers")
    return figure


@styled
def plot_along_training(records: Records) -> Figure:
    """Exact match, and of every head entropy and attention on the secret, against samples: one run per problem.

    The run with the middle sample complexity of each problem of the largest number of secret bits.
    """
    rows = _traced(records)
    if "report/samples_trace" not in rows:
        raise RecordsError("these runs hold no traces; run the sweep again")
    shown = [_middle(same) for _, same in rows.groupby("problem", sort=False)][:4]
    figure = Figure(figsize=(3.5 * len(shown), 6.6), layout="constrained")
    panels = figure.subplots(1 + len(TRACES), len(shown), squeeze=False, sharex="col", sharey="row")
    _, accuracy, _, _ = style(("exact match",), 0)
    for at, run in enumerate(shown):
        samples = np.asarray(run["report/samples_trace"])
        top = panels[0, at]
        top.plot(samples, run["report/exact_match_trace"], color=accuracy, label="report rows")
        top.plot(samples, run["report/train_exact_match_trace"], color="#9aa5b1", linestyle="--", label="training rows")
        top.set_title(f"{run['problem']} s{run['seed']}")
        top.set_xscale("log")
        top.xaxis.set_minor_formatter(NullFormatter())
        for axes, name in zip(panels[1:, at], TRACES, strict=True):
            traces = np.asarray(run[f"report/{name}_trace"]).reshape(len(samples), -1)
            axes.plot(samples, traces, linewidth=1.2, alpha=0.8)
            axes.set_ylim(-0.02, 1.02)
        if run["observed"]:
            for axes in panels[:, at]:
                axes.axvline(run["time"], color="#22223b", linewidth=0.9, linestyle=":")
        panels[-1, at].set_xlabel("training samples (dots: success)")
    panels[0, 0].set_ylabel("exact match")
    for axes, words in zip(panels[1:, 0], TRACES.values(), strict=True):
        axes.set_ylabel(words)
    panels[0, 0].legend(loc="best", fontsize=7)
    return figure


def _traced(records: Records) -> pd.DataFrame:
    """The runs of the largest secret that ended: one that diverged keeps no traces."""
    rows = chosen(records)
    rows = rows[(rows["config.secret_bits"] == rows["config.secret_bits"].max()) & (rows["status"] == "complete")]
    if rows.empty:
        raise RecordsError("all runs of the largest secret diverged")
    return rows


def _middle(rows: pd.DataFrame) -> pd.Series:
    return rows.sort_values(["time", "seed"]).iloc[len(rows) // 2]


@styled
def plot_heads(records: Records) -> Figure:
    """Least entropy of every head at the end, layers by heads, mean over seeds: a panel per problem."""
    rows = _traced(records)
    if (rows["config.layers"] * rows["config.heads"]).max() < 2:
        raise RecordsError(f"all nets have one head: `{_MAIN} preset=layers_and_heads` has more")
    groups = [(name, same) for name, same in rows.groupby("problem", sort=False)][:8]
    figure, panels = side_by_side(len(groups), width=2.6, height=2.7)
    for axes, (name, same) in zip(panels, groups, strict=True):
        layers, heads = int(same["config.layers"].iloc[0]), int(same["config.heads"].iloc[0])
        last = [np.asarray(trace)[-layers * heads :] for trace in same["report/least_entropy_trace"]]
        image = axes.imshow(np.mean(last, 0).reshape(layers, heads), cmap="viridis", vmin=0, vmax=1, origin="lower")
        axes.set_xticks(range(heads), [str(head) for head in range(1, heads + 1)])
        axes.set_yticks(range(layers), [str(layer) for layer in range(1, layers + 1)])
        axes.set_xlabel("head")
        axes.grid(False)
        axes.set_title(str(name))
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, label="least normalised entropy")
    return figure


FIGURES: Mapping[str, Callable[[Records], Figure]] = {
    "samples_against_secret_bits": lambda records: plot_against(records, "secret_bits"),
    "samples_against_input_bits": lambda records: plot_against(records, "input_bits"),
    "layers_and_heads": plot_layers_and_heads,
    "along_training": plot_along_training,
    "entropy_of_heads": plot_heads,
}
