"""What the runs of `dyck` say about arXiv:2312.01429: claims, statistics and the summary.

Arms are chosen on the loss over the training length and judged on fresh seeds. Where a number belongs to two
runs, they are taken in disjoint pairs; where it belongs to all, a run's part in it is its jackknife pseudo-value. Of
the paper only its abstract's qualitative statements are claimed; measures and margins are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from scipy import stats

from analysis import dyck_plots
from analysis.chosen_runs import Runs
from analysis.claims import Claim, Evidence, Observation
from analysis.dyck_runs import (
    EQUAL_FUNCTION,
    OOD_ERROR,
    PAIR_VARIANCE,
    VIOLATION,
    all_pairs,
    chosen,
    disjoint_pairs,
    equal_in_function,
    judged,
    lengths_of,
    mask_overlap,
    trained_accuracy,
)
from analysis.reading import Reading
from analysis.records import Records, RecordsError

_MAIN = "python sweeps/dyck_variation.py"
_PAPER = "arXiv:2312.01429, abstract (measure and margin are ours)"
_MINIMAL = {"trains": "weights", "first_layer": ["onehot", "trigonometric"], "prefix_length": 0, "norm": True}
_LEARNED = {"trains": "weights", "first_layer": "learned"}
_BALANCED = {"trains": "around_map"}
_VARIES = 0.05  # of the random baseline: a twentieth of what chance would give is called different (ours)
_LEAST_FOR_RANKS = 10  # runs of an arm below which a rank correlation is not looked at


def _varies(id: str, text: str, condition: Mapping[str, object], preset: str) -> Claim:
    return Claim(
        id, f"{text} attend differently: their variation is over 5 % of that of random attention.", _PAPER,
        "attention_variation", "greater", _VARIES, "fresh", condition, command=f"{_MAIN}{preset}",
    )  # fmt: skip


def _goes_with(id: str, column: str, words: str) -> Claim:
    return Claim(
        id, f"The more its scores violate balance ({words}), the fewer brackets a net closes right on longer rows "
        "(Spearman).", _PAPER, "correlation", "less", 0.0, "fresh", _MINIMAL, {"column": column}, _MAIN,
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "D1", "Nets that read classes of brackets close over 99 % of them right within the training length.", "ours",
        "accuracy", "greater", EQUAL_FUNCTION, "fresh", _MINIMAL, command=_MAIN,
    ),
    _varies("D2", "Nets of one block that do so", _MINIMAL, ""),
    _varies("D3", "Nets of two trained blocks that do so", _LEARNED, " preset=learned"),
    _goes_with("D4", VIOLATION, "over the variance of all scores"),
    _goes_with("D5", PAIR_VARIANCE, "not scaled"),
    Claim(
        "D6", "Penalising what a prefix changes lowers the balance violation, against the same rows without penalty.",
        _PAPER, "contrast_effect", "less", 0.0, "fresh", {"trains": "weights"}, {"column": VIOLATION},
        f"{_MAIN} preset=regulariser",
    ),
    Claim(
        "D7", "It lowers the share of brackets closed wrong on the longest rows, against the same control.",
        _PAPER, "contrast_effect", "less", 0.0, "fresh", {"trains": "weights"}, {"column": OOD_ERROR},
        f"{_MAIN} preset=regulariser",
    ),
    Claim(
        "D8", "Around a random balanced query-key map that is frozen, the rest of a net learns to close over 99 %.",
        _PAPER, "accuracy", "greater", EQUAL_FUNCTION, "fresh", _BALANCED, command=f"{_MAIN} preset=construction",
    ),
    _varies("D9", "Nets around such maps that do so", _BALANCED, " preset=construction"),
    Claim(
        "D10", "A mask over a random net that is not trained closes over 99 % of brackets right.",
        _PAPER, "accuracy", "greater", EQUAL_FUNCTION, "fresh", {"trains": "mask"},
        command=f"{_MAIN} preset=pruning",
    ),
)  # fmt: skip


def accuracy(evidence: Evidence) -> Observation:
    """Share of brackets closed right within the training length, by seed and arm."""
    seen = judged(evidence)
    return _observed(seen, _by_seed(seen.rows, trained_accuracy(seen.rows)))


def attention_variation(evidence: Evidence) -> Observation:
    """Variation of attention over the random baseline, by arm and disjoint pair of runs that are equal in function."""
    seen = judged(evidence)
    equal = equal_in_function(seen.rows)
    parts = {str(arm): disjoint_pairs(rows) for arm, rows in equal.groupby("arm", sort=False) if len(rows) > 1}
    left_out = len(seen.rows) - len(equal)
    remark = f"{left_out} of {len(seen.rows)} runs left out, which close {EQUAL_FUNCTION:.0%} or less right"
    lost = [arm for arm in seen.rows["arm"].unique() if arm not in parts]
    words = f"fewer than two runs close over {EQUAL_FUNCTION:.0%} right: {', '.join(lost)}" if lost else ""
    table = pd.DataFrame({arm: values.reset_index(drop=True) for arm, values in parts.items()})
    return _observed(seen, table, remark if left_out else "", words)


def correlation(evidence: Evidence, column: str) -> Observation:
    """Spearman's rank correlation of a column with accuracy on the longest rows, over the runs of each arm."""
    seen = judged(evidence)
    parts = {}
    for arm, rows in seen.rows.groupby("arm", sort=False):
        if len(rows) < _LEAST_FOR_RANKS:
            raise RecordsError(f"{len(rows)} runs of {arm} are too few for ranks; run with seeds=20")
        rows = rows.set_index("seed")
        parts[str(arm)] = pseudo_values(rows[column].astype(float), 1 - rows[OOD_ERROR].astype(float))
    return _observed(seen, pd.DataFrame(parts))


