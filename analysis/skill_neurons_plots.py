"""Figures of the skill-neuron study: predictivity by layer, the cost of perturbations, likeness of tasks, pruning."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import skill_neurons_runs as runs
from analysis.plots import side_by_side, style, styled
from analysis.records import Records, RecordsError

LAYERS = {
    "dev texts, which choose": "report/layers_dev",
    "other texts": "report/layers_test",
    "other texts, labels shuffled": "report/layers_null",
}
ARMS = {"skill": "skill neurons", "random": "random", "matched": "matched"}
INK = "#22223b"


def _spread(axes: Axes, x: np.ndarray, values: pd.DataFrame, place: int, name: str) -> None:
    """Mean of the rows of `values` over x with a line, and every row as a faint point."""
    _, colour, marker, dashes = style((name,), place)
    axes.plot(
        x, values.to_numpy(float).mean(0), color=colour, linestyle=dashes, marker=marker, markersize=4, label=name
    )
    for row in values.to_numpy():
        axes.plot(x, row, ".", color=colour, alpha=0.35, markersize=4)


@styled
def plot_predictivity(records: Records) -> Figure:
    """Accuracy of the best neurons of each layer, on the texts that chose them and on others; points are seeds."""
    rows = runs.runs(records)
    column = LAYERS["other texts"]
    rows = rows[rows[column].notna()] if column in rows else rows.iloc[:0]
    if rows.empty:
        raise RecordsError("no trial has probed its neurons")
    # Trials that differ only in what came after the probe have probed the same neurons.
    rows = rows.drop_duplicates(["seed", "config.task", "config.encoder", "config.readout", "config.budget_steps"])
    groups = list(rows.groupby(["config.task", "config.encoder"], sort=False))[:4]
    figure, panels = side_by_side(len(groups), width=3.2, height=3.2, share_y=True)
    for axes, ((task, encoder), same) in zip(panels, groups, strict=True):
        for place, (name, column) in enumerate(LAYERS.items()):
            values = pd.DataFrame([np.asarray(one, dtype=float) for one in same[column]])
            _spread(axes, np.arange(1, values.shape[1] + 1), values, place, name)
        axes.axhline(0.5, color=INK, linewidth=0.7)
        axes.set_title(runs.short(task) + ", " + runs.short(encoder))
        axes.set_xlabel("layer")
        axes.set_xticks(range(1, values.shape[1] + 1))
    panels[0].set_ylabel("accuracy of the layer's best neurons")
    panels[0].legend(loc="best", fontsize=7)
    return figure


@styled
def plot_drops(records: Records) -> Figure:
    """What perturbing skill neurons and both controls costs on report texts, by arm; points are seeds."""
    rows = runs.runs(records)
    rows = rows[rows["report/drop_skill"].notna()] if "report/drop_skill" in rows else rows.iloc[:0]
    if rows.empty:
        raise RecordsError("no trial has perturbed neurons")
    arms = list(dict.fromkeys(rows["arm"]))[:12]
    figure, panels = side_by_side(2, width=3.9, height=1.2 + 0.55 * len(arms))
    for axes, kind, words in zip(panels, ("drop", "rise"), ("fall of accuracy", "rise of loss (nats)"), strict=True):
        for place, (arm, name) in enumerate(ARMS.items()):
            _, colour, marker, _ = style((name,), place)
            for y, label in enumerate(arms):
                values = rows[rows["arm"] == label][f"report/{kind}_{arm}"].to_numpy(float)
                at = y + 0.22 * (place - 1)
                axes.plot(values, np.full(len(values), at), ".", color=colour, alpha=0.4)
                axes.plot(values.mean(), at, marker, color=colour, markersize=6, label=name if y == 0 else None)
        axes.axvline(0, color=INK, linewidth=0.7)
        axes.set_xlabel(words)
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(arms)), arms if axes is panels[0] else [""] * len(arms))
        axes.set_ylim(len(arms) - 0.5, -0.5)
    panels[1].legend(loc="best", fontsize=7)
    return figure


@styled
def plot_tasks(records: Records) -> Figure:
    """Rank correlation of predictivity between tasks, on the diagonal within a task; means over seeds."""
    rows = runs.runs(records)
    found = runs.likenesses(rows)
    own = runs.ceilings(rows)
    tasks = list(dict.fromkeys(name for pair in found for name in (pair.one, pair.other)))
    table = pd.DataFrame(np.nan, index=tasks, columns=tasks)
    for one in tasks:
        for other in tasks:
            between = [pair.between for pair in found if {pair.one, pair.other} == {one, other}]
            if between:
                table.loc[one, other] = float(np.mean(between))
        table.loc[one, one] = own[one]
    figure, (axes,) = side_by_side(1, width=1.8 + 0.8 * len(tasks), height=1.4 + 0.7 * len(tasks))
    values = table.to_numpy(float)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=max(0.3, float(np.nanmax(values))))
    for y, row in enumerate(values):
        for x, shown in enumerate(row):
            strong = shown > 0.6 * np.nanmax(values)
            axes.text(x, y, format(shown, ".2f"), ha="center", va="center", color="white" if strong else INK)
    names = [task.replace(":", ":\n").replace("/", "/\n") for task in tasks]
    axes.set_xticks(range(len(tasks)), names, fontsize=7)
    axes.set_yticks(range(len(tasks)), names, fontsize=7)
    axes.set_title("Spearman's correlation; diagonal: halves of one task")
    axes.grid(False)
    return figure


@styled
def plot_pruning(records: Records) -> Figure:
    """Accuracy and measured speed against the share of neurons kept, right after the cut and after new training."""
    rows = runs.runs(records)
    if not (rows["config.action"] == "prune").any():
        raise RecordsError("no trial has cut neurons out; run preset=prune")
    rows = runs.with_pruning_cost(records, rows[rows["config.action"] == "prune"])
    figure, panels = side_by_side(2, width=3.6, height=3.3)
    shares = sorted(set(rows["config.keep_fraction"]))
    columns = {
        "right after the cut": "at the cut",
        "prompt trained again": "report/accuracy",
        "whole": "whole",
    }
    for place, (name, column) in enumerate(columns.items()):
        if column in rows and rows[column].notna().any():
            table = rows.pivot_table(index="seed", columns="config.keep_fraction", values=column)
            _spread(panels[0], np.array(table.columns, dtype=float), table, place, name)
    if "report/cpu_speed_up" in rows:
        table = rows.pivot_table(index="seed", columns="config.keep_fraction", values="report/cpu_speed_up")
        _spread(panels[1], np.array(table.columns, dtype=float), table, 0, "CPU seconds, whole / cut")
    parameters = rows.groupby("config.keep_fraction")["report/parameters_kept"].mean()
    panels[1].plot(
        parameters.index, 1 / parameters, color=INK, linewidth=1, label="parameters of the blocks, whole / cut"
    )
    for axes, words in zip(panels, ("accuracy on report texts", "times less"), strict=True):
        axes.set_xlabel("share of each layer's neurons that stays")
        axes.set_ylabel(words)
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.legend(loc="best", fontsize=7)
    return figure
