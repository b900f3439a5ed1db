"""What a command costs: wall seconds, and the CPU seconds of every process that it starts, daemons included.

The command runs below a small process of its own (`python -m tests.benchmarks.meter`), which adopts what is orphaned
below it and keeps two lower bounds of the tree's CPU time; the larger one counts.
  reaped   what the kernel adds up over processes that were waited for. It misses those whose parent does not wait.
  sampled  the last reading of every process ever seen. It misses what a process did after its last reading, at most
           SAMPLE_SECONDS, and processes that lived shorter.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 0.2
LINGER_SECONDS = 30.0  # that the command's daemons get to go on their own
REPOSITORY = Path(__file__).resolve().parents[2]
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Spent:
    """`wall_seconds` until the command itself ended; CPU seconds until its last descendant had; its exit status."""

    wall_seconds: float
    reaped_seconds: float
    sampled_seconds: float
    status: int

    @property
    def cpu_seconds(self) -> float:
        return max(self.reaped_seconds, self.sampled_seconds)


class CommandFailed(RuntimeError):
    """A metered command ended with an error, or outlived its limit."""


def metered(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, limit_seconds: float = 3600
) -> tuple[Spent, str]:
    """Run a command from the clone's top folder; what it cost and what it printed.

    It finds no Ray that runs already (RAY_ADDRESS is taken away). Raises CommandFailed with the end of the output.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "output"), "w+") as output:
        answer = Path(folder, "spent.json")
        wrapper = [sys.executable, "-m", "tests.benchmarks.meter", str(answer), str(limit_seconds), *command]
        subprocess.run(
            *(wrapper,),
            cwd=REPOSITORY,
            env=inherited | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.seek(0)
        printed = output.read()
        if not answer.exists():
            raise CommandFailed(f"{' '.join(command)}: the meter died\n{printed[-4000:]}")
        spent = Spent(**json.loads(answer.read_text()))
    if spent.status:
        raise CommandFailed(f"{' '.join(command)} ended with status {spent.status}\n{printed[-4000:]}")
    return spent, printed


def run_arm(
    module: str, arm: str, given: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> tuple[Spent, dict[str, Any]]:
    """`python -m module arm GIVEN.json ANSWER.json` in a process of its own. Raises CommandFailed."""
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-", ignore_cleanup_errors=True) as folder:
        question, answer = Path(folder, "given.json"), Path(folder, "answer.json")
        question.write_text(json.dumps(given))
        spent, _ = metered([sys.executable, "-m", module, arm, str(question), str(answer)], environment=environment)
        return spent, json.loads(answer.read_text())


class Tree:
    """All processes below this one, whether they still are or have been seen, with their last CPU readings."""

    def __init__(self) -> None:
        self.root = psutil.Process()
        self.alive: dict[int, psutil.Process] = {}
        self.readings: dict[tuple[int, float], float] = {}

    def sample(self) -> None:
        for process in self.root.children(recursive=True):
            self.alive.setdefault(process.pid, process)
        for pid, process in list(self.alive.items()):
            try:
                times, status = process.cpu_times(), process.status()
            except psutil.Error:
                del self.alive[pid]
                continue
            self.readings[pid, process.create_time()] = times.user + times.system
            if status == psutil.STATUS_ZOMBIE:
                del self.alive[pid]

    @property
    def seconds(self) -> float:
        return sum(self.readings.values())


def run_and_reap(command: Sequence[str], limit_seconds: float) -> Spent:
    """Run a command below this process until nothing of it is left. Descendants that linger are ended, one by one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    tree, began = Tree(), time.monotonic()
    main = subprocess.Popen(list(command)).pid
    ended: tuple[float, int] | None = None
    while True:
        tree.sample()
        for pid, status in reap():
            if pid == main:
                ended = time.monotonic() - began, os.waitstatus_to_exitcode(status)
        now = time.monotonic() - began
        if ended is not None and not tree.alive:
            break
        if ended is not None and now > ended[0] + LINGER_SECONDS:
            end(tree, signal.SIGKILL)
        elif ended is None and now > limit_seconds:
            end(tree, signal.SIGTERM if now < limit_seconds + LINGER_SECONDS else signal.SIGKILL)
        time.sleep(SAMPLE_SECONDS)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(ended[0], used.ru_utime + used.ru_stime, tree.seconds, ended[1])


def reap() -> list[tuple[int, int]]:
    """(pid, status) of every child, born or adopted, that has ended since the last call."""
    found = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def end(tree: Tree, how: signal.Signals) -> None:
    for process in list(tree.alive.values()):
        try:
            process.send_signal(how)
        except psutil.Error:
            continue  # gone already


def main(words: Sequence[str]) -> None:
    answer, limit, *command = words
    spent = run_and_reap(command, float(limit))
    Path(answer).write_text(json.dumps(asdict(spent)))


def as_json(spent: Spent) -> dict[str, Any]:
    return asdict(spent) | {"cpu_seconds": spent.cpu_seconds}


if __name__ == "__main__":
    main(sys.argv[1:])
