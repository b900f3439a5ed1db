"""What a running sweep shows: a state that events change, and a display that draws it, live or as plain lines."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PARTS = ("training", "evaluation", "checkpoints", "start-up", "waiting")
PLAIN_EVERY = 15.0  # seconds between two plain lines


@dataclass
class Progress:
    """Where a sweep stands. The engine sends events; nothing here prints, and a test may turn the clock.

    Steps are optimizer steps, seconds those of one slot: two slots pass two slot-seconds a second.
    """

    goal: Literal["min", "max"] = "min"
    clock: Callable[[], float] = time.monotonic
    trials: int = 0
    proposals: int | None = None
    jobs: int = 0
    slots: int = 1
    steps_alone: int = 0  # what the trials would cost one by one
    steps_planned: int = 0  # what is left to run, all sharing counted
    complete: int = 0
    failed: int = 0  # crashed or diverged
    pruned: int = 0  # ended by a rung
    reused: int = 0  # already in the store when the sweep started
    steps_run: int = 0
    steps_finished: int = 0  # own timelines of the trials that this run finished
    running: set[str] = field(default_factory=set)
    best: dict[int, tuple[float, str]] = field(default_factory=dict)  # budget -> (loss, name)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS[:-1], 0.0))
    messages: list[str] = field(default_factory=list)
    begun: float = math.nan
    first_job: float = math.nan
    ended: float = math.nan

    def __post_init__(self) -> None:
        self.begun = self.clock()

    # ------------------------------------------------------------ events

    def started(
        self,
        *,
        trials: int,
        jobs: int,
        slots: int,
        steps_alone: int,
        steps_planned: int,
        proposals: int | None = None,
        reused: int = 0,
    ) -> None:
        """The plan is made. Called again when it grows (a new proposal, a rung)."""
        self.trials, self.jobs, self.slots, self.proposals = trials, jobs, slots, proposals
        self.steps_alone, self.steps_planned, self.reused = steps_alone, steps_planned, reused

    def job_started(self, job: str) -> None:
        self.running.add(job)
        if math.isnan(self.first_job):
            self.first_job = self.clock()
            self.seconds["start-up"] += self.slots * (self.first_job - self.begun)

    def job_ended(self, job: str) -> None:
        self.running.discard(job)

    def stage_finished(
        self,
        steps: int,
        *,
        train_seconds: float = 0.0,
        evaluation_seconds: float = 0.0,
        checkpoint_seconds: float = 0.0,
        startup_seconds: float = 0.0,
    ) -> None:
        self.steps_run += steps
        spent = (train_seconds, evaluation_seconds, checkpoint_seconds, startup_seconds)
        for part, more in zip(PARTS[:-1], spent, strict=True):
            self.seconds[part] += more

    def trial_finished(self, name: str, status: str, budget: int, loss: float | None, steps: int | None = None) -> None:
        """`steps` is the length of the trial's own timeline, the budget unless said otherwise."""
        self.steps_finished += budget if steps is None else steps
        if status == "complete":
            self.complete += 1
        elif status == "pruned":
            self.pruned += 1
        else:
            self.failed += 1
            self.message(f"{name}: {status}")
        if status == "complete" and loss is not None and math.isfinite(loss):
            better = min if self.goal == "min" else max
            self.best[budget] = better(self.best.get(budget, (loss, name)), (loss, name), key=lambda pair: pair[0])

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finished(self) -> None:
        self.ended = self.clock()
        self.running.clear()

    # ------------------------------------------------------------ what follows from them

    @property
    def elapsed(self) -> float:
        return (self.clock() if math.isnan(self.ended) else self.ended) - self.begun

    @property
    def left(self) -> int:
        return max(0, self.trials - self.reused - self.complete - self.failed - self.pruned)

    @property
    def steps_saved(self) -> int:
        """Steps that the finished trials would have cost alone, less those run; a trunk is paid before it saves."""
        return max(0, self.steps_finished - self.steps_run)

    @property
    def seconds_left(self) -> float | None:
        """At the pace since the first job; None before the first stage is in."""
        if not self.steps_run or math.isnan(self.first_job):
            return None
        pace = (self.clock() - self.first_job) / self.steps_run
        return max(0, self.steps_planned - self.steps_run) * pace

    def shares(self) -> dict[str, float]:
        """Where the time of all slots went, as parts of one; what nothing accounts for is waiting.

        >>> progress = Progress(clock=iter([0.0, 2.0, 10.0]).__next__)
        >>> progress.job_started("a")
        >>> progress.stage_finished(100, train_seconds=6, evaluation_seconds=1)
        >>> progress.finished()
        >>> progress.shares()
        {'training': 0.6, 'evaluation': 0.1, 'checkpoints': 0.0, 'start-up': 0.2, 'waiting': 0.1}
        """
        known = sum(self.seconds.values())
        total = max(self.slots * self.elapsed, known) or 1.0
        spent = self.seconds | {"waiting": total - known}
        return {part: round(spent[part] / total, 6) for part in PARTS}


