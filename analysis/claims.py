"""Claims: declared before the run, decided from the tables as reproduced, contradicted or undecided.

A statistic gives one number per root; a claim says on which side of its margin the mean lies. Where a claim has several
parts (budgets), it holds only if every part holds: its p value is the largest (intersection-union). The p values for
all claims of a study are Holm-corrected together, those against them likewise, so that each kind of error stays at 5 %.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis import tables
from analysis.choice import Choice, choose, single_regime, trial_frame
from analysis.records import Records, RecordsError
from analysis.stats import MIN_ROOTS, Direction, Interval, claim_p, finite, holm, rate_p, t_interval, wilson

ALPHA = 0.05
Verdict = Literal["reproduced", "contradicted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """What is expected, from where, and how it will be decided. Its `hash` is kept with the sweep."""

    id: str
    text: str
    source: str  # where the expectation comes from
    statistic: str  # a name in the table of statistics
    direction: Direction  # the mean is less / greater than `margin`, or equal to 0 within it
    margin: float  # nats per token unless the statistic says otherwise
    seeds: Literal["fresh", "any"]  # "any": the statistic chooses nothing on these seeds' report data
    condition: Mapping[str, Any] = field(default_factory=dict)  # filter on trials
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the statistic
    command: str = ""  # what makes the trials it needs; not part of the hash

    def __post_init__(self) -> None:
        if self.direction not in ("less", "greater", "equal"):
            raise ValueError(f"claim {self.id}: direction must be less, greater or equal, got {self.direction!r}")
        if self.direction == "equal" and self.margin <= 0:
            raise ValueError(f"claim {self.id}: equality needs a margin above 0, got {self.margin}")
        if self.seeds not in ("fresh", "any"):
            raise ValueError(f"claim {self.id}: seeds must be fresh or any, got {self.seeds!r}")

    @property
    def hash(self) -> str:
        """SHA-256 of all that decides, first 16 hex digits."""
        content = {k: v for k, v in asdict(self).items() if k != "command"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:16]

    def declared(self) -> dict[str, Any]:
        """The claim as a sweep keeps it in `sweep.json`, hash included."""
        return {**asdict(self), "hash": self.hash}


@dataclass(frozen=True)
class Observation:
    """What a statistic saw: one number per root (rows) and part (columns), or why there is none.

    A part whose numbers are lower bounds cannot show that its mean is less than a margin, nor one of upper bounds that
    it is greater. `unfit` forbids every decision, `exploratory` none.
    """

    parts: pd.DataFrame
    edges: tuple[str, ...] = ()  # optima at the end of their space, with the words that widen it
    missing: str = ""  # what trials are not there
    exploratory: str = ""  # a remark that goes with the decision
    binary: bool = False  # the numbers are 0 and 1, and their mean is a rate
    lower_bounds: frozenset[str] = frozenset()  # parts with numbers that are at least what stands there
    upper_bounds: frozenset[str] = frozenset()  # parts with numbers that are at most what stands there
    unfit: str = ""  # why these numbers cannot decide: trials that would have mattered were lost


@dataclass(frozen=True)
class Evidence:
    """What the statistics read: the distinct trials of one regime, its choices and its curves."""

    records: Records
    frame: pd.DataFrame  # see choice.trial_frame
    choices: Mapping[tuple[str, int], Choice]  # by method and budget; empty for the statistics of a Reading
    seeds: str  # "fresh" | "any"

    @classmethod
    def of(cls, records: Records, chosen: bool = True) -> Evidence:
        """Evidence of all trials, with each method's choices where `chosen`; freshness is judged before any filter."""
        choices = {}
        if chosen and len(records):
            choices = {(str(c.group[0]), c.budget): c for c in choose(records, "method")}
        frame = trial_frame(records).drop(columns=["report/document_losses", "error", "name", "varying"])
        return cls(records, frame, choices, "any")

    def final(self, choice: Choice) -> pd.Series:
        """Report loss by seed of a chosen config, on the claim's seeds."""
        rows = self.frame[(self.frame["config_id"] == choice.config_id) & np.isfinite(self.frame["report"])]
        if self.seeds == "fresh":
            rows = rows[rows["fresh"]]
        return rows.set_index("seed")["report"]


Statistic = Callable[..., Observation]


@dataclass(frozen=True)
class Decision:
    """A claim after the run. Estimate and interval are of the part that decides it (the weakest)."""

    claim: Claim
    verdict: Verdict
    p_value: float | None  # Holm-corrected, of the side decided (for the claim while undecided)
    estimate: float | None
    interval: Interval | None
    part: str  # the part the estimate is of
    parts: Mapping[str, float]  # part -> mean over roots
    roots: int
    scale: str
    regime: Mapping[str, Any]  # parameters, tokens (largest budget), tokens_per_parameter, study, data_sha
    looks: int  # how often the sweeps of these records were decided on
    declared: bool  # the hash was in sweep.json before
    why: str  # for "undecided": why, and the way out


