"""What the linear models with wrong labels say: where fitting them harms, and what repairs it (arXiv:2206.00501).

Errors and losses are on clean labels of fresh inputs, in closed form. Error, loss and loss at a fitted temperature each
have their own early stop (by the same measure, on held-out inputs with noisy labels), their own excess and their own
claims. All values are of fresh seeds; numbers in claims and the model are ours unless a claim's source says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.benign_linear_plots import plot_curves, plot_diagram, plot_frontier, plot_repairs, plot_search
from analysis.benign_linear_runs import (
    BUDGET,
    ERROR,
    EXCESS,
    NOISE,
    RATIO,
    REPAIR,
    boundaries,
    chosen,
    diagram,
    edges_of_search,
    judged,
    located,
    named,
    searched,
)
from analysis.benign_runs import share, without_cost
from analysis.choice import trial_frame
from analysis.chosen_runs import Runs, column
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.stats import Direction, t_interval

_MAIN = "python sweeps/benign_linear.py"
_PAPER = "arXiv:2206.00501, abstract (the linear model, its sizes and the margin are ours)"
_EXPECTED = "a number we expected of this model before any run; not the paper's"
_PLAIN = {
    "samples": 100, "signal": 6.0, "signal_exponent": 0.0, "noise_kind": "flip", "budget_steps": 3000,
    "learning_rate": 1.0, "weight_decay": 0.0, "rounds": 1,
}  # fmt: skip
_NEAR, _REPAIRED = [1.2, 2.0], [1.2, 2.0, 4.0]
_SCALED, _EXCESS_SCALED = "report/scaled_loss", "report/excess_scaled_loss"


def _claim(
    id: str, text: str, source: str, statistic: str, direction: Direction, margin: float,
    where: Mapping[str, Any], preset: str = "", **arguments: Any,
) -> Claim:  # fmt: skip
    condition = {**_PLAIN, "repair": "none", **where}
    return Claim(id, text, source, statistic, direction, margin, "fresh", condition, arguments, _MAIN + preset)


def _repairs(id: str, repair: str, text: str) -> tuple[Claim, Claim]:
    """Two claims of a repair: its error, and its loss at a fitted temperature against that of no repair."""
    pair = {"repair": ["none", repair], "noise_rate": 0.2, "ratio": _NEAR}
    return (
        _claim(
            f"{id}a", f"{text} brings the error below 0.02 at p/n <= 4, noise rates 0.1 and 0.2.", _PAPER, "level",
            "less", 0.02, {"repair": repair, "noise_rate": [0.1, 0.2], "ratio": _REPAIRED}, metric=ERROR,
        ),
        _claim(
            f"{id}b", f"{text} lowers the temperature-scaled loss by over 0.05 at p/n <= 2, noise rate 0.2.", _PAPER,
            "difference", "less", -0.05, pair, metric=_SCALED, repair=repair, reference="none",
        ),
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    _claim(
        "BL1a", "No noise, no harm: at every ratio the final error is that of the early stop within 0.01.", _PAPER,
        "level", "equal", 0.01, {"noise_rate": 0.0}, metric=EXCESS,
    ),
    _claim(
        "BL1b", "The same of the temperature-scaled loss, within 0.02 nats.", _PAPER, "level", "equal", 0.02,
        {"noise_rate": 0.0}, metric=_EXCESS_SCALED,
    ),
    _claim(
        "BL2a", "Noise harms near the interpolation threshold: an excess error above 0.1 at p/n <= 2, noise rate 0.2.",
        _PAPER, "level", "greater", 0.1, {"noise_rate": 0.2, "ratio": _NEAR}, metric=EXCESS,
    ),
    _claim(
        "BL2b", "The same of the temperature-scaled loss: an excess above 0.1 nats.", _PAPER, "level", "greater", 0.1,
        {"noise_rate": 0.2, "ratio": _NEAR}, metric=_EXCESS_SCALED,
    ),
    _claim(
        "BL2c", "The same of the loss as it is: an excess above 0.", _PAPER, "level", "greater", 0.0,
        {"noise_rate": 0.2, "ratio": _NEAR}, metric="report/excess_loss",
    ),
    _claim(
        "BL3", "The error there is above 0.15.", _EXPECTED, "level", "greater", 0.15,
        {"noise_rate": 0.2, "ratio": _NEAR}, metric=ERROR,
    ),
    _claim(
        "BL4a", "Widening restores: the error at p/n = 32, noise rate 0.2, is below 0.03.", _PAPER, "level", "less",
        0.03, {"noise_rate": 0.2, "ratio": 32.0}, metric=ERROR,
    ),
    _claim(
        "BL4b", "The error falls with every doubling of the ratio up to 32 (slope), at each noise rate.", _PAPER,
        "slope_per_doubling", "less", 0.0,
        {"noise_rate": [0.1, 0.2, 0.3], "ratio": [1.2, 2.0, 4.0, 8.0, 16.0, 32.0]}, metric=ERROR,
    ),
    _claim(
        "BL4c", "At p/n = 32 less than half of the excess temperature-scaled loss at 1.2 is left.", _PAPER,
        "share_left", "less", 0.5, {"noise_rate": [0.1, 0.2, 0.3], "ratio": [1.2, 32.0]}, metric=_EXCESS_SCALED,
    ),
    _claim(
        "BL4d", "With a signal that grows as (p/n)^(1/4) the excess error at p/n = 64 is below 0.01 at noise rates of "
        "up to 0.3.", _PAPER, "level", "less", 0.01,
        {"signal_exponent": 0.25, "noise_rate": [0.1, 0.2, 0.3], "ratio": 64.0}, " preset=scaled", metric=EXCESS,
    ),
    *_repairs("BL5", "early_stop", "Stopping early on held-out noisy labels"),
    *_repairs("BL6", "self_train_hard", "A student of the early teacher's classes, trained to the end,"),
    *_repairs("BL7", "self_train_soft", "A student of the early teacher's class chances, trained to the end,"),
    _claim(
        "BL8", "At the ratio that a search of select/boundary finds, the excess error on fresh seeds is 0.02 within "
        "0.01.", "ours", "at_the_boundary", "equal", 0.01,
        {"samples": 200, "signal_exponent": 0.25, "noise_rate": [0.1, 0.2, 0.3]}, " preset=boundary", level=0.02,
    ),
)  # fmt: skip


def level(evidence: Evidence, metric: str) -> Observation:
    """A metric at the end of the trials."""
    return _observed(evidence, lambda rows: _table(rows, metric))


def difference(evidence: Evidence, metric: str, repair: str, reference: str) -> Observation:
    """A metric under a repair minus that under another, paired by seed (same data), at each ratio and noise rate."""

    def paired(rows: pd.DataFrame) -> pd.DataFrame:
        bare = named(rows, without=("repair",))
        ours, theirs = (_table(bare[bare[REPAIR] == name], metric) for name in (repair, reference))
        return ours - theirs

    return _observed(evidence, paired)


def slope_per_doubling(evidence: Evidence, metric: str) -> Observation:
    """Least-squares slope of a metric on log2 of the ratio, by seed and noise rate."""

    def slopes(rows: pd.DataFrame) -> pd.DataFrame:
        tables = _by_ratio(rows, metric)
        x = {name: np.log2(table.columns.to_numpy(dtype=float)) for name, table in tables.items()}
        centred = {name: values - values.mean() for name, values in x.items() if len(values) > 1}
        return pd.DataFrame({name: tables[name] @ (one / (one**2).sum()) for name, one in centred.items()})

    return _observed(evidence, slopes, "trials at two ratios or more")


def share_left(evidence: Evidence, metric: str) -> Observation:
    """A metric at the largest ratio over that at the smallest, by seed and noise rate.

    Unfit where the smallest ratio costs nothing on a seed: a share of that says nothing.
    """
    flat: list[str] = []

    def shares(rows: pd.DataFrame) -> pd.DataFrame:
        tables = {name: table for name, table in _by_ratio(rows, metric).items() if table.shape[1] > 1}
        flat.extend(
            without_cost(f"{name}, {metric} at p/n = {table.columns[0]:g}", table.iloc[:, 0])
            for name, table in tables.items()
        )
        return pd.DataFrame({name: share(table.iloc[:, -1], table.iloc[:, 0]) for name, table in tables.items()})

    seen = _observed(evidence, shares, "trials at two ratios or more")
    return replace(seen, unfit="; ".join(filter(None, [seen.unfit, *flat])))


def at_the_boundary(evidence: Evidence, level: float) -> Observation:
    """Excess error minus `level`, at the ratio that was found for each noise rate."""
    seen = _observed(evidence, lambda rows: _table(rows, EXCESS) - level, runs=located)
    return replace(seen, edges=edges_of_search(evidence, located(evidence)))


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function for function in (level, difference, slope_per_doubling, share_left, at_the_boundary)
}


def _observed(
    evidence: Evidence,
    parts: Callable[[pd.DataFrame], pd.DataFrame],
    needs: str = "completed trials on one seed at every ratio",
    runs: Callable[[Evidence], Runs] = judged,
) -> Observation:
    """Numbers by seed and part from the runs that count; teachers are those that held-out inputs choose."""
    frame = evidence.frame[column(evidence.frame, "config.teacher_step").isna()]
    seen = runs(Evidence(evidence.records, frame, evidence.choices, evidence.seeds))
    table = parts(seen.rows).dropna()
    return Observation(table, seen.edges, "" if table.size else needs, unfit=seen.lost)


def _table(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric by seed (rows) and arm (columns)."""
    return rows.assign(value=rows[metric].astype(float)).pivot_table(index="seed", columns="arm", values="value")


