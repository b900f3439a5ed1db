"""A sweep in simulated time: the driver, its queue and its tuning as they are, with a clock and a store in memory.

Nothing is trained. A job's stages take the time that their FLOPs take at a stated pace and are committed in the order
in which a walk would commit them; slots are taken away at a stated rate, and what their jobs had not committed is lost.
Losses are made up, for the searches that need them: see `Losses`.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf, log
from random import Random
from statistics import NormalDist
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.engine.driver import Driver, Entry, Tuning
from sweeps.engine.items import Item, in_walk_order, work_of
from sweeps.engine.local import Stuck
from sweeps.engine.plan import Trial
from sweeps.engine.spec import Spec
from sweeps.engine.store import Commit, Index, Store
from sweeps.engine.worker import Job, Told
from trainables.study import Branch, FusedStudy, Point, Row, state_key

HOUR = 3600.0
LEAST_LOSS, NOISE, EXPONENT = 1.0, 0.01, 0.3  # of the losses that are made up


@dataclass(frozen=True)
class Pace:
    """How fast one slot works. `source` says where that is known from.

    light_seconds, full_seconds: of a measurement. stage_seconds: of what a stage takes beside training and measuring.
    job_seconds: from a job's start to its first step.
    """

    flops_per_second: float
    source: str
    light_seconds: float = 0.0
    full_seconds: float = 0.0
    stage_seconds: float = 0.0
    job_seconds: float = 0.0

    def of(self, item: Item, branch: Branch) -> float:
        """Seconds of a stage."""
        measuring = sum(self.full_seconds if point.full else self.light_seconds for point in branch.points)
        return work_of(item.study, item.root, branch) / self.flops_per_second + measuring + self.stage_seconds


@dataclass(frozen=True)
class Fleet:
    """Slots, each of so many GPUs (0: a CPU core), any of which is taken away at a rate; the slot is back later."""

    slots: int
    gpus_per_slot: float = 0.0
    preemptions_per_gpu_hour: float = 0.0
    away_seconds: float = 600.0
    seed: int = 0

    def losses(self, seconds: float) -> float:
        """GPUs that a slot loses in so many seconds, on average; it loses none with a chance of exp(-that)."""
        return self.preemptions_per_gpu_hour * max(self.gpus_per_slot, 1.0) * seconds / HOUR

    def until_taken(self, random: Random) -> float:
        """Seconds until a slot loses one of its GPUs: exponential."""
        rate = self.losses(1.0)
        return random.expovariate(rate) if rate else inf


@dataclass
class Simulated:
    """What became of a sweep. Slot-seconds: `busy` of jobs, `useful` of the stages that they committed.

    stretches: the seconds of each stage, or pack of lanes, that was begun: what one preemption may cost.
    """

    wall_seconds: float = 0.0
    busy_seconds: float = 0.0
    useful_seconds: float = 0.0
    executed_steps: int = 0
    lost_steps: int = 0
    preemptions: int = 0
    jobs: int = 0
    trials: int = 0
    incomplete: int = 0
    stretches: list[float] = field(default_factory=list, repr=False)


class MemoryStore(Store):
    """What a driver reads of a store, in memory."""

    def __init__(self) -> None:
        self.stages_by_name: dict[str, tuple[Commit, list[Row]]] = {}

    def scan(self) -> Index:
        index = Index()
        for commit, rows in self.stages_by_name.values():
            index.add(commit, rows)
        return index

    def read(self, name: str) -> list[tuple[Commit, list[Row]]]:
        return [self.stages_by_name[name]]

    def names(self) -> Iterator[str]:
        return iter(self.stages_by_name)

    def drop_state(self, commit: Commit) -> None:
        """Nothing: the driver's index is all there is of a state."""

    def put(self, job: str, item: Item, branch: Branch, rows: list[Row], seconds: float) -> Commit:
        name = f"{branch.key}-{branch.start}-{len(self.stages_by_name)}"
        commit = Commit(
            name=name,
            study=item.study.name,
            root_key=item.root_key,
            key=branch.key,
            start=branch.start,
            stop=branch.stop,
            status="complete",
            error=None,
            executed_steps=branch.steps,
            rows_file="",
            state_file=branch.key if branch.keep else None,
            state_bytes=0,
            train_seconds=seconds,
            evaluation_seconds=0.0,
            checkpoint_seconds=0.0,
            startup_seconds=0.0,
            device="simulated",
            job=job,
            started_at="",
            lost_keys=(),
        )
        self.stages_by_name[name] = (commit, rows)
        return commit


