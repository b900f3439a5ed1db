"""plan: what the planner makes of preset=grid360, and the CPU seconds that planning takes (imports left out)."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from sweeps.engine.launch import dry_run
from sweeps.engine.plan import Plan
from sweeps.engine.words import make_spec
from tests.benchmarks.settings import Measured, Settings, cores, fresh_folder
from trainables import wsd

GRID = ("preset=grid360", "scale=laptop")


def planned(arguments: Sequence[str]) -> tuple[list[Any], Plan]:
    """The configs and the plan of a command, on an empty results folder."""
    with fresh_folder() as folder:
        spec, words = make_spec(wsd.STUDY, [*arguments, f"results={folder}"], "benchmark")
        driver, _ = dry_run(spec, words, words.slots or cores())
        return [entry.trial.config for entry in driver.entries], driver.current_plan()


def plan(settings: Settings) -> Measured:
    wsd.corpus_of("pycode", "bytes")  # opened once, before the clock starts
    seconds = []
    for _ in range(settings.rounds):
        began = time.process_time()
        configs, made = planned(GRID)
        seconds.append(time.process_time() - began)
    values = {
        "trials": len(configs),
        "steps_alone": made.steps_alone,
        "steps_shared": made.steps_shared,
        "saving": round(made.saving, 2),
        "cpu_seconds": median(seconds),
    }
    return Measured(values, {"command": list(GRID), "cpu_seconds": seconds})
