"""Which configs no other beats in all objectives: the Pareto front of each group and budget, and its fresh seeds.

A point dominates another when it is at least as good in every objective and better in one. A front is found on tuning
seeds, never on report data. The configs of it that were trained again on fresh seeds have their mean there, with a t
interval over seeds; an objective on select data is then read on report data (`report/accuracy` of `select/accuracy`).
A front of noisy points is too good: chance helps to get on it. Fresh seeds say by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.choice import seed_matrix, single_regime, trial_frame
from analysis.records import Records, RecordsError
from analysis.stats import Interval, finite, t_interval
from analysis.tables import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Objective(NamedTuple):
    """A metric of the trials, and whether less or more of it is better."""

    name: str
    goal: str


DEFAULT = (Objective("select/accuracy", "max"), Objective("trace", "min"))


@dataclass(frozen=True)
class Fresh:
    """An objective on fresh seeds: its mean, and a t interval from three seeds on."""

    mean: float
    interval: Interval | None
    seeds: int


@dataclass(frozen=True)
class ParetoPoint:
    """A config of one group at one budget."""

    group: tuple[Any, ...]
    budget: int  # steps
    config_id: str  # JSON of the config without its seed
    label: str  # the fields that vary in its group, as "learning_rate=0.003"
    values: tuple[float, ...]  # mean of each objective over the tuning seeds
    on_front: bool
    fresh: tuple[Fresh, ...] = ()  # one per objective, of a config that was confirmed


@dataclass(frozen=True)
class Pareto:
    """All complete configs of every group and budget, those on the front marked. Made by `pareto`.

    volumes: (group, budget) -> area between the front and the worst of each objective over all groups at that budget,
    for two objectives: more is better, in the product of their units.
    """

    objectives: tuple[Objective, ...]
    fresh_names: tuple[str, ...]  # what the objectives are read from on fresh seeds
    by: tuple[str, ...]
    points: tuple[ParetoPoint, ...]
    volumes: Mapping[tuple[tuple[Any, ...], int], float]
    notes: tuple[str, ...] = ()

    def groups(self) -> list[tuple[tuple[Any, ...], int]]:
        """(group, budget), in order."""
        return list(dict.fromkeys((point.group, point.budget) for point in self.points))

    def front(self, group: tuple[Any, ...], budget: int) -> list[ParetoPoint]:
        """The points on a front, the best in the first objective first."""
        there = [p for p in self.points if p.on_front and (p.group, p.budget) == (group, budget)]
        return sorted(there, key=lambda point: _signed(point.values, self.objectives))

    def to_pandas(self) -> pd.DataFrame:
        """One row per config, plain columns; on fresh seeds `fresh.<name>` with its ends and `seeds`."""
        return pd.DataFrame([self._row(point) for point in self.points])

    def table(self, format: str = "text") -> str:
        """The fronts as "text", "markdown" or "latex", followed by what stands behind each of them."""
        header = [
            "budget",
            *(name.removeprefix("config.") for name in self.by),
            "config",
            *(objective.name for objective in self.objectives),
        ]
        header += [f"{name}, fresh seeds" for name in self.fresh_names]
        rows, below = [], []
        for group, budget in self.groups():
            front = self.front(group, budget)
            for point in front:
                fresh = [_fresh_words(one) for one in point.fresh] or ["" for _ in self.objectives]
                values = [f"{value:.4g}" for value in point.values]
                rows.append([f"{budget:,}", *map(str, group), point.label, *values, *fresh])
            tried = sum((p.group, p.budget) == (group, budget) for p in self.points)
            line = f"{' '.join(map(str, group))}, {budget:,} steps: {len(front)} of {tried} configs on the front"
            line += f", {sum(bool(point.fresh) for point in front)} of them on fresh seeds"
            if (group, budget) in self.volumes:
                line += f"; hypervolume {self.volumes[group, budget]:.4g}"
            below.append(line)
        return "\n".join([render(header, rows, format), "", *(f"- {line}" for line in (*below, *self.notes))])

    def plot(self) -> Figure:
        """A panel per budget: all configs, the front as a staircase, fresh seeds with their intervals."""
        from analysis.pareto_plot import plot_pareto

        return plot_pareto(self)

    def _row(self, point: ParetoPoint) -> dict[str, Any]:
        row: dict[str, Any] = dict(zip(self.by, point.group, strict=True))
        row |= {"budget_steps": point.budget, "config": point.label, "on_front": point.on_front}
        row |= {objective.name: value for objective, value in zip(self.objectives, point.values, strict=True)}
        for place, name in enumerate(self.fresh_names):
            one = point.fresh[place] if point.fresh else None
            ends = None if one is None else one.interval
            row[f"fresh.{name}"] = None if one is None else one.mean
            row |= {f"fresh.{name}_low": ends and ends.low, f"fresh.{name}_high": ends and ends.high}
        row["seeds"] = point.fresh[0].seeds if point.fresh else 0
        return row


def non_dominated(points: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """Mask of the points `[N, M]`, less is better, that no other dominates; of equal points all are kept.

    >>> non_dominated([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]]).tolist()
    [True, True, False, True]
    """
    values = np.asarray(points, dtype=float)
    front: list[int] = []
    for place in np.lexsort(values.T[::-1]):  # whoever dominates a point comes before it
        others, own = values[front], values[place]
        if not ((others <= own).all(axis=1) & (others < own).any(axis=1)).any():
            front.append(int(place))
    mask = np.zeros(len(values), dtype=bool)
    mask[front] = True
    return mask


def hypervolume(points: np.ndarray | Sequence[Sequence[float]], worst: Sequence[float]) -> float:
    """Area that points `[N, 2]`, less is better, dominate below the corner `worst`.

    >>> hypervolume([[1.0, 2.0], [2.0, 1.0]], worst=(3.0, 3.0))
    3.0
    """
    values = np.asarray(points, dtype=float)
    values = np.unique(values[(values < np.asarray(worst)).all(axis=1)], axis=0)  # sorted by the first objective
    area, height = 0.0, float(worst[1])
    for x, y in values:
        if y < height:
            area += (worst[0] - x) * (height - y)
            height = y
    return float(area)


def pareto(
    records: Records,
    objectives: Sequence[tuple[str, str]] | None = None,
    by: str | Sequence[str] = "cell",
) -> Pareto:
    """The front of each group and budget. `by` are trial columns or config fields, as they stand the tuning cells.

    `objectives` are (name, "min" or "max"), as they stand those that the sweep followed, or DEFAULT. Raises
    RecordsError for report data, for a metric that the trials lack, and where a condition varies within a group.
    """
    single_regime(records)
    wanted = _objectives(records, objectives)
    names = [records.column(name) for name in ([by] if isinstance(by, str) else by)]
    frame = trial_frame(records)
    fresh_names = [_on_fresh_seeds(records, objective.name) for objective in wanted]
    for name in {*fresh_names, *(objective.name for objective in wanted)}:
        frame[name] = frame[name].where(frame["status"] == "complete").astype(float)
    tune, fresh = frame[frame["phase"] == "tune"], frame[frame["fresh"]]
    _refuse_mixed_conditions(records, tune, names)
    confirmed = {key: _fresh(rows, fresh_names) for key, rows in fresh.groupby(["config_id", *names], dropna=False)}
    points: list[ParetoPoint] = []
    for key, rows in tune.groupby([*names, "budget_steps"], sort=True, dropna=False):
        means = _means(rows, [objective.name for objective in wanted])
        if not len(means):
            continue
        on_front = non_dominated(np.array([_signed(row, wanted) for row in means.to_numpy()]))
        labels = _labels(rows)
        for place, (config, row) in enumerate(zip(means.index, means.to_numpy(), strict=True)):
            points.append(
                ParetoPoint(
                    group=tuple(key[:-1]),
                    budget=int(str(key[-1])),
                    config_id=str(config),
                    label=labels[config],
                    values=tuple(map(float, row)),
                    on_front=bool(on_front[place]),
                    fresh=confirmed.get((config, *key[:-1]), ()),
                )
            )
    if not points:
        words = ", ".join(objective.name for objective in wanted)
        raise RecordsError(f"no config completed all its tuning seeds with {words}; name others, or run more trials")
    notes = ["the front is found on tuning seeds, where chance helps to get on it; fresh seeds decide"]
    return Pareto(wanted, tuple(fresh_names), tuple(names), tuple(points), _volumes(points, wanted), tuple(notes))


def objective_named(text: str) -> Objective:
    """`NAME:min` or `NAME:max` as an objective.

    >>> objective_named("trace:min")
    Objective(name='trace', goal='min')
    """
    name, _, goal = text.rpartition(":")
    if goal not in ("min", "max") or not name:
        raise RecordsError(f"an objective is NAME:min or NAME:max, got {text!r}; for example select/accuracy:max")
    return Objective(name, goal)


def _objectives(records: Records, given: Sequence[tuple[str, str]] | None) -> tuple[Objective, ...]:
    followed = [spec["objectives"] for spec in records.sweeps if len(spec.get("objectives") or ()) > 1]
    objectives = tuple(Objective(*one) for one in given or (followed[0] if followed else DEFAULT))
    there = records.trials.column_names
    for objective in objectives:
        if objective.name.startswith("report/"):
            other = objective.name.replace("report/", "select/", 1)
            raise RecordsError(
                f"a front is found on select data, got {objective.name}; name {other}, whose fresh seeds are read on "
                "report data"
            )
        if objective.goal not in ("min", "max"):
            raise RecordsError(f"the goal of {objective.name} is min or max, got {objective.goal!r}")
        if objective.name not in there:
            raise RecordsError(
                f"the trials have no metric {objective.name!r}; they have {', '.join(sorted(_metrics(records)))}; "
                "say --objective NAME:min NAME:max"
            )
    if len({objective.name for objective in objectives}) < max(2, len(objectives)):
        words = ", ".join(objective.name for objective in objectives)
        raise RecordsError(f"a front needs two or more different objectives, got {words}")
    return objectives


def _metrics(records: Records) -> list[str]:
    """Columns of the trials that hold a measured number."""
    known = ("config.", "report/", "steps_", "tokens_", "flops_", "budget_", "device_seconds")
    frame = records.to_pandas()
    numbers = frame.select_dtypes("number").columns
    left_out = {"seed", "proposal", "parameters"}
    return [
        name for name in numbers if not name.startswith(known) and name not in left_out and frame[name].notna().any()
    ]


def _on_fresh_seeds(records: Records, name: str) -> str:
    """`report/x` of `select/x` where the trials have it, else the metric itself."""
    report = f"report/{name.removeprefix('select/')}"
    return report if name.startswith("select/") and report in records.trials.column_names else name


def _refuse_mixed_conditions(records: Records, tune: pd.DataFrame, names: Sequence[str]) -> None:
    for name in dict.fromkeys(name for spec in records.sweeps for name in spec.get("conditions") or ()):
        column = f"config.{name}"
        if name == "budget_steps" or column not in tune:
            continue
        counts = tune.groupby([*names, "budget_steps"], dropna=False)[column].nunique(dropna=False)
        if counts.max() > 1:
            raise RecordsError(
                f"{name} is a condition with {counts.max()} values in one group, and conditions are not traded for "
                f"each other; add {name!r} to by, or filter with records.where({name}=...)"
            )


def _means(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Mean of each metric over the tuning seeds: one row per config that completed all of them."""
    tables = {name: seed_matrix(rows, name) for name in names}
    whole = np.all([np.isfinite(table.to_numpy(dtype=float)).all(axis=1) for table in tables.values()], axis=0)
    return pd.DataFrame({name: table[whole].mean(axis=1) for name, table in tables.items()})


