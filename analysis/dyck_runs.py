"""The runs of bracket-reading nets that count: arms, chosen configs, and how far attention varies within an arm.

Each run stores the attention of its last block on probe rows that are the same for all runs of one language, so that
runs can be compared two by two. The random baseline is attention drawn uniformly among all that a causal mask allows.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from analysis import chosen_runs
from analysis.choice import declared_range, trial_frame
from analysis.chosen_runs import Runs, runs_of
from analysis.claims import Evidence
from analysis.records import Records

EQUAL_FUNCTION = 0.99  # of brackets closed right within the training length: nets above it are taken as equal (ours)
ATTENTION, TOKENS, KEPT = "report/probe_attention", "report/probe_tokens", "report/kept"
VIOLATION, PAIR_VARIANCE = "report/balance_violation", "report/pair_score_variance"
OOD_ERROR = "report/ood_error"
_ARM = {
    "first_layer": "", "positions": "positions", "norm": "norm", "trains": "", "prefix_length": "prefix",
    "contrast": "lambda", "budget_steps": "B", "kinds": "k", "depth": "D", "length": "T", "width": "w",
    "score_spread": "spread", "keep_rate": "keep", "network_seed": "net", "open_rate": "q",
}  # fmt: skip
"""What makes an arm, and its short names: all that is not tuned."""


def judged(evidence: Evidence) -> Runs:
    """The runs that may decide a claim; `arm` names what is not tuned."""
    return runs_of(evidence, named(evidence.records, evidence.frame), ["arm"])


def chosen(records: Records) -> pd.DataFrame:
    """The runs of the chosen configs that ended: on fresh seeds, or on those that chose where there are none."""
    return chosen_runs.chosen(records, named(records, trial_frame(records)), ["arm"])


def named(records: Records, frame: pd.DataFrame) -> pd.DataFrame:
    """With `arm`: what is not tuned, in words. A contrast that was searched over a range does not tell arms apart."""
    names = pd.Series([""] * len(frame), index=frame.index)
    for field, label in _ARM.items():
        column = f"config.{field}"
        if column not in frame:
            continue
        values = frame[column]
        if field == "contrast" and declared_range(records, field):
            searched = {
                spec.get("sweep") for spec in records.sweeps if isinstance((spec.get("axes") or {}).get(field), dict)
            }
            values = values.astype(object).mask(frame["sweep"].isin(searched), "tuned")
        if field != "first_layer" and values.nunique(dropna=False) <= 1:
            continue
        texts = values.map(lambda v: f"{v:g}" if isinstance(v, float) else str(v))
        said = " " + (label + "=" if label else "") + texts
        names = names + (said.mask(values.isna(), "") if field != "first_layer" else texts)
    return frame.assign(arm=names.str.strip())


def lengths_of(rows: pd.DataFrame) -> list[int]:
    """Lengths up to which accuracy was measured in these runs, the training length first."""
    start = "report/accuracy_"
    found = [str(column) for column in rows if str(column).startswith(start) and rows[column].notna().any()]
    return sorted(int(column.removeprefix(start)) for column in found)


def trained_accuracy(rows: pd.DataFrame) -> pd.Series:
    """Share of brackets closed right within the training length of each run."""
    groups = [
        same[f"report/accuracy_{length}"].astype(float) for length, same in rows.groupby("config.length", sort=False)
    ]
    return pd.concat(groups).reindex(rows.index)


def attention_of(rows: pd.DataFrame) -> np.ndarray:
    """Probe attention of each run, [runs, probe rows, T, T]; runs of one arm have the same probe rows."""
    probe, positions = int(rows["config.probe_rows"].iloc[0]), int(rows["config.probe_length"].iloc[0]) + 1
    maps = np.array([np.asarray(one, dtype=float) for one in rows[ATTENTION]])
    return maps.reshape(len(rows), probe, positions, positions)


def variation(one: np.ndarray, other: np.ndarray, counted: np.ndarray | None = None) -> float:
    """Squared Frobenius distance of two runs' attention, mean over probe rows, [probe rows, T, T] each.

    `counted`: the positions [probe rows, T] whose attention enters, all by default.
    """
    squares = ((one - other) ** 2).sum(-1)
    return float((squares if counted is None else squares * counted).sum(-1).mean())


def moved(one: np.ndarray, other: np.ndarray) -> float:
    """Share of a position's attention that lies elsewhere in the other run, 0 to 1, mean over positions after BOS."""
    return float(0.5 * np.abs(one - other).sum(-1)[:, 1:].mean())


