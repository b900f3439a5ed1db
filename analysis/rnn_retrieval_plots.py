"""Figures of `rnn_retrieval`: accuracy by problem, against the length of texts, the bits of the state and compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import legend_below, log_x, side_by_side, style, styled
from analysis.records import Records, RecordsError
from analysis.rnn_retrieval_runs import arms, chosen
from analysis.stats import t_interval

MOST_NETS = 5  # with a colour and marker of its own each
_MAIN = "python sweeps/rnn_retrieval.py"
LABELS = {
    "accuracy": "accuracy of generated answers",
    "length": "length of the text (pairs, positions or nodes)",
    "state_bits": "bits of the state past the prompt",
    "flops": "training FLOPs",
}


@styled
def plot_accuracy(records: Records) -> Figure:
    """Accuracy by problem, ordered by the bits it requires: every seed, mean and t interval, chance and ceilings."""
    table = arms(chosen(records))
    problems = table.groupby("problem")["required_bits"].first().sort_values()
    figure, (axes,) = side_by_side(1, width=max(5.0, 2.2 * len(problems)), height=3.9)
    nets = list(dict.fromkeys(table["net"]))
    if len(nets) > MOST_NETS:
        raise RecordsError(f"{len(nets)} nets cannot be told apart here, {MOST_NETS} can; see state and compute")
    for at, net in enumerate(nets):
        same = table[table["net"] == net]
        places = [
            list(problems.index).index(problem) + 0.16 * (at - (len(nets) - 1) / 2) for problem in same["problem"]
        ]
        _points(axes, same, at, net, places)
    for place, problem in enumerate(problems.index):
        same = table[table["problem"] == problem]
        axes.plot([place - 0.45, place + 0.45], [same["chance"].iloc[0]] * 2, color="#888888", linestyle=":")
        for ceiling in sorted(set(same.loc[same["ceiling"] < 1, "ceiling"])):
            axes.plot([place - 0.45, place + 0.45], [ceiling] * 2, color="#c1121f", linewidth=1)
    axes.plot([], [], color="#888888", linestyle=":", label="chance")
    axes.plot([], [], color="#c1121f", linewidth=1, label="most that a net with too small a state can reach")
    axes.set_xticks(range(len(problems)), [f"{name}\n{bits:,.0f} bits" for name, bits in problems.items()])
    _accuracy_axis(axes)
    legend_below(figure, axes)
    return figure


@styled
def plot_lengths(records: Records) -> Figure:
    """Accuracy against the length of the text, a panel per kind of problem: tasks, values and bodies."""
    table = arms(chosen(records))
    families = [str(name) for name, same in table.groupby("family", sort=False) if same["length"].nunique() > 1]
    if not families:
        raise RecordsError(f"no kind of problem has texts of two lengths: {_MAIN} preset=lengths")
    return _panels(table, "family", families, "length")


@styled
def plot_state(records: Records) -> Figure:
    """Accuracy against the bits of the state, a panel per problem; the line is what the problem requires."""
    table = arms(chosen(records))
    problems = list(dict.fromkeys(table["problem"]))
    figure = _panels(table, "problem", problems, "state_bits", line_of="model")
    for axes, problem in zip(figure.axes, problems, strict=True):
        required = float(table.loc[table["problem"] == problem, "required_bits"].iloc[0])
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, required / 1.3), max(high, required * 1.3))
        axes.axvline(required, color="#888888", linestyle=":")
        axes.annotate("required", (required, 0.5), fontsize=7, rotation=90, ha="right", va="center")
    return figure


@styled
def plot_compute(records: Records) -> Figure:
    """Accuracy against the FLOPs of training, a panel per problem."""
    table = arms(chosen(records))
    if table["flops"].isna().all():
        raise RecordsError("these records have no FLOPs; run the sweep again with this version")
    return _panels(table, "problem", list(dict.fromkeys(table["problem"])), "flops", line_of="model")


def _panels(table: pd.DataFrame, by: str, names: Sequence[str], x: str, line_of: str = "net") -> Figure:
    """A panel per name of `by`, in which the arms of a net (or of all sizes of a model) are joined along `x`."""
    figure, panels = side_by_side(len(names), width=4.2 if len(names) > 1 else 5.4, height=3.8, share_y=True)
    lines = list(dict.fromkeys(table[line_of]))
    for axes, name in zip(panels, names, strict=True):
        for at, line in enumerate(lines):
            same = table[(table[by] == name) & (table[line_of] == line)].sort_values(x)
            _points(axes, same, at, line, same[x].tolist(), joined=True)
        log_x(axes, sorted(set(table.loc[table[by] == name, x])))
        axes.set_xlabel(LABELS[x])
        axes.set_title(name)
        _accuracy_axis(axes)
        axes.set_ylabel("")
    panels[0].set_ylabel(LABELS["accuracy"])
    legend_below(figure, panels[0])
    return figure


def _points(axes: Axes, rows: pd.DataFrame, at: int, label: str, places: Sequence[float], joined: bool = False) -> None:
    """Means of arms at their places on the x axis, with every seed and t intervals."""
    if rows.empty:
        return
    _, colour, marker, dashes = style((label,), at)
    seeds = sorted({int(rows["seeds"].min()), int(rows["seeds"].max())})
    words = f"{label} ({'-'.join(map(str, seeds))} seed{'' if seeds == [1] else 's'})"
    axes.plot(
        places,
        rows["accuracy"],
        color=colour,
        marker=marker,
        linestyle=dashes if joined else "",
        markersize=6,
        label=words,
    )
    for where, values in zip(places, rows["values"], strict=True):
        axes.plot([where] * len(values), values, ".", color=colour, markersize=3, alpha=0.6)
        ends = t_interval(values)
        if ends is not None:
            axes.plot([where] * 2, np.clip([ends.low, ends.high], 0, 1), color=colour, linewidth=1.2)


def _accuracy_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(LABELS["accuracy"])
