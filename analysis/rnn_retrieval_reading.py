"""What the runs of `rnn_retrieval` say about arXiv:2402.18510: claims, statistics and the summary.

Accuracy is that of generated answers, on fresh seeds, at the learning rate that the tuning seeds chose for each model
and problem. That a state is too small is only said where the bits are missing, training has come to rest, and the same
net answers a control far below its state; otherwise a net that fails has learned more slowly, and no more is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import rnn_retrieval_plots
from analysis.chosen_runs import Runs, column
from analysis.claims import Claim, Evidence, Observation
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.rnn_retrieval_runs import (
    PROBLEM,
    RECALLED,
    arms,
    beyond,
    chosen,
    edges,
    excuse,
    far_below,
    judged,
)
from analysis.stats import Direction, t_interval

_MAIN = "python sweeps/rnn_retrieval.py"
_PAPER = "arXiv:2402.18510, abstract (task sizes, models and margin are ours)"
_RECALL = {"task": "recall"}
_TREE = {"task": "istree"}
_CLOSED = 0.02  # of accuracy: a gap as small as this counts as closed (ours)
_FAR = 0.1  # of accuracy below the ceiling: more than bits is missing (ours)
_FALL = 0.1  # of accuracy, from the shortest texts to the longest: as much counts as a fall (ours)


def _gap(
    id: str, text: str, ours: Sequence[str], theirs: Sequence[str], direction: Direction, margin: float,
) -> Claim:  # fmt: skip
    """A claim on the difference of accuracy between two (kind of net, body) on the same graphs."""
    return Claim(
        id, text, _PAPER, "gap", direction, margin, "fresh", _TREE,
        {"ours": list(ours), "theirs": list(theirs)}, f"{_MAIN} preset=istree scale=gpu",
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "R1", "Where recall takes more bits than its state has, a recurrent net stays below 0.95.", _PAPER,
        "accuracy_beyond", "less", RECALLED, "fresh", _RECALL, {"recurrent": True}, _MAIN,
    ),
    Claim(
        "R2", "On the same problems Transformers and hybrids of as many parameters are above 0.95.",
        _PAPER, "accuracy_beyond", "greater", RECALLED, "fresh", _RECALL, {"recurrent": False}, _MAIN,
    ),
    Claim(
        "R3", "The control: where recall takes 1/16 of its state at most, a recurrent net is above 0.95.", "ours",
        "accuracy_of_controls", "greater", RECALLED, "fresh", _RECALL, command=_MAIN,
    ),
    Claim(
        "R4", "A recurrent net's accuracy falls by over 0.1 from the shortest texts to the longest.", _PAPER,
        "fall_with_length", "greater", _FALL, "fresh", {}, {"recurrent": True}, f"{_MAIN} preset=lengths",
    ),
    Claim(
        "R5", "That of Transformers and hybrids does not (it changes by less than 0.02).", _PAPER,
        "fall_with_length", "equal", _CLOSED, "fresh", {}, {"recurrent": False}, f"{_MAIN} preset=lengths",
    ),
    _gap("R6", "Is a graph a tree? A written search (CoT) makes recurrent nets better.",
         ("recurrent", "cot"), ("recurrent", "none"), "greater", 0.0),
    _gap("R7", "It does not close the gap: with it they stay over 0.02 below a Transformer with it.",
         ("recurrent", "cot"), ("transformer", "cot"), "less", -_CLOSED),
    _gap("R8", "Retrieval closes it: recurrent nets that search come within 0.02 of a Transformer with CoT.",
         ("recurrent", "retrieval"), ("transformer", "cot"), "equal", _CLOSED),
    _gap("R9", "One attention block closes it: hybrids with CoT come within 0.02 of a Transformer with CoT.",
         ("hybrid", "cot"), ("transformer", "cot"), "equal", _CLOSED),
)  # fmt: skip


def accuracy_beyond(evidence: Evidence, recurrent: bool) -> Observation:
    """Accuracy by seed, problem and net where a recurrent net's state has fewer bits than are required.

    Of recurrent nets that of those whose state is so small; of the others that on the same problems. What an excuse is
    known for decides nothing.
    """
    seen = judged(evidence)
    short = seen.rows["recurrent"] & beyond(seen.rows)
    if not short.any():
        raise RecordsError("no recurrent net's state has fewer bits than its problem requires")
    if not recurrent:
        rows = seen.rows[~seen.rows["recurrent"] & seen.rows["problem"].isin(seen.rows.loc[short, "problem"])]
        return _observed(seen, rows)
    rows = seen.rows[short]
    table = arms(rows)
    excuses = {f"{row['net']} on {row['problem']}": excuse(row, seen.rows) for _, row in table.iterrows()}
    unfit = "; ".join(f"{arm} learned more slowly, and no more is known: {why}" for arm, why in excuses.items() if why)
    below = [f"{row['accuracy']:.3g} where {row['ceiling']:.3g} is possible" for _, row in table.iterrows()]
    return _observed(seen, rows, unfit, f"accuracy {', '.join(below)}")


def accuracy_of_controls(evidence: Evidence) -> Observation:
    """Accuracy of recurrent nets by seed, problem and net where little of their state is required."""
    seen = judged(evidence)
    rows = seen.rows[seen.rows["recurrent"] & far_below(seen.rows)]
    tested = set(seen.rows.loc[seen.rows["recurrent"] & beyond(seen.rows), "net"])
    rows = rows[rows["net"].isin(tested)]
    if rows.empty:
        raise RecordsError("no recurrent net has both a problem beyond its state and one far below it")
    return _observed(seen, rows)


def fall_with_length(evidence: Evidence, recurrent: bool) -> Observation:
    """Accuracy at the shortest texts minus that at the longest, by seed, kind of problem and net."""
    seen = judged(evidence)
    parts, used = {}, []
    mine = seen.rows[seen.rows["recurrent"] == recurrent]
    for (family, net), same in mine.groupby(["family", "net"], sort=False):
        by_length = {int(str(length)): rows.set_index("seed")["accuracy"] for length, rows in same.groupby("length")}
        if len(by_length) > 1:
            short, long = min(by_length), max(by_length)
            parts[f"{family} {net} n={short} to {long}"] = by_length[short] - by_length[long]
            used.append(same[same["length"].isin([short, long])])
    if not parts:
        raise RecordsError("no net has been asked about texts of two lengths that are alike in all else")
    return _with(seen, pd.concat(used), pd.DataFrame(parts).dropna())


def gap(evidence: Evidence, ours: Sequence[str], theirs: Sequence[str]) -> Observation:
    """Accuracy of one (kind of net, body) minus another's on the same graphs, by seed, graphs and pair of models."""
    seen = judged(evidence)
    sides = []
    for kind, body in (ours, theirs):
        rows = seen.rows[(column(seen.rows, "config.body") == body) & _kind(seen.rows, kind)]
        if rows.empty:
            raise RecordsError(f"no {kind} net has run with body={body}")
        sides.append(rows)
    graphs = [f"config.{name}" for name in PROBLEM if name != "body" and f"config.{name}" in seen.rows]
    keys = [*graphs, "sizes"]
    parts = {}
    for (model, *_), mine in sides[0].groupby(["model", *keys], sort=False, dropna=False):
        for other, yours in sides[1].groupby("model", sort=False):
            same = yours.merge(mine[keys].drop_duplicates(), on=keys)
            if same.empty or (ours[0] == theirs[0] and other != model):
                continue
            first = mine.iloc[0]
            name = (
                f"{first['config.graph']} n={first['length']} {model} {ours[1]} - {other} {theirs[1]} {first['sizes']}"
            )
            parts[name.strip()] = mine.set_index("seed")["accuracy"] - same.set_index("seed")["accuracy"]
    if not parts:
        raise RecordsError("no graphs were met by both sides")
    return _with(seen, pd.concat(sides), pd.DataFrame(parts).dropna())


