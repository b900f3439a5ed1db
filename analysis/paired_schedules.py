"""Learning-rate schedules against each other, paired by seed: what the toy studies of arXiv:2410.05192 are read by.

Lanes of one seed meet the same noise, so a difference within a seed is free of most of it. A method's config is chosen
on the select metric of the tuning seeds; what is said of it comes from the report metric of fresh seeds. Where two
methods are compared at the same peak nothing is chosen, and every seed that ran both counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.choice import Edge, centre_over_seeds, declared_range, seed_matrix
from analysis.claims import Evidence, Observation
from analysis.records import Records
from analysis.stats import Interval, t_interval

PEAK = "config.peak_lr"


class Tuned(NamedTuple):
    """The config that a method's tuning seeds choose at one condition and budget."""

    condition: tuple[Any, ...]  # values of the columns it was chosen within
    budget: int
    method: str
    config_id: str
    peak: float
    tried: tuple[float, ...]  # peaks


def conditions_of(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """The columns of config fields `by`."""
    return [f"config.{name}" for name in by if f"config.{name}" in frame]


def tuned(frame: pd.DataFrame, by: Sequence[str] = ()) -> list[Tuned]:
    """The best config on select data per condition, budget and method."""
    columns = [*conditions_of(frame, by), "budget_steps", "config.method"]
    choices = []
    for key, rows in frame[frame["phase"] == "tune"].groupby(columns, sort=True):
        means, _ = centre_over_seeds(seed_matrix(rows, "select"))
        if np.isfinite(means).any():
            best = str(means.idxmin())
            peak = float(rows.loc[rows["config_id"] == best, PEAK].iloc[0])
            tried = tuple(sorted(map(float, rows[PEAK].unique())))
            choices.append(Tuned(tuple(key[:-2]), int(str(key[-2])), str(key[-1]), best, peak, tried))
    return choices


def on_fresh_seeds(frame: pd.DataFrame, choice: Tuned, value: str = "report") -> pd.Series:
    """`value` of a chosen config by fresh seed; what diverged is left out."""
    rows = frame[frame["fresh"] & (frame["config_id"] == choice.config_id) & np.isfinite(frame["report"])]
    return rows.drop_duplicates("seed").set_index("seed")[value].astype(float).dropna()


def edges(records: Records, choices: Sequence[Tuned]) -> tuple[str, ...]:
    """The words that widen the space, for each choice at an end of the peaks tried."""
    words = []
    for choice in choices:
        for end, side in ((choice.tried[0], "lowest"), (choice.tried[-1], "highest")):
            if len(choice.tried) > 1 and np.isclose(choice.peak, end):
                words.append(Edge("peak_lr", end, side, choice.tried, declared_range(records, "peak_lr")).words)
    return tuple(dict.fromkeys(words))


def tuned_difference(
    evidence: Evidence, method: str, reference: str, later: bool = False, by: Sequence[str] = ()
) -> Observation:
    """Report loss of `method` minus that of `reference`, each at its own best peak; per condition and budget.

    `later` leaves the first budget out, where WSD-S and WSD, and both cosines, are the same.
    """
    choices = {(c.condition, c.budget, c.method): c for c in tuned(evidence.frame, by)}
    budgets = sorted({c.budget for c in choices.values()})
    parts, used = {}, []
    for (condition, budget, name), mine in choices.items():
        theirs = choices.get((condition, budget, reference))
        if name != method or theirs is None or (later and budget == budgets[0]):
            continue
        difference = on_fresh_seeds(evidence.frame, mine) - on_fresh_seeds(evidence.frame, theirs)
        parts[_part(by, condition, budget)] = difference
        used += [mine, theirs]
    missing = "" if parts else f"{method} and {reference} at the same budgets{', at least two' if later else ''}"
    return Observation(pd.DataFrame(parts).dropna(), edges(evidence.records, used), missing)


def equal_peak_differences(frame: pd.DataFrame, method: str, reference: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """Report loss of `method` minus `reference` at equal peaks: a row per condition, budget, peak and seed.

    Tuning trials only: there all peaks are. Infinite where `method` diverged, -infinite where `reference` did, nan
    where both did.
    """
    columns = [*conditions_of(frame, by), "budget_steps", PEAK, "seed"]
    rows = frame[(frame["phase"] == "tune") & frame["config.method"].isin([method, reference])]
    table = rows.pivot_table(index=columns, columns="config.method", values="report", aggfunc="first")
    if not {method, reference} <= set(table):
        return pd.DataFrame(columns=[*columns, "difference"])
    with np.errstate(invalid="ignore"):
        return (table[method] - table[reference]).rename("difference").reset_index()


def equal_peak_difference(
    evidence: Evidence, method: str, reference: str, peak: str, by: Sequence[str] = ()
) -> Observation:
    """The difference at one peak, the "lowest" or the "highest" tried, or its mean over "all"; per budget."""
    table = equal_peak_differences(evidence.frame, method, reference, by)
    if peak in ("lowest", "highest"):
        table = table[table[PEAK] == (table[PEAK].min() if peak == "lowest" else table[PEAK].max())]
    elif peak != "all":
        raise ValueError(f"peak is lowest, highest or all, got {peak!r}")
    parts = {}
    columns = [*conditions_of(evidence.frame, by), "budget_steps"]
    for key, rows in table.groupby(columns, sort=True):
        per_seed = rows.pivot_table(index="seed", columns=PEAK, values="difference", dropna=False)
        parts[_part(by, key[:-1], int(str(key[-1])))] = per_seed.mean(axis=1, skipna=False)
    missing = "" if parts else f"trials of {method} and {reference} at the same peaks"
    return Observation(pd.DataFrame(parts).dropna(), missing=missing)


def decay_gain_share(evidence: Evidence, of: str, method: str, by: Sequence[str] = ()) -> Observation:
    """Share of the loss that the last decay takes off which is taken off one of its terms, `report/<of>`.

    (of before - of after) / (loss before - loss after), at the method's best peak; per condition and budget.
    """
    frame, parts = evidence.frame, {}
    wanted = [f"report/{name}{when}" for name in ("loss", of) for when in ("", "_before_decay")]
    if not set(wanted) <= set(frame):
        return Observation(pd.DataFrame(), missing=f"trials of {method} that measured {of} before their decay")
    used = [choice for choice in tuned(frame, by) if choice.method == method]
    for choice in used:
        loss, loss_before, one, one_before = (on_fresh_seeds(frame, choice, name) for name in wanted)
        parts[_part(by, choice.condition, choice.budget)] = (one_before - one) / (loss_before - loss)
    missing = "" if parts else f"trials of {method} on fresh seeds"
    return Observation(pd.DataFrame(parts).dropna(), edges(evidence.records, used), missing)


class Cell(NamedTuple):
    """One place of a map: mean difference over seeds with its t interval; None where fewer than three seeds are."""

    difference: float
    interval: Interval | None
    seeds: int

    @property
    def clear(self) -> bool:
        """Does the interval exclude zero?"""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def mapped(table: pd.DataFrame, columns: Sequence[str]) -> dict[tuple[float, ...], Cell]:
    """`difference` averaged over seeds for each combination of `columns`; infinite where one side diverged always."""
    cells = {}
    for key, rows in table.groupby(list(columns), sort=True):
        values = rows["difference"].to_numpy(dtype=float)
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if len(finite) == len(values) else float("nan")
        cells[tuple(float(str(value)) for value in key)] = Cell(
            mean, t_interval(finite) if np.isfinite(mean) else None, len(values)
        )
    return cells


def tuned_differences(frame: pd.DataFrame, method: str, reference: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """As `equal_peak_differences`, but each method at its own best peak, on fresh seeds: no column for the peak."""
    choices = {(c.condition, c.budget, c.method): c for c in tuned(frame, by)}
    rows = []
    for condition, budget, name in choices:
        if name == method and (condition, budget, reference) in choices:
            mine, theirs = (on_fresh_seeds(frame, choices[condition, budget, m]) for m in (method, reference))
            named = dict(zip(conditions_of(frame, by), condition, strict=True))
            rows += [
                {**named, "budget_steps": budget, "seed": seed, "difference": value}
                for seed, value in (mine - theirs).dropna().items()
            ]
    columns = [*conditions_of(frame, by), "budget_steps", "seed", "difference"]
    return pd.DataFrame(rows, columns=columns)


def summary_table(frame: pd.DataFrame, by: Sequence[str], extra: Sequence[str] = ()) -> pd.DataFrame:
    """Per condition, budget and method: best peak, then loss, `extra` terms and distance to cosine on fresh seeds."""
    return pd.DataFrame(list(_summary_rows(frame, by, extra)))


def _summary_rows(frame: pd.DataFrame, by: Sequence[str], extra: Sequence[str]) -> Iterator[dict[str, object]]:
    choices = tuned(frame, by)
    cosine = {(c.condition, c.budget): c for c in choices if c.method == "cosine"}
    for choice in choices:
        mine = on_fresh_seeds(frame, choice)
        row: dict[str, object] = dict(zip(by, choice.condition, strict=False))
        row |= {"budget": choice.budget, "method": choice.method, "peak": choice.peak, "seeds": len(mine)}
        row["report loss"] = mine.mean()
        for name in extra:
            row[name] = on_fresh_seeds(frame, choice, f"report/{name}").mean()
        reference = cosine.get((choice.condition, choice.budget))
        if reference is not None and reference is not choice:
            difference = (mine - on_fresh_seeds(frame, reference)).dropna()
            row["minus cosine"], row["95 % interval"] = difference.mean(), str(t_interval(difference.to_numpy()) or "")
        yield row


def _part(by: Sequence[str], condition: Sequence[Any], budget: int) -> str:
    words = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
             for name, value in zip(by, condition, strict=False)]  # fmt: skip
    return ", ".join([*words, f"budget {budget}"])
