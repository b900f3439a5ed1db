"""The runs of the skill-neuron study that count: arms, and likeness of tasks in the ranks of their neurons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from analysis.choice import trial_frame
from analysis.claims import Evidence
from analysis.records import Records, RecordsError

FIRST_HALF, SECOND_HALF = "report/first_half", "report/second_half"
_LABELS = {
    "task": "", "encoder": "", "readout": "", "tuning": "", "action": "", "kind": "", "budget_steps": "B",
    "learning_rate": "lr", "prompt_length": "K", "fraction": "f", "keep_fraction": "keep", "first_layer": "from layer",
}  # fmt: skip
"""Short names of settings, first in the name of an arm; the others follow by their own names."""


class Likeness(NamedTuple):
    """Rank correlations of predictivity between two tasks, and within each, all between halves of the dev texts."""

    seed: int
    one: str
    other: str
    between: float
    within: float

    @property
    def gap(self) -> float:
        return self.within - self.between


def short(value: object) -> str:
    """A value as it is named: of a path the last part; none where there is no value.

    >>> short("random:/models/own-400"), short(0.1), short("wordnet:noun.person/noun.artifact"), short(None)
    ('random:own-400', '0.1', 'wordnet:noun.person/noun.artifact', 'none')
    """
    if value is None or value != value:  # tables have NaN for None
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    front = "random:" if text.startswith("random:") else ""
    rest = text.removeprefix("random:")
    return front + (rest.rpartition("/")[2] if rest.startswith(("/", ".", "~")) else rest)


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The trials that ended, with `arm`: what varies among them, in words."""
    rows = frame[frame["status"] == "complete"]
    if rows.empty:
        raise RecordsError("no trial has ended")
    return rows.assign(arm=named(rows, varying(rows)))


def settings(rows: pd.DataFrame) -> list[str]:
    """All fields of the configs but the seed."""
    fields = [str(column).removeprefix("config.") for column in rows if str(column).startswith("config.")]
    known = [name for name in _LABELS if name in fields]
    return [*known, *(name for name in fields if name not in (*known, "seed"))]


def varying(rows: pd.DataFrame) -> list[str]:
    """The settings in which these trials differ."""
    return [name for name in settings(rows) if rows[f"config.{name}"].map(short).nunique() > 1]


def named(rows: pd.DataFrame, fields: Sequence[str]) -> pd.Series:
    """These settings of each trial in words; "all" where there are none."""
    names = pd.Series([""] * len(rows), index=rows.index)
    for field in fields:
        label = _LABELS.get(field, field)
        names = names + " " + (label + " " if label else "") + rows[f"config.{field}"].map(short)
    return names.str.strip().replace("", "all")


def runs(records: Records) -> pd.DataFrame:
    return complete(trial_frame(records))


def of_evidence(evidence: Evidence, *columns: str) -> pd.DataFrame:
    """The ended runs on the claim's seeds that have these columns. Raises RecordsError where there are none."""
    rows = complete(evidence.frame)
    rows = rows[rows["fresh"]] if evidence.seeds == "fresh" else rows
    for column in columns:
        rows = rows[rows[column].notna()] if column in rows else rows.iloc[:0]
    if rows.empty:
        raise RecordsError(f"no such trial that has ended has {' and '.join(columns) or 'these settings'}")
    return rows