def random_variation(positions: int, counted: np.ndarray | None = None) -> float:
    """Expected `variation` of two random attentions: position n uniform on the n-simplex, independent of the others.

    An entry of a uniform point of the n-simplex has variance (n - 1) / (n^2 (n + 1)), so two differ by
    2 (n - 1) / (n (n + 1)), summed over the counted n of 1 .. positions.

    >>> round(random_variation(20), 4)
    3.386
    """
    n = np.arange(1, positions + 1)
    each = 2 * (n - 1) / (n * (n + 1))
    return float(each.sum() if counted is None else (each * counted).sum(-1).mean())


def random_attention(positions: int, generator: np.random.Generator) -> np.ndarray:
    """One such attention, [T, T]: exponential numbers under the mask, rows divided by their sums."""
    drawn = np.tril(generator.exponential(size=(positions, positions)))
    return drawn / drawn.sum(1, keepdims=True)


def equal_in_function(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs that close more than EQUAL_FUNCTION right within the training length, by seed."""
    return rows[trained_accuracy(rows) > EQUAL_FUNCTION].sort_values("seed")


def where_open(rows: pd.DataFrame) -> np.ndarray:
    """Positions of the probe rows after which a bracket is open, [probe rows, T]: only there must one be found."""
    probe, kinds = int(rows["config.probe_rows"].iloc[0]), int(rows["config.kinds"].iloc[0])
    tokens = np.asarray(rows[TOKENS].iloc[0]).reshape(probe, -1)
    return np.where(tokens == 2 * kinds, 0, np.where(tokens < kinds, 1, -1)).cumsum(-1) > 0


def all_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Of every two of these runs: `variation` over the random baseline, the same where a bracket is open, `moved`."""
    if len(rows) < 2:
        return pd.DataFrame({"variation": [], "open": [], "moved": []}, dtype=float)
    maps, counted = attention_of(rows), where_open(rows)
    every, some = random_variation(maps.shape[-1]), random_variation(maps.shape[-1], counted)
    pairs = []
    for first, second in combinations(maps, 2):
        apart = variation(first, second) / every, variation(first, second, counted) / some
        pairs.append((*apart, moved(first, second)))
    return pd.DataFrame(pairs, columns=["variation", "open", "moved"])


def mask_overlap(rows: pd.DataFrame) -> float:
    """Share of the kept query and key weights of a masked net that another keeps too; its keep_rate if by chance."""
    if KEPT not in rows or len(rows) < 2 or rows[KEPT].isna().any():
        return float("nan")
    kept = np.array([np.asarray(one, dtype=float) for one in rows[KEPT]])
    common = (kept @ kept.T) / kept.sum(1)
    return float(common[~np.eye(len(kept), dtype=bool)].mean())


def disjoint_pairs(rows: pd.DataFrame) -> pd.Series:
    """`variation` over the random baseline of the first and second run, third and fourth, ...: independent numbers."""
    maps, seeds = attention_of(rows), rows["seed"].tolist()
    baseline = random_variation(maps.shape[-1])
    return pd.Series(
        {
            f"{seeds[at]}, {seeds[at + 1]}": variation(maps[at], maps[at + 1]) / baseline
            for at in range(0, len(rows) - 1, 2)
        },
        dtype=float,
    )
