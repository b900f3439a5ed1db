"""Which items go into the next job. Pure: it knows items, kept states and slots, not Ray."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from sweeps.engine.items import Item, items
from sweeps.engine.plan import Plan
from sweeps.engine.store import Commit
from sweeps.engine.worker import Job, longest_first

SMALLEST_JOB_STEPS = 100  # below, a job costs more than it parallelises
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
    """Items that wait, and jobs that run. Trunks go first, then what their forks made ready, longest first.

    No job is longer than total / (4 x slots) steps, so that the last ones end together, except where one path is.
    Lanes of equal shape are dealt out in even shares, which the worker cuts into packs.
    """

    slots: int
    waiting: list[Item] = field(default_factory=list)
    running: dict[str, Job] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    started: int = 0
    longest: float = SMALLEST_JOB_STEPS
    shares: dict[Any, int] = field(default_factory=dict)

    def offer(self, plan: Plan) -> None:
        """Replace what waits by what a new plan wants and no running job is on."""
        self.longest = max(plan.steps_to_run / (4 * self.slots), SMALLEST_JOB_STEPS)
        self.waiting = [item for tree in plan.trees for item in items(tree, self.longest)]
        self.shares = lane_shares(self.waiting, self.slots)

    def take(self, state_of: Callable[[Item], Commit | None]) -> Job | None:
        """The next job from items whose start is there: step 0, or a state that `state_of` finds."""
        ready = longest_first([item for item in self.waiting if item.start_key is None or state_of(item) is not None])
        if not ready:
            return None
        taken = self._lanes(ready) if ready[0].shape is not None else self._walks(ready)
        gone = {id(item) for item in taken}
        self.waiting = [item for item in self.waiting if id(item) not in gone]
        self.started += 1
        starts = tuple((item, None if item.start_key is None else state_of(item)) for item in taken)
        job = Job(f"job-{self.started:04d}", starts)
        self.running[job.name] = job
        return job

    def _walks(self, ready: list[Item]) -> list[Item]:
        taken, steps = ready[:1], ready[0].steps
        for item in ready[1:]:
            if steps + item.steps <= self.longest:
                taken.append(item)
                steps += item.steps
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

    def may_retry(self, item: Item) -> bool:
        """Count a death of the process that ran this item; False when it has died too often."""
        self.deaths[item.branch.key] = self.deaths.get(item.branch.key, 0) + 1
        return self.deaths[item.branch.key] <= RETRIES
