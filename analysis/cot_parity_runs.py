"""The runs of `cot_parity` that count: problems, chosen rates, and samples to success of which some are censored.

A problem is a cell in one layout and one net; `problem` names it and `pair` names it without the layout. A run that
diverged never learned anything: it is censored like one that was out of budget.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import chosen_runs
from analysis.choice import trial_frame
from analysis.chosen_runs import RAN, Runs, column, runs_of
from analysis.claims import Evidence
from analysis.records import Records

SAMPLES, CENSORED = "report/sample_complexity", "report/censored"
LAYOUTS = {True: "chain", False: "direct"}
_ALWAYS = {"input_bits": "n", "secret_bits": "k"}
_SOMETIMES = {
    "layers": "L", "heads": "H", "width": "d", "norm": "norm", "start": "", "train_size": "m",
    "entropy_bonus": "bonus", "success_at": "at", "confirmations": "confirmed", "held_out_rows": "E",
    "secret_seed": "secret", "budget_steps": "B",
}  # fmt: skip
"""What makes a problem, and its short names: all that is not tuned."""


def judged(evidence: Evidence) -> Runs:
    """The runs that may decide a claim, with their problem and samples to success."""
    found = runs_of(evidence, named(evidence.frame), ["problem"], RAN)
    return found._replace(rows=with_times(found.rows))


def chosen(records: Records) -> pd.DataFrame:
    """The runs of the chosen configs: on fresh seeds, or on those that chose them where there are none."""
    return with_times(chosen_runs.chosen(records, named(trial_frame(records)), ["problem"], RAN))


def with_times(rows: pd.DataFrame) -> pd.DataFrame:
    """With `time`, the samples to success or those of the whole budget, and `observed`, whether there was one.

    A run that diverged would never have learned: it counts as one that used its budget up.
    """
    observed = (column(rows, CENSORED) == 0) & (rows["status"] == "complete")
    drawn = column(rows, "samples").astype(float)
    whole = rows["config.batch_size"].astype(float) * rows["budget_steps"].astype(float)
    drawn = drawn.mask(rows["status"] == "diverged", whole)
    return rows.assign(observed=observed, time=column(rows, SAMPLES).astype(float).where(observed, drawn))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """With `layout`, `pair` (the problem in both layouts), and `problem`. What all runs share goes unsaid."""
    layout = column(rows, "config.chain_of_thought").map(LAYOUTS)
    pair = pd.Series([""] * len(rows), index=rows.index)
    for name, label in (_ALWAYS | _SOMETIMES).items():
        values = column(rows, f"config.{name}")
        if name in _ALWAYS or values.nunique(dropna=False) > 1:
            pair = pair + " " + values.map(lambda value, label=label: _said(label, value))
    pair = pair.str.split().str.join(" ")
    return rows.assign(layout=layout, pair=pair, problem=pair + " " + layout)


def _said(label: str, value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return f"no {label}"
    text = f"{value:.10g}" if isinstance(value, int | float) else str(value)
    return f"{label}={text}" if label else text


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs on new rows at every step, from random weights, on which nobody intervened."""
    kept = (column(rows, "config.entropy_bonus").fillna(0.0) == 0) & column(rows, "config.train_size").isna()
    return rows[kept & (column(rows, "config.start").fillna("random") == "random")]


def least_over_rates(records: Records) -> pd.DataFrame:
    """As the author counts: of each problem and tuning seed, the least samples over all rates that were tried.

    Columns problem, seed, time, observed; censored where no rate succeeded, with the most samples that one drew.
    """
    frame = trial_frame(records)
    rows = with_times(named(frame[(frame["phase"] == "tune") & frame["status"].isin(RAN)]))
    found = []
    for (problem, seed), same in rows.groupby(["problem", "seed"], sort=False):
        successes = same.loc[same["observed"], "time"]
        time = successes.min() if len(successes) else same["time"].max()
        found.append({"problem": problem, "seed": seed, "time": float(time), "observed": bool(len(successes))})
    return pd.DataFrame(found, columns=["problem", "seed", "time", "observed"])
