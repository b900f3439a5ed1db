"""What a sweep waits for when nothing comes: a process that hangs dies of nothing, and nobody would ever say so."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from sweeps.engine.store import Commit
from sweeps.engine.worker import Job

SILENT_SECONDS = 600.0


class Watchdog:
    """A watcher that names each job from which nothing has come for long, and again when it is twice as long.

    Long is `silent` seconds, or five times the longest that any job has kept this sweep waiting between two words:
    where stages take hours, minutes say nothing. It ends nothing; a job that works may be this slow.
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
        self.heard: dict[str, float] = {}
        self.named: dict[str, float] = {}  # job -> the seconds of silence after which it was named last
        self.longest = 0.0
        self.guard, self.over = threading.Lock(), threading.Event()

    def look(self) -> None:
        """Name the jobs that have been silent for too long."""
        with self.guard:
            for name, since in self.heard.items():
                silence = self.clock() - since
                if silence > max(self.silent, 5 * self.longest, 2 * self.named.get(name, 0.0)):
                    self.named[name] = silence
                    self.say(self._words(name, silence))

    def _words(self, name: str, silence: float) -> str:
        items = [item for item, _ in self.running[name].items]
        parts = [f"{item.study.name} steps {item.branch.start} to {item.branch.stop}" for item in items]
        more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
        return (
            f"waiting for {name}: nothing has come from it for {silence / 60:.0f} min ({', '.join(parts[:3])}{more}); "
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
        with self.guard:
            if name in self.heard:
                self.longest = max(self.longest, self.clock() - self.heard[name])
                self.heard[name] = self.clock()
                self.named.pop(name, None)

    def planned(self, driver: Any, new: Any) -> None: ...

    def settled(self, entry: Any) -> None: ...

    def committed(self, commit: Commit, rows: Any) -> None:
        self._hear(commit.job)

    def job_started(self, job: Job) -> None:
        with self.guard:
            self.running[job.name], self.heard[job.name] = job, self.clock()

    def job_ended(self, job: Job, error: str | None) -> None:
        self._hear(job.name)
        with self.guard:
            for known in (self.running, self.heard, self.named):
                known.pop(job.name, None)