def banner(
    progress: Progress, *, study: str, scale: str, executor: str = "ray", shown: int = 500, lanes: bool = False
) -> str:
    """The first lines of a run: our words in those of Ray, Optuna and MLflow."""
    jobs = f"{progress.jobs:,} {'Ray job' if executor == 'ray' else 'job'}{'' if progress.jobs == 1 else 's'}"
    head = f"{study} at scale {scale}: {progress.trials:,} trials in {jobs}"
    if progress.proposals is not None:
        head += f", {progress.proposals:,} proposals"
    many = "it trains many of our trials" + (", as lanes of one program" if lanes else "")
    in_ray = f"a Ray Tune trial; {many}" if executor == "ray" else f"work in this process, without Ray; {many}"
    lines = [
        head,
        "  trial     one config"
        + (
            " = an MLflow child run"
            if progress.trials <= shown
            else f"; the {shown} that matter most become MLflow child runs"
        ),
        f"  job       {in_ray}",
    ]
    if progress.proposals is not None:
        lines.append("  proposal  an Optuna trial: values for the searched axes, times the enumerated axes")
    lines.append("  sweep     this run = an MLflow parent run; our study is MLflow's experiment, not Optuna's study")
    if progress.steps_planned and not lanes:
        alone, planned = progress.steps_alone, progress.steps_planned
        lines.append(f"{planned:,} steps to run; the trials alone would take {alone:,} ({alone / planned:.2f}x)")
    if progress.reused:
        lines.append(f"{progress.reused:,} trials are in the store already and are not run again")
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """
    >>> duration(None), duration(7.4), duration(125), duration(7300)
    ('?', '7 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counts(progress: Progress) -> str:
    """Trials in one line.

    >>> counts(Progress(trials=12, complete=3, failed=1))
    '3 done, 1 failed, 8 left'
    """
    words = [f"{progress.complete:,} done", f"{progress.failed:,} failed", f"{progress.left:,} left"]
    if progress.pruned:
        words.insert(1, f"{progress.pruned:,} ended by rungs")
    if progress.reused:
        words.insert(0, f"{progress.reused:,} from the store")
    return ", ".join(words)


def line(progress: Progress) -> str:
    """The state as one plain line."""
    text = (
        f"[{duration(progress.elapsed)}] trials: {counts(progress)}; steps: {progress.steps_run:,} of "
        f"{progress.steps_planned:,} run, {progress.steps_saved:,} saved; {duration(progress.seconds_left)} left"
    )
    if progress.best:
        text += "; best " + ", ".join(
            f"B={budget}: {loss:.4f}" for budget, (loss, _) in sorted(dict(progress.best).items())
        )
    return text


def drawing(progress: Progress) -> RenderableType:
    """The state as the live display shows it."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(1, progress.steps_planned), completed=progress.steps_run, width=40),
        Text(f"{progress.steps_run:,} of {progress.steps_planned:,} steps, {progress.steps_saved:,} saved"),
    )
    slots = f"{len(progress.running)} of {progress.slots} slots busy"
    times = f"{duration(progress.elapsed)} so far, {duration(progress.seconds_left)} left, {slots}"
    rows: list[RenderableType] = [Text(f"trials: {counts(progress)}"), bar, Text(times)]
    if progress.best:
        table = Table(box=None, pad_edge=False)
        table.add_column("budget", justify="right")
        table.add_column("best", justify="right")
        table.add_column("trial", no_wrap=True, overflow="ellipsis")
        for budget, (loss, name) in sorted(dict(progress.best).items()):
            table.add_row(f"{budget:,}", f"{loss:.4f}", name)
        rows.append(table)
    return Group(*rows)


def where_the_time_went(progress: Progress) -> str:
    """The last line of a run: the shares of all slots' time."""
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in progress.shares().items())
    slots = f"{progress.slots} slot{'' if progress.slots == 1 else 's'}"
    return f"{duration(progress.elapsed)} on {slots}: {shares}"


class Display:
    """Draws a `Progress` while a sweep runs: `with Display(progress): ...`.

    On a terminal one live picture; otherwise a line every `PLAIN_EVERY` seconds. Messages appear within a second.
    """

    def __init__(self, progress: Progress, console: Console | None = None, every: float = PLAIN_EVERY) -> None:
        self.progress, self.every = progress, every
        self.console = console or Console(file=sys.stdout)
        self.said, self.last = 0, -math.inf
        self.live: Live | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="progress", daemon=True)
        self.drawing = threading.Lock()

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Live(drawing(self.progress), console=self.console, auto_refresh=False)
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.over.set()
        self.thread.join(2)
        self.tick(last=True)
        if self.live:
            self.live.stop()

    def run(self) -> None:
        while not self.over.wait(0.5):
            self.tick()

    def tick(self, last: bool = False) -> None:
        """Shows what is new: the messages, then the picture or, when it is time, the line."""
        with self.drawing:
            new, now = self.progress.messages[self.said :], self.progress.clock()
            self.said += len(new)
            for text in new:
                self.console.print(Text(text), soft_wrap=True)
            if self.live:
                self.live.update(drawing(self.progress), refresh=True)
            elif last or now - self.last >= self.every:
                self.last = now
                self.console.print(Text(line(self.progress)), soft_wrap=True)
