"""What a sweep waits for when nothing comes: a process that hangs dies of nothing, and nobody would ever say so."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from sweeps.engine.store import Commit
from sweeps.engine.worker import Job

SILENT_SECONDS = 600.0


class Watchdog:
    """A watcher that names each job from which nothing has come for long, and again when it is twice as long.

    Long is `silent` seconds, or five times the longest that any job has kept this sweep waiting between two words:
    where stages take hours, minutes say nothing. It ends nothing; a job that works may be this slow.
    A job that has not begun has no process yet: of such it says that no node has taken them, and their wait for one is
    no measure of how slow stages are.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        silent: float = SILENT_SECONDS,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.say, self.silent, self.every, self.clock = say, silent, every, clock
        self.running: dict[str, Job] = {}
        self.asked: dict[str, float] = {}  # job that no node has taken yet -> when it was handed out
        self.heard: dict[str, float] = {}  # job that runs -> when its last word came
        self.named: dict[str, float] = {}  # job -> the seconds of silence after which it was named last
        self.longest = 0.0
        self.guard, self.over = threading.Lock(), threading.Event()

    def look(self) -> None:
        """Name the jobs that have been silent for too long, and those that no node has taken for too long."""
        with self.guard:
            for name in self._due(self.heard, max(self.silent, 5 * self.longest)):
                self.say(self._words(name))
            if waiting := self._due(self.asked, self.silent):
                self.say(self._no_node(waiting))

    def _due(self, since: dict[str, float], patience: float) -> list[str]:
        """The jobs to be named now, by the seconds since each was handed out or heard."""
        waited = {name: self.clock() - then for name, then in since.items()}
        due = [name for name in waited if waited[name] > max(patience, 2 * self.named.get(name, 0.0))]
        self.named.update((name, waited[name]) for name in due)
        return due

    def _no_node(self, names: list[str]) -> str:
        longest = max(self.named[name] for name in names)
        return (
            f"no node has taken {_few(names)} for {longest / 60:.0f} min; what is still starting, or cannot be had, "
            "`ray status` says; it goes on by itself once nodes have room"
        )

    def _words(self, name: str) -> str:
        items = [item for item, _ in self.running[name].items]
        parts = [f"{item.study.name} steps {item.branch.start} to {item.branch.stop}" for item in items]
        return (
            f"waiting for {name}: nothing has come from it for {self.named[name] / 60:.0f} min ({_few(parts)}); "
            "its process may hang: end that process and the job is tried again, or go on waiting"
        )

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()

    def _watch(self) -> None:
        while not self.over.wait(self.every):
            self.look()

    def _hear(self, name: str) -> None:
        """A word from a job, the first of which says that it runs."""
        with self.guard:
            if name in self.heard:
                self.longest = max(self.longest, self.clock() - self.heard[name])
            if name in self.running:
                self.asked.pop(name, None)
                self.heard[name] = self.clock()
                self.named.pop(name, None)

    def planned(self, driver: Any, new: Any) -> None: ...

    def settled(self, entry: Any) -> None: ...

    def committed(self, commit: Commit, rows: Any) -> None:
        self._hear(commit.job)

    def job_started(self, job: Job) -> None:
        with self.guard:
            self.running[job.name], self.asked[job.name] = job, self.clock()

    def job_began(self, job: Job) -> None:
        self._hear(job.name)

    def job_ended(self, job: Job, error: str | None) -> None:
        if error is None:  # the silence of a job that hung until somebody ended it is no measure of the others
            self._hear(job.name)
        with self.guard:
            for known in (self.running, self.asked, self.heard, self.named):
                known.pop(job.name, None)


def _few(parts: Sequence[str]) -> str:
    """
    >>> _few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
