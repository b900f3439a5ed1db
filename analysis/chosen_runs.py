"""The runs that count where a study compares arms: those of each arm's chosen config, on the seeds that decide.

An arm is all that is not tuned, named by one column or several. Its config is chosen on select data and tuning seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.choice import best_config, centre_of, edges_of
from analysis.claims import Evidence
from analysis.records import Records, RecordsError

COMPLETE = ("complete",)
RAN = ("complete", "diverged")  # where a run that diverged has a value too: it never learned


class Runs(NamedTuple):
    """Runs of each arm's chosen config, and what is not among them."""

    rows: pd.DataFrame
    among: pd.DataFrame  # what the configs were chosen among
    records: Records
    arm: tuple[str, ...]  # the columns that name one
    gone: int  # runs of chosen configs that are not in `rows`

    @property
    def edges(self) -> tuple[str, ...]:
        """The words that widen the space where a chosen config lies at its end."""
        words: list[str] = []
        for arm, same in self.rows.groupby(list(self.arm), sort=False):
            of_arm = self.among[(self.among[list(self.arm)] == list(arm)).all(axis=1)]
            words += [edge.words for edge in edges_of(self.records, of_arm, same["config_id"].iloc[0])]
        return tuple(dict.fromkeys(words))

    @property
    def without(self) -> str:
        """The arms that have no such run, in a sentence; empty where all have one."""
        missing = [arm for arm in _names(self.among, self.arm) if arm not in set(_names(self.rows, self.arm))]
        return f"no run of a chosen config ended on the seeds that decide: {', '.join(missing)}" if missing else ""

    @property
    def lost(self) -> str:
        """Why these runs cannot decide: arms without a run, and runs that diverged or did not end."""
        wanted = len(self.rows) + self.gone
        short = f"{self.gone} of {wanted} runs diverged or did not end: what is left may be the better ones"
        return "; ".join(filter(None, [self.without, short if self.gone else ""]))


def _names(rows: pd.DataFrame, arm: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(rows[list(arm)].astype(str).agg(" ".join, axis=1)))


def runs_of(evidence: Evidence, frame: pd.DataFrame, arm: Sequence[str], statuses: Sequence[str] = COMPLETE) -> Runs:
    """The runs of `frame` (the evidence's, with its arms named) that may decide a claim.

    Raises RecordsError where there are none.
    """
    own = of_chosen_configs(frame, arm, centre_of(evidence.records))
    own = own[own["fresh"]] if evidence.seeds == "fresh" else own
    rows = own[own["status"].isin(statuses)]
    if rows.empty:
        raise RecordsError("no trial on fresh seeds has ended; run the sweep with seeds=3 or more")
    return Runs(rows, frame, evidence.records, tuple(arm), len(own) - len(rows))


def chosen(
    records: Records, frame: pd.DataFrame, arm: Sequence[str], statuses: Sequence[str] = COMPLETE
) -> pd.DataFrame:
    """The runs of the chosen configs that ended: on fresh seeds, or on those that chose where there are none."""
    rows = of_chosen_configs(frame, arm, centre_of(records))
    ended = rows[rows["status"].isin(statuses)]
    if ended.empty:
        raise RecordsError("no trial has ended, or no config on all its tuning seeds")
    return ended[ended["fresh"]] if ended["fresh"].any() else ended


def of_chosen_configs(frame: pd.DataFrame, arm: Sequence[str], centre: str = "mean") -> pd.DataFrame:
    """The runs of the config that the tuning seeds choose for each arm."""
    arms = frame.groupby(list(arm), sort=False)
    groups = [same[same["config_id"] == best_config(same, centre)] for _, same in arms]
    return pd.concat(groups) if groups else frame


def column(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column, or nothing but nan where no run of the sweep had it."""
    return rows[name] if name in rows else pd.Series(np.nan, index=rows.index)