def _kind(rows: pd.DataFrame, kind: str) -> pd.Series:
    kinds = {"recurrent": rows["recurrent"], "transformer": rows["model"] == "transformer"}
    return kinds[kind] if kind in kinds else ~rows["recurrent"] & (rows["model"] != "transformer")


def _observed(seen: Runs, rows: pd.DataFrame, unfit: str = "", remark: str = "") -> Observation:
    parts = rows.assign(part=rows["problem"] + " " + rows["net"])
    table = parts.pivot_table(index="seed", columns="part", values="accuracy", aggfunc="first", sort=False)
    return _with(seen, rows, table, unfit, remark)


def _with(seen: Runs, rows: pd.DataFrame, parts: pd.DataFrame, unfit: str = "", remark: str = "") -> Observation:
    """What was observed of these rows; optima of others at the edge of their space do not matter."""
    reasons = "; ".join(filter(None, [unfit, seen.lost]))
    return Observation(parts, edges(seen, rows), exploratory=remark, unfit=reasons)


def summary(records: Records) -> pd.DataFrame:
    """The table at the end of a sweep: a row per problem and net, and what a recurrent net's accuracy says."""
    rows = chosen(records)
    table = arms(rows)
    ends = [t_interval(values) for values in table["values"]]
    verdicts = []
    for _, row in table.iterrows():
        why = excuse(row, rows) if row["recurrent"] and row["accuracy"] <= RECALLED else None
        low = "; far below what they allow" if row["accuracy"] < row["ceiling"] - _FAR else ""
        verdicts.append("" if why is None else "learned more slowly" if why else f"bits are missing{low}")
    return pd.DataFrame(
        {
            "problem": table["problem"],
            "net": table["net"],
            "parameters": table["parameters"].astype(int),
            "rate": table["rate"].map("{:.2g}".format),
            "state bits": table["state_bits"].astype(int),
            "required": table["required_bits"].round(1),
            "ceiling": table["ceiling"].round(3),
            "chance": table["chance"].round(3),
            "seeds": table["seeds"],
            "accuracy": table["accuracy"].round(3),
            "95 %": ["" if one is None else f"[{one.low:.3f}, {one.high:.3f}]" for one in ends],
            "match": table["match"].round(3),
            "loss fall": table["loss_fall"].round(4),
            "said": verdicts,
        }
    )


READING = Reading(
    claims=CLAIMS,
    statistics={
        "accuracy_beyond": accuracy_beyond,
        "accuracy_of_controls": accuracy_of_controls,
        "fall_with_length": fall_with_length,
        "gap": gap,
    },
    figures={
        "accuracy": rnn_retrieval_plots.plot_accuracy,
        "lengths": rnn_retrieval_plots.plot_lengths,
        "state": rnn_retrieval_plots.plot_state,
        "compute": rnn_retrieval_plots.plot_compute,
    },
    summary=summary,
)
