"""What the trials of `flatness` say about arXiv:2307.11007: claims, statistics, figures and the summary.

A trial is named by its architecture and algorithm. Where several configs of one name were tried, the one with the best
mean select accuracy on all its tuning seeds speaks. Sharpness is compared at the end of training, where it is the whole
Hessian's unless the loss is as good as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.choice import best_config, edges_of, trial_frame
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.plots import side_by_side, styled
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.stats import Direction, t_interval

ACCURACY, TRACE = "report/accuracy", "trace"
SHARPNESS = ("trace", "top_eigenvalue", "trace_over_floor")
INTERPOLATED_LOSS = 1e-4  # below it the samples' Gram matrix is the Hessian

# algorithm -> (display name, colour, line style); architecture -> (display name, marker)
ALGORITHMS: dict[str, tuple[str, str, Any]] = {
    "sgd": ("SGD", "#22223b", "-"),
    "label_noise": ("SGD with label noise", "#4895ef", "-."),
    "one_sam": ("1-SAM", "#b5179e", "--"),
    "gd": ("gradient descent with weight decay", "#e9a03b", ":"),
    "m_sam": ("m-SAM", "#2a9d8f", (0, (5, 1, 1, 1))),
    "full_sam": ("full-batch SAM", "#9aa5b1", (0, (1, 1))),
}
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "no_bias": ("no bias", "o"),
    "bias": ("bias", "s"),
    "softplus": ("softplus, bias", "P"),
    "sim_bn": ("batch norm", "^"),
    "sim_ln": ("layer norm", "D"),
    "sim_ln_projected": ("layer norm, fixed norm", "X"),
    "three_layer": ("three layers", "v"),
}
LABELS = {
    "select/accuracy": "accuracy on the select data (share of signs)",
    "report/accuracy": "accuracy on the report data (share of signs)",
    "trace": "sharpness: trace of the Hessian",
    "step": "training steps",
    "samples": "training samples n",
    "width": "hidden units",
    "rho": "SAM radius",
    "label_noise_std": "standard deviation of the label noise",
}
SCANNED = ("samples", "width", "rho", "label_noise_std")

_MAIN = "python sweeps/flatness_vs_generalization.py"
_PAPER = "arXiv:2307.11007"
_PROBLEM = {"data": "xor", "loss": "mse", "dimension": 30, "samples": 100}


def _claim(
    id: str, architecture: str, text: str, source: str, statistic: str, direction: Direction, margin: float,
    algorithm: str, metric: str, **arguments: Any,
) -> Claim:  # fmt: skip
    return Claim(
        id, text, f"{_PAPER}, {source}", statistic, direction, margin, "fresh",
        {**_PROBLEM, "architecture": architecture}, {"metric": metric, "algorithm": algorithm, **arguments},
        _MAIN + (" preset=layer_norm" if architecture == "sim_ln_projected" else ""),
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "F1a", "no_bias", "Without a bias 1-SAM generalises: its accuracy is above 0.99.",
        "table 1, figure 1 (the margin is ours)", "level", "greater", 0.99, "one_sam", ACCURACY,
    ),
    _claim(
        "F1b", "no_bias", "Without a bias 1-SAM ends with less than half the trace of SGD.",
        "table 1 (the comparison with SGD is ours)", "ratio", "less", 0.5, "one_sam", TRACE, reference="sgd",
    ),
    _claim(
        "F2a", "bias", "With a bias 1-SAM comes within 5 % of the least trace that an interpolating network can have.",
        "theorem 4.1, figure 4 (the margin is ours)", "level", "equal", 0.05, "one_sam", "trace_over_floor", minus=1.0,
    ),
    _claim(
        "F2b", "bias", "With a bias 1-SAM is less accurate than gradient descent with weight decay.",
        "table 1, figure 4", "difference", "less", 0.0, "one_sam", ACCURACY, reference="gd",
    ),
    _claim(
        "F2c", "bias", "That gradient descent is at least 3 times as sharp as 1-SAM.",
        "section 4 (the factor is ours)", "ratio", "greater", 3.0, "gd", TRACE, reference="one_sam",
    ),
    _claim(
        "F3a", "sim_ln_projected", "With a layer norm 1-SAM generalises almost perfectly: accuracy above 0.95.",
        "table 1, figure 6b (the margin is ours)", "level", "greater", 0.95, "one_sam", ACCURACY,
    ),
    _claim(
        "F3b", "sim_ln_projected", "With a layer norm 1-SAM ends with less than half the trace of SGD.",
        "table 1 (the comparison with SGD is ours)", "ratio", "less", 0.5, "one_sam", TRACE, reference="sgd",
    ),
)  # fmt: skip


def level(evidence: Evidence, metric: str, algorithm: str, minus: float = 0.0) -> Observation:
    """A metric at the end of an algorithm's trials, less a number."""
    return _observed(evidence, metric, (algorithm,), lambda values: values[algorithm] - minus)


