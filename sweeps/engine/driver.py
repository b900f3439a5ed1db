"""What runs next, and what became of it. The driver knows trials, plans and the store; it does not know Ray.

An executor asks `next_job` for work, tells `heard` what its jobs commit and `ended` when they end. In between the
driver settles trials, tells the tuning what they found and plans what that asks for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.engine.items import Item
from sweeps.engine.jobs import Queue
from sweeps.engine.pending import Forks, Pending
from sweeps.engine.plan import Known, Plan, Trial, plan
from sweeps.engine.store import Commit, DamagedStore, Index, Store
from sweeps.engine.worker import Job, Told
from trainables.study import FusedStudy, Row


@dataclass(eq=False)
class Entry:
    """A trial of this sweep and what became of it.

    phase: "tune" (its select metric guides the search) or "confirm" (a chosen config on a fresh seed).
    values: its cell's, its proposal's and its enumerated values.
    keep: whether the states at its full measurements stay in the store.
    status: pending, complete, diverged or failed.
    """

    trial: Trial
    phase: str
    cell: str
    proposal: int | None
    values: Mapping[str, object]
    keep: bool = False
    status: str = "pending"
    error: str | None = None
    rows: list[Row] = field(default_factory=list)
    commit: Commit | None = None  # of the stage that it ends with

    @property
    def result(self) -> Row | None:
        """The measurement at the trial's end; None unless it is complete."""
        return self.rows[-1] if self.status == "complete" else None


class Tuning(Protocol):
    """Where trials come from: see `sweeps.engine.tuning`."""

    def advance(self) -> list[Entry]:
        """Entries to add now, given how all earlier ones stand; an empty list when it waits or has finished."""

    @property
    def finished(self) -> bool: ...


class Watcher(Protocol):
    """Who is told what happens: the display, the mirror in MLflow."""

    def planned(self, driver: "Driver", new: Plan) -> None: ...
    def committed(self, commit: Commit, rows: list[Row]) -> None: ...
    def settled(self, entry: Entry) -> None: ...
    def job_started(self, job: Job) -> None: ...
    def job_began(self, job: Job) -> None: ...
    def job_ended(self, job: Job, error: str | None) -> None: ...


@dataclass
class Promised:
    """What is known, and what the running jobs are about to make known."""

    index: Index
    points: dict[str, bool]
    states: dict[str, dict[str, int]]

    def measured(self, key: str) -> bool | None:
        there, coming = self.index.measured(key), self.points.get(key)
        return coming if there is None else there or bool(coming)

    def finite(self, key: str) -> bool:
        return key not in self.index.rows or self.index.finite(key)

    def kept(self, root_key: str) -> Mapping[str, int]:
        return {**self.index.kept(root_key), **self.states.get(root_key, {})}

    def failure(self, key: str) -> str | None:
        return self.index.failure(key)


