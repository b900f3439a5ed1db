"""The executor on Ray: a Tune Searcher that hands out the driver's jobs to reused actors.

What a study logs goes to the store; Tune's results carry committed names and one progress number.
"""

import contextlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import train, tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from sweeps.engine.driver import Driver
from sweeps.engine.joining import Slots, check_cluster, join
from sweeps.engine.local import Stuck
from sweeps.engine.worker import Job, Place, Told, run_job
from trainables.ray_train import InProcessRun, WorkerGroupRun, in_this_process, together, worker_group
from trainables.study import Stopped

WATCHDOG_SECONDS = 60.0
METRIC = "commits"
LONGEST_REASON = 3000  # characters of an error that go to the driver


class JobSearcher(Searcher):
    """Hands jobs to Tune and tells the driver what became of them."""

    def __init__(self, driver: Driver, slots: Slots, place: Place):
        super().__init__(metric=METRIC, mode="max")
        self.driver, self.slots, self.place = driver, slots, place
        self.jobs: dict[str, Job] = {}
        self.reasons: dict[str, str] = {}
        self.quiet_since: float | None = None
        self.fault: BaseException | None = None

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """A job, None to wait, or Searcher.FINISHED."""
        if self.fault is not None or self.place.stop_asked():
            return Searcher.FINISHED
        with self._guarded():
            job = self.driver.next_job()
            if job is None:
                return self._nothing()
            self.quiet_since = None
            self.jobs[trial_id] = job
            return {"job": job}
        return Searcher.FINISHED

    def _nothing(self) -> str | None:
        if self.driver.finished:
            return Searcher.FINISHED
        if self.driver.queue.running:
            self.quiet_since = None
            return None
        self.quiet_since = self.quiet_since or time.monotonic()
        if time.monotonic() - self.quiet_since > WATCHDOG_SECONDS or self.driver.stuck:
            raise Stuck(self.driver.waits_for())
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        with self._guarded():
            self._hear(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._guarded():
            job = self.jobs.pop(trial_id)
            self._hear(trial_id, result or {})
            reason = self.reasons.pop(trial_id, "the job's process died or raised; see the log above")
            self.driver.ended(job.name, reason if error else None)

    def _hear(self, trial_id: str, result: dict[str, Any]) -> None:
        told = json.loads(result.get("told", "{}"))
        if "error" in told:
            self.reasons[trial_id] = told["error"]
        self.driver.heard(Told(tuple(told.get("committed", ())), tuple(told.get("damaged", ()))))

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        """Tune would die of an exception in a searcher and leave its actors; end the search instead, then raise."""
        try:
            yield
        except Exception as error:
            self.fault = self.fault or error

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its own snapshot of a search, which nobody reads: the store is the only truth."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the only truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the same command again continues."""


def _words(told: Told, count: int) -> dict[str, Any]:
    return {METRIC: count, "told": json.dumps({"committed": told.committed, "damaged": told.damaged})}


@contextlib.contextmanager
def _saying_why() -> Iterator[None]:
    """Report what ends a job before it is raised: of a trial's error Tune tells a searcher nothing."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[-LONGEST_REASON:]
        tune.report({METRIC: 0, "told": json.dumps({"error": reason})})
        raise


def _trainable(place: Place) -> Callable[[dict[str, Any]], None]:
    def job(config: dict[str, Any]) -> None:
        count = [0]

        def tell(told: Told) -> None:
            count[0] += len(told.committed)
            tune.report(_words(told, count[0]))

        run = InProcessRun(stop=place.stop_asked)
        with _saying_why(), contextlib.suppress(Stopped):
            in_this_process(lambda: run_job(config["job"], place, run, tell))

    return job


def _group_trainable(place: Place, slots: Slots, scratch: Path) -> Callable[[dict[str, Any]], None]:
    """The same in a worker group that lives as long as the job and is never stopped from outside."""

    def job(config: dict[str, Any]) -> None:
        callbacks: list[Any] = [TuneReportCallback()]
        trainer: Any = worker_group(
            lambda run: _run_in_group(config["job"], place, run),
            workers=slots.workers,
            cpus=slots.cpus,
            use_gpu=slots.gpus > 0,
            parallel=slots.parallel,
            stop=place.stop_asked,
            run_config=train.RunConfig(
                name=f"{config['job'].name}-group", storage_path=str(scratch), callbacks=callbacks
            ),
        )
        with _saying_why():
            tune.report(trainer.fit().return_value)

    return job


def _run_in_group(job: Job, place: Place, run: WorkerGroupRun) -> dict[str, Any]:
    """Run a job as one worker of a group; all that it committed, since Tune may end before the last report arrives."""
    said: list[Told] = []

    def tell(told: Told) -> None:
        said.append(told)
        train.report(_words(told, sum(len(one.committed) for one in said)))  # all workers meet here

    items = tuple((replace(item, study=together(item.study, run)), start) for item, start in job.items)
    with contextlib.suppress(Stopped):
        run_job(replace(job, items=items), place, run, tell)
    committed = tuple(name for told in said for name in told.committed)
    return _words(Told(committed, tuple(name for told in said for name in told.damaged)), len(committed))


def run_on_ray(driver: Driver, place: Place, slots: Slots, *, address: str | None) -> None:
    """Run until the driver has finished, on a running Ray (`address`) or on one of this process' own.

    Raises Refused when the cluster lacks the GPUs or CPUs of one job, trainables.study.Stopped when it is asked to
    stop, and whatever the driver raised.
    """
    join(address, slots)
    check_cluster(slots, ray.cluster_resources())
    searcher = JobSearcher(driver, slots, place)
    scratch = Path(place.results).resolve() / "ray" / uuid.uuid4().hex[:8]
    trainable = _trainable(place) if slots.workers == 1 else _group_trainable(place, slots, scratch)
    tuner = tune.Tuner(
        tune.with_resources(trainable, slots.trial),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=slots.count,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["job"].name,
            trial_dirname_creator=lambda trial: trial.config["job"].name,
        ),
        run_config=tune.RunConfig(name="jobs", storage_path=str(scratch), verbose=0),
    )
    quiet = logging.getLogger("ray.tune")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it looks for the log files that it was told not to write
    try:
        tuner.fit()
    finally:
        quiet.setLevel(level)
        shutil.rmtree(scratch, ignore_errors=True)
    if searcher.fault is not None:
        raise searcher.fault
    if not driver.finished:
        raise Stopped("stopped before the sweep had finished")