def pseudo_values(x: pd.Series, y: pd.Series) -> pd.Series:
    """Jackknife pseudo-values of Spearman's correlation, n r - (n - 1) r without i: their mean is r less its bias."""
    n, whole = len(x), rank_correlation(x, y)
    without = [rank_correlation(x.drop(label), y.drop(label)) for label in x.index]
    return pd.Series([n * whole - (n - 1) * one for one in without], index=x.index)


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Spearman's; 0 where one of the two does not vary, and so orders nothing."""
    return 0.0 if x.nunique() < 2 or y.nunique() < 2 else float(stats.spearmanr(x, y).statistic)


def contrast_effect(evidence: Evidence, column: str) -> Observation:
    """A column with the penalty minus without, by seed, of arms that differ in the penalty alone.

    Their rows are equally long. Arms whose penalty was searched over a range have no control of their own and stay out.
    """
    prefixed = evidence.frame[evidence.frame["config.prefix_length"] > 0]
    if prefixed.empty:
        raise RecordsError("no run was trained on prefixed rows")
    seen = judged(Evidence(evidence.records, prefixed, evidence.choices, evidence.seeds))
    tables: dict[str, pd.Series] = {}
    fixed = seen.rows[~seen.rows["arm"].str.contains("lambda=tuned")]
    for rest, rows in fixed.groupby(fixed["arm"].str.replace(r" ?lambda=\S+", "", regex=True), sort=False):
        by = {float(str(at)): same.set_index("seed")[column] for at, same in rows.groupby("config.contrast")}
        for at in by if 0.0 in by else ():
            if at > 0:
                tables[f"{rest} lambda={at:g}"] = by[at] - by[0.0]
    if not tables:
        raise RecordsError("no seed has a run with contrast and one without")
    return _observed(seen, pd.DataFrame(tables).dropna())


def _by_seed(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    table = rows.assign(value=values)
    return table.pivot_table(index="seed", columns="arm", values="value", aggfunc="first", sort=False)


def _observed(seen: Runs, parts: pd.DataFrame, remark: str = "", unfit: str = "") -> Observation:
    return Observation(parts, seen.edges, exploratory=remark, unfit="; ".join(filter(None, [seen.lost, unfit])))


def summary(records: Records) -> pd.DataFrame:
    """The table at the end of a sweep: one row per arm. Variation is of all pairs of runs equal in function.

    `where open` is the same at positions after which a bracket is open: elsewhere no attention could be wrong.
    """
    found = []
    for arm, rows in chosen(records).groupby("arm", sort=False):
        equal = equal_in_function(rows)
        pairs = all_pairs(equal)
        within = trained_accuracy(rows)
        beyond = [n for n in lengths_of(rows) if n > rows["config.length"].iloc[0]]
        found.append(
            {
                "arm": arm,
                "runs": len(rows),
                "closed right": within.mean(),
                "least": within.min(),
                **{f"to {n}": rows[f"report/accuracy_{n}"].astype(float).mean() for n in beyond},
                "excess nats": rows["report/excess_loss"].astype(float).mean(),
                "violation": rows[VIOLATION].astype(float).mean(),
                "unscaled": rows[PAIR_VARIANCE].astype(float).mean(),
                "within class": rows["report/within_class_share"].astype(float).mean(),
                "on top": rows["report/attention_on_top"].astype(float).mean(),
                "equal runs": len(equal),
                "variation / random": pairs["variation"].mean(),
                "where open": pairs["open"].mean(),
                "attention moved": pairs["moved"].mean(),
                "masks shared": mask_overlap(rows),
            }
        )
    return pd.DataFrame(found).round(4)


READING = Reading(
    claims=CLAIMS,
    statistics={
        "accuracy": accuracy,
        "attention_variation": attention_variation,
        "correlation": correlation,
        "contrast_effect": contrast_effect,
    },
    figures={
        "attention": dyck_plots.plot_attention,
        "variation": dyck_plots.plot_variation,
        "violation": dyck_plots.plot_violation,
        "lengths": dyck_plots.plot_lengths,
    },
    summary=summary,
)