def difference(evidence: Evidence, metric: str, algorithm: str, reference: str) -> Observation:
    """A metric at the end of an algorithm's trials minus the reference's, paired by seed (same data, same start)."""
    return _observed(evidence, metric, (algorithm, reference), lambda values: values[algorithm] - values[reference])


def ratio(evidence: Evidence, metric: str, algorithm: str, reference: str) -> Observation:
    """A metric at the end of an algorithm's trials over that of the reference's, paired by seed."""
    return _observed(evidence, metric, (algorithm, reference), lambda values: values[algorithm] / values[reference])


STATISTICS: Mapping[str, Statistic] = {function.__name__: function for function in (level, difference, ratio)}


class Ends(NamedTuple):
    """A metric at the end of an algorithm's trials, and what became of those that have none."""

    values: pd.DataFrame  # by seed (rows) and width and budget (columns)
    edges: tuple[str, ...]
    unfit: tuple[str, ...]  # losses that forbid a decision
    remarks: tuple[str, ...]  # losses that do not


def final(evidence: Evidence, algorithm: str, metric: str) -> Ends:
    """A metric of the chosen config of each width and budget, on the claim's seeds.

    Sharpness counts only where it is the Hessian's: below INTERPOLATED_LOSS, or where it was taken from the Hessian.
    The seeds on which a config diverged are not like the others, so that it cannot be judged without them.
    """
    rows = evidence.frame[evidence.frame["config.algorithm"] == algorithm]
    parts: dict[str, pd.Series] = {}
    edges: list[str] = []
    unfit: list[str] = []
    remarks: list[str] = []
    for (width, budget), same in rows.groupby(["config.width", "budget_steps"]):
        part = f"width {width}, {budget} steps"
        mine = _chosen(same)
        edges += [
            edge.words for config in mine["config_id"].unique() for edge in edges_of(evidence.records, same, config)
        ]
        mine = mine[mine["fresh"] | (evidence.seeds == "any")]
        done = mine[mine["status"] == "complete"]
        fit = done
        if metric in SHARPNESS:
            fit = done[(done["train/loss"] < INTERPOLATED_LOSS) | (done["sharpness_is_hessian"] == 1)]
        values = fit.set_index("seed")[metric].astype(float).dropna()
        parts[part] = values
        diverged = int((mine["status"] == "diverged").sum())
        for lines, count, fate in (
            (unfit, diverged, "diverged"),
            (remarks, len(mine) - len(done) - diverged, "did not complete"),
            (remarks, len(done) - len(values), f"have no {metric} that counts"),
        ):
            lines += [f"{count} trials of {algorithm} ({part}) {fate}, and their seeds are left out"] if count else []
        if values.empty:
            unfit.append(f"no trial of {algorithm} ({part}) is left to decide by")
    return Ends(pd.DataFrame(parts), tuple(dict.fromkeys(edges)), tuple(unfit), tuple(remarks))


def _chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """All trials of the config that the tuning trials choose; none where no config completed its tuning seeds."""
    return rows[rows["config_id"] == best_config(rows)]


Tables = Mapping[str, pd.DataFrame]


def _observed(
    evidence: Evidence, metric: str, algorithms: Sequence[str], combine: Callable[[Tables], pd.DataFrame]
) -> Observation:
    ends = {name: final(evidence, name, metric) for name in algorithms}
    lost = [name for name, end in ends.items() if end.values.dropna(how="all").empty]
    unfit = [line for end in ends.values() for line in end.unfit]
    remarks = [line for end in ends.values() for line in end.remarks]
    if lost:
        kind = "fresh seeds" if evidence.seeds == "fresh" else "seeds"
        missing = f"completed trials of {' and '.join(lost)} on {kind}"
        return Observation(pd.DataFrame(), missing="; ".join([missing, *unfit]), exploratory="; ".join(remarks))
    tables = {name: end.values for name, end in ends.items()}
    every = dict.fromkeys(part for table in tables.values() for part in table)
    alone = [part for part in every if any(part not in table for table in tables.values())]
    remarks += [f"{part} was not run by all of {', '.join(algorithms)} and is left out" for part in alone]
    parts = combine(tables).dropna(axis=1, how="all").dropna()
    return Observation(
        parts,
        edges=tuple(dict.fromkeys(words for end in ends.values() for words in end.edges)),
        missing="" if len(parts) else "a seed, width and budget that both have",
        exploratory="; ".join(remarks),
        unfit="; ".join(unfit),
    )