def _by_ratio(rows: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """For each arm but for the ratio, a metric by seed (rows) and ratio (columns, growing)."""
    bare = named(rows, without=("ratio",))
    return {
        str(arm): same.pivot_table(index="seed", columns=RATIO, values=metric).dropna()
        for arm, same in bare.groupby("arm", sort=False)
    }


def summary(records: Records) -> pd.DataFrame:
    """The clean error on fresh seeds, a row per noise rate and repair and a column per ratio.

    With the boundary where there is one diagram (no other field varies). Where a search chose the ratio: a row per
    noise rate, with the ratio found and the excess there.
    """
    if searched(records):
        return _found(records)
    rows = chosen(records)
    bare = named(rows, without=("ratio", "noise_rate", "repair")).rename(columns={"arm": "runs"})
    keys = [NOISE, REPAIR, *(["runs"] if bare["runs"].nunique() > 1 else [])]
    table = bare.pivot_table(index=keys, columns=RATIO, values=ERROR, sort=False)
    table.columns = [f"p/n = {ratio:g}" for ratio in table.columns]
    table = table.round(4).assign(seeds=bare.groupby(keys, sort=False)["seed"].nunique())
    if "runs" in keys:
        return _plain_names(table)
    try:
        found = boundaries(diagram(records), _aim(rows)).to_dict("records")
    except RecordsError:
        return _plain_names(table)  # no diagram among these trials: the errors stand alone
    edges = {row["noise rate"]: _interval(row) for row in found}
    name = f"excess below {_aim(rows):g} from p/n"
    table[name] = [edges.get(index[0], "") if index[1] == "none" else "" for index in table.index]
    return _plain_names(table)


def _plain_names(table: pd.DataFrame) -> pd.DataFrame:
    return table.reset_index().rename(columns=lambda name: str(name).removeprefix("config."))


def _aim(rows: pd.DataFrame) -> float:
    return float(column(rows, "config.boundary_excess").iloc[0])


def _interval(row: Mapping[Hashable, float]) -> str:
    """A boundary with its interval, such as "3.1 [2.6, 3.9]"; what lies outside the ratios that were run as a bound."""

    def shown(value: float) -> str:
        if value == 0:
            return f"<{row['least']:g}"
        return f">{row['most']:g}" if np.isinf(value) else f"{value:.3g}"

    interval = "" if np.isnan(row["low"]) else f" [{shown(row['low'])}, {shown(row['high'])}]"
    return shown(row["boundary"]) + interval


def _found(records: Records) -> pd.DataFrame:
    evidence = Evidence(records, trial_frame(records), {}, "fresh")
    rows = []
    for arm, same in located(evidence).rows.groupby("arm", sort=False):
        rows.append(
            {
                "noise rate": same[NOISE].iloc[0],
                "runs": arm,
                "p/n found": same[RATIO].iloc[0],
                "excess there": same[EXCESS].mean(),
                "95 % interval": str(t_interval(same[EXCESS].to_numpy()) or ""),
                "aim": _aim(same),
                "seeds": same["seed"].nunique(),
                "budget": same[BUDGET].iloc[0],
            }
        )
    return pd.DataFrame(rows).sort_values("noise rate")


READING = Reading(
    CLAIMS,
    STATISTICS,
    {
        "diagram": plot_diagram,
        "repairs": plot_repairs,
        "curves": plot_curves,
        "frontier": plot_frontier,
        "search": plot_search,
    },
    summary,
)
