"""The executor on Ray: a Tune Searcher that hands out the driver's jobs to reused actors.

What a study logs goes to the store; Tune's results carry committed names and one progress number.
"""

import contextlib
import json
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from sweeps.engine.driver import Driver
from sweeps.engine.local import Stuck
from sweeps.engine.store import ABANDONED_SECONDS
from sweeps.engine.worker import Job, Place, Told, run_job
from sweeps.nodes.groups import (
    REAP_SECONDS,
    Notice,
    Raylet,
    lost_nodes,
    nodes_there,
    now_and_then,
    own_node,
    reap,
    room,
    worker_counts,
    workers_now,
)
from sweeps.nodes.joining import Slots, check_cluster, join, offered
from sweeps.nodes.looking import code
from trainables.ray_train import InProcessRun, WorkerGroupRun, in_this_process, together, worker_group
from trainables.study import Stopped

WATCHDOG_SECONDS = 60.0
UNFIT_SECONDS = 60.0  # that a node has to become what the sweep needs, before its job goes to another
METRIC = "commits"
LONGEST_REASON = 3000  # characters of an error that go to the driver


class GaveWay(Exception):
    """A job committed what it had trained and ended, since its node is to leave; its process must not be used again."""


class Unfit(Exception):
    """A node lacks what the sweep was started with: the job goes to another, and its items are not to blame."""


class JobSearcher(Searcher):
    """Hands jobs to Tune and tells the driver what became of them.

    lost: how many nodes were lost so far. A job that dies while one is lost is tried again as often as that happens.
    """

    def __init__(self, driver: Driver, slots: Slots, place: Place, lost: Callable[[], int] = lambda: 0):
        super().__init__(metric=METRIC, mode="max")
        self.driver, self.slots, self.place, self.lost = driver, slots, place, lost
        self.jobs: dict[str, Job] = {}
        self.lost_before: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self.gave_way: set[str] = set()
        self.unfit: set[str] = set()
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
            self.jobs[trial_id], self.lost_before[trial_id] = job, self.lost()
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
            before, gave_way = self.lost_before.pop(trial_id, 0), trial_id in self.gave_way
            unfit = trial_id in self.unfit
            for known in (self.gave_way, self.unfit):
                known.discard(trial_id)
            if error and not gave_way:
                self.driver.ended(job.name, reason, preempted=unfit or self.lost() > before)
            else:
                self.driver.ended(job.name)

    def _hear(self, trial_id: str, result: dict[str, Any]) -> None:
        told = json.loads(result.get("told", "{}"))
        if "error" in told:
            self.reasons[trial_id] = told["error"]
        if told.get("gave_way"):
            self.gave_way.add(trial_id)
        if told.get("unfit"):
            self.unfit.add(trial_id)
        committed, damaged = (tuple(told.get(kind, ())) for kind in ("committed", "damaged"))
        self.driver.heard(Told(committed, damaged, told.get("began", "")))

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
    return {METRIC: count, "told": json.dumps(asdict(told))}


@contextlib.contextmanager
def _saying_why() -> Iterator[None]:
    """Report what ends a job before it is raised: of a trial's error Tune tells a searcher nothing."""
    try:
        yield
    except GaveWay:
        tune.report({METRIC: 0, "told": json.dumps({"gave_way": True})})
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[-LONGEST_REASON:]
        tune.report({METRIC: 0, "told": json.dumps({"error": reason, "unfit": isinstance(error, Unfit)})})
        raise


def _trainable(place: Place) -> Callable[[dict[str, Any]], None]:
    def job(config: dict[str, Any]) -> None:
        count = [0]

        def tell(told: Told) -> None:
            count[0] += len(told.committed)
            tune.report(_words(told, count[0]))

        def loop() -> bool:
            return _went_through(config["job"], place, run, tell)

        notice = Notice()
        run = InProcessRun(stop=lambda: place.stop_asked() or notice())
        with _saying_why():
            through = in_this_process(loop)
            if not through and notice.given:
                raise GaveWay(f"{config['job'].name} ended early: its node is to leave")

    return job


def _went_through(job: Job, place: Place, run: InProcessRun | WorkerGroupRun, tell: Callable[[Told], None]) -> bool:
    """Run a job; False when it was asked to stop on its way."""
    _must_fit(place)
    try:
        run_job(job, place, run, tell, before_commit=Raylet().must_live)
    except Stopped:
        return False
    return True


