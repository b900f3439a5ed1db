"""What the trials of `sam_bias` say about arXiv:2211.05729: claims, statistics, figures and the summary.

Nothing is tuned in this study, so that every seed may decide. Each statistic gives one number per seed and radius (or
rate); where a claim speaks of a change, it is between the end of the trunk and the end of the trial.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.choice import trial_frame
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.plots import side_by_side, style, styled
from analysis.reading import Reading
from analysis.records import Records, RecordsError

_MAIN = "python sweeps/sam_radius.py"
_PAPER = "arXiv:2211.05729"
TOY_MINIMA = {"lambda_1": 16.0, "lambda_min": 2.0, "trace": 746 / 35}
"""Least values on the zero-loss manifold of the four-weight problem: 2 F1 at (0, 0), 2 F2 at (1, 1), 2 (F1 + F2) at
(4/5, 1/7)."""
MINIMIZED = {
    "full_sam": "lambda_1", "worst": "lambda_1", "worst_loss": "lambda_1", "ascent_loss": "lambda_min",
    "one_sam": "trace", "average": "trace",
}  # fmt: skip
"""What each mode is predicted to minimize at a small radius."""


def _toy(mode: str) -> dict[str, object]:
    return {"problem": "toy4d", "mode": mode, "radius": 0.2}


def _reaches(id: str, mode: str, text: str, source: str, preset: str) -> Claim:
    return Claim(
        id, text + ", within 2 %.", f"{_PAPER}, {source} (functions and margin: ours)", "excess_over_minimum",
        "less", 0.02, "any", _toy(mode), {"column": MINIMIZED[mode]}, f"{_MAIN}{preset}",
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    _reaches("S1", "full_sam", "Full-batch SAM reaches the least largest eigenvalue", "figure 1, theorem 4.5", ""),
    _reaches("S2", "one_sam", "1-SAM reaches the least trace", "figure 1, theorem 5.4", ""),
    _reaches(
        "S3", "ascent_loss", "Gradient descent on the loss in the ascent direction reaches the least smallest nonzero "
        "eigenvalue", "figure 1", " preset=approximations",
    ),
    _reaches("S4", "worst", "The worst direction, held fixed, leads to the least largest eigenvalue",
             "limit of the worst direction; held fixed: ours", " preset=approximations"),
    _reaches("S5", "worst_loss", "Gradient descent on the loss in the worst direction leads to the same",
             "limit of the worst direction", " preset=approximations"),
    _reaches("S6", "average", "Random directions lead to the least trace", "limit of the average direction",
             " preset=approximations"),
    Claim(
        "S7", "Under full-batch SAM the gradient turns into the top eigenvector: 1 - |cos| ends below 0.01.",
        f"{_PAPER}, on the angle, of the order of the radius (the bound is ours)", "misalignment", "less",
        0.01, "any", _toy("full_sam"), command=_MAIN,
    ),
    Claim(
        "S8", "The pace at which full-batch SAM lowers sharpness grows with the radius squared: exponent 2 within 0.2.",
        f"{_PAPER}, theorem 4.5 (the margin is ours)", "pace_exponent", "equal", 0.2, "any",
        {"problem": "toy4d", "mode": "full_sam", "learning_rate": 0.01}, {"field": "radius", "expected": 2.0}, _MAIN,
    ),
    Claim(
        "S9", "The same pace is proportional to the learning rate: exponent 1 within 0.2.",
        f"{_PAPER}, theorem 4.5 (the margin is ours)", "pace_exponent", "equal", 0.2, "any", _toy("full_sam"),
        {"field": "learning_rate", "expected": 1.0}, f"{_MAIN} preset=rates",
    ),
    Claim(
        "S10", "On a quadratic SAM settles at the norm rate * radius * lambda_1 / (2 - rate * lambda_1), to 1e-9.",
        f"{_PAPER}, theorem 4.8", "limit_norm_error", "equal", 1e-9, "any",
        {"problem": "quadratic", "mode": "full_sam"}, command=f"{_MAIN} preset=quadratic",
    ),
    Claim(
        "S11", "Full-batch SAM lowers the share of the top eigenvalue in the trace of a small net.",
        f"{_PAPER}, theorem 4.5 (the net is ours)", "change_along_training", "less", 0.0, "any",
        {"problem": "mlp_small", "mode": "full_sam"}, {"column": "top_share"}, f"{_MAIN} preset=small_net",
    ),
    Claim(
        "S12", "1-SAM raises the share of the top eigenvalue in the trace of a small net.",
        f"{_PAPER}, theorem 5.4 (the net is ours)", "change_along_training", "greater", 0.0, "any",
        {"problem": "mlp_small", "mode": "one_sam"}, {"column": "top_share"}, f"{_MAIN} preset=small_net",
    ),
    Claim(
        "S13", "On a small net too the gradient under full-batch SAM turns into the top eigenvector, to within 0.1.",
        f"{_PAPER}, on the angle (net and bound are ours)", "misalignment", "less", 0.1, "any",
        {"problem": "mlp_small", "mode": "full_sam"}, command=f"{_MAIN} preset=small_net",
    ),
    Claim(
        "S14", "The more samples share a perturbation, the smaller is the top eigenvalue's share (slope per doubling).",
        f"{_PAPER}, theorems 4.5 and 5.4 (that it falls all the way between them is ours)", "slope_on_group", "less",
        0.0, "any", {"problem": "mlp_small", "mode": "m_sam"}, {"column": "top_share"}, f"{_MAIN} preset=m_sweep",
    ),
)  # fmt: skip


def excess_over_minimum(evidence: Evidence, column: str) -> Observation:
    """A final curvature over its least value on the manifold of the four-weight problem, minus one."""
    return _by_settings(evidence, _complete(evidence)[column] / TOY_MINIMA[column] - 1)


def misalignment(evidence: Evidence) -> Observation:
    """1 - |cos| of gradient and top eigenvector, the mean over the last half of the time after the trunk."""
    values = {}
    for trial, curve in _curves(evidence).items():
        late = curve[curve["phase2_time"] >= curve["phase2_time"].max() / 2]
        values[trial] = 1 - late["alignment"].mean()
    return _by_settings(evidence, pd.Series(values, dtype=float))


def limit_norm_error(evidence: Evidence) -> Observation:
    """Final norm over rate * radius * lambda_1 / (2 - rate * lambda_1), minus one."""
    frame = _complete(evidence)
    rate, top = frame["config.learning_rate"], frame["lambda_1"]
    return _by_settings(evidence, frame["norm"] * (2 - rate * top) / (rate * frame["config.radius"] * top) - 1)


def change_along_training(evidence: Evidence, column: str) -> Observation:
    """Final value minus that at the end of the trunk."""
    curves = _curves(evidence)
    values = {trial: curve[column].iloc[-1] - curve[column].iloc[0] for trial, curve in curves.items()}
    return _by_settings(evidence, pd.Series(values, dtype=float))


def pace_exponent(evidence: Evidence, field: str, expected: float) -> Observation:
    """Least-squares slope of log(1 / steps to half the fall of lambda_1) on log `field`, minus `expected`; per seed.

    The steps are interpolated between measurements; a trial in which lambda_1 does not fall has no pace.
    """
    frame, paces = _complete(evidence), {}
    for trial, curve in _curves(evidence).items():
        half = half_fall(curve["step"].to_numpy(float), curve["lambda_1"].to_numpy(float))
        if half is not None:
            paces[trial] = -np.log(half)
    frame = frame.assign(pace=pd.Series(paces, dtype=float))
    table = frame.pivot_table(index="seed", columns=f"config.{field}", values="pace").dropna()
    if table.shape[1] < 2 or table.empty:
        return Observation(pd.DataFrame(), missing=f"seeds with falling sharpness at two values of {field}")
    return Observation(pd.DataFrame({"exponent": _slopes(table, np.log) - expected}))


def half_fall(steps: np.ndarray, values: np.ndarray) -> float | None:
    """Steps from the first until half the way to the last value, on straight lines; None where nothing falls.

    >>> half_fall(np.array([1.0, 5.0, 9.0]), np.array([8.0, 0.0, 0.0])), half_fall(np.arange(2.0), np.arange(2.0))
    (2.0, None)
    """
    half = (values[0] + values[-1]) / 2
    below = np.flatnonzero(values <= half)
    if not values[-1] < values[0] or not len(below):
        return None
    at = below[0]
    share = (values[at - 1] - half) / (values[at - 1] - values[at])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]) - steps[0])


def slope_on_group(evidence: Evidence, column: str) -> Observation:
    """Least-squares slope of a final value on log2 of the samples that share a perturbation; per seed."""
    table = _complete(evidence).pivot_table(index="seed", columns="config.group", values=column).dropna()
    if table.shape[1] < 2 or table.empty:
        return Observation(pd.DataFrame(), missing="seeds with two sizes of group")
    return Observation(pd.DataFrame({"per doubling": _slopes(table, np.log2)}))


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function
    for function in (
        excess_over_minimum, misalignment, limit_norm_error, change_along_training, pace_exponent, slope_on_group,
    )
}  # fmt: skip

_SETTINGS = ("radius", "learning_rate", "group")


def _complete(evidence: Evidence) -> pd.DataFrame:
    frame = evidence.frame
    return frame[frame["status"] == "complete"].set_index("trial", drop=False)


def _curves(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """By trial, its measurements from the end of the trunk on."""
    frame = _complete(evidence)
    rows = evidence.records.to_pandas("measurements").drop_duplicates(["trial", "step"]).sort_values("step")
    warm = frame["config.warm_steps"]
    curves = {}
    for trial, curve in rows[rows["trial"].isin(frame.index)].groupby("trial"):
        after = curve[curve["step"] > int(warm[str(trial)])]
        if len(after) >= 2:
            curves[str(trial)] = after
    return curves


def _by_settings(evidence: Evidence, values: pd.Series) -> Observation:
    """One part per radius, rate and group among those that vary, one row per seed; diverged trials are left out."""
    if values.empty:
        return Observation(pd.DataFrame(), missing="completed trials of this kind")
    lost = int((evidence.frame["status"] != "complete").sum())
    frame = _complete(evidence).loc[values.index]
    names = [f"config.{name}" for name in _SETTINGS if frame[f"config.{name}"].nunique() > 1]
    label = frame[names].apply(
        lambda row: ", ".join(f"{name.removeprefix('config.')} {row[name]:g}" for name in names), axis=1
    )
    frame = frame.assign(value=values, part=label if names else "all")
    remark = f"{lost} trials did not complete, and their seeds are left out" if lost else ""
    return Observation(frame.pivot_table(index="seed", columns="part", values="value").dropna(), exploratory=remark)


def _slopes(table: pd.DataFrame, scale: np.ufunc) -> pd.Series:
    """Least-squares slope of each row on the scaled column names."""
    x = scale(table.columns.to_numpy(dtype=float))
    x = x - x.mean()
    return table @ (x / (x**2).sum())


def summary(records: Records) -> pd.DataFrame:
    """A row per problem, mode, radius, rate and group: means over seeds at the end, and the predicted least value."""
    frame = trial_frame(records)
    by = ["config.problem", "config.mode", *(f"config.{name}" for name in _SETTINGS)]
    shown = ["loss", "lambda_1", "lambda_min", "trace", "top_share", "alignment"]
    if not (frame["status"] == "complete").any():
        raise RecordsError("no trial completed, so there is nothing to sum up; see the errors in the trials table")
    rows = []
    for names, same in frame.groupby(by, sort=False):
        done = same[same["status"] == "complete"]
        row = {name.removeprefix("config."): value for name, value in zip(by, names, strict=True)}
        row |= {"seeds": same["seed"].nunique(), "diverged": int((same["status"] == "diverged").sum())}
        row |= {name: done[name].mean() for name in shown}
        aim = MINIMIZED.get(str(row["mode"])) if row["problem"] == "toy4d" else None
        row |= {"minimizes": aim or "", "least": TOY_MINIMA.get(aim or "", np.nan)}
        rows.append(row)
    table = pd.DataFrame(rows)
    table = table.drop(columns=[name for name in _SETTINGS if table[name].nunique() < 2])
    return table if (table["minimizes"] != "").any() else table.drop(columns=["minimizes", "least"])


# Figures

HEIGHTS = {
    "F1, half the largest eigenvalue": (lambda x, y: x**2 + 6 * y**2 + 8, (0.0, 0.0), "lambda_1"),
    "F2, half the smallest": (lambda x, y: 4 * (1 - x) ** 2 + (1 - y) ** 2 + 1, (1.0, 1.0), "lambda_min"),
    "F1 + F2, half the trace": (
        lambda x, y: x**2 + 6 * y**2 + 8 + 4 * (1 - x) ** 2 + (1 - y) ** 2 + 1,
        (4 / 5, 1 / 7),
        "trace",
    ),
}
"""The functions of the four-weight problem (as in the study), where each is least, and what it is."""
NAMES = {
    "gd": "gradient descent", "full_sam": "full-batch SAM", "one_sam": "1-SAM", "m_sam": "m-SAM",
    "ascent_loss": "loss in the ascent direction", "worst": "worst direction, held fixed",
    "worst_loss": "loss in the worst direction", "average": "random directions",
}  # fmt: skip


def _measured(records: Records, problem: str) -> pd.DataFrame:
    """Measurements of a problem's trials after the trunk, with their mode, radius, group and seed."""
    frame = trial_frame(records)
    frame = frame[(frame["config.problem"] == problem) & (frame["status"] == "complete")]
    if frame.empty:
        raise RecordsError(f"there are no completed trials of problem={problem}")
    wanted = ["trial", "seed", "config.mode", "config.warm_steps", *(f"config.{name}" for name in _SETTINGS)]
    rows = records.to_pandas("measurements").drop_duplicates(["trial", "step"]).merge(frame[wanted], on="trial")
    return rows[rows["step"] > rows["config.warm_steps"]].sort_values("step")


