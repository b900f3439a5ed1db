"""The trials of linear models with wrong labels that count, and where along p / n fitting these begins to cost.

The boundary at a noise rate is the ratio from which on the mean excess error stays below a given one, on straight lines
in log ratio between the ratios that were run; its interval is a percentile bootstrap over seeds, drawn for all ratios
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import chosen_runs
from analysis.choice import Edge, declared_range, trial_frame
from analysis.chosen_runs import Runs, column, runs_of
from analysis.claims import Evidence
from analysis.records import Records, RecordsError

RATIO, NOISE, REPAIR, BUDGET = "config.ratio", "config.noise_rate", "config.repair", "config.budget_steps"
ERROR, EXCESS = "report/error", "report/excess_error"
RESAMPLES = 2000
_ARM = {
    "noise_rate": "noise", "ratio": "p/n", "repair": "", "noise_kind": "", "samples": "n", "signal": "signal",
    "signal_exponent": "growth", "teacher_step": "teacher", "rounds": "rounds", "budget_steps": "B", "held_out": "held",
}  # fmt: skip
"""What makes an arm, and its short names: all but the learning rate and the weight decay, which are tuned."""


def named(frame: pd.DataFrame, without: Sequence[str] = ()) -> pd.DataFrame:
    """With `arm`: the values of what is not tuned, as far as they differ, in words."""
    names = pd.Series([""] * len(frame), index=frame.index)
    for field, label in _ARM.items():
        values = column(frame, f"config.{field}")
        if field in without or values.nunique(dropna=False) <= 1:
            continue
        texts = values.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
        texts = texts.mask(values.isna(), "held out") if field == "teacher_step" else texts
        names = names + " " + (label + "=" if label else "") + texts
    return frame.assign(arm=names.str.strip().replace("", "all"))


def judged(evidence: Evidence) -> Runs:
    """The runs that may decide a claim."""
    return runs_of(evidence, named(evidence.frame), ["arm"])


def chosen(records: Records) -> pd.DataFrame:
    """The runs of the chosen configs that completed: on fresh seeds, or on those that chose where there are none."""
    return chosen_runs.chosen(records, named(trial_frame(records)), ["arm"])


def diagram(records: Records) -> pd.DataFrame:
    """The unrepaired runs of one problem over noise rates and ratios, at the largest budget.

    Raises RecordsError where there are no two ratios, or other fields differ as well.
    """
    rows = chosen(records)
    rows = rows[rows[REPAIR] == "none"]
    rows = rows[rows[BUDGET] == rows[BUDGET].max()]
    if rows.empty or rows.groupby(NOISE)[RATIO].nunique().min() < 2:
        raise RecordsError("a diagram needs trials of repair=none at two ratios of each noise rate; run preset=diagram")
    arms = named(rows, without=("noise_rate", "ratio"))["arm"].unique()
    if len(arms) > 1:
        raise RecordsError(f"these are {len(arms)} diagrams ({'; '.join(arms)}); take one of them with --where")
    return rows


def boundary_of(ratios: Sequence[float] | np.ndarray, excess: Sequence[float] | np.ndarray, level: float) -> float:
    """The ratio from which on the excess stays below `level`; 0 where it always is, infinite where it ends above.

    >>> round(boundary_of([1.0, 4.0, 16.0], [0.3, 0.1, 0.0], 0.05), 6), boundary_of([1.0, 4.0], [0.0, 0.0], 0.05)
    (8.0, 0.0)
    """
    x, y = np.log(np.asarray(ratios, dtype=float)), np.asarray(excess, dtype=float)
    above = np.flatnonzero(y >= level)
    if not len(above):
        return 0.0
    at = int(above[-1])
    if at == len(y) - 1:
        return float("inf")
    share = (y[at] - level) / (y[at] - y[at + 1])
    return float(np.exp(x[at] + share * (x[at + 1] - x[at])))


def boundaries(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    """A row per noise rate: the boundary, the ends of its 95 % interval, and how many seeds are behind it.

    `least` and `most` are the ratios that were run: 0 stands for below the least, infinity for above the most.
    """
    found = []
    for noise, same in rows.groupby(NOISE):
        table = same.pivot_table(index="seed", columns=RATIO, values=EXCESS).dropna()
        ratios, values = table.columns.to_numpy(dtype=float), table.to_numpy(dtype=float)
        if not len(values):
            raise RecordsError(f"no seed has trials at every ratio of noise rate {noise}; see the trials table")
        draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
        resampled = [boundary_of(ratios, values[draw].mean(axis=0), level) for draw in draws]
        low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf") if len(values) > 2 else (np.nan,) * 2
        found.append(
            {
                "noise rate": float(str(noise)), "boundary": boundary_of(ratios, values.mean(axis=0), level),
                "low": low, "high": high, "least": ratios[0], "most": ratios[-1], "seeds": len(values),
            }
        )  # fmt: skip
    return pd.DataFrame(found)


def located(evidence: Evidence) -> Runs:
    """Of each noise rate, the runs at the ratio whose select/boundary is least over the tuning seeds."""
    frame = evidence.frame
    if "select/boundary" not in frame:
        raise RecordsError("these trials have no select/boundary; run preset=boundary")
    aimed = frame.assign(select=frame["select/boundary"].where(np.isfinite(frame["select"]), np.inf))
    return runs_of(evidence, named(aimed, without=("ratio",)), ["arm"])


def edges_of_search(evidence: Evidence, found: Runs) -> tuple[str, ...]:
    """The words that widen the range of the ratio where a search ended at one of its ends."""
    declared, words = declared_range(evidence.records, "ratio"), []
    if declared is None:
        return ()
    for ratio in sorted(set(found.rows[RATIO])):
        for side, end in (("lowest", declared["low"]), ("highest", declared["high"])):
            if abs(np.log(ratio / end)) <= 0.02 * np.log(declared["high"] / declared["low"]):
                tried = tuple(sorted({float(value) for value in found.among[RATIO]}))
                words.append(Edge("ratio", float(ratio), side, tried, declared).words)
    return tuple(dict.fromkeys(words))


def searched(records: Records) -> bool:
    """Did a sweep among these search the ratio?"""
    return any(isinstance((spec.get("axes") or {}).get("ratio"), dict) for spec in records.sweeps)
