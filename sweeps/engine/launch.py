"""One command from its words to its tables, figures and verdicts."""

import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

import analysis
import search_spaces
import trainables
from analysis.claims import Claim
from analysis.records import Records
from search_spaces import Space
from sweeps.engine import drawing, records, tracking
from sweeps.engine.driver import Driver, Watcher
from sweeps.engine.estimate import Estimate, estimate
from sweeps.engine.local import run_here
from sweeps.engine.plan import Plan
from sweeps.engine.progress import Display, Progress, banner, duration, where_the_time_went
from sweeps.engine.proposals import Proposals
from sweeps.engine.samplers import ADAPTIVE
from sweeps.engine.spec import Spec
from sweeps.engine.store import Store
from sweeps.engine.tuning import CellTuning
from sweeps.engine.watching import MirrorWatcher, ProgressWatcher, name_of
from sweeps.engine.words import Refused, Words, default_slots, help_text, make_spec
from sweeps.engine.worker import Place, device_name
from trainables.study import AnyStudy, FusedStudy, Stopped

Show = Callable[[Records, Spec, Console], None]


@dataclass(frozen=True)
class Question:
    """A sweep script: its name, what it asks, the claims that are declared before it runs, what it shows at its end."""

    name: str
    study: AnyStudy
    about: str
    claims: Sequence[Claim] = ()
    show: Show | None = None


def main(question: Question, arguments: Sequence[str] | None = None) -> int:
    """Run a sweep script's command line; the exit status. Refusals and Ctrl-C end with one clear message."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True)
    if {"--help", "-h", "help"} & set(words):
        Console().print(help_text(question.study, question.name, question.about), markup=False, highlight=False)
        return 0
    try:
        sweep(question, words)
    except Refused as error:
        errors.print(Text.assemble(("refused: ", "bold red"), str(error)), soft_wrap=True)
        return 2
    except (Stopped, KeyboardInterrupt):
        again = shlex.join(["python", f"sweeps/{question.name}.py", *words])
        errors.print(Text(f"stopped; what was finished is kept. The same command goes on from there:\n  {again}"))
        return 130
    except OSError as error:
        errors.print(Text.assemble(("stopped: ", "bold red"), f"{error}\nWhat was finished is kept."), soft_wrap=True)
        return 1
    return 0


def sweep(question: Question, arguments: Sequence[str] = (), console: Console | None = None) -> Records | None:
    """Plan, run and record a sweep; None for `plan_only=true`.

    Raises Refused before anything starts, and trainables.study.Stopped after Ctrl-C.
    """
    own_rooms()
    spec, words = make_spec(question.study, arguments, question.name)
    return launch(question, spec, words, console or Console())


def launch(question: Question, spec: Spec, words: Words, console: Console) -> Records | None:
    """The same for a sweep that is given as data."""
    slots = 1 if words.executor == "local" else default_slots(words, torch.cuda.device_count())
    driver, tuning = dry_run(spec, words, slots)
    plan = driver.current_plan()
    expected = estimate(plan, driver.index, slots, "gpu" if words.resources.gpus else "cpu")
    reused = sum(entry.status == "complete" for entry in driver.entries)
    progress = Progress(goal=spec.study.select.goal)
    progress.started(
        trials=expected.trials,
        jobs=expected.jobs,
        slots=slots,
        steps_alone=expected.steps_alone,
        steps_planned=expected.steps_to_run,
        proposals=tuning.proposals,
        reused=reused,
    )
    lanes = isinstance(spec.study, FusedStudy)
    head = banner(progress, study=spec.study.name, scale=spec.scale, executor=words.executor, lanes=lanes)
    console.print(Text("\n".join([head, plan_text(spec, expected, tuning)])), soft_wrap=True)
    for damaged in driver.index.damaged:
        console.print(Text.assemble(("damaged, counts as never written: ", "yellow"), damaged), soft_wrap=True)
    if words.plan_only:
        names = {entry.trial.key: name_of(spec, entry) for entry in driver.entries}
        console.print(drawing.as_shapes(plan, slots) if lanes else drawing.as_text(plan, names))
        return None
    check_resources(words)
    store = Store(spec.results)
    store.prepare()
    content = records.describe_spec(spec, [claim.declared() for claim in question.claims], expected.as_dict())
    records.write_spec(spec, content)
    with mirrored(spec, words, content, expected.trials, console) as mirror:
        run(spec, words, store, expected, plan, progress, mirror, console)
        found = analysis.open(spec.folder)
        if question.show is not None:
            question.show(found, spec, console)
    if words.tracking != "none":
        line = tracking.ui_command(spec.results, words.tracking)
        console.print(f"compare runs: [bold]{line}[/bold]", highlight=False, soft_wrap=True)
    return found


def plan_text(spec: Spec, expected: Estimate, tuning: CellTuning) -> str:
    """The plan in a few lines: stages, steps, saving, time, disk, and what comes on top once configs are chosen."""
    share = f"{expected.steps_shared:,} of {expected.steps_alone:,} steps, {expected.saving:.2f}x"
    basis = "at the speed measured in this store" if expected.measured else "at an assumed speed; none is measured yet"
    head = f"plan: {expected.stages:,} stages; trained once where shared: {share}"
    if isinstance(spec.study, FusedStudy):
        head = f"plan: {expected.trials:,} lanes in {expected.jobs:,} jobs, those of one shape as one program"
    lines = [
        head,
        f"      to run now: {expected.steps_to_run:,} steps, about {duration(expected.seconds)} {basis}; "
        f"about {expected.disk_bytes / 1e6:,.1f} MB of disk",
    ]
    if expected.steps_retrained:
        lines.append(f"      of these {expected.steps_retrained:,} steps are trained again: their state was not kept")
    if spec.fresh_seeds and not tuning.finished:
        count = len(tuning.cells) * len(spec.budgets) * len(spec.fresh_seeds)
        lines.append(
            f"      then each cell's chosen config per budget on {len(spec.fresh_seeds)} fresh seeds: "
            f"{count:,} trials, or more where several values are compared or a front is kept"
        )
    return "\n".join(lines)


def own_rooms() -> None:
    """Raise Refused when one of our package names resolves to somebody else's folder."""
    here = Path(__file__).resolve().parents[2]
    for package in (trainables, search_spaces, analysis):
        found = Path(str(package.__file__)).resolve().parents[1]
        if found != here:
            raise Refused(
                f"the name {package.__name__!r} means {found} here, not Anabranch's {here}; "
                "run in Anabranch's own virtual environment, or take that folder off PYTHONPATH"
            )