def _must_fit(place: Place) -> None:
    """Raises Unfit for a node that joined later, which nobody checked before the sweep began, and is not like the rest.

    It waits first, for a folder that is being mounted, and lest such a node takes job after job from the others.
    """
    deadline = time.monotonic() + UNFIT_SECONDS
    while (reason := _unfit(place)) is not None:
        if time.monotonic() > deadline:
            raise Unfit(reason)
        time.sleep(1)


def _unfit(place: Place) -> str | None:
    if not os.path.isdir(os.path.dirname(place.stop_file)):
        return f"{platform.node()} does not see {place.results}; mount the shared folder there at this path"
    if own_node() not in place.nodes and (own := code()) != place.code:
        return f"{platform.node()} has other files of Anabranch ({own}) than the driver ({place.code}); copy them there"
    return None


def _take_away_abandoned(folder: Path) -> None:
    """What Tune wrote for searches that were killed: folders in which nobody has written for a day."""
    for left in folder.glob("*"):
        latest = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
        if time.time() - latest > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _group_trainable(
    place: Place, slots: Slots, scratch: Path, there: Callable[[], int]
) -> Callable[[dict[str, Any]], None]:
    """The same in a worker group that lives as long as the job and is never stopped from outside."""

    def fit(job: Job) -> dict[str, Any]:
        items, notice = [item for item, _ in job.items], Notice()
        callbacks: list[Any] = [TuneReportCallback()]
        failures: Any = train.FailureConfig  # for a type checker that of Ray Train's first version
        counts = worker_counts(items[0].study, {item.root_key: item.root for item in items}.values(), slots)
        trainer: Any = worker_group(
            lambda run: _run_in_group(job, place, run, notice),
            workers=workers_now(slots, counts, there()),
            cpus=slots.cpus,
            use_gpu=slots.gpus > 0,
            parallel=slots.parallel,
            run_config=train.RunConfig(
                name=f"{job.name}-group",
                storage_path=str(scratch),
                callbacks=callbacks,
                failure_config=failures(max_preemption_failures=0),  # the driver does the job again
            ),
        )
        return dict(trainer.fit().return_value)

    def job(config: dict[str, Any]) -> None:
        with _saying_why():
            ended = fit(config["job"])
            tune.report(ended["told"])
            if ended["gave_way"]:
                raise GaveWay(f"{config['job'].name} ended early: a node of its workers is to leave")

    return job


def _run_in_group(job: Job, place: Place, run: WorkerGroupRun, notice: Notice) -> dict[str, Any]:
    """Run a job as one worker of a group; all that it committed, since Tune may end before the last report arrives."""
    said: list[Told] = []
    run.stop = lambda: place.stop_asked() or notice()

    def tell(told: Told) -> None:
        said.append(told)
        train.report(_words(told, sum(len(one.committed) for one in said)))  # all workers meet here

    items = tuple((replace(item, study=together(item.study, run)), start) for item, start in job.items)
    through = _went_through(replace(job, items=items), place, run, tell)
    committed = tuple(name for told in said for name in told.committed)
    damaged = tuple(name for told in said for name in told.damaged)
    return {
        "told": _words(Told(committed, damaged), len(committed)),
        "gave_way": not through and not place.stop_asked(),
    }


class Reaper(tune.Callback):
    """Frees what the worker groups of dead jobs held, again and again while a search runs."""

    def __init__(self) -> None:
        self.look = now_and_then(reap, REAP_SECONDS)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.look()


def run_on_ray(driver: Driver, place: Place, slots: Slots, *, address: str | None) -> None:
    """Run until the driver has finished, on a running Ray (`address`) or on one of this process' own.

    Raises Refused when the cluster lacks the GPUs or CPUs of one job, trainables.study.Stopped when it is asked to
    stop, and whatever the driver raised.
    """
    join(address, slots)
    offer = offered()
    check_cluster(slots, offer)
    place = replace(place, code=code(), nodes=nodes_there())
    searcher = JobSearcher(driver, slots, place, lost_nodes)
    scratch = Path(place.results).resolve() / "ray" / uuid.uuid4().hex[:8]
    _take_away_abandoned(scratch.parent)
    there = partial(room, slots, offer.workers(slots), lost_nodes())
    trainable = _trainable(place) if slots.workers == 1 else _group_trainable(place, slots, scratch, there)
    # by default one actor waits at a time: a cluster would start them, and an autoscaler bring nodes, one by one
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.count)
    # by default Tune does the job of a node that was told to leave again by itself, beside the driver's own retry
    os.environ["RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE"] = "1"
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
        run_config=tune.RunConfig(
            name="jobs", storage_path=str(scratch), verbose=0, callbacks=[Reaper()] if slots.workers > 1 else []
        ),
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
