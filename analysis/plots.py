"""Figures. Labels, colours, markers and display names live in the tables below; functions here only draw.

Colours differ in lightness (L* 15 to 80), markers and line styles too, so that a figure survives a grey print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.choice import AxisCurve
from analysis.curves import Trunk
from analysis.frontier import Frontier, FrontierPoint

# name -> (display name, colour, marker, line style)
STYLES: dict[str, tuple[str, str, str, str]] = {
    "cosine": ("cosine, one run per budget", "#22223b", "o", "-"),
    "wsd": ("WSD", "#b5179e", "s", "--"),
    "wsd_s": ("WSD-S", "#2a9d8f", "^", "-."),
    "cyclic_cosine": ("cyclic cosine", "#f4a261", "D", ":"),
    "low_constant": ("constant at a low rate", "#adb5bd", "P", "--"),
    "constant": ("constant", "#8d99ae", "v", (0, (5, 1, 1, 1, 1, 1))),  # type: ignore[dict-item]
}
_SPARE = [
    ("#1d3557", "o", "-"),
    ("#c1121f", "s", "--"),
    ("#4895ef", "^", "-."),
    ("#e9a03b", "D", ":"),
    ("#9aa5b1", "v", "--"),
]
LABELS = {
    "steps_nominal": "training steps of this checkpoint alone",
    "steps_family": "training steps of the whole family so far",
    "steps_marginal": "training steps this checkpoint adds",
    "tokens_nominal": "training tokens of this checkpoint alone",
    "tokens_family": "training tokens of the whole family so far",
    "tokens_marginal": "training tokens this checkpoint adds",
    "flops_nominal": "FLOPs of this checkpoint alone",
    "flops_family": "FLOPs of the whole family so far",
    "flops_marginal": "FLOPs this checkpoint adds",
    "device_seconds_alone": "device seconds of this run alone",
    "report/loss": "report loss (nats per token)",
    "select/loss": "select loss (nats per token)",
    "train/loss": "training loss (nats per token)",
    "report/bits_per_byte": "report loss (bits per byte)",
    "tokens": "training tokens",
    "lr": "learning rate",
    "budget": "budget (steps)",
    "peak_lr": "peak learning rate",
    "decay_fraction": "decay fraction of the budget",
}
_RC: Any = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.grid": True, "grid.color": "#e3e3e8", "grid.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.fontsize": 8,
    "legend.frameon": False, "svg.fonttype": "none", "figure.dpi": 150, "svg.hashsalt": "anabranch",
}  # fmt: skip
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            figure = draw(*args, **kwargs)
            FigureCanvasAgg(figure)
            return figure

    return inside


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path`.png and `path`.svg; returns both."""
    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [base.with_name(base.name + suffix) for suffix in (".png", ".svg")]
    with matplotlib.rc_context(_RC):
        for file in files:
            figure.savefig(file, dpi=150, facecolor="white", metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


@styled
def plot_frontier(*frontiers: Frontier) -> Figure:
    """One panel per frontier (per checkpoint, whole family): report loss against cost with t intervals over roots.

    Filled markers are fresh seeds, hollow ones the tuning seeds that chose the config.
    """
    figure, panels = side_by_side(len(frontiers), width=4.5 if len(frontiers) > 1 else 6.0, height=3.9, share_y=True)
    for axes, frontier in zip(panels, frontiers, strict=True):
        for at, group in enumerate(frontier.groups()):
            points = [p for p in frontier.points if p.group == group and p.cost is not None and np.isfinite(p.loss)]
            if not points:
                continue
            name, colour, marker, dashes = style(group, at)
            x, y = [p.cost or 0.0 for p in points], [p.loss for p in points]
            label = f"{name} ({_seeds(points)})"
            axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.4, zorder=3)
            axes.plot([], [], color=colour, linestyle=dashes, marker=marker, label=label)
            for place, point in zip(x, points, strict=True):
                face = colour if point.fresh else "white"
                axes.plot(place, point.loss, marker=marker, color=colour, markerfacecolor=face, markersize=6, zorder=4)
            banded = [p for p in points if p.interval is not None]
            low, high = ([getattr(p.interval, end) for p in banded] for end in ("low", "high"))
            axes.fill_between([p.cost or 0.0 for p in banded], low, high, color=colour, alpha=0.13, linewidth=0)
        log_x(axes, [p.cost for p in frontier.points if p.cost])
        axes.set_xlabel(label_of(frontier.x))
        axes.set_title({"nominal": "per checkpoint", "family": "whole family"}.get(frontier.x.rsplit("_", 1)[-1], ""))
    panels[0].set_ylabel(label_of(frontiers[0].report))
    legend_below(figure, panels[0])
    return figure


