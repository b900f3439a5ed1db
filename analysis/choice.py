"""Which config a method would choose: on `select` data and tuning seeds only, per group and budget.

A config here is everything but the seed. It can be chosen when all its tuning seeds completed; among those the best
mean `select` loss wins, ties go to the one proposed first. Diverged, failed and pruned trials are counted, not dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.records import STATUSES, Records, RecordsError
from analysis.stats import best_of_k, near_best

_NOT_TUNED = {"seed", "budget_steps", "method", "earlier_budgets"}  # what a choice is never made over


@dataclass(frozen=True)
class Edge:
    """A chosen value at the end of what was searched, and the words that search further."""

    axis: str
    value: float
    side: str  # "lowest" | "highest"
    tried: tuple[float, ...]
    declared: Mapping[str, Any] | None = None  # the axis as {low, high, log, points}, if it was searched as a range

    @property
    def words(self) -> str:
        """The command-line words that search one grid step beyond the edge."""
        values = sorted(self.tried)
        near, edge = (values[1], values[0]) if self.side == "lowest" else (values[-2], values[-1])
        beyond = edge * edge / near if min(values) > 0 else 2 * edge - near
        if self.declared is None:
            whole = beyond >= 1 and all(v.is_integer() for v in values)
            further = f"{beyond:.0f}" if whole else f"{beyond:.2g}"
            grid = [f"{v:g}" for v in values]
            return f"space.{self.axis}=[{','.join([further, *grid] if self.side == 'lowest' else [*grid, further])}]"
        words = f"space.{self.axis}.{'low' if self.side == 'lowest' else 'high'}={beyond:.2g}"
        points = self.declared.get("points")
        return words if points is None else f"{words} space.{self.axis}.points={int(points) + 1}"

    def __str__(self) -> str:
        return f"{self.axis}={self.value:g} is the {self.side} of {len(self.tried)} tried"


@dataclass(frozen=True)
class Choice:
    """The config chosen for one group at one budget, with all that was tried for it."""

    group: tuple[Any, ...]
    budget: int  # steps
    config_id: str  # JSON of the config without its seed
    label: str  # the tuned fields, as "peak_lr=0.003"
    select: float  # mean select loss over tuning seeds
    seeds: tuple[int, ...]  # tuning seeds of the chosen config
    tried: int  # tuning trials of this group and budget
    configs: int  # distinct configs among them
    proposals: int
    counts: Mapping[str, int]  # status -> tuning trials
    edges: tuple[Edge, ...]
    best_of: tuple[float, ...]  # expected report loss (tuning seeds) of the best of k configs, k = 1 .. n
    notes: tuple[str, ...] = field(default=())

    @property
    def config(self) -> dict[str, Any]:
        """The chosen config without its seed: what fresh seeds should run."""
        return dict(json.loads(self.config_id))


def single_regime(records: Records) -> dict[str, Any]:
    """The one regime of these records; refuses several, since losses on different problems do not compare."""
    if not len(records):
        raise RecordsError("there are no trials in these records; widen the filter, or open another folder")
    regimes = records.regimes()
    if len(regimes) > 1:
        keys = [k for k in regimes[0] if len({r[k] for r in regimes}) > 1]
        lines = "; ".join(", ".join(f"{k}={r[k]!r}" for k in keys) for r in regimes)
        raise RecordsError(
            f"these records hold {len(regimes)} problems whose losses do not compare ({lines}); "
            f"take one with records.where({keys[0]}=...), or all, one by one, with analysis.frontiers(records)"
        )
    return regimes[0]


def trial_frame(records: Records) -> pd.DataFrame:
    """One row per distinct trial, with `config_id`, `select`, `report` and `fresh`.

    A trial that two sweeps share (equal state key) is one row; it counts as tuning if either tuned with it. A confirm
    trial is `fresh` when no tuning trial used its seed. Diverged or incomplete trials have infinite losses.
    """
    frame = records.to_pandas()
    configs = [{k: v for k, v in config.items() if k != "seed"} for config in records.configs]
    frame["config_id"] = [json.dumps(c, sort_keys=True) for c in configs]
    for role in ("select", "report"):
        name, goal = records.metric(role)
        values = frame[name].astype(float) * (1 if goal == "min" else -1)
        frame[role] = values.where((frame["status"] == "complete") & np.isfinite(values), np.inf)
    frame["status"] = frame["status"].where((frame["status"] != "complete") | np.isfinite(frame["select"]), "diverged")
    frame["_status"] = frame["status"].map({s: i for i, s in enumerate(STATUSES)})
    frame["_tune"] = frame["phase"] == "tune"
    frame["phase"] = frame.groupby("trial", sort=False)["_tune"].transform("any").map({True: "tune", False: "confirm"})
    frame = frame.sort_values("_status", kind="stable").drop_duplicates("trial").sort_index()
    tuned = set(frame.loc[frame["phase"] == "tune", "seed"])
    frame["fresh"] = (frame["phase"] == "confirm") & ~frame["seed"].isin(tuned)
    return frame.drop(columns=["_status", "_tune"])


def choose(records: Records, by: str | Sequence[str] = "method") -> list[Choice]:
    """One choice per group and budget, from the tuning trials; groups without a completed config are left out.

    `by` are trial columns or config fields. The records must hold one regime.
    """
    single_regime(records)
    names = group_columns(records, by)
    frame = trial_frame(records)
    tune = frame[frame["phase"] == "tune"]
    _refuse_mixed_conditions(records, tune, names)
    fields = _tuned_fields(records, tune, names)
    used = {"config_id", "seed", "select", "report", "status", "cell", "proposal", "budget_steps", *names}
    tune = tune[[c for c in tune if c in used or str(c).startswith("config.")]]
    choices = []
    for key, rows in tune.groupby([*names, "budget_steps"], sort=True, dropna=False):
        choice = _choose_one(records, rows, tuple(key[:-1]), int(str(key[-1])), fields(key[:-1]))
        if choice is not None:
            choices.append(choice)
    return choices


def group_columns(records: Records, by: str | Sequence[str]) -> list[str]:
    """The columns behind `by`; refuses to tune over methods without being told to."""
    names = [records.column(name) for name in ([by] if isinstance(by, str) else by)]
    if "config.method" in records.trials.column_names and "config.method" not in names:
        methods = sorted(set(filter(None, records.trials.column("config.method").to_pylist())))
        if len(methods) > 1:
            raise RecordsError(
                f"grouping by {', '.join(map(str, names))} would mix the methods {', '.join(methods)}; "
                f"filter with records.where(method={methods[0]!r}) or add 'method' to by"
            )
    return names


def seed_matrix(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """`value` of config (rows) by seed (columns), in order of appearance; nan where nothing ran."""
    table = rows.groupby(["config_id", "seed"], sort=False)[value].mean().unstack("seed")
    return table.loc[rows["config_id"].drop_duplicates()]


def centre_of(records: Records) -> str:
    """What a config is worth over its tuning seeds, as the sweeps declare it: "mean" or "median"."""
    declared = {spec.get("centre", "mean") for spec in records.sweeps} or {"mean"}
    if len(declared) > 1:
        raise RecordsError("some of these sweeps choose by the mean over seeds, some by the median; take one study")
    return str(declared.pop())


def centre_over_seeds(matrix: pd.DataFrame, centre: str = "mean") -> tuple[pd.Series, str | None]:
    """Mean or median per config, infinite for configs that miss a seed; with a note if no config has all seeds."""
    complete = np.isfinite(matrix.to_numpy(dtype=float)).sum(axis=1)
    most = complete.max(initial=0)
    if most == 0:
        return pd.Series(np.inf, index=matrix.index), None
    values = matrix.where(np.isfinite(matrix)).agg(centre, axis=1).where(complete == most, np.inf)
    short = most < matrix.shape[1]
    return (
        values,
        f"no config completed all {matrix.shape[1]} tuning seeds; chosen among those with {most}" if short else None,
    )


def best_config(rows: pd.DataFrame, centre: str = "mean") -> str | None:
    """The config that the tuning trials among these rows of `trial_frame` choose; None where none can be chosen.

    As in the engine: only a config that completed all tuning seeds. Where the tuning trials were filtered away, a
    config that stands alone is the one that they chose; of several it cannot be told (RecordsError).
    """
    tune = rows[rows["phase"] == "tune"]
    if tune.empty:
        left = rows["config_id"].unique()
        if len(left) > 1:
            raise RecordsError(f"{len(left)} configs and no tuning trials that choose among them; widen the filter")
        return str(left[0]) if len(left) else None
    values, short = centre_over_seeds(seed_matrix(tune, "select"), centre)
    return None if short or not np.isfinite(values).any() else str(values.idxmin())


def edges_of(records: Records, rows: pd.DataFrame, config_id: str) -> tuple[Edge, ...]:
    """The searched axes on which a config is at an end of its space; `rows` are what it was chosen among.

    Searched is what a sweep of these rows declares as an axis that is no condition and takes several values here.
    """
    specs = tuple(spec for spec in records.sweeps if spec.get("sweep") in set(rows["sweep"]))
    axes = {axis for spec in specs for axis in spec.get("axes") or ()}
    axes -= {axis for spec in specs for axis in spec.get("conditions") or ()} | _NOT_TUNED
    tune = rows[rows["phase"] == "tune"]
    fields = [f"config.{axis}" for axis in sorted(axes) if f"config.{axis}" in rows]
    mine = tune[tune["config_id"] == config_id]
    return _edges(replace(records, sweeps=specs), tune, mine.iloc[0], fields) if len(mine) else ()


@dataclass(frozen=True)
class AxisCurve:
    """The best value of one tuned field per budget, with what cannot be told from it."""

    axis: str
    group: tuple[Any, ...]
    budget: int
    values: tuple[float, ...]  # all tried, increasing
    losses: tuple[float, ...]  # select loss at each value, the other fields chosen; inf if nothing completed
    near: tuple[bool, ...]  # within 3e-3 nats or two seed sigmas of the best
    best: float
    sigma: float | None  # seed sigma, nats: see _seed_sigma
    roots: int


def axis_curves(records: Records, axis: str, by: str | Sequence[str] = "method") -> list[AxisCurve]:
    """Best `axis` per group and budget with its near-best set, on select data and tuning seeds."""
    single_regime(records)
    names, column = group_columns(records, by), records.column(axis)
    frame = trial_frame(records)
    curves = []
    for key, rows in frame[frame["phase"] == "tune"].groupby([*names, "budget_steps"], sort=True, dropna=False):
        seeds = sorted(rows["seed"].unique())
        best: dict[float, tuple[float, np.ndarray]] = {}
        for value in sorted(rows[column].dropna().unique()):
            same = rows[rows[column] == value]
            matrix = seed_matrix(same, "select")
            means, _ = centre_over_seeds(matrix, centre_of(records))
            top = str(means.idxmin())
            best[float(value)] = (float(means[top]), matrix.reindex(columns=seeds).loc[top].to_numpy(dtype=float))
        if len(best) < 2 or not np.isfinite([loss for loss, _ in best.values()]).any():
            continue
        losses = np.array([loss for loss, _ in best.values()])
        at = int(np.argmin(losses))
        table = np.array([row for _, row in best.values()])
        sigma = _seed_sigma(table)
        roots = int(np.isfinite(table[at]).sum())
        near = tuple(bool(b) for b in near_best(losses, sigma))
        values = tuple(best)
        curve = AxisCurve(
            axis, tuple(key[:-1]), int(str(key[-1])), values, tuple(losses), near, values[at], sigma, roots
        )
        curves.append(curve)
    return curves


def _seed_sigma(losses: np.ndarray) -> float | None:
    """Standard deviation that seeds cause in a comparison: of `losses` [config, seed] without config and seed means.

    What a seed does to all configs alike cancels in their comparison, so it is taken out.
    """
    whole = losses[np.isfinite(losses).all(axis=1)]
    if min(whole.shape) < 2:
        return None
    rest = whole - whole.mean(axis=0) - whole.mean(axis=1, keepdims=True) + whole.mean()
    return float(np.sqrt((rest**2).sum() / ((whole.shape[0] - 1) * (whole.shape[1] - 1))))


def _choose_one(
    records: Records, rows: pd.DataFrame, group: tuple[Any, ...], budget: int, fields: list[str]
) -> Choice | None:
    select = seed_matrix(rows, "select")
    centre = centre_of(records)
    means, note = centre_over_seeds(select, centre)
    if not np.isfinite(means).any():
        return None
    top = str(means.idxmin())
    report, _ = centre_over_seeds(seed_matrix(rows, "report"), centre)
    usable = np.isfinite(means) & np.isfinite(report)
    chosen = rows[rows["config_id"] == top].iloc[0]
    seeds = select.columns[np.isfinite(select.loc[top].to_numpy(dtype=float))]
    proposals = rows[["cell", "proposal"]].dropna(subset="proposal").drop_duplicates()
    return Choice(
        group=group,
        budget=budget,
        config_id=top,
        label=", ".join(f"{f.removeprefix('config.')}={_short(chosen[f])}" for f in fields if pd.notna(chosen[f])),
        select=float(means[top]),
        seeds=tuple(int(s) for s in seeds),
        tried=len(rows),
        configs=len(select),
        proposals=len(proposals) or len(select),
        counts={str(status): int(n) for status, n in rows["status"].value_counts().items()},
        edges=_edges(records, rows, chosen, fields),
        best_of=tuple(best_of_k(means[usable].to_numpy(), report[usable].to_numpy())),
        notes=(note,) if note else (),
    )


def _tuned_fields(records: Records, tune: pd.DataFrame, names: list[str]) -> Callable[[tuple[Any, ...]], list[str]]:
    """For a group, the config fields that take several values within one of its budgets."""
    skipped = {f"config.{name}" for name in _NOT_TUNED} | set(names)
    columns = [c for c in tune.columns if c.startswith("config.") and c not in skipped]
    counts = tune.groupby([*names, "budget_steps"], dropna=False)[columns].nunique().groupby(names, dropna=False).max()
    searched = {f"config.{axis}" for spec in records.sweeps for axis in spec.get("axes") or ()}
    strange = [c for c in columns if searched and c not in searched and (counts[c] > 1).any()]
    if strange:
        words = ", ".join(c.removeprefix("config.") for c in strange)
        raise RecordsError(f"{words} differs between these trials and no sweep searched it; take where(sweep=...)")
    rows = zip(counts.index, counts.to_dict("records"), strict=True)
    by_group = {index if isinstance(index, tuple) else (index,): row for index, row in rows}
    return lambda group: [c for c in columns if by_group[group][c] > 1]


def _refuse_mixed_conditions(records: Records, tune: pd.DataFrame, names: list[str]) -> None:
    conditions = {f"config.{c}" for spec in records.sweeps for c in spec.get("conditions") or ()} - set(names)
    conditions -= {"config.budget_steps", "config.seed", "config.method"}
    for column in sorted(conditions & set(tune.columns)):
        if tune[column].nunique(dropna=False) > 1:
            word = column.removeprefix("config.")
            raise RecordsError(
                f"{word} is a condition with {tune[column].nunique(dropna=False)} values here, and a condition is "
                f"never tuned over; filter with records.where({word}=...) or add {word!r} to by"
            )


def _edges(records: Records, rows: pd.DataFrame, chosen: pd.Series, fields: list[str]) -> tuple[Edge, ...]:
    edges = []
    for column in fields:
        if not pd.api.types.is_numeric_dtype(rows[column]) or pd.api.types.is_bool_dtype(rows[column]):
            continue
        axis = column.removeprefix("config.")
        tried = tuple(sorted(float(v) for v in rows[column].dropna().unique()))
        if len(tried) < 2 or pd.isna(chosen[column]):
            continue
        declared = declared_range(records, axis)
        low, high = (declared["low"], declared["high"]) if declared else (tried[0], tried[-1])
        value = float(chosen[column])
        side = "lowest" if _at(value, low, high) else "highest" if _at(value, high, low) else None
        if side and not (side == "lowest" and value == 0):  # below no weight decay there is nothing to search
            edges.append(Edge(axis, value, side, tried, declared))
    return tuple(edges)


def _at(value: float, end: float, other: float) -> bool:
    """Is `value` within 2 % of the range of `end` (on a log scale where both ends are positive)?"""
    if min(end, other) > 0 and value > 0:
        value, end, other = np.log(value), np.log(end), np.log(other)
    return abs(value - end) <= 0.02 * abs(other - end)


def declared_range(records: Records, axis: str) -> dict[str, Any] | None:
    """A searched axis as sweep.json declares it, `{low, high, ...}`, the widest over the sweeps; None for a list."""
    found: dict[str, Any] | None = None
    for spec in records.sweeps:
        axes = spec.get("axes")
        declared = axes.get(axis) if isinstance(axes, Mapping) else None
        if not isinstance(declared, Mapping) or not {"low", "high"} <= set(declared):
            continue
        low, high = float(declared["low"]), float(declared["high"])
        if found is not None:
            low, high = min(low, found["low"]), max(high, found["high"])
        found = {**declared, "low": low, "high": high}
    return found


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