def decide(
    claims: Sequence[Claim], records: Records, statistics: Mapping[str, Statistic] | None = None
) -> list[Decision]:
    """Decide `claims` on `records`; all claims given are corrected together.

    Without statistics of one's own (the schedules of `analysis.wsd_claims`) the records must hold one regime. Those of
    a `Reading` tell its problems apart themselves.
    """
    regime = _regimes(records) if statistics is not None else _regime(records)
    every = Evidence.of(records, chosen=statistics is None)
    if statistics is None:
        from analysis.wsd_claims import STATISTICS

        statistics = STATISTICS
    unknown = sorted({c.statistic for c in claims} - set(statistics))
    if unknown:
        raise RecordsError(f"no statistic {', '.join(unknown)}; there are {', '.join(statistics)}")
    evidence = {seeds: replace(every, seeds=seeds) for seeds in ("fresh", "any")}
    observed = [_observe(claim, evidence[claim.seeds], statistics) for claim in claims]
    hashes = {
        entry.get("hash") for spec in records.sweeps for entry in spec.get("claims") or () if isinstance(entry, dict)
    }
    looks = sum(int(spec.get("looks", 1)) for spec in records.sweeps) or 1
    decisions = []
    for claim, seen, ruling in zip(claims, observed, rule(claims, observed), strict=True):
        values = finite(seen.parts[ruling.part].to_numpy()) if ruling.part else np.array([])
        decision = Decision(
            claim,
            ruling.verdict,
            ruling.p_value,
            estimate=float(values.mean()) if len(values) else None,
            interval=_interval(values, seen.binary),
            part=ruling.part,
            parts={str(c): float(seen.parts[c].mean()) for c in seen.parts},
            roots=ruling.roots,
            scale=regime["scale"],
            regime=regime,
            looks=looks,
            declared=claim.hash in hashes,
            why="; ".join(filter(None, [ruling.why, seen.exploratory])),
        )
        decisions.append(decision)
    return decisions


@dataclass(frozen=True)
class Ruling:
    """The verdict on one claim among those it was corrected with."""

    verdict: Verdict
    p_value: float | None
    part: str
    roots: int
    why: str


def rule(claims: Sequence[Claim], observed: Sequence[Observation]) -> list[Ruling]:
    """Verdicts on what was observed, Holm-corrected over all claims that can be tested."""
    judged = [_judge(claim, seen) for claim, seen in zip(claims, observed, strict=True)]
    testable = [i for i, (_, why) in enumerate(judged) if not why]
    corrected_for = dict(zip(testable, holm([judged[i][0].p_for for i in testable]), strict=True))
    corrected_against = dict(zip(testable, holm([judged[i][0].p_against for i in testable]), strict=True))
    rulings = []
    for i, (claim, (test, why)) in enumerate(zip(claims, judged, strict=True)):
        p, against = corrected_for.get(i), corrected_against.get(i)
        if p is not None and p <= ALPHA:
            rulings.append(Ruling("reproduced", p, test.weakest, test.roots, why))
        elif against is not None and against <= ALPHA:
            rulings.append(Ruling("contradicted", against, test.worst, test.roots, why))
        else:
            unclear = f"{test.roots} roots do not tell it from its margin {claim.margin:g}; more would: seeds=N"
            rulings.append(Ruling("undecided", p, test.weakest, test.roots, why or test.bounded or unclear))
    return rulings


def decisions_table(decisions: Sequence[Decision], format: str = "text") -> str:
    """Decisions as "text", "markdown" or "latex", with the scale and regime they hold for, and why not."""
    header = ["claim", "verdict", "estimate", "95 % interval", "margin", "p (Holm)", "roots", "looks", "declared"]
    signs = {"less": "<", "greater": ">", "equal": "±"}
    rows = []
    for d in decisions:
        estimate = "" if d.estimate is None else f"{d.estimate:+.4g}" + (f" ({d.part})" if len(d.parts) > 1 else "")
        margin = f"{signs[d.claim.direction]} {d.claim.margin:g}"
        p = "" if d.p_value is None else f"{d.p_value:.2g}"
        cells = [d.claim.id, d.verdict, estimate, str(d.interval or ""), margin, p, str(d.roots), str(d.looks)]
        rows.append([*cells, "before" if d.declared else "after"])
    lines = [tables.render(header, rows, format), ""]
    mark = {"latex": "% ", "markdown": "- "}.get(format, "")
    if decisions:
        r = decisions[0].regime
        lines.append(f"{mark}scale {r['scale']}: {_problem(r)}")
    for d in decisions:
        lines.append(f"{mark}{d.claim.id}: {d.claim.text} ({d.claim.source})" + (f" -- {d.why}" if d.why else ""))
    return "\n".join(lines)