def by_arm(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Seeds by arms."""
    return _cells(rows["seed"], rows["arm"], values)


def _cells(seeds: pd.Series, names: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Seeds by names. Raises RecordsError where two trials would share a cell."""
    table = pd.DataFrame({"seed": seeds, "name": names, "value": values}).dropna(subset="value")
    twice = table.duplicated(["seed", "name"])
    if twice.any():
        seed, name, _ = table[twice].iloc[0]
        raise RecordsError(
            f"{int(twice.sum())} trials have the seed and the settings of another, such as {name!r} with seed {seed}: "
            "their task, encoder or libraries differ; read their sweeps apart"
        )
    return table.pivot_table(index="seed", columns="name", values="value", aggfunc="first", sort=False)


def paired(rows: pd.DataFrame, field: str, one: object, other: object, column: str) -> pd.DataFrame:
    """A column where `field` is `one` less where it is `other`, by seed and by all other settings that vary.

    Raises RecordsError where two trials are one side of a pair, or no pair is whole.
    """
    names, pairs = named(rows, [name for name in varying(rows) if name != field]), {}
    for name, value in (("one", one), ("other", other)):
        same = rows[rows[f"config.{field}"] == value]
        pairs[name] = _cells(same["seed"], names[same.index], same[column])
    found = (pairs["one"] - pairs["other"]).dropna(how="all").dropna(axis=1, how="all")
    if found.empty:
        raise RecordsError(f"no seed has a trial of {field}={short(one)} and one of {field}={short(other)}")
    return found


def correlation(one: object, other: object) -> float:
    """Spearman's, of the predictivity of all neurons; 0 where one of them does not vary.

    >>> correlation([0.5, 0.6, 0.7], [0.1, 0.2, 0.9])
    1.0
    """
    x, y = (np.asarray(values, dtype=float) for values in (one, other))
    if len(x) != len(y):
        raise RecordsError(f"encoders with {len(x)} and {len(y)} neurons cannot be compared neuron by neuron")
    return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(stats.spearmanr(x, y).statistic)


def likenesses(rows: pd.DataFrame) -> list[Likeness]:
    """Every two tasks of a seed under equal settings.

    All correlations are between one half of the dev texts of a task and the other half of it or of the other task, so
    that within and between are of equally many texts; within a task it is the same prompt, which is its ceiling.
    """
    found = []
    equal = [f"config.{name}" for name in settings(rows) if name != "task"]
    kept = rows[rows[FIRST_HALF].notna()] if FIRST_HALF in rows else rows.iloc[:0]
    for _, same in kept.groupby(["seed", *equal], dropna=False, sort=False):
        by_task = same.drop_duplicates("config.task").set_index("config.task")
        for one, other in combinations(by_task.index, 2):
            a, b = by_task.loc[one], by_task.loc[other]
            within = correlation(a[FIRST_HALF], a[SECOND_HALF]) + correlation(b[FIRST_HALF], b[SECOND_HALF])
            between = correlation(a[FIRST_HALF], b[SECOND_HALF]) + correlation(a[SECOND_HALF], b[FIRST_HALF])
            found.append(Likeness(int(same["seed"].iloc[0]), short(one), short(other), between / 2, within / 2))
    if not found:
        raise RecordsError("no seed has the neurons of two tasks; run preset=specificity")
    return found


def ceilings(rows: pd.DataFrame) -> dict[str, float]:
    """Correlation between the two halves of each task's dev texts, mean over its runs."""
    kept = rows[rows[FIRST_HALF].notna()]
    own = [correlation(one, other) for one, other in zip(kept[FIRST_HALF], kept[SECOND_HALF], strict=True)]
    table = pd.DataFrame({"task": kept["config.task"].map(short).tolist(), "own": own})
    return {str(task): float(same["own"].mean()) for task, same in table.groupby("task")}


PRUNING_COST = "cost of pruning"


def with_pruning_cost(records: Records, rows: pd.DataFrame) -> pd.DataFrame:
    """With `whole` and `at the cut`, accuracy before and right after a cut, and what the cut costs in the end."""
    if "config.action" not in rows or not (rows["config.action"] == "prune").any():
        return rows
    curves = records.to_pandas("measurements").drop_duplicates(["trial", "step"]).sort_values("step")
    curves = curves[curves["report/accuracy"].notna()]
    cut = set(rows.loc[rows["config.action"] == "prune", "trial"])
    accuracy = {
        str(trial): curve["report/accuracy"].tolist() for trial, curve in curves.groupby("trial") if trial in cut
    }
    whole = rows["trial"].map({trial: values[0] for trial, values in accuracy.items()})
    at_cut = rows["trial"].map({trial: values[1] for trial, values in accuracy.items() if len(values) > 1})
    return rows.assign(**{"whole": whole, "at the cut": at_cut, PRUNING_COST: whole - rows["report/accuracy"]})
