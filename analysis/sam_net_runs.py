"""The runs of SAM on a residual net that count: arms, their chosen configs, and sharpness along training.

An arm is a radius, the step at which SAM starts, the images that share a perturbation, and a budget; learning rate and
weight decay are tuned for each. A step of SAM takes two gradients, so that arms of equal steps differ in cost.
"""

from __future__ import annotations

import pandas as pd

from analysis import chosen_runs
from analysis.choice import trial_frame
from analysis.chosen_runs import Runs, runs_of
from analysis.claims import Evidence
from analysis.records import Records, RecordsError

ARM = ("radius", "start", "group", "budget", "decay")
ERROR, TOP, TRACE = "report/error", "report/top_eigenvalue", "report/trace"
TRACE_ERROR, SPENT, TIME = "report/trace_standard_error", "gradient_evaluations", "sharpening_time"
WHOLE = "batch"  # where the whole batch shares a perturbation


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns of ARM: all that is not tuned."""
    return frame.assign(
        radius=frame["config.radius"].astype(float),
        start=frame["config.sam_start_step"].astype(int),
        group=frame["config.group"].map(lambda images: WHOLE if pd.isna(images) else str(int(images))),
        budget=frame["budget_steps"].astype(int),
        decay=frame["config.decay_fraction"].astype(float),
    )


def judged(evidence: Evidence) -> Runs:
    """The runs that may decide a claim."""
    return runs_of(evidence, named(evidence.frame), ARM)


def chosen(records: Records) -> pd.DataFrame:
    """The runs of the chosen configs that ended: on fresh seeds, or on those that chose where there are none."""
    return chosen_runs.chosen(records, named(trial_frame(records)), ARM)


def by_seed(rows: pd.DataFrame, values: pd.Series, names: str | list[str]) -> pd.DataFrame:
    """One number per seed (rows) and value of `names` (columns). Raises RecordsError where there would be several."""
    cell = ["seed", *([names] if isinstance(names, str) else names)]
    twice = rows[rows.duplicated(cell, keep=False)]
    if len(twice):
        _, same = next(iter(twice.groupby(cell)))
        settings = [name for name in same if str(name).startswith("config.") or name in ARM]
        varying = [str(name).removeprefix("config.") for name in settings if same[name].astype(str).nunique() > 1]
        place = ", ".join(f"{name}={same[name].iloc[0]}" for name in cell)
        raise RecordsError(
            f"{len(same)} runs would be one number at {place}; they differ in {', '.join(varying) or 'no setting'}: "
            "take one of them with where=, or keep the sweeps in folders of their own"
        )
    return rows.assign(_value=values).pivot_table(index="seed", columns=names, values="_value", aggfunc="first")


def along(records: Records, rows: pd.DataFrame) -> pd.DataFrame:
    """The full measurements of these runs, with their arms and seeds."""
    measured = records.to_pandas("measurements").drop_duplicates(["trial", "step"]).sort_values("step")
    if TOP not in measured:
        raise RecordsError("these runs have no curvature measured along the way")
    measured = measured[measured[TOP].notna()]
    return measured[["trial", "step", TOP, TRACE, SPENT, TIME]].merge(rows[["trial", "seed", *ARM]], on="trial")


def name_of(radius: float, start: int, group: str = WHOLE) -> str:
    """An arm in words.

    >>> name_of(0.0, 0), name_of(0.1, 80), name_of(0.1, 0, "4")
    ('SGD', 'late SAM 0.1', 'SAM 0.1, m = 4')
    """
    if radius == 0:
        return "SGD"
    return f"{'late ' if start else ''}SAM {radius:g}" + ("" if group == WHOLE else f", m = {group}")
