"""Joining a Ray, or starting one, and what a sweep asks of it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from sweeps.engine.words import Refused
from trainables.ray_train import Parallel


@dataclass
class Slots:
    """What the sweep asks of Ray: so many jobs at a time, of so many workers, each with so many CPUs and GPUs.

    One worker: jobs run in Tune's reused actors. Several: each job runs in a Train worker group of its own, `parallel`
    says how. Raises ValueError for a worker of a group with anything but one GPU or none.
    """

    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    workers: int = 1
    parallel: Parallel = "ddp"

    def __post_init__(self) -> None:
        if self.workers > 1 and self.gpus not in (0, 1):
            raise ValueError(
                f"each of several workers has one GPU or none, got gpus={self.gpus:g}; raise workers instead"
            )

    @property
    def trial(self) -> dict[str, float]:
        """What Tune reserves for a job. A worker group reserves for itself: its trial takes one byte of memory, and no
        CPU, so that trials can never fill a cluster before their workers have started."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.workers == 1 else {"memory": 1}


def check_cluster(slots: Slots, there: Mapping[str, float]) -> None:
    """Raise Refused when one job could never start."""
    for kind, each in (("GPU", slots.gpus), ("CPU", slots.cpus)):
        wanted, have = each * slots.workers, there.get(kind, 0.0)
        if wanted > have:
            raise Refused(
                f"a job needs {wanted:g} {kind}s ({slots.workers} workers of {each:g}), the cluster has {have:g}; "
                "take a smaller scale, set resources.workers and resources.gpus, or add nodes"
            )


def join(address: str | None, slots: Slots) -> None:
    """Connect this process to a running Ray (`address`), or start one of its own with the CPUs of all slots."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # results live in the store
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C asks the jobs to end after a commit
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # our display stands in for Tune's
    if ray.is_initialized():
        return
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        num_cpus=max(1, round(slots.count * slots.workers * slots.cpus)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
