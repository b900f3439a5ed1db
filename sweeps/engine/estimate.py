"""What a plan will cost: jobs, seconds, disk. Pure."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sweeps.engine.items import worth_keeping
from sweeps.engine.plan import Plan
from sweeps.engine.schedule import expected_schedule
from sweeps.engine.store import Index
from trainables.study import FusedStudy

ASSUMED_FLOPS_PER_SECOND = {"cpu": 25e9, "gpu": 150e12}  # per slot, until something was measured here
ASSUMED_FLOPS_PER_SECOND_IN_LANES = {"cpu": 2e9, "gpu": 200e9}  # the same of lanes, whose steps are small
STATE_BYTES_PER_PARAMETER = 12  # weights and two moments, fp32
ROW_BYTES = 4_000  # a stage's manifest and rows


@dataclass(frozen=True)
class Estimate:
    """The first lines of a plan in numbers. `measured`: the speed comes from this store, else from an assumption.

    critical_seconds: of the longest chain of stages, which no number of slots shortens. Both times leave out what a
    job takes to start.
    """

    trials: int
    jobs: int
    slots: int
    stages: int
    steps_alone: int
    steps_shared: int
    steps_to_run: int
    steps_retrained: int
    seconds: float
    critical_seconds: float
    measured: bool
    disk_bytes: float

    @property
    def saving(self) -> float:
        return self.steps_alone / max(self.steps_shared, 1)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "saving": self.saving}


def estimate(plan: Plan, index: Index, slots: int, device: str) -> Estimate:
    """Jobs and seconds as the queue would hand the plan out, at the speed measured in this store; bytes of rows and
    lasting states.

    Forks lie on the disk besides, until their last branch is in.
    """
    states = 0.0
    for tree in plan.trees:
        lasting = sum(node.runs and not node.has_state and (node.keep or worth_keeping(node)) for node in tree.nodes())
        states += lasting * STATE_BYTES_PER_PARAMETER * tree.study.units(tree.root).get("parameters", 0)
    speed = measured_speed(plan, index)
    fused = any(isinstance(tree.study, FusedStudy) for tree in plan.trees)
    assumed = ASSUMED_FLOPS_PER_SECOND_IN_LANES if fused else ASSUMED_FLOPS_PER_SECOND
    counted = all(tree.study.units(tree.root).get("flops") for tree in plan.trees)
    schedule = expected_schedule(plan, slots)
    seconds_each = 1 / (speed or assumed[device]) if counted else 0.0  # of a FLOP
    return Estimate(
        trials=plan.trials,
        jobs=schedule.jobs,
        slots=slots,
        stages=plan.stages,
        steps_alone=plan.steps_alone,
        steps_shared=plan.steps_shared,
        steps_to_run=plan.steps_to_run,
        steps_retrained=plan.steps_retrained,
        seconds=schedule.makespan * seconds_each,
        critical_seconds=schedule.critical_path * seconds_each,
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
