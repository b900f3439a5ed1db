"""What several engine tests share: a study without training for the planner, and small sweeps over the toy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from search_spaces import parse
from search_spaces.fields import field_types
from search_spaces.files import ResolvedSpace, Seeds
from sweeps.engine.driver import Driver
from sweeps.engine.launch import open_journals
from sweeps.engine.local import run_here
from sweeps.engine.plan import Plan, Tree
from sweeps.engine.spec import Search, Spec, seeds
from sweeps.engine.store import Store
from sweeps.engine.tuning import CellTuning
from sweeps.engine.worker import Place, run_job
from trainables.study import LocalRun, Metric, StagedStudy
from trainables.toys import QUADRATIC


@dataclass(frozen=True)
class Free:
    """A config that is its own timeline."""

    timeline: tuple
    seed: int = 0
    measure_every: int = 1_000
    budget_steps: int = 0


@dataclass(frozen=True)
class FreeRoot:
    seed: int
    measure_every: int


def _never(*arguments):
    raise AssertionError("the planner trains nothing")


FREE: StagedStudy = StagedStudy(
    "free",
    paper="none",
    version=1,
    config=Free,
    root=lambda config: FreeRoot(config.seed, config.measure_every),
    timeline=lambda config: config.timeline,
    start=_never,
    advance=_never,
    measure=_never,
    tiny=Free(()),
    select=Metric("select/loss", "min"),
    module=__name__,
)


@dataclass
class Memory:
    """A Known held in dictionaries."""

    points: dict[str, bool]
    states: dict[str, dict[str, int]]
    bad: frozenset[str] = frozenset()
    failed: dict[str, str] | None = None

    def measured(self, key):
        return self.points.get(key)

    def finite(self, key):
        return key not in self.bad

    def kept(self, root_key):
        return self.states.get(root_key, {})

    def failure(self, key):
        return (self.failed or {}).get(key)


def nodes(plan: Plan) -> list:
    return [node for tree in plan.trees for node in tree.nodes()]


def running(tree: Tree) -> dict[str, int]:
    """Key -> steps of the stages that are to run."""
    return {node.key: node.steps for node in tree.nodes() if node.runs}


def stages_of(items: Iterable) -> list:
    return [branch for item in items for branch in item.branch.stages()]


def toy_spec(
    results,
    study=QUADRATIC,
    *,
    rates=(0.05, 0.1, 0.2),
    budgets=(20, 40),
    tuning=1,
    fresh=0,
    search=None,
    compare=(),
    fixed=None,
    cells=(),
    **axes,
) -> Spec:
    """A sweep over the toy; `rates` are choices that a grid enumerates, or a mapping with low and high."""
    written = {
        "learning_rate": rates if isinstance(rates, dict) else {"choices": list(rates)},
        "budget_steps": list(budgets),
        **axes,
    }
    space = parse(written, fields=field_types(study.config), conditions=study.conditions, cells=cells)
    resolved = ResolvedSpace(written, dict(fixed or {}), Seeds(tuning, fresh), {}, tuple(cells))
    tuning_seeds, fresh_seeds = seeds(tuning, fresh)
    return Spec(
        name="toy",
        study=study,
        scale="tiny",
        preset="default",
        command="pytest",
        axes=written,
        space=space,
        resolved=resolved,
        budgets=tuple(budgets),
        tuning_seeds=tuning_seeds,
        fresh_seeds=fresh_seeds,
        search=search or Search(),
        compare=tuple(compare),
        results=Path(results),
    )


@dataclass
class Told:
    """A watcher that writes down what the driver says."""

    commits: list = field(default_factory=list)
    settled_entries: list = field(default_factory=list)
    jobs: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    plans: list = field(default_factory=list)

    def planned(self, driver, new):
        self.plans.append(new)

    def committed(self, commit, rows):
        self.commits.append(commit)

    def settled(self, entry):
        self.settled_entries.append(entry)

    def job_started(self, job):
        self.jobs.append(job)

    def job_began(self, job): ...

    def job_ended(self, job, error):
        self.errors += [error] if error else []


@dataclass
class Sweep:
    """A sweep as it stands: its parts, and what was heard of it."""

    spec: Spec
    driver: Driver
    tuning: CellTuning
    told: Told
    place: Place

    @property
    def entries(self):
        return self.driver.entries

    @property
    def executed(self) -> int:
        return sum(commit.executed_steps for commit in self.told.commits)

    def results(self) -> dict:
        """(phase, config) -> (status, all that was measured): what no way of running may change."""
        return {
            (entry.phase, entry.trial.config): (entry.status, [row[1:] for row in entry.rows]) for entry in self.entries
        }


def open_sweep(spec: Spec, *, slots=2, checkpoint_every=None, record=True) -> Sweep:
    tuning = CellTuning(spec, open_journals(spec, slots, record=record))
    told = Told()
    store = Store(spec.results)
    store.prepare()
    driver = Driver(store, tuning, slots=slots, checkpoint_every=checkpoint_every, watchers=[told])
    place = Place(str(spec.results.resolve()), str(spec.results.resolve() / "stop"))
    driver.start()
    return Sweep(spec, driver, tuning, told, place)


def run_sweep(spec: Spec, **how) -> Sweep:
    """The sweep run to its end in this process."""
    sweep = open_sweep(spec, **how)
    try:
        run_here(sweep.driver, sweep.place)
    finally:
        sweep.tuning.close()
    return sweep


def run_shuffled(spec: Spec, random, *, slots=3, **how) -> Sweep:
    """The same with several jobs open at a time, of which any may end next and commits come late and twice."""
    sweep = open_sweep(spec, slots=slots, **how)
    driver, open_jobs = sweep.driver, []
    while not driver.finished:
        while len(open_jobs) < slots and (job := driver.next_job()) is not None:
            heard = []
            run_job(job, sweep.place, LocalRun(), heard.append)
            open_jobs.append((job, heard))
        assert open_jobs, driver.waits_for()
        job, heard = open_jobs[random.randrange(len(open_jobs))]
        if heard and random.random() < 0.7:
            word = heard.pop(random.randrange(len(heard)))
            driver.heard(word)
            if random.random() < 0.2:
                driver.heard(word)
        else:
            for word in heard:
                driver.heard(word)
            driver.ended(job.name)
            open_jobs.remove((job, heard))
    sweep.tuning.close()
    return sweep
