"""What the runs of `sam_net` say about sharpness-aware minimization (arXiv:2010.01412, 2211.05729): claims and tables.

Differences are paired by seed: the two runs have the same weights to start from and the same batches, and each has the
config that the tuning seed chose for its arm. Sharpness is compared as the logarithm of a ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log

import numpy as np
import pandas as pd

from analysis.chosen_runs import Runs
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.sam_net_plots import FIGURES
from analysis.sam_net_runs import (
    ARM,
    ERROR,
    SPENT,
    TIME,
    TOP,
    TRACE,
    TRACE_ERROR,
    along,
    by_seed,
    chosen,
    judged,
    name_of,
)
from analysis.stats import t_interval

_MAIN = "python sweeps/sam_budget.py"
_SCRATCH = {"radius": [0, 0.1], "sam_start_step": 0, "decay_fraction": 0.2}
_SAM = "arXiv:2010.01412 (net, data and margin: ours)"
_BIAS = "arXiv:2211.05729, theorems 4.5 and 5.4, which are of small problems (net, data and margin: ours)"
_PACE = {"decay_fraction": 0.0}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "SN1", "At equal steps SAM of radius 0.1 ends with a top eigenvalue that is a tenth lower than SGD's, or more.",
        _SAM, "log_ratio_to_sgd", "less", log(0.9), "fresh", _SCRATCH, {"column": TOP}, _MAIN,
    ),
    Claim(
        "SN2", "At equal steps its Hessian's trace is a tenth lower, or more.",
        _SAM, "log_ratio_to_sgd", "less", log(0.9), "fresh", _SCRATCH, {"column": TRACE}, _MAIN,
    ),
    Claim(
        "SN3", "At equal steps, so at twice the gradients, SAM of radius 0.1 has a lower test error than SGD.",
        _SAM, "error_over_sgd", "less", 0.0, "fresh", _SCRATCH, {"at": "steps"}, _MAIN,
    ),
    Claim(
        "SN4", "At equal gradient evaluations, so at half the steps, its test error is lower than SGD's.",
        _SAM, "error_over_sgd", "less", 0.0, "fresh", _SCRATCH, {"at": "gradients"}, _MAIN,
    ),
    Claim(
        "SN5", "SAM that starts in the middle of the first budget's plain trunk reaches the top eigenvalue of SAM from "
        "the first step, within a factor of 1.25.",
        "ours", "late_over_scratch", "equal", log(1.25), "fresh", {"radius": 0.1, "decay_fraction": 0.2},
        {"column": TOP}, f"{_MAIN} preset=late",
    ),
    Claim(
        "SN6", "The more images share a perturbation, the smaller is the top eigenvalue's share of the trace (slope of "
        "its logarithm per doubling).",
        _BIAS, "slope_on_group", "less", 0.0, "fresh", {"radius": 0.1, "sam_start_step": 0}, {"of": "share"},
        f"{_MAIN} preset=groups",
    ),
    Claim(
        "SN7", "The more images share a perturbation, the larger is the trace (slope of its logarithm per doubling).",
        _BIAS, "slope_on_group", "greater", 0.0, "fresh", {"radius": 0.1, "sam_start_step": 0}, {"of": "trace"},
        f"{_MAIN} preset=groups",
    ),
    Claim(
        "SN8", "After equal time, learning rate * radius^2 * steps, late SAM of larger radii has lowered the top "
        "eigenvalue against SGD as much as that of the smallest, within a factor of 1.5.",
        "arXiv:2211.05729, theorem 4.5, which is of small radii at zero loss (net, data and margin: ours)",
        "gap_at_equal_time", "equal", log(1.5), "fresh", _PACE, command=f"{_MAIN} preset=pace",
    ),
)  # fmt: skip


def log_ratio_to_sgd(evidence: Evidence, column: str) -> Observation:
    """log of a final curvature over that of SGD of as many steps; by seed, and by radius and budget."""
    seen = _whole_batch(evidence)
    table = by_seed(seen.rows, logarithm(seen.rows[column]), ["radius", "budget"])
    unfit = _without_logarithm(seen.rows, column)
    return _over_zero(seen, table, lambda radius, steps: f"{name_of(radius, 0)} at {steps:.0f} steps", unfit)


def error_over_sgd(evidence: Evidence, at: str) -> Observation:
    """Test error minus that of SGD at as many steps, or at as many gradients where the budgets have that."""
    seen = _whole_batch(evidence)
    table = by_seed(seen.rows, seen.rows[ERROR].astype(float), ["radius", "budget" if at == "steps" else SPENT])
    return _over_zero(seen, table, lambda radius, amount: f"{name_of(radius, 0)} at {amount:.0f} {at}")


def late_over_scratch(evidence: Evidence, column: str) -> Observation:
    """log of a final curvature under late SAM over that under SAM from the first step; by seed and budget."""
    seen = _whole_batch(evidence)
    table = by_seed(seen.rows, logarithm(seen.rows[column]), ["start", "budget"])
    unfit = _without_logarithm(seen.rows, column)
    return _over_zero(seen, table, lambda start, steps: f"from step {start:.0f} at {steps:.0f} steps", unfit)


def _whole_batch(evidence: Evidence) -> Runs:
    """The runs that may decide and are no m-SAM."""
    return judged(replace(evidence, frame=evidence.frame[evidence.frame["config.group"].isna()]))


def _over_zero(seen: Runs, table: pd.DataFrame, name: Callable[[float, float], str], unfit: str = "") -> Observation:
    """Of a table with two levels of columns: each above 0 of the first level less 0 at the same of the second."""
    pairs = [(float(column[0]), float(column[1])) for column in table.columns]
    parts = {
        name(first, second): table[(first, second)] - table[(0, second)]
        for first, second in pairs
        if first > 0 and (0.0, second) in pairs
    }
    missing = "" if parts else "SAM and what it is compared with, at one budget"
    return Observation(pd.DataFrame(parts).dropna(), seen.edges, missing, unfit=_both(seen.lost, unfit))


def _both(*why: str) -> str:
    return "; ".join(filter(None, why))


def _without_logarithm(rows: pd.DataFrame, *columns: str) -> str:
    """Why the logarithms of these columns cannot decide, where some of them are not there."""
    count = int((~(rows[list(columns)].astype(float) > 0)).any(axis=1).sum())
    names = " or ".join(column.removeprefix("report/").replace("_", " ") for column in columns)
    return f"{count} of {len(rows)} rows have no {names} above 0, so no logarithm, and are left out" if count else ""


def logarithm(values: pd.Series) -> pd.Series:
    """Natural logarithm; nothing where a value is not above 0."""
    return values.astype(float).where(lambda v: v > 0).map(np.log)


def slope_on_group(evidence: Evidence, of: str) -> Observation:
    """Least-squares slope of log trace, or of log of lambda_1 / trace, on log2 of the images that share; by seed."""
    seen = judged(replace(evidence, frame=evidence.frame[evidence.frame["config.group"].notna()]))
    trace = logarithm(seen.rows[TRACE])
    value = trace if of == "trace" else logarithm(seen.rows[TOP]) - trace
    rows = seen.rows.assign(images=seen.rows["group"].astype(float))
    parts = {}
    for (budget, *others), same in rows.groupby(["budget", "radius", "start", "decay"]):
        table = by_seed(same, value.loc[same.index], "images").dropna()
        if table.shape[1] >= 2:
            x = np.log2(table.columns.to_numpy(dtype=float))
            x = x - x.mean()
            parts[f"{budget} steps" + _varying(rows, ("radius", "start", "decay"), others)] = table @ (x / (x**2).sum())
    missing = "" if parts else "two sizes of group at one budget"
    unfit = _without_logarithm(rows, *((TRACE,) if of == "trace" else (TOP, TRACE)))
    return Observation(pd.DataFrame(parts), seen.edges, missing, unfit=_both(seen.lost, unfit))


def _varying(rows: pd.DataFrame, names: Sequence[str], values: Sequence[object]) -> str:
    """Of these settings those that differ between the rows, for the name of a part."""
    pairs = zip(names, values, strict=True)
    return "".join(f", {name} {value}" for name, value in pairs if rows[name].nunique() > 1)


def gap_at_equal_time(evidence: Evidence) -> Observation:
    """How much more than the smallest radius a larger one lowered the top eigenvalue in the time that it had; by seed.

    y_r(time) = log(lambda_1 of SAM / lambda_1 of SGD at the same step), on straight lines between measurements; the
    value is y_r - y_smallest at the end of the smallest radius. Radii are compared where all else is the same.
    """
    seen = judged(evidence)
    every = along(evidence.records, seen.rows)
    curves = every[every[TOP] > 0]
    same = ("budget", "decay", "start", "group")
    sharp = curves[curves["radius"] > 0]
    gaps: dict[str, dict[int, float]] = {}
    for (seed, *setting), of_seed in sharp.groupby(["seed", *same]):
        budget, decay = setting[:2]
        at = (curves["seed"] == seed) & (curves["budget"] == budget) & (curves["decay"] == decay)
        plain = curves[at & (curves["radius"] == 0)].set_index("step")[TOP]
        lines = {}
        for radius, line in of_seed.groupby("radius"):
            line = line[(line["step"] >= line["start"]) & line["step"].isin(plain.index)]
            fall = np.log(line[TOP].to_numpy(float) / plain.loc[line["step"]].to_numpy(float))
            if len(line):
                lines[float(str(radius))] = line[TIME].to_numpy(float), fall
        if len(lines) < 2:
            continue
        smallest = min(lines)
        end = lines[smallest][0][-1]
        for radius, (time, fall) in lines.items():
            if radius > smallest and time[0] <= end <= time[-1]:
                gap = float(np.interp(end, time, fall) - lines[smallest][1][-1])
                name = f"{radius:g} against {smallest:g}" + _varying(sharp, same, setting)
                gaps.setdefault(name, {})[int(str(seed))] = gap
    parts = pd.DataFrame({name: pd.Series(values) for name, values in gaps.items()}).dropna()
    missing = "" if gaps else "SGD and two radii of late SAM, measured along the way"
    return Observation(parts, seen.edges, missing, unfit=_both(seen.lost, _without_logarithm(every, TOP)))


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function
    for function in (log_ratio_to_sgd, error_over_sgd, late_over_scratch, slope_on_group, gap_at_equal_time)
}


def summary(records: Records) -> pd.DataFrame:
    """A row per arm: its chosen config, what it cost, and means over seeds at the end."""
    rows = []
    for _, same in chosen(records).groupby(list(ARM), sort=True):
        first, errors = same.iloc[0], same[ERROR].astype(float)
        interval = t_interval(errors.to_numpy())
        rows.append(
            {
                "arm": name_of(first["radius"], first["start"], first["group"]),
                "start": first["start"],
                "steps": first["budget"],
                "gradients": int(first[SPENT]),
                "learning rate": first["config.learning_rate"],
                "weight decay": first["config.weight_decay"],
                "seeds": same["seed"].nunique(),
                "test error": errors.mean(),
                "95 %": "" if interval is None else str(interval),
                "train error": same["train/error"].astype(float).mean(),
                "top eigenvalue": same[TOP].astype(float).mean(),
                "trace": same[TRACE].astype(float).mean(),
                "its standard error": same[TRACE_ERROR].astype(float).mean(),
            }
        )
    if not rows:
        raise RecordsError("no trial has ended, so there is nothing to sum up; see the errors in the trials table")
    return pd.DataFrame(rows)


READING = Reading(claims=CLAIMS, statistics=STATISTICS, figures=FIGURES, summary=summary)
