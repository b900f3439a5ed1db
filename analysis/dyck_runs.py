"""The runs of bracket-reading nets that count: arms, chosen configs, and how far attention varies within an arm.

Each run stores the attention of its last block on probe rows that are the same for all runs of one language, so that
runs can be compared two by two. The random baseline is attention drawn uniformly among all that a causal mask allows.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.choice import best_config, declared_range, edges_of, trial_frame
from analysis.claims import Evidence
from analysis.records import Records, RecordsError

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


class Runs(NamedTuple):
    """The runs that count, each of its arm's chosen config (`arm` names it), and what became of others."""

    rows: pd.DataFrame
    edges: tuple[str, ...]
    lost: str  # arms without such a run, and how many runs did not end


def runs_of(evidence: Evidence) -> Runs:
    """The runs that may decide a claim. Raises RecordsError where there are none."""
    frame = named(evidence.records, evidence.frame)
    own = of_chosen_configs(frame)
    own = own[own["fresh"]] if evidence.seeds == "fresh" else own
    rows = own[own["status"] == "complete"]
    if rows.empty:
        raise RecordsError("no run on fresh seeds has ended; run the sweep with seeds=3 or more")
    edges = [
        edge.words
        for arm, config in rows[["arm", "config_id"]].drop_duplicates().itertuples(index=False)
        for edge in edges_of(evidence.records, frame[frame["arm"] == arm], config)
    ]
    without = [arm for arm in frame["arm"].unique() if arm not in set(rows["arm"])]
    lost = [f"no run of a chosen config ended on the seeds that decide: {', '.join(without)}"] if without else []
    if gone := len(own) - len(rows):
        lost.append(f"{gone} of {len(own)} runs diverged or did not end: what is left may be the better ones")
    return Runs(rows, tuple(dict.fromkeys(edges)), "; ".join(lost))


def chosen(records: Records) -> pd.DataFrame:
    """The runs of the chosen configs that ended: on fresh seeds, or on those that chose where there are none."""
    rows = of_chosen_configs(named(records, trial_frame(records)))
    ended = rows[rows["status"] == "complete"]
    if ended.empty:
        raise RecordsError("no run has ended, or no config on all its tuning seeds")
    return ended[ended["fresh"]] if ended["fresh"].any() else ended


def of_chosen_configs(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of the config that the tuning seeds choose for each arm."""
    groups = [same[same["config_id"] == best_config(same)] for _, same in frame.groupby("arm", sort=False)]
    return pd.concat(groups) if groups else frame


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