def _fresh(rows: pd.DataFrame, names: Sequence[str]) -> tuple[Fresh, ...]:
    found = [finite(rows[name].to_numpy(dtype=float)) for name in names]
    if any(len(values) == 0 for values in found):
        return ()
    return tuple(Fresh(float(values.mean()), t_interval(values), len(values)) for values in found)


def _labels(rows: pd.DataFrame) -> dict[str, str]:
    fields = [name for name in map(str, rows) if name.startswith("config.")]
    fields = [name for name in fields if name not in ("config.seed", "config.budget_steps")]
    varying = [column for column in fields if rows[column].nunique(dropna=False) > 1]

    def short(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    firsts = rows.drop_duplicates("config_id")
    return {
        config: ", ".join(f"{c.removeprefix('config.')}={short(v)}" for c, v in zip(varying, values, strict=True))
        for config, values in zip(firsts["config_id"], firsts[varying].itertuples(index=False), strict=True)
    }


def _volumes(
    points: Sequence[ParetoPoint], objectives: Sequence[Objective]
) -> dict[tuple[tuple[Any, ...], int], float]:
    if len(objectives) != 2:
        return {}
    worst: dict[int, np.ndarray] = {}
    for point in points:
        values = np.array(_signed(point.values, objectives))
        worst[point.budget] = np.maximum(worst.get(point.budget, values), values)
    fronts: dict[tuple[tuple[Any, ...], int], list[list[float]]] = {}
    for point in points:
        fronts.setdefault((point.group, point.budget), []).append(_signed(point.values, objectives))
    return {key: hypervolume(values, worst[key[1]].tolist()) for key, values in fronts.items()}


def _signed(values: Sequence[float] | np.ndarray, objectives: Sequence[Objective]) -> list[float]:
    """The values so that less is better in each."""
    pairs = zip(values, objectives, strict=True)
    return [float(value) if objective.goal == "min" else -float(value) for value, objective in pairs]


def _fresh_words(fresh: Fresh) -> str:
    seeds = f"{fresh.seeds} seed{'' if fresh.seeds == 1 else 's'}"
    return f"{fresh.mean:.4g} {fresh.interval or ''} ({seeds})".replace("  ", " ")