@dataclass
class Losses:
    """Losses that are made up: a power law in the budget, a bowl over the searched axes, a little noise.

    loss = 1 + (steps / smallest budget)^-0.3 + sum of (u - u*)^2 + 0.01 z, where u in [0, 1] is the place of an axis'
    value in its range and u* its best place, which the axis' name decides. Every metric has this value, with its sign
    turned where more is better. It says in which order trials end and which are chosen, nothing about training.
    """

    spec: Spec
    entries: dict[str, Entry] = field(default_factory=dict)

    def row(self, point: Point) -> Row:
        """The measurement at a state; those that no trial ends at tell nothing."""
        entry = self.entries.get(point.key)
        loss = self.of(entry) if entry is not None else 2 * LEAST_LOSS
        study = self.spec.study
        metrics = {
            metric.name: loss if metric.goal == "min" else -loss for metric in (*self.spec.objectives, study.select)
        }
        return Row(point.key, point.step, point.full, {study.report.name: loss, **metrics}, {}, {})

    def of(self, entry: Entry) -> float:
        steps = entry.trial.steps / max(min(self.spec.budgets), 1)
        axes = self.spec.space.distributions()
        bowl = sum(
            (_place(axis, entry.values[name]) - (0.2 + 0.6 * _uniform(name))) ** 2
            for name, axis in axes.items()
            if name in entry.values
        )
        noise = NormalDist(sigma=NOISE).inv_cdf(_uniform(entry.trial.key))
        return LEAST_LOSS + float(steps**-EXPONENT) + bowl + noise


def _place(axis: BaseDistribution, value: Any) -> float:
    """Where in its range a value lies, in [0, 1]; choices lie anywhere, each at a place of its own."""
    if isinstance(axis, CategoricalDistribution):
        return _uniform(repr(value))
    assert isinstance(axis, FloatDistribution | IntDistribution)
    low, high = axis.low, axis.high
    if axis.log:
        low, high, value = log(low), log(high), log(value)
    return float((value - low) / (high - low)) if high > low else 0.0


def _uniform(text: str) -> float:
    """A number in (0, 1) that a text decides."""
    return (int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) + 0.5) / 16**12


class Alone:
    """The same tuning with every trial a tree of its own: what each would cost when nothing is shared."""

    def __init__(self, tuning: Tuning):
        self.tuning = tuning

    def advance(self) -> list[Entry]:
        new = self.tuning.advance()
        for entry in new:
            entry.trial = on_its_own(entry.trial)
        return new

    @property
    def finished(self) -> bool:
        return self.tuning.finished


def on_its_own(trial: Trial) -> Trial:
    """A trial on a root that no other has."""
    root_key = hashlib.sha256((trial.root_key + trial.id).encode()).hexdigest()
    points = tuple(point._replace(key=state_key(root_key, trial.placed, point.step)) for point in trial.points)
    return replace(trial, root_key=root_key, points=points)


@dataclass(eq=False)
class Running:
    """A job on a slot: its stages to come, and where in time it is."""

    job: Job
    began: float
    stages: Iterator[tuple[float, list[tuple[Item, Branch]]]]  # seconds, what is committed after them
    since: float  # of the stage that runs
    until: float = 0.0
    ending: list[tuple[Item, Branch]] = field(default_factory=list)
    gone: bool = False


def simulate(spec: Spec, tuning: Tuning, fleet: Fleet, pace: Pace, checkpoint_every: int | None = None) -> Simulated:
    """Run a sweep to its end. Raises sweeps.engine.local.Stuck for a fault of the engine's."""
    return Clockwork(spec, tuning, fleet, pace, checkpoint_every).run()


