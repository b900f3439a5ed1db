"""What a plan will cost: jobs, seconds, disk. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import median
from typing import Any

from sweeps.engine.items import Item, worth_keeping
from sweeps.engine.jobs import Queue
from sweeps.engine.plan import Plan
from sweeps.engine.store import Index

ASSUMED_FLOPS_PER_SECOND = {"cpu": 25e9, "gpu": 150e12}  # per slot, until something was measured here
ASSUMED_FLOPS_PER_SECOND_IN_LANES = {"cpu": 2e9, "gpu": 200e9}  # the same of lanes, whose steps are small
STATE_BYTES_PER_PARAMETER = 12  # weights and two moments, fp32
ROW_BYTES = 4_000  # a stage's manifest and rows


@dataclass(frozen=True)
class Estimate:
    """The first lines of a plan in numbers. `measured`: the speed comes from this store, else from an assumption."""

    trials: int
    jobs: int
    stages: int
    steps_alone: int
    steps_shared: int
    steps_to_run: int
    steps_retrained: int
    seconds: float
    measured: bool
    disk_bytes: float

    @property
    def saving(self) -> float:
        return self.steps_alone / max(self.steps_shared, 1)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "saving": self.saving}


def estimate(plan: Plan, index: Index, slots: int, device: str) -> Estimate:
    """Jobs as the queue would pack them, seconds at the speed measured in this store, bytes of rows and lasting states.

    Forks lie on the disk besides, until their last branch is in.
    """
    queue = Queue(slots)
    queue.offer(plan)
    work, states = 0.0, 0.0
    for tree in plan.trees:
        units = tree.study.units(tree.root)
        running = [node for node in tree.nodes() if node.runs]
        work += units.get("flops", 0.0) * sum(node.steps for node in running)
        lasting = sum(not node.has_state and (node.keep or worth_keeping(node)) for node in running)
        states += lasting * STATE_BYTES_PER_PARAMETER * units.get("parameters", 0)
    speed = measured_speed(plan, index)
    fused = any(item.shape is not None for item in queue.waiting)
    assumed = ASSUMED_FLOPS_PER_SECOND_IN_LANES if fused else ASSUMED_FLOPS_PER_SECOND
    return Estimate(
        trials=plan.trials,
        jobs=count_lane_jobs(queue) if fused else count_jobs(queue.waiting, queue.longest),
        stages=plan.stages,
        steps_alone=plan.steps_alone,
        steps_shared=plan.steps_shared,
        steps_to_run=plan.steps_to_run,
        steps_retrained=plan.steps_retrained,
        seconds=work / (speed or assumed[device]) / slots,
        measured=speed is not None,
        disk_bytes=states + ROW_BYTES * plan.stages,
    )


def measured_speed(plan: Plan, index: Index) -> float | None:
    """Median FLOP/s of training over the store's stages of these roots; None when there are none.

    Lanes all have roots of their own: theirs are those that the plan does not run again.
    """
    flops = {tree.root_key: tree.study.units(tree.root).get("flops", 0.0) for tree in plan.trees}
    speeds = [
        flops[commit.root_key] * commit.executed_steps / commit.train_seconds
        for commit in index.commits.values()
        if flops.get(commit.root_key) and commit.train_seconds > 0 and commit.executed_steps > 0
    ]
    return median(speeds) if speeds else None


def count_lane_jobs(queue: Queue) -> int:
    """Jobs of a fused study's lanes: the shares of each shape."""
    lanes = Counter(item.shape for item in queue.waiting)
    return sum(ceil(count / queue.shares[shape]) for shape, count in lanes.items())


def count_jobs(items: Sequence[Item], longest: float) -> int:
    """Jobs when items are packed longest first, none beyond `longest` steps but those of one long item."""
    loads: list[float] = []
    for item in sorted(items, key=lambda item: -item.steps):
        place = next((i for i, load in enumerate(loads) if load + item.steps <= longest), None)
        if place is None:
            loads.append(item.steps)
        else:
            loads[place] += item.steps
    return len(loads)