def _problem(regime: Mapping[str, Any]) -> str:
    if "problems" in regime:
        return f"{regime['problems']} problems that differ in size or data"
    ratio = regime["tokens_per_parameter"]
    return (
        f"{regime['parameters'] or 'unknown'} parameters, up to {regime['tokens']} tokens, "
        f"{'unknown' if ratio is None else f'{ratio:.3g}'} tokens per parameter"
    )


@dataclass(frozen=True)
class _Test:
    p_for: float = 1.0
    p_against: float = 1.0
    weakest: str = ""
    worst: str = ""
    roots: int = 0
    bounded: str = ""  # why a side could not be tested


def _observe(claim: Claim, evidence: Evidence, statistics: Mapping[str, Statistic]) -> Observation:
    try:
        records, frame = evidence.records, evidence.frame
        for name, wanted in claim.condition.items():
            allowed = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]
            frame = frame[frame[records.column(name)].isin(allowed)]
        if frame.empty:
            return Observation(pd.DataFrame(), missing="no trial meets its condition")
        return statistics[claim.statistic](
            Evidence(records, frame, evidence.choices, evidence.seeds), **claim.arguments
        )
    except RecordsError as error:
        return Observation(pd.DataFrame(), missing=str(error))


def _judge(claim: Claim, seen: Observation) -> tuple[_Test, str]:
    """The tests of a claim before correction, and why it cannot be decided, if so."""
    if seen.missing or seen.parts.empty:
        way = f"; `{claim.command}` makes them" if claim.command else ""
        return _Test(), f"the trials it needs are missing: {seen.missing or 'no roots'}{way}"
    roots = int(seen.parts.notna().sum().min())
    pairs = {str(c): _p_values(claim, seen, str(c)) for c in seen.parts}
    weakest = max(pairs, key=lambda c: (pairs[c][0], -abs(seen.parts[c].mean() - claim.margin)))
    worst = min(pairs, key=lambda c: pairs[c][1])
    against = min(1.0, pairs[worst][1] * len(pairs))
    test = _Test(pairs[weakest][0], against, weakest, worst, roots, _bounded(claim, seen))
    if roots < MIN_ROOTS:
        kind = "fresh seeds" if claim.seeds == "fresh" else "seeds"
        return test, f"it has {roots} of the {MIN_ROOTS} {kind} a decision needs: `{claim.command} seeds=5`"
    if seen.unfit:
        return test, seen.unfit
    if seen.edges:
        return test, "an optimum lies at the edge of its space: " + "; ".join(seen.edges)
    return test, ""


def _p_values(claim: Claim, seen: Observation, part: str) -> tuple[float, float]:
    """(p for the claim, p against it) of one part; 1 for the side that bounds cannot show."""
    values = seen.parts[part].to_numpy(dtype=float)
    p_for, p_against = (rate_p if seen.binary else claim_p)(values, claim.direction, claim.margin)
    low, high = part in seen.lower_bounds, part in seen.upper_bounds
    if claim.direction == "equal":
        return (1.0, 1.0) if low or high else (p_for, p_against)
    hides_for, hides_against = (low, high) if claim.direction == "less" else (high, low)
    return 1.0 if hides_for else p_for, 1.0 if hides_against else p_against


def _bounded(claim: Claim, seen: Observation) -> str:
    low, high = ([str(c) for c in seen.parts if c in bounds] for bounds in (seen.lower_bounds, seen.upper_bounds))
    hiding = {"less": low, "greater": high}.get(claim.direction, [*low, *high])
    return f"only a bound is known of {', '.join(dict.fromkeys(hiding))}, and it favours the claim" if hiding else ""


def _interval(values: np.ndarray, binary: bool) -> Interval | None:
    """Of a mean Student's, of a rate Wilson's; None below three values."""
    if not binary:
        return t_interval(values)
    return wilson(int(values.sum()), len(values)) if len(values) >= MIN_ROOTS else None


def _regimes(records: Records) -> dict[str, Any]:
    """One regime in words as `_regime` gives it; of several, what they have in common."""
    regimes = records.regimes()
    if len(regimes) == 1:
        return _regime(records)
    common = {key: value for key, value in (regimes or ({},))[0].items() if len({one[key] for one in regimes}) == 1}
    scale = ", ".join(sorted(set(records.to_pandas()["scale"].dropna()))) or "unknown"
    lacking = dict.fromkeys(("parameters", "tokens", "tokens_per_parameter"))
    return {**lacking, **common, "scale": scale, "problems": len(regimes)}


def _regime(records: Records) -> dict[str, Any]:
    regime = single_regime(records)
    frame = records.to_pandas()
    tokens = frame["budget_tokens"].max()
    tokens = None if pd.isna(tokens) else int(tokens)
    parameters = None if regime["parameters"] is None else int(regime["parameters"])
    scale = ", ".join(sorted(set(frame["scale"].dropna()))) or "unknown"
    ratio = tokens / parameters if tokens and parameters else None
    return {**regime, "scale": scale, "parameters": parameters, "tokens": tokens, "tokens_per_parameter": ratio}
