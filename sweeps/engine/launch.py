"""One command from its words to its tables, figures and verdicts."""

import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

import analysis
from analysis.claims import Claim
from analysis.records import Records
from sweeps.engine import drawing, records, tracking
from sweeps.engine.driver import Driver, Watcher
from sweeps.engine.dry_run import dry_run, open_journals, plan_text, with_gpus
from sweeps.engine.estimate import Estimate, estimate
from sweeps.engine.local import run_here
from sweeps.engine.plan import Plan
from sweeps.engine.progress import Display, Progress, banner, where_the_time_went
from sweeps.engine.report import show_schedule
from sweeps.engine.spec import Spec
from sweeps.engine.store import Store
from sweeps.engine.tuning import CellTuning
from sweeps.engine.watchdog import Watchdog
from sweeps.engine.watching import MirrorWatcher, ProgressWatcher, name_of
from sweeps.engine.words import Refused, Words, help_text, make_spec
from sweeps.engine.worker import Place, device_name
from sweeps.nodes.ground import Ground, cluster_elsewhere, find_ground, own_rooms
from sweeps.nodes.joining import slots_of
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


def question_of(script: str | Path) -> Question:
    """The question of a sweep script. Raises Refused when there is none."""
    path = Path(script)
    spec = importlib.util.spec_from_file_location(f"asked_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise Refused(f"no sweep script {script} here; say one such as sweeps/wsd_budget.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    question = getattr(module, "QUESTION", None)
    if not isinstance(question, Question):
        raise Refused(f"{script} has no QUESTION, as sweep scripts have; see sweeps/wsd_budget.py")
    return question


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
    return launch(question, spec, words, console or Console(), arguments)


def launch(
    question: Question, spec: Spec, words: Words, console: Console, arguments: Sequence[str] | None = None
) -> Records | None:
    """The same for a sweep that is given as data; `arguments` are its command's where it has one."""

    def say(text: str) -> None:
        console.print(Text(text, style="cyan"), soft_wrap=True)

    elsewhere = None if arguments is None else cluster_elsewhere(words, arguments)
    if elsewhere is not None:
        say(elsewhere)
    ground = find_ground(words, say)
    slots = ground.slots
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
    if arguments is not None and ground.idle_gpus and words.scale == "laptop" and not words.resources.gpus:
        say(with_gpus(spec.study, spec.name, arguments, ground.idle_gpus))
    if words.plan_only:
        names = {entry.trial.key: name_of(spec, entry) for entry in driver.entries}
        console.print(drawing.as_shapes(plan, slots) if lanes else drawing.as_text(plan, names))
        return None
    ground.check(words, spec.results)
    store = Store(spec.results, session=records.new_session())
    store.prepare()
    try:
        recorded = CellTuning(spec, open_journals(spec, slots, record=True))
    except RuntimeError as error:  # another process runs this sweep
        raise Refused(str(error)) from error
    claims = [claim.declared() for claim in question.claims]
    content = records.describe_spec(spec, claims, expected.as_dict(), store.session)
    records.write_spec(spec, content)
    with closing(recorded), mirrored(spec, words, content, expected.trials, console) as mirror:
        run(spec, words, store, recorded, ground, expected, plan, progress, mirror, console)
        found = analysis.open(spec.folder)
        show_schedule(found, spec, console)
        if question.show is not None:
            question.show(found, spec, console)
    if words.tracking != "none":
        line = tracking.ui_command(spec.results, words.tracking)
        console.print(f"compare runs: [bold]{line}[/bold]", highlight=False, soft_wrap=True)
    return found


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
    tuning: CellTuning,
    ground: Ground,
    expected: Estimate,
    plan: Plan,
    progress: Progress,
    mirror: tracking.Mirror | None,
    console: Console,
) -> None:
    """Train what is missing; write the tables and the tree's figure, also when the run is stopped."""
    device = device_name(torch.device("cuda" if words.resources.gpus and torch.cuda.is_available() else "cpu"))
    recorder = records.Recorder(spec, [], device)
    watchers: list[Watcher] = [ProgressWatcher(spec, progress, tuning.proposals, expected.jobs, progress.slots)]
    if mirror is not None:
        watchers.append(MirrorWatcher(mirror, recorder))
    watchdog = Watchdog(progress.message)
    watchers.append(watchdog)
    every = words.resources.checkpoint_every
    driver = Driver(store, tuning, slots=progress.slots, checkpoint_every=every, watchers=watchers)
    recorder.entries = driver.entries  # the list that grows
    paths = (os.getcwd(), *sys.path[:1])
    stop_file = str(spec.folder.resolve() / "stop")
    pack, session = words.resources.pack, store.session
    place = Place(str(spec.results.resolve()), stop_file, paths, pack=pack, session=session)
    try:
        with Display(progress, console), watchdog, interruptible(place):
            tuning.fill(driver.index)
            driver.start()
            execute(driver, place, words, ground)
            progress.finished()
    finally:
        driver.refresh()
        recorder.tables(driver.index).write(spec.folder)
        if not isinstance(spec.study, FusedStudy):
            drawing.save(drawing.as_figure(plan), spec.folder / "figures" / "stage_tree")
    console.print(Text(where_the_time_went(progress)), soft_wrap=True)


def execute(driver: Driver, place: Place, words: Words, ground: Ground) -> None:
    """Run the driver on Ray or in this process."""
    if words.executor == "local":
        return run_here(driver, place, device="cuda" if words.resources.gpus else "cpu")
    from sweeps.engine.search import run_on_ray  # Ray takes seconds to import; plans and local runs do without

    return run_on_ray(driver, place, slots_of(words.resources, ground.slots), address=ground.address)


@contextmanager
def interruptible(place: Place) -> Iterator[None]:
    """Ctrl-C or SIGTERM: the first asks all jobs to keep what they have trained and end, the second stops at once."""
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
