"""The frontier: what loss each method reaches per budget, and what that costs.

The config of a point is chosen on `select` data with tuning seeds; its value is the mean `report` loss over fresh
seeds, and is marked where there are none. Bands are t intervals over roots, differences to the
reference are paired by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import tables
from analysis.choice import Choice, Edge, choose, group_columns, single_regime, trial_frame
from analysis.records import COSTS, Records, RecordsError
from analysis.stats import Interval, cost_to_reach, t_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = (*COSTS, "device_seconds_alone")
_BESIDES = ("report/bits_per_byte", "report/document_losses")


@dataclass(frozen=True)
class FrontierPoint:
    """One group at one budget. Losses in nats per token, cost in the unit of the frontier's x."""

    group: tuple[Any, ...]
    budget: int  # steps
    cost: float | None
    config: str  # tuned fields of the chosen config
    loss: float  # mean report loss
    interval: Interval | None  # over roots; None below three
    roots: int
    fresh: bool  # False: no fresh seeds, the value is of the seeds that chose
    bits_per_byte: float | None  # mean over the same trials, where text is involved
    select: float  # mean select loss on tuning seeds
    difference: float | None  # loss minus the reference's at this budget, paired by seed
    difference_interval: Interval | None
    pairs: int
    documents_interval: Interval | None  # of the same difference, over documents, for these seeds
    documents: int
    multiplier: float | None  # cost at which the reference reaches this loss / this cost
    multiplier_bound: str  # "=", or ">" and "<" outside the reference's range
    choice: Choice
    notes: tuple[str, ...]

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Chosen values at the end of what was searched."""
        return self.choice.edges


@dataclass(frozen=True)
class Effort:
    """What the tuning of one group took."""

    group: tuple[Any, ...]
    trials: int
    proposals: int
    executed_steps: int | None  # from the ledger; a stage that two groups share counts for both
    counts: Mapping[str, int]  # status -> tuning trials
    unfresh: int  # confirm trials whose seed had been a tuning seed


@dataclass(frozen=True)
class Frontier:
    """Points by group and budget, the tuning effort behind them, and all that must be said beside them."""

    points: tuple[FrontierPoint, ...]
    efforts: tuple[Effort, ...]
    x: str
    by: tuple[str, ...]
    reference: tuple[Any, ...] | None
    report: str
    scale: str
    regime: Mapping[str, Any]
    notes: tuple[str, ...]

    def groups(self) -> list[tuple[Any, ...]]:
        """The groups in the order of their first points."""
        return list(dict.fromkeys(point.group for point in self.points))

    def to_pandas(self) -> pd.DataFrame:
        """One row per point, plain columns."""
        return pd.DataFrame([self._row(point) for point in self.points])

    def table(self, format: str = "text", notes: bool = True) -> str:
        """The frontier as "text", "markdown" or "latex", followed by tuning effort and notes."""
        reference = " ".join(map(str, self.reference or ("reference",)))
        header = [
            "budget",
            *self.by,
            "config",
            self.x,
            self.report,
            "bits/byte",
            "roots",
            f"vs {reference}",
            "over documents",
        ]
        header += [f"{reference} cost x", "tried", "edge"]
        body = tables.render(header, [self._cells(point) for point in self.points], format)
        if not notes:
            return body
        lines = [f"tuning of {_effort_text(effort)}" for effort in self.efforts]
        mark = "% " if format == "latex" else "- " if format == "markdown" else ""
        return "\n".join([body, "", *(mark + line for line in [*lines, *self.notes])])

    def plot(self) -> Figure:
        """This frontier as one panel."""
        from analysis.plots import plot_frontier

        return plot_frontier(self)

    def _row(self, point: FrontierPoint) -> dict[str, Any]:
        def ends(name: str, interval: Interval | None) -> dict[str, float | None]:
            low, high = (None, None) if interval is None else (interval.low, interval.high)
            return {f"{name}_low": low, f"{name}_high": high}

        return {
            **dict(zip(self.by, point.group, strict=True)),
            "budget_steps": point.budget,
            self.x: point.cost,
            "config": point.config,
            "loss": point.loss,
            **ends("loss", point.interval),
            "roots": point.roots,
            "fresh": point.fresh,
            "bits_per_byte": point.bits_per_byte,
            "select": point.select,
            "difference": point.difference,
            **ends("difference", point.difference_interval),
            "pairs": point.pairs,
            **ends("documents", point.documents_interval),
            "documents": point.documents,
            "multiplier": point.multiplier,
            "multiplier_bound": point.multiplier_bound,
            "trials_tried": point.choice.tried,
            "proposals": point.choice.proposals,
            **{status: point.choice.counts.get(status, 0) for status in ("diverged", "failed", "pruned", "pending")},
            "at_edge": "; ".join(map(str, point.edges)),
            "best_of_k": list(point.choice.best_of),
            "config_json": point.choice.config_id,
            "notes": "; ".join(point.notes),
        }

    def _cells(self, point: FrontierPoint) -> list[str]:
        def signed(value: float | None, interval: Interval | None) -> str:
            return "" if value is None else f"{value:+.4f}" + _reach(value, interval)

        roots = f"{point.roots} fresh" if point.fresh else f"{point.roots} tuning"
        bound = "" if point.multiplier_bound == "=" else point.multiplier_bound
        lost = sum(point.choice.counts.get(status, 0) for status in ("diverged", "failed"))
        return [
            str(point.budget),
            *map(str, point.group),
            point.config,
            "" if point.cost is None else f"{point.cost:.4g}",
            f"{point.loss:.4f}" + _reach(point.loss, point.interval),
            "" if point.bits_per_byte is None else f"{point.bits_per_byte:.4f}",
            roots,
            signed(point.difference, point.difference_interval),
            "" if point.documents_interval is None else str(point.documents_interval),
            "" if point.multiplier is None else f"{bound}{point.multiplier:.2f}",
            str(point.choice.tried) + (f" ({lost} lost)" if lost else ""),
            "; ".join(f"{edge.axis} {edge.side}" for edge in point.edges),
        ]


def frontier(
    records: Records, x: str = "flops_nominal", by: str | Sequence[str] = "method", reference: Any = "cosine"
) -> Frontier:
    """The frontier of one regime: per group (columns or config fields `by`) and budget, the chosen config's loss.

    `x` is one of AXES; `reference` is the group that differences and compute multipliers refer to. Several regimes are
    refused (see `frontiers`), as are device seconds of several device types.
    """
    if x not in AXES:
        raise RecordsError(f"no cost axis {x!r}; there are {', '.join(AXES)}")
    regime = single_regime(records)
    names = group_columns(records, by)
    choices = choose(records, by)
    frame = trial_frame(records)
    sign = 1 if records.metric("report")[1] == "min" else -1
    notes = [*records.notes]
    if x == "device_seconds_alone":
        devices = sorted(set(frame["device"].dropna()))
        if len(devices) > 1:
            raise RecordsError(f"device seconds of {', '.join(devices)} do not compare; filter with where(device=...)")
    if choices and frame[x].isna().all():
        why = "it is measured by a dedicated run only" if x.startswith("device") else "these sweeps did not record it"
        raise RecordsError(f"the cost column {x} is empty: {why}; take another of {', '.join(AXES)}")

    wanted = tuple(reference) if isinstance(reference, tuple | list) else (reference,)
    has_reference = any(choice.group == wanted for choice in choices)
    if not has_reference:
        notes.append(f"no {' '.join(map(str, wanted))} among the groups: no differences and no compute multipliers")
    used = ["config_id", "budget_steps", "fresh", "status", "phase", "seed", "root", "report", x, *_BESIDES]
    finals = {(c.group, c.budget): _final_trials(frame[used], c) for c in choices}
    costs = {key: _mean(trials[x]) for key, (trials, _, _) in finals.items()}
    curve = [
        (cost, finals[key][0]["report"].mean())
        for key, cost in costs.items()
        if key[0] == wanted and cost is not None and np.isfinite(finals[key][0]["report"].mean())
    ]
    points = []
    for choice in sorted(choices, key=lambda c: (c.budget, c.group != wanted, str(c.group))):
        key = (choice.group, choice.budget)
        trials, fresh, remarks = finals[key]
        values = trials.groupby("root", dropna=False)["report"].mean().to_numpy(dtype=float)
        complete = values[np.isfinite(values)]
        loss = float(complete.mean()) if len(complete) else float("inf")
        multiplier, bound = None, "="
        cost = costs[key]
        if has_reference and cost and curve and np.isfinite(loss):
            reached, bound = cost_to_reach(loss, *zip(*curve, strict=True))
            multiplier = reached / cost
        other = finals.get((wanted, choice.budget))
        pair = _paired(trials, other[0], sign) if other and choice.group != wanted else (None, None, 0, None, 0)
        bits = _mean(trials.loc[np.isfinite(trials["report"]), "report/bits_per_byte"])
        interval = t_interval(sign * values) if len(complete) == len(values) else None
        point = FrontierPoint(
            choice.group, choice.budget, cost, choice.label, sign * loss, interval, len(complete), fresh,
            bits, sign * choice.select, *pair, multiplier, bound, choice, (*choice.notes, *remarks),
        )  # fmt: skip
        points.append(point)
        title = f"{' '.join(map(str, choice.group))} at {choice.budget} steps"
        notes += [f"{title}: {note}" for note in point.notes]
        notes += [f"{title}: {edge}; widen with {edge.words}" for edge in choice.edges]
    notes += _without_choice(frame, names, choices)
    efforts, unattributed = _efforts(records, frame, names)
    if unattributed:
        notes.append(f"{unattributed:,} executed steps end where no trial was measured, and are in no method's sum")
    if points and not any(point.fresh for point in points):
        notes.append("no fresh seeds yet: every value is of the seeds that chose the config")
    scale = ", ".join(sorted(set(frame["scale"].dropna()))) or "unknown"
    group_names = tuple(name.removeprefix("config.") for name in names)
    return Frontier(
        tuple(points), efforts, x, group_names, wanted if has_reference else None,
        records.metric("report")[0], scale, regime, tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def frontiers(records: Records, **options: Any) -> list[Frontier]:
    """One frontier per regime in these records."""
    return [frontier(records.in_regime(regime), **options) for regime in records.regimes()]


def _final_trials(frame: pd.DataFrame, choice: Choice) -> tuple[pd.DataFrame, bool, list[str]]:
    """The trials that give the value of a choice, whether they are fresh, and what must be said about them."""
    same = frame[(frame["config_id"] == choice.config_id) & (frame["budget_steps"] == choice.budget)]
    fresh = same[same["fresh"] & ~same["status"].isin(["pending", "pruned"])]
    notes = []
    if fresh["status"].eq("complete").any():
        lost = fresh[fresh["status"] != "complete"]
        if len(lost):
            states = ", ".join(f"{n} {state}" for state, n in lost["status"].value_counts().items())
            notes.append(f"of {len(fresh)} fresh seeds {states}: the mean is over the others, so no interval")
        return fresh, True, notes
    if len(fresh):
        notes.append(f"none of {len(fresh)} fresh seeds completed: the value is of the tuning seeds")
    tuning = same[(same["phase"] == "tune") & same["seed"].isin(choice.seeds)]
    return tuning, False, notes


def _paired(
    mine: pd.DataFrame, theirs: pd.DataFrame, sign: int
) -> tuple[float | None, Interval | None, int, Interval | None, int]:
    """Mean difference over common seeds, its interval over roots and their number; the same over documents."""
    both = mine.merge(theirs, on="seed", suffixes=("", "_reference"))
    both = both[np.isfinite(both["report"]) & np.isfinite(both["report_reference"])]
    if both.empty:
        return None, None, 0, None, 0
    differences = sign * (both["report"] - both["report_reference"]).to_numpy()
    documents = _document_differences(both)
    over_documents = None if documents is None else t_interval(documents)
    count = 0 if documents is None else len(documents)
    return float(differences.mean()), t_interval(differences), len(differences), over_documents, count


def _document_differences(both: pd.DataFrame) -> np.ndarray | None:
    """Per-document loss difference, averaged over seeds, shape `[documents]`; None where documents do not match."""
    name = "report/document_losses"
    mine, theirs = both[name].tolist(), both[f"{name}_reference"].tolist()
    rows = [
        (a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    ]
    if not rows or len({len(v) for pair in rows for v in pair}) != 1:
        return None
    return np.mean([a.astype(float) - b.astype(float) for a, b in rows], axis=0)


def _efforts(records: Records, frame: pd.DataFrame, names: list[str]) -> tuple[tuple[Effort, ...], int]:
    """Tuning effort per group, and the executed steps that could not be given to any.

    A stage belongs to the groups whose trials pass through it: as its column `trials` says, else by its end state.
    """
    states = pd.concat([records.to_pandas("measurements")[["sweep", "trial", "key"]], frame[["sweep", "trial", "key"]]])
    owners = frame[["sweep", "trial", "phase", *names]]
    ledger = records.to_pandas("ledger")
    if "trials" in ledger:
        stages = ledger[["sweep", "stage", "trials"]].explode("trials")
        states = pd.concat([states, stages.rename(columns={"trials": "trial", "stage": "key"})])
    passing = states.dropna().drop_duplicates().merge(owners, on=["sweep", "trial"])
    known = ledger["stage"].isin(passing["key"])
    unattributed = int(ledger.loc[~known, "executed_steps"].sum())
    ledger = ledger.drop_duplicates(["sweep", "stage", "started_at", "from_step"])
    tuned = passing[passing["phase"] == "tune"]
    efforts = []
    for key, rows in frame.groupby(names, sort=True, dropna=False):
        group = tuple(key)
        mine = tuned[(tuned[names] == list(group)).all(axis=1)]
        steps = int(ledger.loc[ledger["stage"].isin(mine["key"]), "executed_steps"].sum()) if len(ledger) else None
        tune = rows[rows["phase"] == "tune"]
        proposals = tune[["cell", "proposal"]].dropna(subset="proposal").drop_duplicates()
        counts = {str(status): int(n) for status, n in tune["status"].value_counts().items()}
        unfresh = int(((rows["phase"] == "confirm") & ~rows["fresh"]).sum())
        efforts.append(Effort(group, len(tune), len(proposals) or tune["config_id"].nunique(), steps, counts, unfresh))
    return tuple(efforts), unattributed


def _without_choice(frame: pd.DataFrame, names: list[str], choices: list[Choice]) -> list[str]:
    chosen = {(c.group, c.budget) for c in choices}
    notes = []
    for key, rows in frame[frame["phase"] == "tune"].groupby([*names, "budget_steps"], sort=True, dropna=False):
        if (tuple(key[:-1]), int(str(key[-1]))) not in chosen:
            states = ", ".join(f"{n} {state}" for state, n in rows["status"].value_counts().items())
            notes.append(f"{' '.join(map(str, key[:-1]))} at {key[-1]} steps: no point, no trial completed ({states})")
    return notes


def _effort_text(effort: Effort) -> str:
    states = ", ".join(f"{n} {state}" for state, n in effort.counts.items())
    steps = "" if effort.executed_steps is None else f", executed steps {effort.executed_steps:,}"
    unfresh = f"; {effort.unfresh} confirm trials are not fresh" if effort.unfresh else ""
    group = " ".join(map(str, effort.group))
    return f"{group}: proposals {effort.proposals}, trials {effort.trials} ({states}){steps}{unfresh}"


def _reach(value: float, interval: Interval | None) -> str:
    return "" if interval is None else f" ± {(interval.high - interval.low) / 2:.4f}"


def _mean(values: pd.Series) -> float | None:
    return None if values.isna().all() else float(values.mean())
