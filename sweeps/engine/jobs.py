"""Which items go into the next job. Pure: it knows items, kept states and slots, not Ray."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sweeps.engine.plan import Item, Plan, items
from sweeps.engine.store import Commit
from sweeps.engine.worker import Job, longest_first

SMALLEST_JOB_STEPS = 100  # below, a job costs more than it parallelises
RETRIES = 2  # of an item whose process died


@dataclass
class Queue:
    """Items that wait, and jobs that run. Trunks go first, then what their forks made ready, longest first.

    No job is longer than total / (4 x slots) steps, so that the last ones end together, except where one path is.
    """

    slots: int
    waiting: list[Item] = field(default_factory=list)
    running: dict[str, Job] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    started: int = 0
    longest: float = SMALLEST_JOB_STEPS

    def offer(self, plan: Plan) -> None:
        """Replace what waits by what a new plan wants and no running job is on."""
        self.longest = max(plan.steps_to_run / (4 * self.slots), SMALLEST_JOB_STEPS)
        self.waiting = [item for tree in plan.trees for item in items(tree, self.longest)]

    def take(self, state_of: Callable[[Item], Commit | None], gone: Iterable[str] = ()) -> Job | None:
        """The next job from items whose start is there: step 0, or a state that `state_of` finds."""
        ready = longest_first([item for item in self.waiting if item.start_key is None or state_of(item) is not None])
        if not ready:
            return None
        taken: list[Item] = []
        for item in ready:
            if not taken or sum(other.steps for other in taken) + item.steps <= self.longest:
                taken.append(item)
        for item in taken:
            self.waiting.remove(item)
        self.started += 1
        starts = tuple((item, None if item.start_key is None else state_of(item)) for item in taken)
        job = Job(f"job-{self.started:04d}", starts)
        self.running[job.name] = job
        return job

    def ended(self, name: str) -> Job:
        return self.running.pop(name)

    def may_retry(self, item: Item) -> bool:
        """Count a death of the process that ran this item; False when it has died too often."""
        self.deaths[item.branch.key] = self.deaths.get(item.branch.key, 0) + 1
        return self.deaths[item.branch.key] <= RETRIES
