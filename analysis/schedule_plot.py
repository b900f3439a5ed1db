"""The picture of a schedule: a row per slot, a bar per stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.plots import styled
from analysis.schedule import PARTS, UNUSED, Bar, Schedule

# kind -> (display name, colour)
KINDS = {
    "trunk": ("shared by several trials", "#1b4965"),
    "whole": ("one trial from step 0", "#6d6875"),
    "branch": ("one trial from a fork", "#e07a5f"),
    "pack": ("lanes as one program", "#2a9d8f"),
}
IDLE, HELD = "#f1f2f4", "#d9dce1"
LIGHT = 0.45  # opacity of what is not training: start-up, evaluation, checkpoints
MOST_LABELS = 32
Box = tuple[float, float, int]  # from, to, row


@styled
def plot_schedule(schedule: Schedule) -> Figure:
    """A row per slot, its node beside it; training in full colour, start-up, evaluation and checkpoints lighter.

    Fresh seeds of chosen configs are hatched. What is left of a job is grey: writing, and getting from one stage to the
    next. Lines part the runs of a command that was interrupted; the pauses between them are left out.
    """
    count = len(schedule.rows)
    figure = Figure(figsize=(9.5, min(10.0, 2.3 + 0.3 * count)), layout="constrained")
    axes = figure.add_subplot()
    order = sorted(range(count), key=lambda row: (schedule.rows[row] == UNUSED, schedule.rows[row], row))
    place_of = {row: place for place, row in enumerate(order)}
    everywhere = [(s.start, s.start + s.seconds, place) for s in schedule.sessions for place in range(count)]
    _boxes(axes, everywhere, IDLE)
    _boxes(axes, [(start, stop, place_of[slot]) for start, stop, slot in schedule.jobs], HELD)
    for start in [session.start for session in schedule.sessions[1:]]:
        axes.axvline(start, color="#22223b", linewidth=1, linestyle=":", zorder=5)
    for (kind, training, fresh), boxes in _parts(schedule.bars, place_of).items():
        drawn = _boxes(axes, boxes, KINDS[kind][1], order=3)
        drawn.set(alpha=1.0 if training else LIGHT, edgecolor="white", hatch="////" if fresh else None)
    _label_rows(axes, [schedule.rows[row] for row in order])
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0, schedule.seconds)
    axes.set_xlabel("seconds since the first stage began" + (", pauses left out" if len(schedule.sessions) > 1 else ""))
    axes.grid(visible=False)
    axes.set_title(caption(schedule))
    present = {bar.kind for bar in schedule.bars}
    handles = [Patch(facecolor=colour, label=name) for kind, (name, colour) in KINDS.items() if kind in present]
    handles.append(Patch(facecolor="#22223b", alpha=LIGHT, label="lighter: start-up, evaluation, checkpoints"))
    if any(bar.fresh for bar in schedule.bars):
        handles.append(Patch(facecolor="white", edgecolor="#22223b", hatch="////", label="fresh seeds"))
    handles += [Patch(facecolor=HELD, label="between stages of a job"), Patch(facecolor=IDLE, label="idle")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def caption(schedule: Schedule) -> str:
    """What the picture says, in two lines."""
    least = f"critical path {schedule.critical_path:,.0f} s, work / slots {schedule.work_per_slot:,.0f} s"
    return (
        f"{schedule.seconds:,.0f} s from the first stage to the last; {least}\n"
        f"efficiency {schedule.efficiency:.0%}; slots busy {schedule.busy_share:.0%}"
        + (f"; {schedule.elsewhere} stages of other sweeps' commands not drawn" if schedule.elsewhere else "")
    )


def _parts(bars: Sequence[Bar], place_of: Mapping[int, int]) -> dict[tuple[str, bool, bool], list[Box]]:
    """(kind, whether it is training, whether fresh) -> boxes of a bar's start-up, then its training, then the rest.

    In truth evaluation alternates with training.
    """
    boxes: dict[tuple[str, bool, bool], list[Box]] = {}
    for bar in bars:
        at = bar.start
        for part in PARTS:
            after = at + bar.seconds[part]
            if after > at:
                boxes.setdefault((bar.kind, part == "train", bar.fresh), []).append((at, after, place_of[bar.slot]))
            at = after
    return boxes


def _boxes(axes: Axes, boxes: Sequence[Box], colour: str, order: int = 1) -> PolyCollection:
    """Boxes of one look as one collection: a sweep may have thousands."""
    low, high = -0.4, 0.4
    corners = [[(a, y + low), (b, y + low), (b, y + high), (a, y + high)] for a, b, y in boxes]
    collection = PolyCollection(corners, facecolors=colour, linewidths=0, zorder=order)
    axes.add_collection(collection, autolim=False)
    return collection


def _label_rows(axes: Axes, nodes: list[str]) -> None:
    """Each node's name once, at its first slot, and the slot's number on it; thinned where there are many."""
    numbers = [sum(node == other for other in nodes[:place]) + 1 for place, node in enumerate(nodes)]
    every = max(1, -(-len(nodes) // MOST_LABELS))
    shown = [place for place in range(len(nodes)) if place % every == 0]
    labels = [f"{nodes[place] or 'a node'} {numbers[place]}" for place in shown]
    axes.set_yticks(shown, labels)