class Driver:
    """One sweep's state. Not thread-safe: an executor calls it from one thread."""

    def __init__(
        self,
        store: Store,
        tuning: Tuning,
        *,
        slots: int,
        checkpoint_every: int | None = None,
        watchers: Iterable[Watcher] = (),
    ):
        self.store, self.tuning, self.queue = store, tuning, Queue(slots)
        self.index = store.scan()
        self.checkpoint_every = checkpoint_every
        self.watchers = list(watchers)
        self.entries: list[Entry] = []
        self.pending = Pending()
        self.forks = Forks()
        self.session: dict[str, Commit] = {}
        self._done: dict[str, set[str]] = {}  # running job -> the states that it has reached and committed
        self.heard_of = {name.partition("#")[0] for name in self.index.commits}
        self.keep: frozenset[str] = frozenset()
        self._stale = True
        self._lossy: set[str] = set()  # roots on which something was lost since trials were settled

    def start(self) -> None:
        """Take in the first proposals and settle what the store already answers."""
        self._advance()
        if self.finished:
            self._plan()

    @property
    def finished(self) -> bool:
        return not self.queue.running and not self.pending and self.tuning.finished

    @property
    def stuck(self) -> bool:
        """Nothing runs, nothing can start, and yet trials are pending: a fault of the engine's, to be named."""
        return not self.finished and not self.queue.running and not self.queue.waiting

    def waits_for(self) -> str:
        """In words, what an idle slot waits for."""
        if self.queue.running:
            return "waiting for " + ", ".join(sorted(self.queue.running))
        pending = [entry.trial.key[:12] for entry in self.pending.all()]
        return f"nothing runs; pending trials: {', '.join(pending[:5]) or 'none'}"

    def next_job(self) -> Job | None:
        """Work for a free slot; None while everything waits for a running job, or when all is done."""
        self._plan()
        job = self.queue.take(self._state_of)
        if job is not None:
            for watcher in self.watchers:
                watcher.job_started(job)
        return job

    def heard(self, told: Told) -> None:
        """Take in that a job runs, and what it committed or found damaged."""
        if (job := self.queue.running.get(told.began)) is not None:
            for watcher in self.watchers:
                watcher.job_began(job)
        for name in told.damaged:
            commit = self.index.commits[name]
            self.index.states.get(commit.root_key, {}).pop(commit.key, None)
            self._stale = True
        for name in told.committed:
            if name not in self.heard_of:
                self.heard_of.add(name)
                self._take_in(name)
        self._settle()

    def _take_in(self, name: str) -> None:
        try:
            committed = self.store.read(name)
        except DamagedStore:
            self._stale = True  # as if it had never been written; the plan trains it again
            return
        for commit, rows in committed:
            self._add(commit, rows)

    def _add(self, commit: Commit, rows: list[Row]) -> None:
        self.session[commit.name] = commit
        self._done.setdefault(commit.job, set()).add(commit.key)
        self.index.add(commit, rows)
        self.pending.rows_at(row.key for row in rows)
        if commit.status == "failed":
            reason = commit.error or "failed"
            self.index.failures.update((key, reason) for key in commit.lost_keys)
        if commit.status != "complete":
            self._stale = True
            self._lossy.add(commit.root_key)
        for watcher in self.watchers:
            watcher.committed(commit, rows)

    def ended(self, name: str, error: str | None = None, *, preempted: bool = False) -> None:
        """A job ended. With `error` its process died or its disk failed: its items are tried again, then given up.

        `preempted`: its node was taken away, which says nothing about its items: they are tried again without end.
        """
        job = self.queue.ended(name)
        if error is not None:
            self._take_in_unheard()
        unfinished = [(item, keys) for item, _ in job.items if (keys := self._unfinished(item))]
        if error is not None and not preempted:
            for item, keys in self.queue.suspects(unfinished):
                if not self.queue.may_retry(item):
                    self.index.failures.update((key, error) for key in keys)
                    self._lossy.add(item.root_key)
        if error is not None or unfinished:
            self._stale = True  # asked to stop on its way, too, it kept a state there from which others go on
        self._done.pop(name, None)
        for watcher in self.watchers:
            watcher.job_ended(job, error)
        self._settle()
        if self.finished:
            self._plan()
        self._drop_forks()

    def _unfinished(self, item: Item) -> list[str]:
        """What an item was to measure and has not, or only lightly where it was to be in full."""
        points = [point for branch in item.branch.stages() for point in branch.points]
        there = {point: self.index.measured(point.key) for point in points}
        return [point.key for point in points if there[point] is None or (point.full and not there[point])]

    def _take_in_unheard(self) -> None:
        """What a dead process had committed, but could not tell."""
        for name in self.store.names():
            if name not in self.heard_of:
                self.heard_of.add(name)
                self._take_in(name)

    def refresh(self) -> None:
        """Read the store again and settle what it answers: after an interruption, jobs may have committed unheard."""
        self.index = self.store.scan()
        for entry in self.pending.all():
            settle(entry, self.index)
            if entry.status != "pending":
                self.pending.drop(entry)

    def current_plan(self, known: Known | None = None) -> Plan:
        """All trials of this sweep against the store as it stands."""
        trials = [entry.trial for entry in self.entries]
        return plan(trials, known or self.index, self.checkpoint_every, self.keep)

    def _settle(self) -> None:
        """Settle pending trials from the rows that are there; new results may ask for new trials."""
        changed = False
        for entry in self.pending.touched(self._lossy):
            settle(entry, self.index)
            if entry.status != "pending":
                changed = True
                self._settled(entry)
        self._lossy = set()
        if changed:
            self._advance()

    def _settled(self, entry: Entry) -> None:
        self.pending.drop(entry)
        for watcher in self.watchers:
            watcher.settled(entry)

    def _advance(self) -> None:
        while new := self.tuning.advance():
            self.entries += new
            self.keep |= {p.key for entry in new if entry.keep for p in entry.trial.points if p.full}
            self._stale = True
            self.pending.add(new)
            self.forks.grow(entry.trial.root_key for entry in new)
            for entry in new:
                settle(entry, self.index)
                if entry.status != "pending":
                    self._settled(entry)
                elif entry.trial.key in self.index.rows:
                    self.pending.rows_at([entry.trial.key])

    def _plan(self) -> None:
        if not self._stale:
            return
        pending = [entry.trial for entry in self.pending.all()]
        new = plan(pending, self._promised(), self.checkpoint_every, self.keep)
        self.queue.offer(new)
        self._stale = False
        lost = lost_ends(new)
        for entry in self.pending.all() if lost else []:
            reason = lost.get(entry.trial.key)
            if reason is not None:
                entry.status = "diverged" if reason == "diverged" else "failed"
                entry.error, entry.rows = reason, measured_rows(entry.trial, self.index)
                self._settled(entry)
        for watcher in self.watchers:
            watcher.planned(self, new)
        if lost:
            self._advance()
            self._plan()

    def _promised(self) -> Promised:
        points: dict[str, bool] = {}
        states: dict[str, dict[str, int]] = {}
        for job in self.queue.running.values():
            for item, _ in job.items:
                for branch in item.branch.stages():
                    points.update((point.key, point.full) for point in branch.points)
                    if branch.keep and branch.key not in self._done.get(job.name, ()):
                        states.setdefault(item.root_key, {})[branch.key] = branch.stop
        return Promised(self.index, points, states)

    def _state_of(self, item: Item) -> Commit | None:
        return self.index.states.get(item.root_key, {}).get(item.start_key or "")

    def _drop_forks(self) -> None:
        """Delete fork states whose last branch is in, those that an earlier session left behind too.

        Ends of stable stretches and what is to be kept stay, and so does what is not on this sweep's trees. Fresh seeds
        are shared by all cells: their forks wait for the cells that are still being tuned.
        """
        if self.entries and isinstance(self.entries[0].trial.study, FusedStudy):
            return
        if self._stale:
            return
        needed = {item.start_key for item in self.queue.waiting} | set(self._underway())
        shared = set() if self.tuning.finished else {e.trial.root_key for e in self.entries if e.phase == "confirm"}
        for root_key in [root_key for root_key in self.forks.roots if root_key not in shared]:
            states = self.index.states.get(root_key, {})
            over = [key for key in states if key not in needed and key not in self.keep]
            if self.forks.unknown(root_key, over):
                trials = [entry.trial for entry in self.entries if entry.trial.root_key == root_key]
                self.forks.learn(root_key, plan(trials, self.index, self.checkpoint_every, self.keep), states)
            for key in over:
                if self.forks.may_go(root_key, key):
                    self.store.drop_state(states.pop(key))

    def _underway(self) -> Iterator[str | None]:
        """The states from which running jobs would go on if they had to start again now."""
        for job in self.queue.running.values():
            done = self._done.get(job.name, set())
            for item, _ in job.items:
                yield item.start_key
                for branch in item.branch.stages():
                    if branch.key in done and any(child.key not in done for child in branch.children):
                        yield branch.key


