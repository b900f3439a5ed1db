"""A sweep that takes seconds, counts every step that it trains, and says all that a broken run may not change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sweeps.engine.driver import Driver
from sweeps.engine.launch import open_journals
from sweeps.engine.local import run_here
from sweeps.engine.spec import Search, Spec
from sweeps.engine.store import Store
from sweeps.engine.tuning import CellTuning
from sweeps.engine.worker import Place
from tests.sweeps.engine_cases import Sweep, Told, toy_spec
from trainables import toys
from trainables.study import StagedStudy

# How trials come about, in every way that the engine knows: all at once, on rungs, one from another.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "grid": dict(rates=(0.05, 0.1, 0.2), budgets=(20, 40, 80), decay_fraction=[0.1, 0.25, 0.5], fresh=1),
    "halving": dict(
        rates=tuple(0.02 * 1.5**n for n in range(8)),
        budgets=(20, 40, 80),
        decay_fraction=0.25,
        search=Search(proposals=8, bracket=4, eta=2),
        fresh=1,
    ),
    "adaptive": dict(
        rates={"low": 0.01, "high": 0.5, "log": True},
        budgets=(20, 40, 80),
        decay_fraction=0.25,
        search=Search("tpe", proposals=5),
        fresh=1,
    ),
    "short": dict(rates=(0.05, 0.1), budgets=(20, 40), decay_fraction=0.25),
}


def slowly(step_seconds: float, steps_file: Path) -> StagedStudy:
    """The toy, whose steps take a while and each leave a byte in a file: who trains a step twice leaves two."""

    def advance(state: Any, placed: Any, span: Any, run: Any) -> None:
        for step in range(span.start, span.stop):
            if run.rank == 0:
                with steps_file.open("ab") as file:
                    file.write(b".")
            time.sleep(step_seconds)
            toys.advance(state, placed, type(span)(step, step + 1), run)

    return replace(toys.QUADRATIC, advance=advance)


def slow_spec(results: Path, kind: str, step_seconds: float = 0.0) -> Spec:
    results.mkdir(parents=True, exist_ok=True)
    return toy_spec(results, slowly(step_seconds, results.resolve() / "steps"), **KINDS[kind])


def opened(spec: Spec, *, slots: int = 2, checkpoint_every: int | None = None, watchers: Any = ()) -> Sweep:
    """The sweep with its journals open; `driver.start()` has been called."""
    store = Store(spec.results)
    store.prepare()
    tuning, told = CellTuning(spec, open_journals(spec, slots, record=True)), Told()
    every: Any = [told, *watchers]
    driver = Driver(store, tuning, slots=slots, checkpoint_every=checkpoint_every, watchers=every)
    place = Place(str(spec.results.resolve()), str(spec.results.resolve() / "stop"))
    driver.start()
    return Sweep(spec, driver, tuning, told, place)


def steps_trained(results: Path) -> int:
    return os.path.getsize(results / "steps") if (results / "steps").exists() else 0


def outcome(sweep: Sweep) -> dict[str, Any]:
    """Proposals, trials and measurements: what no fault may change, as JSON would say it."""
    trials = [
        [e.phase, asdict(e.trial.config), e.cell, e.proposal, e.status, [list(row[1:]) for row in e.rows]]
        for e in sweep.entries
    ]
    proposals = [
        [[p.index, dict(p.values), None if told is None else [told.state, list(told.values)]]]
        for cell in sweep.tuning.cells
        for p, told in cell.proposals.outcomes()
    ]
    said: dict[str, Any] = json.loads(
        json.dumps({"trials": sorted(trials, key=json.dumps), "proposals": proposals}, sort_keys=True)
    )
    return said


def unbroken(results: Path, kind: str, **how: Any) -> tuple[dict[str, Any], int]:
    """What the same sweep finds when nothing happens to it, in this process: its outcome, and the steps it trains."""
    sweep = opened(slow_spec(results, kind), **how)
    try:
        run_here(sweep.driver, sweep.place)
    finally:
        sweep.tuning.close()
    return outcome(sweep), steps_trained(results)
