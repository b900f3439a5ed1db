"""Replay of successive halving over trunks that were all trained to the end: which loss should judge a rung?

`stable` ranks the trunks of a bracket at each rung by the loss before the decay, `decayed` by the loss after a decay
branch that is trained for the purpose and charged for. The rungs are the budgets. With the steps that `stable` saves it
keeps more trunks per rung, so that both spend about the same. Whatever reaches the last budget is decayed there, and
the best of it on select loss is the pick; regret is the pick's loss minus the best of the bracket.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import tables
from analysis.choice import single_regime, trial_frame
from analysis.curves import split_at_decay
from analysis.records import Records, RecordsError
from analysis.stats import MIN_ROOTS, Interval

RULES = ("stable", "decayed", "random")


@dataclass(frozen=True)
class Trunks:
    """All trunks (proposal x seed) of one decay fraction and shape, trained to every budget."""

    seeds: np.ndarray  # [trunk]
    labels: tuple[str, ...]
    budgets: np.ndarray  # [rung] steps
    decay_steps: np.ndarray  # [rung]
    stable: np.ndarray  # [trunk, rung] select loss at the fork; inf when diverged
    decayed: np.ndarray  # [trunk, rung] select loss after the decay; inf when diverged
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RuleResult:
    """One rule over all brackets."""

    rule: str
    keep: tuple[int, ...]  # trunks trained to each rung
    steps: int  # per bracket, decays at rungs included
    regret: float  # mean, nats per token
    interval: Interval | None  # over roots; None below three
    best_share: float  # brackets in which the best trunk was picked


@dataclass(frozen=True)
class Replay:
    """What each rule would have picked."""

    results: tuple[RuleResult, ...]
    difference: float  # mean regret of stable minus decayed; positive: decayed rungs pick better
    difference_interval: Interval | None
    agreement: tuple[tuple[int, float, float], ...]  # budget, rank correlation with the final loss: stable, decayed
    brackets: int
    arms: int
    trunks: int
    roots: int
    notes: tuple[str, ...]

    def table(self, format: str = "text") -> str:
        """Rules with regret and cost, then how well each rung ranks the trunks."""
        header = [
            "rung judged by",
            "trunks per rung",
            "steps per bracket",
            "regret (nats)",
            "95 % over roots",
            "picks the best",
        ]
        rows = [
            [
                r.rule,
                " > ".join(map(str, r.keep)),
                f"{r.steps:,}",
                f"{r.regret:.4f}",
                str(r.interval or ""),
                f"{r.best_share:.0%}",
            ]
            for r in self.results
        ]
        ranks = ["budget", "rank correlation, stable", "rank correlation, decayed"]
        agreement = [[f"{b:,}", f"{s:.2f}", f"{d:.2f}"] for b, s, d in self.agreement]
        lines = [
            f"regret of stable minus decayed: {self.difference:+.4f} nats {self.difference_interval or ''}".rstrip(),
            f"{self.brackets:,} brackets of {self.arms} from {self.trunks} trunks, {self.roots} roots",
            *self.notes,
        ]
        mark = {"latex": "% ", "markdown": "- "}.get(format, "")
        rendered = tables.render(header, rows, format), tables.render(ranks, agreement, format)
        return "\n\n".join([*rendered, "\n".join(mark + line for line in lines)])


def trunks(records: Records, decay_fraction: float | None = None, decay_shape: str | None = None) -> Trunks:
    """The WSD trunks of the tuning seeds; without a fraction and shape, those that most trials have."""
    single_regime(records)
    found = records.where(method="wsd", phase="tune")
    if not len(found):
        raise RecordsError("replay needs WSD trials of tuning seeds, and there are none; run sweeps/wsd_budget.py")
    frame = trial_frame(found)
    fraction, shape = "config.decay_fraction", "config.decay_shape"
    frame = frame[~frame["status"].isin(["pending", "failed", "pruned"])]
    if decay_fraction is not None:
        frame = frame[np.isclose(frame[fraction].astype(float), decay_fraction)]
    if decay_shape is not None:
        frame = frame[frame[shape] == decay_shape]
    if frame.empty:
        raise RecordsError(f"no WSD trial has decay_fraction={decay_fraction} and decay_shape={decay_shape}")
    commonest = frame.groupby([fraction, shape]).size().idxmax()
    frame = frame[(frame[fraction] == commonest[0]) & (frame[shape] == commonest[1])].copy()  # type: ignore[index]
    frame["trunk"] = [json.dumps({**json.loads(c), "budget_steps": 0}, sort_keys=True) for c in frame["config_id"]]
    curves = found.to_pandas("measurements").merge(frame[["sweep", "trial"]], on=["sweep", "trial"])
    forks = {key: _fork(curve) for key, curve in curves.dropna(subset=["select/loss"]).groupby(["sweep", "trial"])}
    at = [forks.get(key, (np.nan, np.inf)) for key in zip(frame["sweep"], frame["trial"], strict=True)]
    frame["fork"], frame["stable"] = [a for a, _ in at], [b for _, b in at]
    wide = {
        v: frame.pivot_table(index=["trunk", "seed"], columns="budget_steps", values=v, aggfunc="first", dropna=False)
        for v in ("stable", "select")
    }
    ran = frame.assign(ran=1).pivot_table(
        index=["trunk", "seed"], columns="budget_steps", values="ran", aggfunc="first"
    )
    # A diverged trunk has no later rungs; any other gap means it was not trained to the end.
    diverged = frame[frame["status"] == "diverged"].groupby(["trunk", "seed"]).size().reindex(ran.index).notna()
    whole = ran.notna().all(axis=1) | diverged
    notes = [f"decay fraction {commonest[0]:g}, shape {commonest[1]}"]  # type: ignore[index]
    if (~whole).any():
        notes.append(f"{int((~whole).sum())} trunks lack a budget and were left out")
    kept = ran.index[whole]
    budgets = ran.columns.to_numpy(dtype=int)
    decay = frame["budget_steps"] - frame["fork"]
    decay_steps = decay.groupby(frame["budget_steps"]).median().to_numpy()
    labels = tuple(f"{json.loads(t).get('peak_lr')}" for t, _ in kept)
    arrays = [
        table.reindex(kept).reindex(columns=budgets).fillna(np.inf).to_numpy(dtype=float) for table in wide.values()
    ]
    seeds = kept.get_level_values("seed").to_numpy()
    return Trunks(seeds, labels, budgets, decay_steps, arrays[0], arrays[1], tuple(notes))


def replay(
    records: Records,
    brackets: int = 10_000,
    arms: int | None = None,
    eta: int = 2,
    seed: int = 0,
    **which: Any,
) -> Replay:
    """Halving on stable-phase against decayed select loss, at about equal cost, over resampled brackets.

    Brackets are drawn without replacement from the trunks of resampled roots, so the interval (95 %, percentiles) is
    over roots; `random` picks for scale. `which`: decay_fraction, decay_shape.
    """
    pool = trunks(records, **which)
    count, rungs = pool.decayed.shape
    if rungs < 2 or count < 3:
        raise RecordsError(
            f"replay needs two budgets and three trunks, got {rungs} and {count}; add budgets or proposals"
        )
    if np.isnan(pool.decay_steps).any():
        raise RecordsError("replay needs the measurement before each decay, and some budgets have none")
    size = min(8, max(3, count // 2)) if arms is None else arms
    if not 2 <= size <= count:
        raise RecordsError(f"a bracket needs between 2 and {count} arms (the trunks there are), got {size}")
    keep = {"decayed": tuple(max(1, size // eta**i) for i in range(rungs))}
    keep["stable"] = _same_cost(keep["decayed"], bracket_steps(keep["decayed"], pool, "decayed"), pool)
    generator = np.random.default_rng(seed)
    roots = np.unique(pool.seeds)
    outer = min(200, brackets) if len(roots) >= MIN_ROOTS else 1
    regrets: dict[str, np.ndarray] = {rule: np.empty((outer, max(1, brackets // outer))) for rule in RULES}
    for j in range(outer):
        drawn = generator.choice(roots, len(roots)) if outer > 1 else roots
        members = np.concatenate([np.flatnonzero(pool.seeds == root) for root in drawn])
        order = generator.random((regrets["stable"].shape[1], len(members))).argsort(axis=1)[:, :size]
        chosen = members[order]  # [bracket, arm]
        final = pool.decayed[chosen, -1]
        best = final.min(axis=1)
        for rule in RULES:
            picked = chosen[:, 0] if rule == "random" else _picks(chosen, getattr(pool, rule), pool.decayed, keep[rule])
            regrets[rule][j] = pool.decayed[picked, -1] - best
    difference = regrets["stable"] - regrets["decayed"]
    results = tuple(
        RuleResult(
            rule, keep.get(rule, (1,) * rungs), bracket_steps(keep.get(rule, (1,) * rungs), pool, rule),
            _mean(regrets[rule]), _over_roots(regrets[rule]), float((regrets[rule] <= 0).mean()),
        )
        for rule in RULES
    )  # fmt: skip
    usable = np.isfinite(pool.decayed[:, -1])
    agreement = tuple(
        (
            int(b),
            _rank(pool.stable[usable, i], pool.decayed[usable, -1]),
            _rank(pool.decayed[usable, i], pool.decayed[usable, -1]),
        )
        for i, b in enumerate(pool.budgets)
    )
    notes = list(pool.notes)
    if len(roots) < MIN_ROOTS:
        notes.append(f"{len(roots)} roots: no interval below {MIN_ROOTS}")
    lost = int((~np.isfinite(regrets["random"])).sum())
    if lost:
        notes.append(f"{lost} of {regrets['random'].size} random picks had diverged; means are over finite regrets")
    return Replay(
        results,
        difference=_mean(difference),
        difference_interval=_over_roots(difference),
        agreement=agreement,
        brackets=difference.size,
        arms=size,
        trunks=count,
        roots=len(roots),
        notes=tuple(notes),
    )


def bracket_steps(keep: Sequence[int], pool: Trunks, rule: str) -> int:
    """Steps one bracket trains: trunks up to each rung's fork, and the decays that the rule needs.

    `stable` and `random` decay only what reaches the last rung.
    """
    forks = pool.budgets - pool.decay_steps
    trunk_steps = np.diff(forks, prepend=0) @ np.asarray(keep)
    decays = pool.decay_steps * np.asarray(keep)
    return round(float(trunk_steps + (decays.sum() if rule == "decayed" else decays[-1])))


def _same_cost(keep: tuple[int, ...], steps: int, pool: Trunks) -> tuple[int, ...]:
    """The costliest way to halve by stable loss that stays within `steps` and keeps at least `keep` per rung."""
    options = product(*(range(k, keep[0] + 1) for k in keep[1:]))
    ways = [(keep[0], *rest) for rest in options]
    allowed = [w for w in ways if all(a >= b for a, b in pairwise(w))]
    affordable = [w for w in allowed if bracket_steps(w, pool, "stable") <= steps]
    return max(affordable, key=lambda w: (bracket_steps(w, pool, "stable"), w[::-1]))


def _picks(chosen: np.ndarray, score: np.ndarray, decayed: np.ndarray, keep: Sequence[int]) -> np.ndarray:
    """The trunk that each bracket ends with: `chosen` [bracket, arm], `score` [trunk, rung]."""
    alive = chosen
    for rung, nxt in enumerate(keep[1:]):
        ranks = score[alive, rung].argsort(axis=1, kind="stable")[:, :nxt]
        alive = np.take_along_axis(alive, ranks, axis=1)
    last = decayed[alive, -1].argmin(axis=1)
    return alive[np.arange(len(alive)), last]


def _over_roots(values: np.ndarray) -> Interval | None:
    if len(values) < 2:
        return None
    means = pd.DataFrame(values).where(np.isfinite(values)).mean(axis=1).dropna()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(stats.spearmanr(a[both], b[both]).statistic) if both.sum() > 2 else float("nan")


def _fork(curve: pd.DataFrame) -> tuple[float, float]:
    stem, _ = split_at_decay(curve.sort_values("step"))
    return (np.nan, np.inf) if stem.empty else (float(stem["step"].iloc[-1]), float(stem["select/loss"].iloc[-1]))
