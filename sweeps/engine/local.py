"""The executor without Ray: the driver's jobs, one after another in this process."""

import torch

from sweeps.engine.driver import Driver
from sweeps.engine.worker import Place, run_job
from trainables.study import LocalRun


class Stuck(RuntimeError):
    """Trials are pending, yet nothing runs and nothing can start: a fault of the engine's."""


def run_here(driver: Driver, place: Place, *, device: str = "cpu") -> None:
    """Run until the driver has finished.

    Raises trainables.study.Stopped when it is asked to stop, Stuck for a fault.
    """
    while not driver.finished:
        job = driver.next_job()
        if job is None:
            if driver.finished:
                break
            raise Stuck(driver.waits_for())
        run_job(job, place, LocalRun(device=torch.device(device), stop=place.stop_asked), driver.heard)
        driver.ended(job.name)
