"""What the driver does, as events of the display and rows for the mirror."""

from sweeps.engine.driver import Driver, Entry
from sweeps.engine.plan import Plan
from sweeps.engine.progress import Progress
from sweeps.engine.records import Recorder
from sweeps.engine.spec import Spec
from sweeps.engine.store import Commit
from sweeps.engine.tracking import Mirror
from sweeps.engine.worker import Job
from trainables.study import FusedStudy, Row


class ProgressWatcher:
    """Turns what the driver does into the display's events."""

    def __init__(self, spec: Spec, progress: Progress, proposals: int, jobs: int, slots: int):
        self.spec, self.progress = spec, progress
        self.proposals, self.jobs, self.slots = proposals, jobs, slots
        self.started_jobs = 0
        self.done: dict[str, int] = {}  # running job -> steps that it committed
        self.steps: dict[str, int] = {}
        self.waiting_since: dict[str, float] = {}
        self.spent: dict[str, float] = {}  # running job of lanes -> their seconds

    def planned(self, driver: Driver, new: Plan) -> None:
        coming = sum(self.steps[job] - self.done[job] for job in self.done)
        reused = sum(entry.status != "pending" for entry in driver.entries) if not self.started_jobs else None
        self.progress.started(
            trials=len(driver.entries),
            jobs=max(self.jobs, self.started_jobs),
            slots=self.slots,
            steps_alone=sum(entry.trial.steps for entry in driver.entries),
            steps_planned=self.progress.steps_run + coming + new.steps_to_run,
            proposals=self.proposals,
            reused=self.progress.reused if reused is None else reused,
        )

    def committed(self, commit: Commit, rows: list[Row]) -> None:
        spent = commit.train_seconds + commit.evaluation_seconds + commit.checkpoint_seconds
        startup = 0.0
        if isinstance(self.spec.study, FusedStudy):
            self.spent[commit.job] = self.spent.get(commit.job, 0.0) + spent  # the lanes of a pack end together
        elif commit.job in self.waiting_since:
            startup = max(0.0, self.progress.clock() - self.waiting_since.pop(commit.job) - spent)
        self.done[commit.job] = self.done.get(commit.job, 0) + commit.executed_steps
        self.progress.stage_finished(
            commit.executed_steps,
            train_seconds=commit.train_seconds,
            evaluation_seconds=commit.evaluation_seconds,
            checkpoint_seconds=commit.checkpoint_seconds,
            startup_seconds=startup,
        )
        if commit.status == "failed" and commit.error:
            self.progress.message(f"failed: {commit.error.strip().splitlines()[-1]}")

    def settled(self, entry: Entry) -> None:
        if not self.started_jobs:
            return  # answered from the store
        result = entry.result
        self.progress.trial_finished(
            name_of(self.spec, entry),
            entry.status,
            getattr(entry.trial.config, self.spec.study.budget),
            None if result is None else result.metrics[self.spec.study.select.name],
            entry.trial.steps,
        )

    def job_started(self, job: Job) -> None:
        self.started_jobs += 1
        self.steps[job.name], self.done[job.name] = job.steps, 0
        self.progress.job_started(job.name)
        self.waiting_since[job.name] = self.progress.clock()

    def job_began(self, job: Job) -> None: ...

    def job_ended(self, job: Job, error: str | None) -> None:
        self.done.pop(job.name, None)
        began = self.waiting_since.pop(job.name, None)
        if job.name in self.spent and began is not None:
            beside = self.progress.clock() - began - self.spent.pop(job.name)
            self.progress.stage_finished(0, startup_seconds=max(0.0, beside))
        self.progress.job_ended(job.name)
        if error is not None:
            self.progress.message(f"{job.name}: {error}; what it had not committed is tried again")


class MirrorWatcher:
    """Hands trials to MLflow's mirror as they end."""

    def __init__(self, mirror: Mirror, recorder: Recorder):
        self.mirror, self.recorder = mirror, recorder

    def planned(self, driver: Driver, new: Plan) -> None: ...

    def committed(self, commit: Commit, rows: list[Row]) -> None: ...

    def settled(self, entry: Entry) -> None:
        self.mirror.update([self.recorder.trial_row(entry)], self.recorder.measurement_rows(entry))

    def job_started(self, job: Job) -> None: ...

    def job_began(self, job: Job) -> None: ...

    def job_ended(self, job: Job, error: str | None) -> None: ...


def name_of(spec: Spec, entry: Entry) -> str:
    """A trial's short name for people."""
    named = ("peak_lr", spec.study.budget, "seed", *spec.space.searched, *spec.space.enumerated)
    varying = [name for name in spec.study.field_names if name in named]
    return spec.study.describe(entry.trial.config, varying) if spec.study.describe else entry.trial.key[:12]
