"""The trials of `rnn_retrieval` that count: those of the rate that tuning seeds choose for each problem and model.

A problem is a task of a length, with its values and its body; a net is a model of a size, trained for a budget.
"""

from __future__ import annotations

import pandas as pd

from analysis import chosen_runs
from analysis.choice import Edge, edges_of, trial_frame
from analysis.chosen_runs import Runs, column, runs_of
from analysis.claims import Evidence
from analysis.records import Records

RECURRENT = ("gru", "lstm", "ssm")
ACCURACY, LOSS_FALL = "report/accuracy", "report/loss_fall"
RECALLED = 0.95  # accuracy above which a net is said to recall (ours)
PLATEAU_NATS = 0.02  # the most that the loss falls over the last quarter of a training that has come to rest (ours)
NEAR_BEST = 0.02  # of select accuracy: rates that differ by less are not told apart (ours)
FAR_BELOW = 1 / 16  # of a state's bits: what a control may demand of it at most (ours)

_READ_BY = {  # fields that only some tasks read, with short names
    "values": ("recall", "index", "counting", "grams"),
    "questions": ("recall", "index", "counting", "grams"),
    "stacked": ("recall",),
    "gram": ("grams",),
    "graph": ("istree",),
    "body": ("istree",),
}
_SHORT = {"length": "n", "values": "v", "questions": "q", "gram": "c", "stacked": "stacked", "train_rows": "rows"}
_SHORT |= {"budget_steps": "B"}
PROBLEM = ("task", "length", "values", "questions", "stacked", "gram", "graph", "body", "train_rows")
NET = ("model", "size", "positions", "embedding", "budget_steps")
_ARM = ("problem", "net")


def judged(evidence: Evidence) -> Runs:
    """The trials that may decide, with their problem, net, kind and accuracy."""
    return runs_of(evidence, named(evidence.frame), _ARM)


def edges(seen: Runs, rows: pd.DataFrame) -> tuple[str, ...]:
    """The words that widen the space where the config of one of these rows lies at its end and that matters."""
    found: list[str] = []
    for (problem, net), own in rows.groupby(list(_ARM), sort=False):
        among = seen.among[(seen.among["problem"] == problem) & (seen.among["net"] == net)]
        found += [edge.words for edge in edges_that_matter(seen.records, among, own["config_id"].iloc[0])]
    return tuple(dict.fromkeys(found))


def edges_that_matter(records: Records, rows: pd.DataFrame, config: str) -> list[Edge]:
    """Edges of a choice but for those where a value inside the range is as good, within 0.02 of select accuracy."""
    tune = rows[rows["phase"] == "tune"]
    means = tune.groupby("config_id")["select"].mean()
    near = tune[tune["config_id"].isin(means.index[means <= means[config] + NEAR_BEST])]
    found = []
    for edge in edges_of(records, rows, config):
        inside = near[f"config.{edge.axis}"].between(min(edge.tried), max(edge.tried), inclusive="neither")
        if not inside.any():
            found.append(edge)
    return found


def chosen(records: Records) -> pd.DataFrame:
    """The trials of the chosen configs: on fresh seeds, or on those that chose them where there are none."""
    return chosen_runs.chosen(records, named(trial_frame(records)), _ARM)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with each trial's problem, net, kind and accuracy in columns of their own."""
    problem = _names(frame, PROBLEM, always=("task", "length"))
    without = _names(frame, tuple(name for name in PROBLEM if name != "length"), always=("task",))
    return frame.assign(
        problem=problem,
        family=without,  # a problem without its length: what grows
        net=_names(frame, NET, always=("model",)),
        sizes=_names(frame, NET[1:]),
        model=frame["config.model"],
        length=frame["config.length"].astype(int),
        recurrent=frame["config.model"].isin(RECURRENT),
        accuracy=column(frame, ACCURACY).astype(float),
    )


def _names(frame: pd.DataFrame, fields: tuple[str, ...], always: tuple[str, ...] = ()) -> pd.Series:
    """A short name of these fields for each trial: those of `always`, and those that tell trials of a task apart."""
    names = pd.Series([""] * len(frame), index=frame.index)
    for field in fields:
        values = column(frame, f"config.{field}")
        read = column(frame, "config.task").isin(_READ_BY.get(field, tuple(column(frame, "config.task").unique())))
        if field not in always and values[read].nunique(dropna=False) <= 1:
            continue
        label = f"{_SHORT[field]}=" if field in _SHORT else ""
        names = names.where(~read, names + " " + label + values.map(_text))
    return names.str.strip()


def _text(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def beyond(rows: pd.DataFrame) -> pd.Series:
    """Which trials demand at least as many bits as the net's state has past the prompt."""
    return column(rows, "required_bits").astype(float) >= column(rows, "state_bits").astype(float)


def far_below(rows: pd.DataFrame) -> pd.Series:
    """Which trials demand so few bits that the state is no excuse: controls."""
    return column(rows, "required_bits").astype(float) <= FAR_BELOW * column(rows, "state_bits").astype(float)


def excuse(row: pd.Series, rows: pd.DataFrame) -> str:
    """Why low accuracy of a recurrent net on a problem says nothing about its memory; empty where it does.

    `row` is of `arms`, `rows` all judged trials: the control is the same net on a problem far below its state.
    """
    if not row["beyond"]:
        return f"its state of {row['state_bits']:.0f} bits has room for the {row['required_bits']:.0f} required"
    fall = float(row["loss_fall"])
    if not fall <= PLATEAU_NATS:
        return f"its loss still fell by {fall:.2g} nats over the last quarter"
    control = rows[(rows["net"] == row["net"]) & far_below(rows)]
    if control.empty:
        return f"it has no control that requires at most {FAR_BELOW:.3g} of its state's bits"
    if control["accuracy"].mean() <= RECALLED:
        return f"it also fails on its control ({control['accuracy'].mean():.2f})"
    return ""


def arms(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per problem and net: means over seeds of what was measured, and what was demanded."""
    means = {"accuracy": "accuracy", "loss_fall": LOSS_FALL, "token_accuracy": "report/token_accuracy"}
    means |= {"match": "report/match", "before_error": "report/before_error", "chance": "chance", "ceiling": "ceiling"}
    means |= {"state_bits": "state_bits", "required_bits": "required_bits", "parameters": "parameters"}
    means |= {"flops": "flops_nominal"}
    found = []
    for _, same in rows.groupby(["problem", "net"], sort=False):
        first = same.iloc[0]
        row = {name: first[name] for name in ("problem", "family", "net", "model", "sizes", "length", "recurrent")}
        row |= {name: float(column(same, source).astype(float).mean()) for name, source in means.items()}
        row |= {"beyond": bool(beyond(same).all()), "seeds": len(same), "values": same["accuracy"].tolist()}
        row["rate"] = float(column(same, "config.learning_rate").astype(float).mean())
        found.append(row)
    return pd.DataFrame(found)
