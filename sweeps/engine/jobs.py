"""Which items go into the next job. Pure: it knows items, kept states and slots, not Ray."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from sweeps.engine.items import Item, items, work_of
from sweeps.engine.plan import Plan, Tree
from sweeps.engine.store import Commit
from sweeps.engine.worker import Job

SMALLEST_JOB_STEPS = 100  # of average cost; below, a job costs more than it parallelises
MOST_LANES = 4096  # of one job
APART = 16  # parts of a job whose process died
RETRIES = 2  # of an item whose process died


def lane_shares(items: Sequence[Item], slots: int) -> dict[Any, int]:
    """Shape -> lanes per job: all of it, or even parts of a shape that is more than one slot's share of the steps."""
    lanes = Counter(item.shape for item in items if item.shape is not None)
    steps = {item.shape: item.steps * lanes[item.shape] for item in items if item.shape is not None}
    whole = sum(steps.values()) / slots
    parts = {shape: max(ceil(steps[shape] / whole), ceil(lanes[shape] / MOST_LANES)) for shape in lanes}
    if len(lanes) == 1:
        parts = {shape: max(slots, count) for shape, count in parts.items()}
    return {shape: ceil(lanes[shape] / parts[shape]) for shape in lanes}


@dataclass
class Queue:
    """Items that wait, and jobs that run. What the longest chain of work starts with goes first.

    A slot is never idle while an item is ready, so the time is below that of all work spread evenly plus the longest
    chain (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969). Small items share a job, of at most
    total / (4 x slots) work and of what is ready per slot: the last jobs are small and end together.
    Lanes of equal shape are dealt out in even shares, which the worker cuts into packs.
    """

    slots: int
    waiting: list[Item] = field(default_factory=list)
    running: dict[str, Job] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    deadly: set[str] = field(default_factory=set)  # roots on which a process died: each stage's trial is to die alone
    started: int = 0
    most: float = 0.0  # work of a job of several items
    least: float = 0.0  # below this much work, a job costs more than it parallelises
    shares: dict[Any, int] = field(default_factory=dict)

    def offer(self, plan: Plan) -> None:
        """Replace what waits by what a new plan wants and no running job is on."""
        work = sum(work_of(tree.study, tree.root, node) for tree in plan.trees for node in tree.nodes() if node.runs)
        self.least = SMALLEST_JOB_STEPS * work / max(plan.steps_to_run, 1)
        self.most = max(work / (4 * self.slots), self.least)
        self.waiting = highest_first([item for tree in plan.trees for item in items(tree, self._largest(tree))])
        self.shares = lane_shares(self.waiting, self.slots)

    def take(self, state_of: Callable[[Item], Commit | None]) -> Job | None:
        """The next job from items whose start is there: step 0, or a state that `state_of` finds."""
        starts = {id(item): None if item.start_key is None else state_of(item) for item in self.waiting}
        taken = self.pick(lambda item: item.start_key is None or starts[id(item)] is not None)
        return self.begin([(item, starts[id(item)]) for item in taken]) if taken else None

    def pick(self, ready: Callable[[Item], bool]) -> list[Item]:
        """Take the items of the next job from those that wait and are ready; none while none is."""
        there = [item for item in self.waiting if ready(item)]
        if not there:
            return []
        taken = self._walks(there) if there[0].shape is None else self._lanes(there)
        gone = {id(item) for item in taken}
        self.waiting = [item for item in self.waiting if id(item) not in gone]
        return taken

    def begin(self, starts: Sequence[tuple[Item, Commit | None]]) -> Job:
        self.started += 1
        job = Job(f"job-{self.started:04d}", tuple(starts))
        self.running[job.name] = job
        return job

    def _walks(self, ready: list[Item]) -> list[Item]:
        """The first, and others with it as long as every other free slot still finds work."""
        free = max(0, self.slots - len(self.running) - 1)
        taken, work = ready[:1], ready[0].work
        most = max(min(self.most, sum(item.work for item in ready) / self.slots), self.least)
        for item in ready[1 + free :]:
            if work + item.work <= most:
                taken.append(item)
                work += item.work
        return taken

    def _lanes(self, ready: list[Item]) -> list[Item]:
        """The share of one job among the items of the first one's shape.

        One lane may have killed the process of all: those that died go in smaller jobs, then each alone.
        """
        first = ready[0]
        died = self.deaths.get(first.branch.key, 0)
        alike = [item for item in ready if item.shape == first.shape and self.deaths.get(item.branch.key, 0) == died]
        share = self.shares[first.shape]
        return alike[: share if died == 0 else ceil(share / APART) if died == 1 else 1]

    def ended(self, name: str) -> Job:
        return self.running.pop(name)

    def _largest(self, tree: Tree) -> float:
        """The work of an item that may hold branches. What killed a process fails with what goes on from it alone."""
        return 0.0 if tree.root_key in self.deadly else self.most

    def suspects(self, unfinished: Sequence[tuple[Item, list[str]]]) -> Sequence[tuple[Item, list[str]]]:
        """Those items of a job whose process died that may have killed it: the one it was on, or all of its lanes."""
        return unfinished[:1] if unfinished and unfinished[0][0].shape is None else unfinished

    def may_retry(self, item: Item) -> bool:
        """Count a death of the process that ran this item; False when it has died too often."""
        self.deadly.add(item.root_key)
        self.deaths[item.branch.key] = self.deaths.get(item.branch.key, 0) + 1
        return self.deaths[item.branch.key] <= RETRIES


def highest_first(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: (-item.level, -item.work, item.branch.key))