@styled
def plot_paths(records: Records) -> Figure:
    """Ways of (x1, x2) on the four-weight problem, each mode over the function that it should minimize (star)."""
    rows = _measured(records, "toy4d")
    rows = rows[rows["config.radius"] == min(set(rows["config.radius"]), key=lambda radius: abs(radius - 0.2))]
    figure, panels = side_by_side(len(HEIGHTS), width=3.4, height=3.8)
    at_x, at_y = np.meshgrid(np.linspace(-0.15, 1.15, 80), np.linspace(-0.15, 1.15, 80))
    modes = list(dict.fromkeys(rows["config.mode"]))
    for axes, (title, (height, least, aim)) in zip(panels, HEIGHTS.items(), strict=True):
        axes.contour(at_x, at_y, height(at_x, at_y), levels=14, colors="#c9ccd4", linewidths=0.7)
        for place, mode in enumerate(modes):
            if MINIMIZED.get(mode, aim) != aim:
                continue
            _, colour, marker, dashes = style((NAMES[mode],), place)
            for number, (_, way) in enumerate(rows[rows["config.mode"] == mode].groupby("trial")):
                label = NAMES[mode] if number == 0 else None
                axes.plot(way["x1"], way["x2"], color=colour, linestyle=dashes, linewidth=1, label=label)
                axes.plot(way["x1"].iloc[-1], way["x2"].iloc[-1], marker=marker, color=colour, markersize=5)
        axes.plot(*least, marker="*", color="#22223b", markersize=11, zorder=1)
        axes.set_title(title)
        axes.set_xlabel("x1")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", fontsize=7)
    panels[0].set_ylabel("x2")
    return figure


