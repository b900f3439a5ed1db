"""The figure of a Pareto front: `Pareto.plot()`. Colours and labels are those of `analysis.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.pareto import Fresh, Pareto, ParetoPoint
from analysis.plots import label_of, legend_below, side_by_side, style, styled

LIGHT = 0.22  # opacity of the configs that another beats


@styled
def plot_pareto(found: Pareto) -> Figure:
    """A panel per budget, of the first two objectives: all configs light, the front as a staircase on tuning seeds, and
    what fresh seeds say of its configs with t intervals, joined to the point that they stand for."""
    budgets = sorted({budget for _, budget in found.groups()})
    groups = list(dict.fromkeys(group for group, _ in found.groups()))
    figure, panels = side_by_side(len(budgets), width=5.4 if len(budgets) == 1 else 4.4, height=4.0)
    for axes, budget in zip(panels, budgets, strict=True):
        for at, group in enumerate(groups):
            points = [point for point in found.points if (point.group, point.budget) == (group, budget)]
            if points:
                _draw_group(axes, points, found.front(group, budget), style(group, at))
        axes.set_title(f"{budget:,} steps")
        axes.set_xlabel(_axis_label(found, 0))
    panels[0].set_ylabel(_axis_label(found, 1))
    legend_below(figure, panels[0])
    return figure


def _draw_group(
    axes: Axes,
    points: Sequence[ParetoPoint],
    front: Sequence[ParetoPoint],
    look: tuple[str, str, str, Any],
) -> None:
    name, colour, marker, dashes = look
    beaten = np.array([point.values[:2] for point in points if not point.on_front]).reshape(-1, 2)
    axes.plot(*beaten.T, "o", color=colour, alpha=LIGHT, markersize=3.5, markeredgewidth=0, zorder=2)
    corners = np.array([point.values[:2] for point in front])
    axes.plot(*_staircase(corners), color=colour, linestyle=dashes, linewidth=1.2, zorder=3)
    axes.plot(*corners.T, marker=marker, linestyle="", color=colour, markerfacecolor="white", markersize=5, zorder=4)
    confirmed = [point for point in front if point.fresh]
    for point in confirmed:
        x, y = point.fresh[:2]
        axes.plot(
            [point.values[0], x.mean], [point.values[1], y.mean], color=colour, linewidth=0.6, alpha=0.6, zorder=3
        )
        axes.errorbar(
            *(x.mean, y.mean), xerr=_bar(x), yerr=_bar(y), fmt=marker, color=colour, markersize=5, linewidth=1, zorder=5
        )
    seeds = sorted({point.fresh[0].seeds for point in confirmed})
    counted = f"filled: {'-'.join(map(str, seeds))} fresh seeds" if seeds else "no fresh seeds"
    axes.plot([], [], color=colour, linestyle=dashes, marker=marker, label=f"{name} ({counted})")


def _staircase(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edge of what the corners [N, 2] dominate, the best in the first objective first: from a corner as far as the
    next in the first objective, then down to it. Between two configs nothing better than the worse of both is known."""
    x, y = corners.T
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def _bar(fresh: Fresh) -> list[list[float]] | None:
    if fresh.interval is None:
        return None
    return [[fresh.mean - fresh.interval.low], [fresh.interval.high - fresh.mean]]


def _axis_label(found: Pareto, place: int) -> str:
    objective, fresh = found.objectives[place], found.fresh_names[place]
    beside = "" if fresh == objective.name else f"\nfilled: {label_of(fresh)}"
    return f"{label_of(objective.name)}, {'less' if objective.goal == 'min' else 'more'} is better{beside}"