def check_resources(words: Words) -> None:
    """Raise Refused when this machine, where the sweep would start its own Ray, lacks the GPUs of one trial."""
    wanted = words.resources.gpus * words.resources.workers
    joins = words.executor == "ray" and (words.cluster not in ("auto", "local") or running_ray() is not None)
    if wanted and not joins and torch.cuda.device_count() < wanted:
        raise Refused(
            f"scale={words.scale} needs {wanted:g} GPUs per trial, this machine has {torch.cuda.device_count()}; "
            "take scale=laptop, or run it on a cluster (cluster.yaml)"
        )


def running_ray() -> str | None:
    """The address of a Ray that this process would join; None when there is none."""
    return os.environ.get("RAY_ADDRESS") or ("auto" if Path("/tmp/ray/ray_current_cluster").exists() else None)


def open_journals(spec: Spec, slots: int, record: bool) -> Callable[[str, Space], Proposals]:
    """How a cell's journal is opened: named by all that gives a proposal its meaning."""
    search = spec.search
    lag = search.bracket or slots
    if isinstance(spec.study, FusedStudy) and search.sampler in ADAPTIVE and not search.bracket:
        # A pack holds what is asked at once. An eighth of the search: a wide pack, and eight times to learn from one.
        lag = max(slots, math.ceil((search.proposals or 1) / 8) - 1)
    areas = [f"area under {objective.name} over log {spec.study.budget}" for objective in spec.objectives]
    goals = [objective.goal for objective in spec.objectives]
    several = len(goals) > 1

    def opened(cell: str, space: Space) -> Proposals:
        fields = [spec.resolved.study, spec.resolved.within]
        context = {"study": spec.study.name, "version": spec.study.version, "fields": fields}
        return Proposals.open(
            spec.results / "journals",
            cell=cell,
            space=space,
            sampler=search.sampler,
            seed=search.seed,
            count=search.proposals,
            lag=lag,
            objective=areas if several else areas[0],
            goal=goals if several else goals[0],
            context={**context, "tuning_seeds": list(spec.tuning_seeds), "bracket": search.bracket},
            record=record,
        )

    return opened