@styled
def plot_differences(frontier: Frontier) -> Figure:
    """Difference to the reference per budget, paired by seed: what a root does to all cancels."""
    figure, (axes,) = side_by_side(1, width=6.0, height=3.6)
    budgets = sorted({p.budget for p in frontier.points})
    groups = [g for g in frontier.groups() if g != frontier.reference]
    for at, group in enumerate(groups):
        points = [p for p in frontier.points if p.group == group and p.difference is not None]
        name, colour, marker, _ = style(group, at + 1)
        shift = (at - (len(groups) - 1) / 2) * 0.14
        for point in points:
            x = budgets.index(point.budget) + shift
            face = colour if point.fresh else "white"
            axes.plot(
                x, point.difference or 0.0, marker=marker, color=colour, markerfacecolor=face, markersize=6, zorder=4
            )
            if point.difference_interval is not None:
                ends = point.difference_interval
                axes.plot([x, x], [ends.low, ends.high], color=colour, linewidth=1.6, zorder=3)
        if points:
            label = f"{name} ({_counts([p.pairs for p in points], 'paired ')})"
            axes.plot([], [], marker=marker, color=colour, label=label)
    reference = style(frontier.reference or ("reference",), 0)[0]
    axes.axhline(0, color="#22223b", linewidth=1)
    axes.set_xticks(range(len(budgets)), [f"{b:,}" for b in budgets])
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xlabel(LABELS["budget"])
    axes.set_ylabel("loss difference (nats per token)")
    axes.set_title(f"against {reference}; bars: 95 % over roots")
    legend_below(figure, axes)
    return figure


