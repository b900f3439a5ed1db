"""When which slot ran what, made from the ledger: a sweep's schedule, and how close it came to the least possible time.

A job holds its slot from its first stage's start to its last one's end. Jobs are put on the slots of their node in the
order of their starts; which of several free slots it was does not matter and is not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from analysis.records import Records, RecordsError

SAME_MOMENT = 0.05  # seconds; starts are recorded to the millisecond: a job may seem to begin before another's end
UNUSED = "never used"
PARTS = ("startup", "train", "evaluation", "checkpoint")


@dataclass(frozen=True)
class Bar:
    """A stage, or a pack of lanes, on its slot: when it began and its seconds by what they went to.

    kind: trunk (several trials share it), branch (one trial's, from a fork), whole (one trial's, from step 0) or pack.
    fresh: whether only fresh seeds of chosen configs needed it. trials: those on whose way it lies.
    """

    job: str
    node: str
    kind: str
    fresh: bool
    start: float
    seconds: Mapping[str, float]
    trials: frozenset[str]
    lanes: int = 1
    slot: int = -1

    @property
    def stop(self) -> float:
        return self.start + sum(self.seconds.values())


@dataclass(frozen=True)
class Session:
    """One run of the command: its slots, its time from the first stage to the last, and what that could have been.

    critical_path: seconds of the longest way of one trial, as far as this run trained it. busy: slot-seconds of jobs.
    """

    start: float
    slots: int
    seconds: float
    busy: float
    critical_path: float

    @property
    def least(self) -> float:
        """What no order of the jobs beats; answers that the search waits for can make it unreachable."""
        return max(self.critical_path, self.busy / self.slots)


@dataclass(frozen=True)
class Schedule:
    """One sweep's. Its sessions follow each other without the pauses between them.

    jobs: (start, stop, slot) of each; rows: the node of each slot; elsewhere: how many stages other sweeps' commands
    trained.
    """

    sweep: str
    bars: tuple[Bar, ...]
    jobs: tuple[tuple[float, float, int], ...]
    rows: tuple[str, ...]
    sessions: tuple[Session, ...]
    elsewhere: int = 0

    @property
    def seconds(self) -> float:
        return sum(session.seconds for session in self.sessions)

    @property
    def critical_path(self) -> float:
        return sum(session.critical_path for session in self.sessions)

    @property
    def work_per_slot(self) -> float:
        return sum(session.busy / session.slots for session in self.sessions)

    @property
    def efficiency(self) -> float:
        """The least possible time over the time that it took."""
        return sum(session.least for session in self.sessions) / self.seconds

    @property
    def busy_share(self) -> float:
        held = sum(session.slots * session.seconds for session in self.sessions)
        return sum(session.busy for session in self.sessions) / held

    def in_words(self) -> str:
        """The schedule in one line."""
        times = f"critical path {self.critical_path:,.0f} s, work / slots {self.work_per_slot:,.0f} s"
        runs = "" if len(self.sessions) == 1 else f" in {len(self.sessions)} runs of the command, pauses left out"
        return (
            f"slots were busy {self.busy_share:.0%} from the first stage to the last, {self.seconds:,.0f} s{runs}: "
            f"{1 / self.efficiency:.2f}x the least possible ({times})"
        )


def schedule_of(records: Records, sweep: str | None = None) -> Schedule:
    """The schedule of a sweep, by default of the only one in these records.

    Raises RecordsError when there are several, or when no stage says which run of the command trained it.
    """
    specs = {str(spec.get("sweep")): spec for spec in records.sweeps}
    if sweep is None and len(specs) != 1:
        raise RecordsError(f"a schedule is one sweep's, these records hold {', '.join(sorted(specs)) or 'none'}")
    spec = specs[sweep or next(iter(specs))]
    slots_of = {session["name"]: int(session["slots"]) for session in spec.get("sessions", ())}
    by_session = _bars(records, str(spec["sweep"]))
    own = sorted((min(bar.start for bar in by_session[name]), name) for name in slots_of if by_session.get(name))
    if not own:
        raise RecordsError(f"no stage of {spec['sweep']} says which run of its command trained it; run it again")
    bars: list[Bar] = []
    jobs: list[tuple[float, float, int]] = []
    sessions: list[Session] = []
    rows: list[str] = []
    for first, name in own:
        before = sum(session.seconds for session in sessions)
        mine = _on_slots([replace(bar, start=bar.start - first + before) for bar in by_session[name]], rows)
        slot_of = {bar.job: bar.slot for bar in mine}
        held = [(start, stop, slot_of[job]) for job, (start, stop, _) in _held(mine).items()]
        busy, slots = sum(stop - start for start, stop, _ in held), max(slots_of[name], len(set(slot_of.values())))
        sessions.append(Session(before, slots, max(bar.stop for bar in mine) - before, busy, _longest_way(mine)))
        bars, jobs = bars + mine, jobs + held
    idle = max(session.slots for session in sessions) - len(rows)
    elsewhere = sum(len(many) for name, many in by_session.items() if name not in slots_of)
    rows += [UNUSED] * idle
    return Schedule(str(spec["sweep"]), tuple(bars), tuple(jobs), tuple(rows), tuple(sessions), elsewhere)


def _bars(records: Records, sweep: str) -> dict[str, list[Bar]]:
    """Session -> the executed stages of a sweep, the lanes of a pack as one. Their starts are seconds since 1970."""
    if "trials" not in records.ledger.column_names:
        raise RecordsError("the ledger lacks the column 'trials', which says whose way a stage lies on")
    phases = records.trials.select(["trial", "phase"]).to_pylist()
    fresh = {row["trial"] for row in phases if row["phase"] == "confirm"}
    stages: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for place, row in enumerate(records.ledger.to_pylist()):
        if row["sweep"] == sweep:
            alone = place if (row["lanes"] or 1) == 1 else None
            stages.setdefault((row["session"] or "", row["job"], row["started_at"], alone), []).append(row)
    by_session: dict[str, list[Bar]] = {}
    for (session, *_), members in stages.items():
        by_session.setdefault(session, []).append(_bar(members, fresh))
    return by_session


def _bar(members: Sequence[Mapping[str, Any]], fresh: set[str]) -> Bar:
    """A stage, or the lanes of a pack, whose seconds are shares of the pack's."""
    first = members[0]
    trials = frozenset(str(trial) for member in members for trial in member["trials"])
    kind = "trunk" if len(trials) > 1 else "branch" if first["from_step"] else "whole"
    return Bar(
        job=str(first["job"]),
        node=first["node"] or "",
        kind=kind if (first["lanes"] or 1) == 1 else "pack",
        fresh=trials <= fresh,
        start=datetime.fromisoformat(str(first["started_at"])).timestamp(),
        seconds={part: sum(member[f"{part}_seconds"] or 0.0 for member in members) for part in PARTS},
        trials=trials,
        lanes=len(members),
    )