def dry_run(spec: Spec, words: Words, slots: int) -> tuple[Driver, CellTuning]:
    """The first trials against the store, with nothing written. Raises Refused for configs that cannot be honoured."""
    try:
        tuning = CellTuning(spec, open_journals(spec, slots, record=False))
        driver = Driver(Store(spec.results), tuning, slots=slots, checkpoint_every=words.resources.checkpoint_every)
        tuning.fill(driver.index)
        driver.start()
    except (ValueError, RuntimeError) as error:
        raise Refused(str(error)) from error
    return driver, tuning


@contextmanager
def mirrored(
    spec: Spec, words: Words, content: Mapping[str, Any], trials: int, console: Console
) -> Iterator[tracking.Mirror | None]:
    """MLflow's mirror of a sweep while it runs; at the end it takes in records and figures, also of a stopped one."""
    if words.tracking == "none":
        yield None
        return

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    mirror = tracking.Mirror(spec.folder, content, words.tracking, planned=trials, say=say)
    try:
        yield mirror
    finally:
        mirror.close()


def run(
    spec: Spec,
    words: Words,
    store: Store,
    expected: Estimate,
    plan: Plan,
    progress: Progress,
    mirror: tracking.Mirror | None,
    console: Console,
) -> None:
    """Train what is missing; write the tables and the tree's figure, also when the run is stopped."""
    tuning = CellTuning(spec, open_journals(spec, progress.slots, record=True))
    device = device_name(torch.device("cuda" if words.resources.gpus and torch.cuda.is_available() else "cpu"))
    recorder = records.Recorder(spec, [], device)
    watchers: list[Watcher] = [ProgressWatcher(spec, progress, tuning.proposals, expected.jobs, progress.slots)]
    if mirror is not None:
        watchers.append(MirrorWatcher(mirror, recorder))
    every = words.resources.checkpoint_every
    driver = Driver(store, tuning, slots=progress.slots, checkpoint_every=every, watchers=watchers)
    recorder.entries = driver.entries  # the list that grows
    paths = (os.getcwd(), *sys.path[:1])
    stop_file = str(spec.folder.resolve() / "stop")
    place = Place(str(spec.results.resolve()), stop_file, paths, pack=words.resources.pack)
    try:
        with Display(progress, console), interruptible(place):
            tuning.fill(driver.index)
            driver.start()
            execute(driver, place, words, progress.slots)
            progress.finished()
    finally:
        tuning.close()
        driver.refresh()
        recorder.tables(driver.index).write(spec.folder)
        if not isinstance(spec.study, FusedStudy):
            drawing.save(drawing.as_figure(plan), spec.folder / "figures" / "stage_tree")
    console.print(Text(where_the_time_went(progress)), soft_wrap=True)


def execute(driver: Driver, place: Place, words: Words, slots: int) -> None:
    """Run the driver on Ray or in this process."""
    if words.executor == "local":
        return run_here(driver, place, device="cuda" if words.resources.gpus else "cpu")
    # Ray takes seconds to import; plans and local runs do without
    from sweeps.engine.joining import Slots
    from sweeps.engine.search import run_on_ray

    address = {"auto": running_ray(), "local": None}.get(words.cluster, words.cluster)
    given = words.resources
    slot = Slots(slots, gpus=given.gpus, workers=given.workers, parallel=given.parallel)
    return run_on_ray(driver, place, slot, address=address)


@contextmanager
def interruptible(place: Place) -> Iterator[None]:
    """Ctrl-C or SIGTERM: the first asks all jobs to stop at their next measurement, the second stops at once."""
    stop = Path(place.stop_file)
    stop.unlink(missing_ok=True)

    def handle(number: int, frame: Any) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.unlink(missing_ok=True)