def lost_ends(new: Plan) -> dict[str, str]:
    """Keys of the trials that lead through a lost stage -> why it is lost: the first on their way."""
    reasons: dict[str, str] = {}
    for tree in new.trees:
        for node in tree.nodes():
            if node.lost:
                for trial in node.trials:
                    reasons.setdefault(trial.key, node.lost)
    return reasons


def measured_rows(trial: Trial, index: Index) -> list[Row]:
    """A trial's own measurements so far, in order; light ones without what only a full one would carry.

    A fused trial's are all that its lane reported, once it has ended.
    """
    if isinstance(trial.study, FusedStudy):
        way = index.ways.get(trial.root_key, {}) if trial.key in index.rows else {}
        return sorted((index.rows[key] for key in way), key=lambda row: (row.step, row.full))
    rows = []
    for point in trial.points:
        row = index.rows.get(point.key)
        if row is None or (point.full and not row.full):
            break
        if row.full and not point.full:
            light = {name: value for name, value in row.metrics.items() if not name.startswith("report/")}
            row = Row(row.key, row.step, False, light, {}, row.knobs)
        rows.append(row)
    return rows


def settle(entry: Entry, index: Index) -> None:
    """Set an entry's status and rows from what the index holds of its own measurements."""
    rows = measured_rows(entry.trial, index)
    bad = next((place for place, row in enumerate(rows) if not index.finite(row.key)), None)
    failed = next((index.failures[p.key] for p in entry.trial.points if p.key in index.failures), None)
    if bad is not None:
        entry.status, entry.error = "diverged", f"a measured loss is not finite at step {rows[bad].step}"
        rows = rows[: bad + 1]
    elif entry.trial.key in index.rows and len(rows) >= len(entry.trial.points):
        entry.status, entry.error = "complete", None
    elif failed is not None:
        entry.status, entry.error = "failed", failed
    entry.rows = rows
    entry.commit = index.ways.get(entry.trial.root_key, {}).get(entry.trial.key)