@styled
def plot_trunk(trunk: Trunk, loss: str = "select/loss") -> Figure:
    """Loss and learning rate of a trunk and its branches against tokens."""
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    known = trunk.curve.dropna(subset=[loss])
    stem = dict(color=STYLES["cosine"][1], linewidth=1.6, zorder=3)
    top.plot(known["tokens"], known[loss], label="trunk (stable phase)", **stem)
    bottom.plot(trunk.curve["tokens"], trunk.curve["lr"], **stem)
    shown = {b.budget: b for b in trunk.branches}
    for at, branch in enumerate(trunk.branches):
        curve = branch.curve.dropna(subset=[loss])
        look = dict(color=STYLES["wsd"][1], linestyle="--", linewidth=1.3, zorder=4)
        label = "decay of a budget" if at == 0 else None
        top.plot(curve["tokens"], curve[loss], label=label, **look)
        top.plot(
            curve["tokens"].iloc[-1], curve[loss].iloc[-1], marker="s", color=look["color"], markersize=5, zorder=5
        )
        bottom.plot(curve["tokens"], curve["lr"], **look)
    ends = np.concatenate([b.curve[loss].dropna().to_numpy() for b in trunk.branches])
    after_warmup = known[known["phase_of_schedule"] != "warmup"][loss]
    high = after_warmup.quantile(0.97) if len(after_warmup) else known[loss].max()
    top.set_ylim(ends.min() - 0.14 * (high - ends.min()), high + 0.25 * (high - ends.min()))
    for branch in shown.values():
        last = branch.curve.dropna(subset=[loss]).iloc[-1]
        top.annotate(
            f"{branch.budget:,}",
            (last["tokens"], last[loss]),
            (0, -11),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    top.set_ylabel(label_of(loss))
    top.set_title(trunk.title + " (numbers: budget in steps)")
    top.legend(loc="upper right")
    bottom.set_ylabel(LABELS["lr"])
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel(LABELS["tokens"])
    bottom.xaxis.set_major_formatter(FuncFormatter(_human))
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    return figure


@styled
def plot_axis_curves(curves: Sequence[AxisCurve]) -> Figure:
    """Best value of each tuned field per budget (line), its near-best set (bars) and all values tried (dots)."""
    fields = list(dict.fromkeys(c.axis for c in curves))
    figure, panels = side_by_side(max(1, len(fields)), width=4.4 if len(fields) > 1 else 6.0, height=3.8)
    for axes, field in zip(panels, fields, strict=True):
        mine = [c for c in curves if c.axis == field]
        groups = list(dict.fromkeys(c.group for c in mine))
        for at, group in enumerate(groups):
            name, colour, marker, dashes = style(group, at)
            same = sorted((c for c in mine if c.group == group), key=lambda c: c.budget)
            shift = 1.07 ** (at - (len(groups) - 1) / 2)
            x = np.array([c.budget * shift for c in same])
            for place, curve in zip(x, same, strict=True):
                axes.plot([place] * len(curve.values), curve.values, ".", color="#b8bcc6", markersize=3, zorder=2)
                near = [v for v, close in zip(curve.values, curve.near, strict=True) if close]
                axes.plot(
                    [place] * 2, [min(near), max(near)], color=colour, alpha=0.45, linewidth=5, solid_capstyle="round"
                )
            label = f"{name} ({_counts([c.roots for c in same], 'tuning ')})"
            best = [c.best for c in same]
            axes.plot(x, best, color=colour, marker=marker, linestyle=dashes, markersize=6, label=label, zorder=4)
        log_x(axes, sorted({c.budget for c in mine}), room=1.07 ** (len(groups) / 2))
        axes.set_yscale("log")
        values = sorted({v for c in mine for v in c.values})
        axes.yaxis.set_major_locator(FixedLocator(_thinned(values)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        axes.set_xlabel(LABELS["budget"])
        axes.set_ylabel(label_of(field))
        axes.set_title("bars: within 3e-3 nats or two seed sigmas")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


@styled
def plot_interpolation(table: pd.DataFrame) -> Figure:
    """Select loss along straight lines between checkpoints, a panel per kind of line.

    `table` has the columns pair (the kind), from_step, to_step, alpha (0 to 1), loss.
    """
    missing = {"pair", "from_step", "to_step", "alpha", "loss"} - set(table.columns)
    if missing:
        raise ValueError(f"the interpolation table lacks {', '.join(sorted(missing))}")
    kinds = list(dict.fromkeys(table["pair"]))
    figure, panels = side_by_side(len(kinds), width=3.3, height=3.4, share_y=True)
    for axes, kind in zip(panels, kinds, strict=True):
        rows = table[table["pair"] == kind]
        for at, ((start, stop), line) in enumerate(rows.groupby(["from_step", "to_step"], sort=True)):
            colour, marker, dashes = _SPARE[at % len(_SPARE)]
            label = f"step {start:,} to {stop:,}"
            x, y = line["alpha"], line["loss"]
            axes.plot(x, y, color=colour, marker=marker, linestyle=dashes, markersize=3.5, label=label)
        axes.set_title(kind)
        axes.set_xlabel("share α of the way")
        axes.legend(loc="best", fontsize=7)
    panels[0].set_ylabel(LABELS["select/loss"])
    return figure


@styled
def plot_hill_and_river(split: pd.DataFrame) -> Figure:
    """The split of `curves.hill_and_river`: trunk and decayed loss with the hill between them, and the hill alone."""
    figure, (left, right) = side_by_side(2, width=4.2, height=3.4)
    x = split["tokens"]
    left.plot(x, split["trunk"], color=STYLES["cosine"][1], marker="o", label="at the fork")
    left.plot(x, split["river"], color=STYLES["wsd_s"][1], marker="^", linestyle="-.", label="after the decay (river)")
    left.fill_between(x, split["river"], split["trunk"], color="#f4a261", alpha=0.35, linewidth=0, label="hill")
    left.set_ylabel(LABELS["report/loss"])
    left.legend(loc="upper right")
    right.plot(x, split["hill"], color="#b5179e", marker="s", linestyle="--")
    right.set_ylabel("hill (nats per token)")
    right.set_ylim(bottom=min(0, float(split["hill"].min())), top=float(split["hill"].max()) * 1.15)
    for axes in (left, right):
        log_x(axes, x.tolist())
        axes.set_xlabel("training tokens at the fork")
    return figure


@styled
def plot_best_of_k(frontier: Frontier) -> Figure:
    """Expected loss (tuning seeds) of the best of k configs, chosen on select, at the largest budget of each group."""
    figure, (axes,) = side_by_side(1, width=5.4, height=3.4)
    for at, group in enumerate(frontier.groups()):
        last = max((p for p in frontier.points if p.group == group), key=lambda p: p.budget)
        name, colour, marker, dashes = style(group, at)
        k = range(1, len(last.choice.best_of) + 1)
        label = f"{name}, {last.budget:,} steps"
        axes.plot(k, last.choice.best_of, color=colour, marker=marker, linestyle=dashes, markersize=5, label=label)
    axes.set_xlabel("configs tried, k")
    axes.set_ylabel("expected report loss of the chosen\n(nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    return figure


def style(group: tuple[Any, ...], at: int) -> tuple[str, str, str, Any]:
    """Display name, colour, marker and line style of a group: its method's own, else the `at`-th spare."""
    named = [part for part in group if str(part) in STYLES]
    rest = [f"{part:g}" if isinstance(part, float) else str(part) for part in group if part not in named]
    if named and not rest:
        return STYLES[str(named[0])]
    name = " ".join([*(STYLES[str(part)][0] for part in named), *rest])
    return name, *_SPARE[at % len(_SPARE)]


def side_by_side(count: int, width: float, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=share_y)[0])


def legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def log_x(axes: Axes, values: Sequence[float], room: float = 1.0) -> None:
    """A log axis that ticks the values themselves, as many as do not touch."""
    axes.set_xscale("log")
    ticks = _thinned(sorted(set(values)), share=0.17)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_human))
    if ticks:
        low, high = min(values), max(values)
        reach = (high / low) ** 0.06 if high > low else 1.5
        axes.set_xlim(low / reach / room, high * reach * room)


def _thinned(values: Sequence[float], share: float = 0.13) -> list[float]:
    """Values that keep `share` of the log range between them: the ticks that do not touch."""
    kept: list[float] = []
    if not values:
        return kept
    gap = share * np.log(max(values) / min(values)) if min(values) > 0 else 0.0
    for value in values:
        if not kept or np.log(value / kept[-1]) >= gap:
            kept.append(float(value))
    return kept


def _human(value: float, _: Any = None) -> str:
    if abs(value) >= 1e10:
        return f"{value:.1e}".replace("e+", "e")
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _counts(numbers: Sequence[int], kind: str) -> str:
    """`4 fresh seeds`, `3-4 fresh seeds`."""
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low}-{high}'} {kind}seed{'' if high == 1 else 's'}"


def _seeds(points: Sequence[FrontierPoint]) -> str:
    kinds = {p.fresh for p in points}
    counted = _counts([p.roots for p in points], "fresh " if kinds == {True} else "tuning " if kinds == {False} else "")
    return counted if len(kinds) == 1 else f"{counted}, hollow: tuning"
