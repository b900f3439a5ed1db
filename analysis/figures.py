"""Every figure that records allow, drawn from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis import plots
from analysis.choice import axis_curves
from analysis.curves import hill_and_river, trunk
from analysis.frontier import frontier
from analysis.records import Records, RecordsError
from analysis.schedule import schedule_of
from analysis.schedule_plot import plot_schedule


def draw_all(records: Records, folder: str | Path, figures: Mapping[str, Callable[[Records], Figure]]) -> list[str]:
    """Write every figure these records allow; returns the files, and why others were not drawn."""
    lines = []
    for name, draw in figures.items():
        try:
            lines += [str(file) for file in plots.save(draw(records), Path(folder) / name)]
        except RecordsError as error:
            lines.append(f"{name}: not drawn, {error}")
    return lines


def schedules(records: Records) -> dict[str, Callable[[Records], Figure]]:
    """The schedule of each sweep in these records, by file name."""
    sweeps = [str(spec["sweep"]) for spec in records.sweeps if "sweep" in spec]

    def of(sweep: str) -> Callable[[Records], Figure]:
        return lambda records: plot_schedule(schedule_of(records, sweep))

    return {"schedule" if len(sweeps) == 1 else f"schedule_{sweep}": of(sweep) for sweep in sweeps}


def _both_axes(records: Records, by: str | Sequence[str]) -> Figure:
    return plots.plot_frontier(*(frontier(records, x=x, by=by) for x in ("flops_nominal", "flops_family")))


def _axes(records: Records, by: str | Sequence[str]) -> Figure:
    curves = [curve for axis in ("decay_fraction", "peak_lr") for curve in axis_curves(records, axis)]
    if not curves:
        raise RecordsError("neither the decay fraction nor the peak learning rate takes two values")
    return plots.plot_axis_curves(curves)


def by_groups(by: str | Sequence[str] = "method") -> dict[str, Callable[[Records], Figure]]:
    """The figures of schedules, each with its groups: name -> records of one regime to a figure."""

    def grouped(draw: Callable[[Records, str | Sequence[str]], Figure]) -> Callable[[Records], Figure]:
        return lambda records: draw(records, by)

    return {name: grouped(draw) for name, draw in FIGURES.items()}


FIGURES: dict[str, Callable[[Records, str | Sequence[str]], Figure]] = {
    "frontier": _both_axes,
    "differences": lambda records, by: plots.plot_differences(frontier(records, by=by)),
    "trunk": lambda records, by: plots.plot_trunk(trunk(records)),
    "best_values": _axes,
    "hill_and_river": lambda records, by: plots.plot_hill_and_river(hill_and_river(records)),
    "best_of_k": lambda records, by: plots.plot_best_of_k(frontier(records, by=by)),
}
