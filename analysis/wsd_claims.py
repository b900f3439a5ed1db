"""The claims about warmup-stable-decay (arXiv:2410.05192 and its anchors), and the statistics that decide them.

Every statistic returns one number per seed and budget. Where a field is compared, each of its values has its own peak,
chosen on the select loss of *other* seeds: fresh seeds judge what the tuning seeds chose, a tuning seed what the other
tuning seeds would have chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.choice import Choice, Edge, centre_over_seeds, declared_range, seed_matrix
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.curves import split_at_decay
from analysis.stats import loss_at_cost

_MAIN = "python sweeps/wsd_budget.py"
_PAPER = "arXiv:2410.05192, abstract"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "E1", "The loss falls more than twice as far during the decay as over the equally long stretch before it.",
        _PAPER + " (loss stays elevated while stable and drops sharply in the decay; the factor two is ours)",
        "decay_drop_excess", "greater", 0.0, "any",
        {"method": "wsd", "decay_fraction": 0.1}, {"factor": 2.0}, _MAIN,
    ),
    Claim(
        "E2a", "WSD-S reaches a lower loss than cyclic cosine at every budget after the first.",
        _PAPER, "method_difference", "less", 0.0, "fresh",
        arguments={"method": "wsd_s", "reference": "cyclic_cosine", "later": True}, command=_MAIN,
    ),
    Claim(
        "E2b", "WSD-S reaches a lower loss than WSD at equal compute of the whole family, after the first budget.",
        _PAPER, "method_difference_at_equal_family_cost", "less", 0.0, "fresh",
        arguments={"method": "wsd_s", "reference": "wsd"}, command=_MAIN,
    ),
    Claim(
        "E2c", "WSD-S is within 0.01 nats of an independent cosine run per budget, after the first budget.",
        "arXiv:2410.05192, reproducibility page (comparable to tuned cosine runs; the margin is ours)",
        "method_difference", "equal", 1e-2, "fresh",
        arguments={"method": "wsd_s", "reference": "cosine", "later": True}, command=_MAIN,
    ),
    Claim(
        "E2d", "WSD is no more than 0.01 nats above an independent cosine run, at every budget.",
        "arXiv:2405.18392, abstract (cooldowns scale similarly to cosine; the margin is ours)",
        "method_difference", "less", 1e-2, "fresh",
        arguments={"method": "wsd", "reference": "cosine", "later": False}, command=_MAIN,
    ),
    Claim(
        "E3a", "A decay of 2.5 % of the budget is not enough: its loss is more than 0.003 nats above that of 10 %.",
        "arXiv:2404.06395, as summarised by others (the margin is ours)", "fraction_difference", "greater", 3e-3, "any",
        {"method": "wsd"}, {"fraction": 0.025, "reference": 0.1}, f"{_MAIN} preset=fractions",
    ),
    Claim(
        "E3b", "Longer decays saturate near 20 %: going on to 40 % gains less than 0.003 nats.",
        "arXiv:2405.18392, as summarised by others (the margin is ours)", "fraction_difference", "less", 3e-3, "any",
        {"method": "wsd"}, {"fraction": 0.2, "reference": 0.4}, f"{_MAIN} preset=fractions",
    ),
    Claim(
        "E4a", "The decay shape matters less than the decay fraction: its spread of losses is the smaller one.",
        "arXiv:2503.12811, released loss curves (two shapes lie 0.003 nats apart)", "shape_spread_excess", "less", 0.0,
        "any", {"method": "wsd"}, {"fraction": 0.1, "shape": "linear"},
        f"{_MAIN} preset=fractions_and_shapes",
    ),
    Claim(
        "E4b", "A fast-then-slow decay (one minus square root) reaches a lower loss than a linear one.",
        "arXiv:2405.18392, as summarised by others", "shape_difference", "less", 0.0, "any",
        {"method": "wsd"}, {"shape": "one_minus_sqrt", "reference": "linear"}, f"{_MAIN} preset=shapes",
    ),
    Claim(
        "E5a", "Before the decay the loss increases with the peak learning rate (nats per factor e of peak).",
        _PAPER + " (a high rate oscillates more)", "stable_slope", "greater", 0.0, "any",
        {"method": "wsd"}, command=f"{_MAIN} preset=peaks",
    ),
    Claim(
        "E5b", "The peak that is best after the decay is higher than the one that is best before it (log ratio).",
        _PAPER + " (a high rate makes faster progress, which the decay reveals)", "best_peak_shift", "greater", 0.0,
        "any", {"method": "wsd"}, command=f"{_MAIN} preset=peaks",
    ),
    Claim(
        "E5c", "The best peak learning rate falls with the budget (exponent of the budget below 0).",
        "arXiv:2409.19913, as summarised by others", "best_peak_exponent", "less", 0.0, "any",
        {"method": "wsd"}, command=f"{_MAIN} preset=peaks",
    ),
)  # fmt: skip


def method_difference(evidence: Evidence, method: str, reference: str, later: bool) -> Observation:
    """Report loss of `method` minus that of `reference` per budget, both at their chosen configs; nats per token."""
    budgets = sorted(b for m, b in evidence.choices if m == method and (reference, b) in evidence.choices)
    budgets = budgets[1:] if later else budgets
    if not budgets:
        wanted = "two budgets" if later else "one budget"
        return Observation(
            pd.DataFrame(), missing=f"{wanted} at which both {method} and {reference} have completed trials"
        )
    parts = {}
    for budget in budgets:
        mine, theirs = (evidence.final(evidence.choices[m, budget]) for m in (method, reference))
        parts[f"budget {budget}"] = mine - theirs
    used = [evidence.choices[m, b] for m in (method, reference) for b in budgets]
    return Observation(pd.DataFrame(parts).dropna(), _edges(used), _no_common(parts, evidence), _lost(used, evidence))


def method_difference_at_equal_family_cost(evidence: Evidence, method: str, reference: str) -> Observation:
    """Report loss of `method` minus that of `reference` interpolated at the family steps of `method`; nats per token.

    The interpolation runs along the reference's own later budgets, in log cost and log loss, seed by seed.
    """
    budgets = {name: sorted(b for m, b in evidence.choices if m == name) for name in (method, reference)}
    if min(map(len, budgets.values())) < 2:
        return Observation(pd.DataFrame(), missing=f"two budgets of {method} and of {reference} with completed trials")
    cost = evidence.frame.groupby(["config_id"])["steps_family"].mean()
    losses = {(name, b): evidence.final(evidence.choices[name, b]) for name in budgets for b in budgets[name]}
    ladder = [float(cost[evidence.choices[reference, b].config_id]) for b in budgets[reference]]
    table = pd.DataFrame({b: losses[reference, b] for b in budgets[reference]}).dropna()
    parts = {}
    for budget in budgets[method][1:]:
        at = float(cost[evidence.choices[method, budget].config_id])
        there = {seed: loss_at_cost(at, ladder, row.tolist()) for seed, row in table.iterrows()}
        parts[f"budget {budget}"] = losses[method, budget] - pd.Series(there, dtype=float)
    used = [evidence.choices[name, b] for name in budgets for b in budgets[name]]
    return Observation(pd.DataFrame(parts).dropna(), _edges(used), _no_common(parts, evidence), _lost(used, evidence))


def decay_drop_excess(evidence: Evidence, factor: float) -> Observation:
    """Drop of the loss during the decay minus `factor` times the drop over as many steps before it; nats per token.

    WSD trials at the largest budget, of the config with the lowest select loss there. Report loss where both stretches
    are measured with it, else select loss. Losses between measured steps are interpolated.
    """
    complete = evidence.frame[np.isfinite(evidence.frame["report"])]
    largest = complete[complete["budget_steps"] == complete["budget_steps"].max()]
    tuning = largest[largest["phase"] == "tune"]
    if tuning.empty:
        return Observation(pd.DataFrame(), missing="completed wsd trials")
    means, _ = centre_over_seeds(seed_matrix(tuning, "select"))
    rows = largest[largest["config_id"] == means.idxmin()]
    curves = evidence.records.to_pandas("measurements").merge(rows[["sweep", "trial", "seed"]], on=["sweep", "trial"])
    values = {}
    for seed, curve in curves.sort_values("step").groupby("seed"):
        drops = next(filter(None, (_drops(curve, name) for name in ("report/loss", "select/loss"))), None)
        if drops is not None:
            values[seed] = drops[0] - factor * drops[1]
    missing = "" if values else "curves that are measured before the fork of a decay and at it"
    return Observation(
        pd.DataFrame({f"budget {rows['budget_steps'].iloc[0]}": pd.Series(values, dtype=float)}), missing=missing
    )


def fraction_difference(evidence: Evidence, fraction: float, reference: float) -> Observation:
    """Report loss at `fraction` minus that at `reference` per budget, each at its own best peak; nats per token."""
    return _field_difference(evidence, "config.decay_fraction", fraction, reference)


def shape_difference(evidence: Evidence, shape: str, reference: str) -> Observation:
    """Report loss of a decay `shape` minus that of `reference` per budget, each at its best peak and fraction."""
    return _field_difference(evidence, "config.decay_shape", shape, reference)


def shape_spread_excess(evidence: Evidence, fraction: float, shape: str) -> Observation:
    """Spread (max - min) of loss over shapes at `fraction` minus that over fractions at `shape`; nats per token."""
    parts, edges = {}, []
    for budget, rows in evidence.frame[evidence.frame["status"].isin(_RAN)].groupby("budget_steps"):
        at_fraction = rows[np.isclose(rows["config.decay_fraction"].astype(float), fraction)]
        spreads = []
        for some, column in (
            (at_fraction, "config.decay_shape"),
            (_equal(rows, "config.decay_shape", shape), _FRACTION),
        ):
            levels = [_judged(evidence, same) for _, same in some.groupby(column)]
            spreads.append((pd.DataFrame([loss for loss, _ in levels]), len(levels)))
            edges += [edge.words for _, found in levels for edge in found]
        if min(count for _, count in spreads) < 2:
            continue
        (shapes, _), (fractions, _) = spreads
        parts[f"budget {budget}"] = (
            shapes.max(skipna=False) - shapes.min() - (fractions.max(skipna=False) - fractions.min())
        )
    if not parts:
        return Observation(
            pd.DataFrame(), missing=f"two shapes at fraction {fraction:g} and two fractions of shape {shape}"
        )
    return Observation(pd.DataFrame(parts).dropna(), tuple(dict.fromkeys(edges)))


def stable_slope(evidence: Evidence) -> Observation:
    """Least-squares slope of the loss before the decay on the log of the peak, per budget; nats per factor e."""
    before = _loss_before_decay(evidence)
    parts = {}
    for budget, rows in before.groupby("budget_steps"):
        table = _seeds_with_all_peaks(rows, "before")
        table = table[[peak for peak in table if np.isfinite(table[peak]).all()]]
        if table.shape[1] >= 2:
            parts[f"budget {budget}"] = _slopes(table)
    missing = "" if parts else "wsd trials with two peaks that are measured before their decay"
    return Observation(pd.DataFrame(parts).dropna(), missing=missing)


def best_peak_shift(evidence: Evidence) -> Observation:
    """Log of the best peak after the decay over the best peak before it, seed by seed and per budget.

    The best peak before the decay may be the lowest tried: lower ones could only make the shift larger.
    """
    before = _loss_before_decay(evidence)
    parts, edges = {}, []
    for budget, rows in before.groupby("budget_steps"):
        stable, _ = _best_log_peak(evidence, rows, "before")
        decayed, found = _best_log_peak(evidence, rows, "report")
        if stable is not None and decayed is not None:
            parts[f"budget {budget}"] = decayed - stable
            edges += [edge.words for edge in found]
    missing = "" if parts else "wsd trials with three peaks that are measured before their decay"
    return Observation(pd.DataFrame(parts).dropna(), tuple(dict.fromkeys(edges)), missing)


def best_peak_exponent(evidence: Evidence) -> Observation:
    """Exponent b of best peak ~ budget ** b, seed by seed, by least squares over the budgets."""
    optima, edges = {}, []
    for budget, rows in evidence.frame[evidence.frame["status"].isin(_RAN)].groupby("budget_steps"):
        best, found = _best_log_peak(evidence, rows, "report")
        if best is not None:
            optima[budget] = best
            edges += [edge.words for edge in found]
    table = pd.DataFrame(optima).dropna()
    if table.shape[1] < 2:
        return Observation(pd.DataFrame(), missing="wsd trials with three peaks at two budgets")
    return Observation(pd.DataFrame({"exponent": _slopes(table)}), tuple(dict.fromkeys(edges)))


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function
    for function in (
        method_difference, method_difference_at_equal_family_cost, decay_drop_excess, fraction_difference,
        shape_difference, shape_spread_excess, stable_slope, best_peak_shift, best_peak_exponent,
    )
}  # fmt: skip

_FRACTION = "config.decay_fraction"
_RAN = ("complete", "diverged")


def _field_difference(evidence: Evidence, column: str, value: object, reference: object) -> Observation:
    parts, edges, lost = {}, [], 0
    for budget, rows in evidence.frame[evidence.frame["status"].isin(_RAN)].groupby("budget_steps"):
        both = [_equal(rows, column, v) for v in (value, reference)]
        if any(same.empty for same in both):
            continue
        (mine, found), (theirs, also) = (_judged(evidence, same) for same in both)
        parts[f"budget {budget}"] = mine - theirs
        lost += int((mine - theirs).isna().sum())
        edges += [edge.words for edge in [*found, *also]]
    name = column.removeprefix("config.")
    missing = "" if parts else f"trials with {name}={value} and {name}={reference} at the same budget"
    remark = (
        f"{lost} seeds left out: what the others chose diverged on them, or they lack one of the two" if lost else ""
    )
    return Observation(pd.DataFrame(parts).dropna(), tuple(dict.fromkeys(edges)), missing, remark)


def _equal(rows: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    if isinstance(value, float):
        return rows[np.isclose(rows[column].astype(float), value)]
    return rows[rows[column] == value]


def _judged(evidence: Evidence, rows: pd.DataFrame) -> tuple[pd.Series, list[Edge]]:
    """Report loss by seed of the config of `rows` with the lowest select loss; and the edges of that choice.

    Fresh seeds judge what the tuning seeds choose, a tuning seed what the other tuning seeds choose, if there are any.
    Tuning seeds that did not run every config are left out. A diverged trial has no loss.
    """
    tuning = rows[rows["phase"] == "tune"]
    select = tuning.pivot_table(index="config_id", columns="seed", values="select", aggfunc="first", dropna=False)
    seeds = [seed for seed in select if select[seed].notna().all()]
    if not seeds:
        return pd.Series(dtype=float), []
    matrix = select[seeds].to_numpy(dtype=float)
    report = dict(zip(zip(rows["config_id"], rows["seed"], strict=True), rows["report"], strict=True))
    overall = select.index[int(matrix.mean(axis=1).argmin())]
    mine = rows[rows["fresh"] & (rows["config_id"] == overall)]
    losses = dict(zip(mine["seed"], mine["report"], strict=True))
    for at, seed in enumerate(seeds if len(seeds) > 1 else []):
        chosen = select.index[int(np.delete(matrix, at, axis=1).mean(axis=1).argmin())]
        losses[seed] = float(report[chosen, seed])
    judged = pd.Series(losses, dtype=float)
    best = float(rows.loc[rows["config_id"] == overall, "config.peak_lr"].iloc[0])
    peaks = tuning["config.peak_lr"].dropna().unique()
    return judged.where(np.isfinite(judged)), _peak_edges(evidence, best, peaks)


def _peak_edges(evidence: Evidence, best: float, peaks: Iterable[float]) -> list[Edge]:
    tried = tuple(sorted(map(float, peaks)))
    if len(tried) < 2:
        return []
    declared = declared_range(evidence.records, "peak_lr")
    sides = {"lowest": tried[0], "highest": tried[-1]}
    return [Edge("peak_lr", end, side, tried, declared) for side, end in sides.items() if np.isclose(best, end)]


def _best_log_peak(evidence: Evidence, rows: pd.DataFrame, value: str) -> tuple[pd.Series | None, list[Edge]]:
    """Log of the best peak by seed (vertex of the parabola through the lowest point and its neighbours in log peak).

    Other fields are held at their commonest values; edges say where the mean over seeds is lowest at an end.
    """
    rest = [c for c in (_FRACTION, "config.decay_shape") if c in rows]
    common = rows.groupby(rest, dropna=False)["seed"].transform("size") if rest else None
    rows = rows[common == common.max()] if common is not None else rows
    if rest:
        rows = rows[(rows[rest] == rows[rest].iloc[0]).all(axis=1)]
    table = _seeds_with_all_peaks(rows, value)
    if np.isfinite(table).all().sum() < 3 or table.empty:
        return None, []
    peaks = table.columns.to_numpy(dtype=float)
    logs, losses = np.log(peaks), table.to_numpy(dtype=float)
    best = [_vertex(logs, row) for row in losses]
    return pd.Series(best, index=table.index), _peak_edges(evidence, peaks[losses.mean(axis=0).argmin()], peaks)


def _seeds_with_all_peaks(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """`value` by seed and peak for the seeds that ran the most peaks; infinite where a trial diverged."""
    table = rows.pivot_table(index="seed", columns="config.peak_lr", values=value, aggfunc="min", dropna=False)
    ran = table.notna().sum(axis=1).to_numpy()
    return table[ran == ran.max()].dropna(axis=1, how="any")


def _slopes(table: pd.DataFrame) -> pd.Series:
    """Least-squares slope of each row on the log of the column names."""
    logs = np.log(table.columns.to_numpy(dtype=float))
    centred = logs - logs.mean()
    return table @ (centred / (centred**2).sum())


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    at = int(y.argmin())
    if at in (0, len(x) - 1) or not np.isfinite(y[at - 1 : at + 2]).all():
        return float(x[at])
    left, mid, right = (x[i] for i in (at - 1, at, at + 1))
    down, up = (y[at] - y[at - 1]) / (mid - left), (y[at + 1] - y[at]) / (right - mid)
    bend = (up - down) / (right - left)
    return float((left + mid) / 2 - down / (2 * bend)) if bend > 0 else float(mid)


def _loss_before_decay(evidence: Evidence) -> pd.DataFrame:
    """The trials that ran with `before`, the select loss at the fork of their decay; infinite if diverged before it."""
    rows = evidence.frame[evidence.frame["status"].isin(_RAN)]
    curves = evidence.records.to_pandas("measurements").dropna(subset=["select/loss"])
    curves = (
        curves[curves["phase_of_schedule"] != "decay"]
        .sort_values("step")
        .drop_duplicates(["sweep", "trial"], keep="last")
    )
    curves = curves[curves["phase_of_schedule"] == "stable"].rename(columns={"select/loss": "before"})
    rows = rows.merge(curves[["sweep", "trial", "before"]], on=["sweep", "trial"], how="left")
    never = ~rows.groupby("budget_steps")["before"].transform("any")  # no fork measured: nothing to compare
    rows["before"] = rows["before"].where(rows["before"].notna() | (rows["status"] != "diverged"), np.inf)
    return rows[rows["before"].notna() & ~never]


def _drops(curve: pd.DataFrame, name: str) -> tuple[float, float] | None:
    """Drop of the loss in the decay and over as many steps before it, or None where that was not measured."""
    known = curve.dropna(subset=[name])
    stem, after = split_at_decay(known)
    if stem.empty or after.empty:
        return None
    fork, end = float(stem["step"].iloc[-1]), float(after["step"].iloc[-1])
    earlier = fork - (end - fork)
    stable = stem[stem["phase_of_schedule"] == "stable"]
    if stable.empty or stable["step"].iloc[0] > earlier or stable["step"].iloc[-1] < fork:
        return None
    at_fork, at_end = float(stem[name].iloc[-1]), float(after[name].iloc[-1])
    return at_fork - at_end, float(np.interp(earlier, stable["step"], stable[name])) - at_fork


def _edges(used: Sequence[Choice]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(edge.words for choice in used for edge in choice.edges))


def _lost(used: Sequence[Choice], evidence: Evidence) -> str:
    """How many trials of the chosen configs did not complete on the seeds that decide."""
    rows = evidence.frame[evidence.frame["config_id"].isin([c.config_id for c in used])]
    rows = rows[rows["fresh"]] if evidence.seeds == "fresh" else rows
    count = int((~np.isfinite(rows["report"])).sum())
    return f"{count} trials of the chosen configs did not complete, and their seeds are left out" if count else ""


def _no_common(parts: Mapping[str, pd.Series], evidence: Evidence) -> str:
    common = pd.DataFrame(parts).dropna()
    kind = "fresh seed of the chosen configs" if evidence.seeds == "fresh" else "seed"
    return "" if len(common) else f"a {kind} that both have at every budget"