class Clockwork:
    """What happens when."""

    def __init__(self, spec: Spec, tuning: Tuning, fleet: Fleet, pace: Pace, checkpoint_every: int | None):
        self.store, self.losses = MemoryStore(), Losses(spec)
        self.driver = Driver(self.store, tuning, slots=fleet.slots, checkpoint_every=checkpoint_every)
        self.fleet, self.pace, self.random = fleet, pace, Random(fleet.seed)
        self.now, self.found = 0.0, Simulated()
        self.free = list(range(fleet.slots))
        self.busy: dict[int, Running] = {}
        self.known = 0  # entries that the losses know
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def run(self) -> Simulated:
        self.driver.start()
        for slot in range(self.fleet.slots):
            self._take_away_later(slot)
        while not self.driver.finished:
            self._hand_out()
            if not self.busy and len(self.free) == self.fleet.slots and not self.driver.finished:
                raise Stuck(self.driver.waits_for())
            if not self.driver.finished:
                self.now, _, happens = heapq.heappop(self._due)
                happens()
        self.found.wall_seconds = self.now
        self.found.trials = len(self.driver.entries)
        self.found.incomplete = sum(entry.status != "complete" for entry in self.driver.entries)
        return self.found

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        if when < inf:
            heapq.heappush(self._due, (when, next(self._order), happens))

    def _hand_out(self) -> None:
        while self.free and (job := self.driver.next_job()) is not None:
            self._learn()
            self.found.jobs += 1
            slot = self.free.pop()
            running = Running(job, self.now, self._stages(job), self.now + self.pace.job_seconds)
            self.busy[slot] = running
            self._next_stage(slot, running)

    def _learn(self) -> None:
        """Of the trials that end in a state, the first is the one whose loss it has."""
        for entry in self.driver.entries[self.known :]:
            self.losses.entries.setdefault(entry.trial.key, entry)
        self.known = len(self.driver.entries)

    def _stages(self, job: Job) -> Iterator[tuple[float, list[tuple[Item, Branch]]]]:
        """Seconds and what is then committed, one after another: stages, or all lanes of a job as one pack."""
        items = [item for item, _ in job.items]
        if isinstance(items[0].study, FusedStudy):
            yield sum(self.pace.of(item, item.branch) for item in items), [(item, item.branch) for item in items]
            return
        for item in items:
            for branch in in_walk_order(item.branch):
                yield self.pace.of(item, branch), [(item, branch)]

    def _next_stage(self, slot: int, running: Running) -> None:
        following = next(running.stages, None)
        if following is None:
            self.found.busy_seconds += self.now - running.began
            del self.busy[slot]
            self.free.append(slot)
            self.driver.ended(running.job.name)
            return
        seconds, running.ending = following
        self.found.stretches.append(seconds)
        running.until = running.since + seconds
        self._at(running.until, lambda: self._commit(slot, running))

    def _commit(self, slot: int, running: Running) -> None:
        if running.gone:
            return
        seconds = self.now - running.since
        self.found.useful_seconds += seconds
        names = []
        for item, branch in running.ending:
            rows = [self.losses.row(point) for point in branch.points]
            commit = self.store.put(running.job.name, item, branch, rows, seconds / len(running.ending))
            self.found.executed_steps += branch.steps
            names.append(commit.name)
        self.driver.heard(Told(tuple(names)))
        running.since = self.now
        self._next_stage(slot, running)

    def _take_away_later(self, slot: int) -> None:
        self._at(self.now + self.fleet.until_taken(self.random), lambda: self._take_away(slot))

    def _take_away(self, slot: int) -> None:
        """A slot goes; what its job had not committed is lost, and is tried again."""
        running = self.busy.pop(slot, None)
        self.found.preemptions += 1
        if running is None:
            self.free.remove(slot)
        else:
            running.gone = True
            self.found.busy_seconds += self.now - running.began
            done = max(0.0, self.now - running.since) / (running.until - running.since)
            steps = sum(branch.steps for _, branch in running.ending)
            self.found.lost_steps += round(done * steps)
            self.found.executed_steps += round(done * steps)
            self.driver.ended(running.job.name, "its slot was taken away", preempted=True)
        self._at(self.now + self.fleet.away_seconds, lambda: self._bring_back(slot))

    def _bring_back(self, slot: int) -> None:
        self.free.append(slot)
        self._take_away_later(slot)