def _held(bars: Sequence[Bar]) -> dict[str, tuple[float, float, str]]:
    """Job -> when it began, when it ended, on which node: the order is that of their starts."""
    held: dict[str, tuple[float, float, str]] = {}
    for bar in sorted(bars, key=lambda bar: bar.start):
        start, stop, node = held.get(bar.job, (bar.start, bar.stop, bar.node))
        held[bar.job] = (start, max(stop, bar.stop), node)
    return held


def _on_slots(bars: Sequence[Bar], rows: list[str]) -> list[Bar]:
    """The bars of a session, each on the first slot of its node that was free when its job began.

    `rows`, the node of each slot, grows where all are taken.
    """
    free_at: dict[int, float] = {}
    slots: dict[str, int] = {}
    for job, (start, stop, node) in _held(bars).items():
        free = (row for row in range(len(rows)) if rows[row] == node and free_at.get(row, start) <= start + SAME_MOMENT)
        slot = next(free, len(rows))
        if slot == len(rows):
            rows.append(node)
        slots[job], free_at[slot] = slot, stop
    return [replace(bar, slot=slots[bar.job]) for bar in bars]


def _longest_way(bars: Sequence[Bar]) -> float:
    """Seconds of the stages on the way of one trial, of the trial that takes longest."""
    ways: dict[str, float] = {}
    for bar in bars:
        for trial in bar.trials:
            ways[trial] = ways.get(trial, 0.0) + bar.stop - bar.start
    return max(ways.values(), default=0.0)