@styled
def plot_top_share(records: Records) -> Figure:
    """Share of the largest eigenvalue in the trace against the time after the trunk, by mode; bands over seeds."""
    rows = _measured(records, "mlp_small")
    rows = rows[rows["config.mode"] != "gd"]
    if rows.empty:
        raise RecordsError("there are no trials with a radius on problem=mlp_small; run preset=small_net or m_sweep")
    figure, (axes,) = side_by_side(1, width=5.6, height=3.6)
    for place, ((mode, group), same) in enumerate(rows.groupby(["config.mode", "config.group"])):
        name = f"m-SAM, m = {group}" if mode == "m_sam" else NAMES[str(mode)]
        _, colour, _, dashes = style((name,), place)
        curve = same.groupby(same["phase2_time"].round(6))["top_share"].agg(["mean", "min", "max"])
        axes.plot(curve.index, curve["mean"], color=colour, linestyle=dashes, label=name)
        axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel("time after the trunk (1 / (learning rate · radius²))")
    axes.set_ylabel("largest eigenvalue / trace")
    axes.set_title("bands: from the lowest to the highest seed")
    axes.legend(loc="best")
    return figure


@styled
def plot_limits(records: Records) -> Figure:
    """Final curvatures on the four-weight problem by mode over their least values; filled where it is predicted."""
    frame = trial_frame(records)
    frame = frame[(frame["config.problem"] == "toy4d") & (frame["status"] == "complete")]
    modes = [mode for mode in MINIMIZED if mode in set(frame["config.mode"])]
    if not modes:
        raise RecordsError("there are no completed trials of problem=toy4d")
    figure, (axes,) = side_by_side(1, width=6.2, height=3.6)
    labels = {"lambda_1": "largest eigenvalue", "lambda_min": "smallest nonzero", "trace": "trace"}
    for place, (column, label) in enumerate(labels.items()):
        _, colour, marker, _ = style((label,), place)
        for x, mode in enumerate(modes):
            values = frame[frame["config.mode"] == mode][column] / TOY_MINIMA[column]
            face = colour if MINIMIZED[mode] == column else "white"
            spread = np.linspace(-0.05, 0.05, len(values)) + 0.2 * (place - 1)
            axes.plot(x + spread, values, marker, color=colour, markerfacecolor=face, markersize=5)
        axes.plot([], [], marker, color=colour, label=f"{label} (filled: predicted to be least)")
    axes.axhline(1, color="#22223b", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(range(len(modes)), [NAMES[mode].replace(" direction", "\ndirection") for mode in modes], fontsize=7)
    axes.set_ylabel("final value / least value")
    axes.legend(loc="best", fontsize=7)
    return figure


@styled
def plot_pace(records: Records) -> Figure:
    """Largest eigenvalue of full-batch SAM on the four-weight problem against steps and against time, by radius."""
    rows = _measured(records, "toy4d")
    rows = rows[rows["config.mode"] == "full_sam"]
    if rows["config.radius"].nunique() < 2:
        raise RecordsError("there is one radius of full-batch SAM only; run preset=default or radii")
    figure, panels = side_by_side(2, width=3.8, height=3.5, share_y=True)
    for place, (radius, same) in enumerate(rows.groupby("config.radius")):
        name, colour, _, dashes = style((f"radius {radius:g}",), place)
        for number, (_, curve) in enumerate(same.groupby("trial")):
            look = dict(color=colour, linestyle=dashes, linewidth=1, label=name if number == 0 else None)
            panels[0].plot(curve["step"] - curve["config.warm_steps"], curve["lambda_1"], **look)
            panels[1].plot(curve["phase2_time"], curve["lambda_1"], **look)
    panels[0].set_xscale("log")
    panels[0].set_xlabel("steps after the trunk")
    panels[1].set_xlabel("time after the trunk (1 / (learning rate · radius²))")
    panels[0].set_ylabel("largest eigenvalue")
    panels[1].legend(loc="best")
    return figure


READING = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures={"paths": plot_paths, "top_share": plot_top_share, "limits": plot_limits, "pace": plot_pace},
    summary=summary,
)
