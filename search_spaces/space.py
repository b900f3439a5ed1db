"""A space: which config fields are searched, enumerated or pinned, and what follows from that."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, distribution_to_json

from search_spaces.axes import Axis, Choices, Enumerated, Pinned, Range, parse_axis, show
from search_spaces.fields import SpaceError, close_matches

LARGEST_GRID = 20_000


class AxisRow(NamedTuple):
    """A line of `--help`."""

    axis: str
    kind: str  # searched, enumerated or pinned
    range: str
    comment: str


@dataclass(frozen=True)
class Space:
    """Axes by what is done with them; made by `parse`, which refuses what cannot be honoured."""

    searched: Mapping[str, Range | Choices]
    enumerated: Mapping[str, tuple[Any, ...]]
    pinned: Mapping[str, Any]
    conditions: tuple[str, ...] = ()
    cell_axes: tuple[str, ...] = ()  # the enumerated axes within each value of which the others are tuned
    _order: tuple[str, ...] = field(default=(), repr=False)

    def distributions(self) -> dict[str, BaseDistribution]:
        """The searched axes as Optuna knows them, in the order of the file."""
        return {name: axis.distribution() for name, axis in self.searched.items()}

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of the searched axes' points, from the middle outwards and then into the gaps.

        Each next point is the one farthest from all before it (axes scaled to [0, 1], ties in the order of the axes),
        so a first part of the grid is spread over all of it. A space without searched axes has one empty point.
        """
        columns = {name: axis.grid(name) for name, axis in self.searched.items()}
        size = int(np.prod([len(values) for values in columns.values()], dtype=np.int64))
        if size > LARGEST_GRID:
            raise SpaceError(
                f"the grid has {size} points, more than {LARGEST_GRID}; "
                "lower the points of an axis, or choose sampler=qmc with proposals=N"
            )
        points = [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]
        return [points[place] for place in _spread(_coordinates(self.searched, columns))]

    def cells(self) -> list[dict[str, Any]]:
        """The tuning cells: every combination of the cell axes."""
        return self._product(self.cell_axes)

    def enumerations(self, excluding: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Every combination of the enumerated axes but those excluded (as it stands: the cell axes)."""
        excluded = self.cell_axes if excluding is None else excluding
        return self._product([name for name in self.enumerated if name not in excluded])

    def _product(self, names: Sequence[str]) -> list[dict[str, Any]]:
        columns = [self.enumerated.get(name, (self.pinned.get(name),)) for name in names]
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*columns)]

    def at_edge(self, values: Mapping[str, Any]) -> list[str]:
        """The searched ranges at whose edge a proposal lies: in the outer twentieth, or at an end point of the grid."""
        names = []
        for name, axis in self.searched.items():
            if isinstance(axis, Range) and name in values:
                margin = 0.05 if axis.points is None else min(0.05, 0.5 / (axis.points - 1))
                if not margin < axis.position(values[name]) < 1 - margin:
                    names.append(name)
        return names

    def widen(self, values: Mapping[str, Any]) -> list[str]:
        """For each edge that a proposal touches, the words that move it outwards by a third of the range."""
        words = []
        for name in self.at_edge(values):
            axis = self.searched[name]
            assert isinstance(axis, Range)
            low_end = axis.position(values[name]) < 0.5
            if axis.log:
                factor = (axis.high / axis.low) ** (1 / 3)
                edge = axis.low / factor if low_end else axis.high * factor
            else:
                reach = (axis.high - axis.low) / 3
                edge = axis.low - reach if low_end else axis.high + reach
            edge = round(edge) if axis.whole else float(f"{edge:.2g}")
            words.append(f"space.{name}.{'low' if low_end else 'high'}={show(edge)}")
        return words

    def describe(self, comments: Mapping[str, str] | None = None) -> list[AxisRow]:
        """A row per axis in the order of the file; `comments` as `field_comments` finds them in the config."""
        rows = []
        for name in self._order or (*self.searched, *self.enumerated, *self.pinned):
            if name in self.searched:
                kind, words = "searched", self.searched[name].words()
            elif name in self.enumerated:
                kind, words = "enumerated", ", ".join(show(value) for value in self.enumerated[name])
            else:
                kind, words = "pinned", show(self.pinned[name])
            rows.append(AxisRow(name, kind, words, (comments or {}).get(name, "")))
        return rows

    def identity(self, *, points: bool = False) -> dict[str, Any]:
        """All of the space that a proposal's meaning depends on, ready for JSON: what a journal is named by.

        The cell axes are left out, so that another method does not change the proposals of this one.
        With `points` the grid's points belong to it.
        """
        searched: dict[str, Any] = {n: distribution_to_json(axis.distribution()) for n, axis in self.searched.items()}
        if points:
            searched = {name: axis.grid(name) for name, axis in self.searched.items()}
        outside = set(self.cell_axes)
        return {
            "searched": searched,
            "enumerated": {name: list(values) for name, values in self.enumerated.items() if name not in outside},
            "pinned": {name: value for name, value in self.pinned.items() if name not in outside},
        }


def parse(
    mapping: Mapping[str, Any],
    *,
    fields: Mapping[str, Any],
    conditions: Sequence[str] = (),
    shape_fields: Sequence[str] = (),
    cells: Sequence[str] = (),
    locates_boundary: bool = False,
) -> Space:
    """The axes of a YAML or command line as a Space; SpaceError for what cannot be honoured.

    `fields` are the config's fields with their types (`field_types(Config)`). A condition defines the problem: it is
    enumerated or pinned, and searched only by an objective that locates a boundary. A shape field decides which trials
    may train as one batch: it is enumerated or pinned.

    >>> space = parse({"peak_lr": {"low": 1e-3, "high": 1e-2, "log": True, "points": 3}, "budget_steps": [400, 800]},
    ...               fields={"peak_lr": float, "budget_steps": int}, conditions=("budget_steps",))
    >>> [point["peak_lr"] for point in space.grid()]
    [0.00316228, 0.001, 0.01]
    """
    axes: dict[str, Axis] = {}
    for name, written in mapping.items():
        if name == "seed" and name in fields:
            raise SpaceError(
                "seed is no axis: the sweep sets it, from its tuning seeds and its fresh seeds; say seeds=N"
            )
        if name not in fields:
            raise SpaceError(f"the space names {name!r}, which is no field of the config{close_matches(name, fields)}")
        axes[name] = parse_axis(name, written, fields[name])

    searched = {name: axis for name, axis in axes.items() if isinstance(axis, Range | Choices)}
    for name in searched:
        if name in conditions and not locates_boundary:
            raise SpaceError(
                f"{name} is a condition, it defines the problem: the best {name} is no finding, so the engine does not "
                f"maximise quality over it; enumerate it ({name}: [...]) or pin it ({name}=VALUE)"
            )
        if name in shape_fields:
            raise SpaceError(
                f"{name} decides the shape of a batch of trials, so no sampler may draw it; "
                f"enumerate it ({name}: [...]) or pin it ({name}=VALUE)"
            )
    for name in cells:
        if name not in axes:
            raise SpaceError(f"the tuning cells are made of {name!r}, which is no axis{close_matches(name, axes)}")
        if name in searched:
            raise SpaceError(f"{name} makes the tuning cells, so it cannot be searched as well; enumerate or pin it")
    return Space(
        searched=searched,
        enumerated={n: axis.values for n, axis in axes.items() if isinstance(axis, Enumerated)},
        pinned={n: axis.value for n, axis in axes.items() if isinstance(axis, Pinned)},
        conditions=tuple(conditions),
        cell_axes=tuple(cells),
        _order=tuple(axes),
    )


def _coordinates(axes: Mapping[str, Range | Choices], columns: Mapping[str, list[Any]]) -> np.ndarray:
    """The grid's points [N, D]: a range is one number in [0, 1], a choice the corner of a simplex, all as far apart."""
    parts = []
    for name, values in columns.items():
        if isinstance(axes[name], Choices):
            parts.append(np.eye(len(values)) / np.sqrt(2))
        else:
            parts.append(np.linspace(0, 1, len(values))[:, None])
    rows = [np.concatenate(combination) for combination in itertools.product(*parts)] if parts else [np.zeros(1)]
    return np.stack(rows)


def _spread(points: np.ndarray) -> list[int]:
    """Order of the points [N, D], each farthest from those before it; the first is the one nearest to the middle."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    place = int(np.argmin(np.round(((points - middle) ** 2).sum(axis=1), 12)))
    order = [place]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        nearest = np.minimum(nearest, np.round(((points - points[place]) ** 2).sum(axis=1), 12))
        nearest[place] = -1.0
        place = int(np.argmax(nearest))
        order.append(place)
    return order
