"""kill -9 of one process of a running sweep, and what that costs, against the same sweep unbroken."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil

from sweeps.engine.search import run_on_ray
from sweeps.engine.store import Store
from sweeps.nodes.joining import Slots
from tests.faults.clusters import Raylets, kill
from tests.faults.slow import opened, outcome, slow_spec, steps_trained, unbroken
from tests.sweeps.engine_cases import Sweep

CLONE = Path(__file__).resolve().parents[2]
GROUP = ("worker", "controller")  # faults of a job that has a worker group of its own
FAULTS = ("actor", "raylet", "driver", *GROUP)
PATIENCE_SECONDS = 240.0  # for a process to be there, and for the sweep to go on without it


class Hung(RuntimeError):
    """A sweep did not go on after a fault."""


@dataclass
class Cost:
    """What a fault did. `killed` has the processes in turn, `recovered_seconds` the time from the last of them to the
    first commit of a job that began after it, `steps_lost` the steps that were trained twice; `twice` is the committed
    stages that ran twice. From `seed` the times were drawn, and which of several processes."""

    fault: str
    seed: int
    killed: list[str] = field(default_factory=list)
    recovered_seconds: float = 0.0
    steps_lost: int = 0
    steps: int = 0
    equal: bool = False
    twice: int = 0
    damaged: int = 0
    left: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return bool(self.killed) and self.equal and not (self.twice or self.damaged or any(self.left.values()))


def rehearse(
    cluster: Raylets,
    faults: tuple[str, ...],
    folder: Path,
    seed: int,
    *,
    kind: str = "grid",
    step_seconds: float = 0.02,
    checkpoint_every: int | None = None,
) -> Cost:
    """Run a sweep on Ray, kill -9 a process of each kind in turn, each at a random time, and let the sweep end."""
    draw = Random(seed)
    grouped = any(fault in GROUP for fault in faults)
    slots = Slots(1, workers=2) if grouped else Slots(2)
    how: dict[str, Any] = {"slots": slots.count, "checkpoint_every": checkpoint_every}
    expected, steps = unbroken(folder / "unbroken", kind, **how)
    cluster.one_more()
    broken = folder / "broken"
    spec = slow_spec(broken, kind, step_seconds)
    cost = Cost("+".join(faults), seed, steps=steps)
    if faults == ("driver",):
        jobs_before, killed_at = (
            0,
            _kill_the_driver(cluster, broken, kind, step_seconds, draw.uniform(0.1, 0.7) * steps),
        )
        cost.killed.append("driver")
        sweep = opened(spec, **how)
        run_on_ray(sweep.driver, sweep.place, slots, address=cluster.address)
    else:
        sweep = opened(spec, **how)
        killer = _Killer(cluster, sweep, [(fault, draw.uniform(0.1, 0.7) * steps) for fault in faults], draw)
        killer.start()
        run_on_ray(sweep.driver, sweep.place, slots, address=cluster.address)
        killer.join()
        jobs_before, killed_at, cost.killed = killer.jobs, killer.killed_at, killer.killed
    sweep.tuning.close()
    later = [commit.name for commit in sweep.driver.session.values() if int(commit.job[4:]) > jobs_before]
    written = [(broken / "store" / "stages" / name[:2] / name).stat().st_mtime for name in later]
    cost.recovered_seconds = min((at - killed_at for at in written if at > killed_at), default=0.0)
    cost.equal = outcome(sweep) == expected
    cost.steps_lost = steps_trained(broken) - steps
    index = Store(broken).scan()
    cost.damaged = len(index.damaged)
    ran = Counter((commit.key, commit.start) for commit in index.commits.values())
    cost.twice = sum(times - 1 for times in ran.values())
    cost.left = cluster.clean_within(30)
    return cost


class _Killer(threading.Thread):
    """Kills a process of each kind in turn, once so many steps have been trained since the last."""

    def __init__(self, cluster: Raylets, sweep: Sweep, faults: list[tuple[str, float]], draw: Random):
        super().__init__(daemon=True)
        self.cluster, self.sweep, self.faults, self.draw = cluster, sweep, faults, draw
        self.results = sweep.spec.results
        self.killed: list[str] = []
        self.killed_at = 0.0
        self.jobs = 0  # that had begun when the last process was killed

    def run(self) -> None:
        begun = 0
        for fault, steps in self.faults:
            after = begun + steps / len(self.faults)
            if not waited(partial(self._trained, after)) or not waited(partial(self._kill, fault)):
                return
            begun = steps_trained(self.results)

    def _trained(self, steps: float) -> bool:
        return steps_trained(self.results) >= steps

    def _kill(self, fault: str) -> bool:
        """Kill one of a kind; False while there is none, or where it has ended by itself just now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if found := self.cluster.processes(fault):
                kill(self.draw.choice(found))
                self.killed_at, self.jobs = time.time(), self.sweep.driver.queue.started
                self.killed.append(fault)
                return True
        return False


def waited(there: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until something is there; False when it does not come."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _kill_the_driver(cluster: Raylets, results: Path, kind: str, step_seconds: float, after: float) -> float:
    """Run the sweep in a process of its own until so many steps are trained, kill -9 it; when that was."""
    command = [sys.executable, "-m", "tests.faults.kills", str(results), kind, str(step_seconds), cluster.address]
    driver = subprocess.Popen(command, cwd=CLONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    came = waited(lambda: steps_trained(results) >= after or driver.poll() is not None)
    if not came or driver.poll() is not None:
        driver.kill()
        raise Hung(f"the sweep did not train {after:.0f} steps before it was to be killed:\n{driver.communicate()[0]}")
    kill(psutil.Process(driver.pid))
    killed_at = time.time()
    driver.communicate()
    # The same command takes seconds to start; until then Ray has ended what the dead driver had started.
    if not waited(lambda: not cluster.processes("actor"), 60):
        raise Hung(f"Ray let the actors of a dead driver live: {cluster.processes('actor')}")
    return killed_at


def _drive(results: Path, kind: str, step_seconds: float, address: str) -> Sweep:
    import ray

    ray.init(address=address, log_to_driver=False)
    sweep = opened(slow_spec(results, kind, step_seconds))
    run_on_ray(sweep.driver, sweep.place, Slots(2), address=address)
    sweep.tuning.close()
    return sweep


if __name__ == "__main__":
    _drive(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4])