@styled
def training_figure(records: Records) -> Figure:
    """Accuracy (top) and sharpness (bottom) along training: a column per architecture, a line per algorithm.

    Lines are means over seeds, bands reach from the lowest to the highest; the thin line is the least trace there is.
    """
    rows, curves = _speaking(records), records.to_pandas("measurements")
    curves = curves.merge(rows[["sweep", "trial", "config.architecture", "config.algorithm"]], on=["sweep", "trial"])
    if curves.empty or TRACE not in curves:
        raise RecordsError("no curve to draw: the measurements have no trace")
    names = [name for name in ARCHITECTURES if name in set(curves["config.architecture"])]
    figure = Figure(figsize=(3.4 * len(names) + 0.8, 5.4), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row")
    for column, name in enumerate(names):
        mine = curves[curves["config.architecture"] == name]
        for axes, metric in zip(panels[:, column], ("select/accuracy", TRACE), strict=True):
            for algorithm in _present(mine):
                _band(axes, mine[mine["config.algorithm"] == algorithm], metric, algorithm)
        floor = (mine[TRACE] / mine["trace_over_floor"]).median()
        panels[1, column].axhline(floor, color="#555555", linewidth=0.8, zorder=2)
        panels[1, column].annotate(f"least: {floor:.3g}", (1, floor), (-2, -9), xycoords=("axes fraction", "data"),
                                   textcoords="offset points", ha="right", fontsize=7)  # fmt: skip
        _log(panels[1, column].set_yscale, panels[1, column].yaxis)
        panels[0, column].set_title(ARCHITECTURES[name][0])
        panels[1, column].set_xlabel(LABELS["step"])
    panels[0, 0].set_ylabel("accuracy on the select data\n(share of signs)")
    panels[1, 0].set_ylabel(LABELS[TRACE])
    figure.legend(handles=_algorithm_handles(_present(curves)), loc="outside lower center", ncols=2)
    return figure


@styled
def front_figure(records: Records) -> Figure:
    """Every trial's accuracy against its sharpness, and the steps of those that no other trial beats in both."""
    rows = _confirmed(records)
    rows = rows[rows[TRACE] > 0]
    if rows.empty:
        raise RecordsError("no trial ended with a trace above 0")
    figure, (axes,) = side_by_side(1, width=6.0, height=4.2)
    names = [name for name in ARCHITECTURES if name in set(rows["config.architecture"])]
    for architecture in names:
        for algorithm in _present(rows):
            same = rows[(rows["config.architecture"] == architecture) & (rows["config.algorithm"] == algorithm)]
            axes.plot(
                same[TRACE], same[ACCURACY], ARCHITECTURES[architecture][1], color=ALGORITHMS[algorithm][1],
                markersize=6, markeredgecolor="white", markeredgewidth=0.5, alpha=0.9, zorder=3,
            )  # fmt: skip
        front = rows[rows["config.architecture"] == architecture]
        front = front[undominated(front[TRACE].tolist(), front[ACCURACY].tolist())].sort_values(TRACE)
        axes.step(front[TRACE], front[ACCURACY], where="post", color="#9aa5b1", linewidth=0.9, zorder=2)
    _log(axes.set_xscale, axes.xaxis)
    axes.set_xlabel(LABELS[TRACE])
    axes.set_ylabel(LABELS[ACCURACY])
    axes.set_title("flatter to the left; grey steps: not beaten in both, per architecture")
    shapes = [
        Line2D([], [], color="#555555", marker=ARCHITECTURES[name][1], linestyle="", label=ARCHITECTURES[name][0])
        for name in names
    ]
    handles = [*_algorithm_handles(_present(rows), marker="o"), *shapes]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled
def scan_figure(records: Records) -> Figure:
    """Accuracy (left) and sharpness (right) against the field that was varied: points are means over fresh seeds."""
    rows = _confirmed(records)
    fields = varying(rows.groupby(["config.architecture", "config.algorithm"]).filter(lambda same: bool(varying(same))))
    if not fields:
        raise RecordsError(f"none of {', '.join(SCANNED)} was varied; preset=radii, noises, samples and widths do")
    field = fields[0]
    figure, panels = side_by_side(2, width=4.2, height=3.8)
    for (architecture, algorithm), same in rows.groupby(["config.architecture", "config.algorithm"]):
        name, colour, dashes = ALGORITHMS[str(algorithm)]
        shown, marker = ARCHITECTURES[str(architecture)]
        for axes, metric in zip(panels, (ACCURACY, TRACE), strict=True):
            ends = same.groupby(f"config.{field}")[metric].agg(["mean", "min", "max"])
            axes.plot(ends.index, ends["mean"], marker, color=colour, linestyle=dashes, label=f"{shown}, {name}")
            axes.fill_between(ends.index, ends["min"], ends["max"], color=colour, alpha=0.1, linewidth=0)
    for axes, metric in zip(panels, (ACCURACY, TRACE), strict=True):
        _log(axes.set_xscale, axes.xaxis)
        axes.set_xlabel(LABELS[field])
        axes.set_ylabel(LABELS[metric])
    _log(panels[1].set_yscale, panels[1].yaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def undominated(traces: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Which points no other point beats: at most their trace and at least their accuracy, one of them better.

    >>> undominated([1.0, 2.0, 2.0], [0.5, 0.9, 0.7])
    [True, True, False]
    """
    trace, accuracy = np.asarray(traces), np.asarray(accuracies)
    as_good = (trace[:, None] <= trace) & (accuracy[:, None] >= accuracy)
    better = (trace[:, None] < trace) | (accuracy[:, None] > accuracy)
    return [not beaten for beaten in np.atleast_1d(np.any(as_good & better, axis=0))]


def summary(records: Records) -> pd.DataFrame:
    """One row per architecture, algorithm and confirmed config: means over its fresh seeds, with t intervals."""
    rows = []
    for (architecture, algorithm), named in _confirmed(records).groupby(["config.architecture", "config.algorithm"]):
        fields = varying(named)
        for _, same in named.groupby("config_id", sort=False):
            values = [f"{field}={same[f'config.{field}'].iloc[0]:g}" for field in fields]
            rows.append(
                {
                    "architecture": ARCHITECTURES[str(architecture)][0],
                    "algorithm": " ".join([ALGORITHMS[str(algorithm)][0], *values]),
                    "accuracy": round(float(same[ACCURACY].mean()), 4),
                    "95 % interval": str(t_interval(same[ACCURACY].to_numpy()) or ""),
                    "trace": round(float(same[TRACE].mean()), 2),
                    "over least": round(float(same["trace_over_floor"].mean()), 3),
                    "top eigenvalue": round(float(same["top_eigenvalue"].mean()), 2),
                    "training loss": float(f"{same['train/loss'].mean():.2g}"),
                    "points per unit": round(float(same["points_per_neuron"].mean()), 1),
                    "signal share": round(float(same["signal_share"].mean()), 3),
                    "seeds": len(same),
                }
            )
    return pd.DataFrame(rows)


def varying(rows: pd.DataFrame) -> list[str]:
    """The fields among SCANNED that have several values in these trials."""
    return [name for name in SCANNED if f"config.{name}" in rows and rows[f"config.{name}"].nunique() > 1]


def _confirmed(records: Records) -> pd.DataFrame:
    """The completed trials on fresh seeds, or all where there are none."""
    frame = trial_frame(records)
    if TRACE not in frame or "config.architecture" not in frame:
        raise RecordsError("these are no trials of flatness: they have no trace, or no architecture")
    return _on_fresh_seeds(frame[frame["status"] == "complete"])


def _on_fresh_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["fresh"]] if rows["fresh"].any() else rows


def _speaking(records: Records) -> pd.DataFrame:
    """The completed trials of the chosen config of each name, on fresh seeds."""
    frame = trial_frame(records)
    if TRACE not in frame or not len(frame):
        raise RecordsError("these are no trials of flatness: they have no trace")
    groups = [_chosen(same) for _, same in frame.groupby(["config.architecture", "config.algorithm"])]
    chosen = pd.concat(groups)
    return _on_fresh_seeds(chosen[chosen["status"] == "complete"])


def _present(rows: pd.DataFrame) -> list[str]:
    return [name for name in ALGORITHMS if name in set(rows["config.algorithm"])]


def _band(axes: Axes, curves: pd.DataFrame, metric: str, algorithm: str) -> None:
    by_step = curves.dropna(subset=[metric]).groupby("step")[metric]
    _, colour, dashes = ALGORITHMS[algorithm]
    mean, low, high = by_step.mean(), by_step.min(), by_step.max()
    axes.plot(mean.index, mean, color=colour, linestyle=dashes, linewidth=1.5, zorder=4)
    axes.fill_between(mean.index, low, high, color=colour, alpha=0.13, linewidth=0, zorder=3)


def _log(set_scale: Callable[[str], None], axis: Axis) -> None:
    """A log axis with plain numbers."""
    set_scale("log")
    for place in (axis.set_major_formatter, axis.set_minor_formatter):
        place(FuncFormatter(lambda value, _: f"{value:g}"))


def _algorithm_handles(algorithms: Sequence[str], marker: str = "") -> list[Line2D]:
    looks = [ALGORITHMS[name] for name in algorithms]
    return [
        Line2D([], [], color=colour, linestyle="" if marker else dashes, marker=marker, label=name)
        for name, colour, dashes in looks
    ]


READING = Reading(
    CLAIMS,
    STATISTICS,
    {"training": training_figure, "accuracy_and_trace": front_figure, "scan": scan_figure},
    summary,
)
