"""How long a plan takes on so many slots: the queue run in simulated time. Pure."""

import heapq
from dataclasses import dataclass

from sweeps.engine.items import Item, in_walk_order, work_of
from sweeps.engine.jobs import Queue
from sweeps.engine.plan import Plan


@dataclass(frozen=True)
class Expected:
    """A plan's schedule in numbers, all but `jobs` in the queue's measure of work, which a slot's speed makes seconds.

    makespan: from the first job's start to the last one's end. critical_path: the longest chain of stages, which no
    number of slots shortens.
    """

    jobs: int
    makespan: float
    critical_path: float
    work: float
    slots: int

    @property
    def least(self) -> float:
        """What no order of the work can beat."""
        return max(self.critical_path, self.work / self.slots)


def expected_schedule(plan: Plan, slots: int) -> Expected:
    """The plan as the queue hands it out when every stage takes its work's time, and nothing else takes any.

    Forks make their branches ready when they are committed, not when their job ends.
    """
    work = {n.key: work_of(tree.study, tree.root, n) for tree in plan.trees for n in tree.nodes() if n.runs}
    queue = Queue(slots)
    queue.offer(plan)
    coming = {stage.key for item in queue.waiting for stage in item.branch.stages() if stage.keep}
    events: list[tuple[float, str, str]] = []  # (when, the job that ends then or "", the state that is kept then)

    def ready(item: Item) -> bool:
        return item.start_key not in coming

    now = 0.0
    while True:
        while len(queue.running) < slots and (taken := queue.pick(ready)):
            job, then = queue.begin([(item, None) for item in taken]), now
            for item in taken:
                for stage in in_walk_order(item.branch):
                    then += work[stage.key]
                    if stage.keep:
                        heapq.heappush(events, (then, "", stage.key))
            heapq.heappush(events, (then, job.name, ""))
        if not events:
            return Expected(queue.started, now, critical_path(plan, work), sum(work.values()), slots)
        now = events[0][0]
        while events and events[0][0] <= now:
            _, ended, kept = heapq.heappop(events)
            coming.discard(kept)
            if ended:
                queue.ended(ended)


def critical_path(plan: Plan, work: dict[str, float]) -> float:
    """The most work on the way of one trial. `work`: of the stages that run, by key."""
    longest = 0.0
    for tree in plan.trees:
        before = {id(top): 0.0 for top in tree.tops}
        for node in tree.nodes():
            through = before[id(node)] + work.get(node.key, 0.0)
            longest = max(longest, through)
            before.update({id(child): through for child in node.children})
    return longest
