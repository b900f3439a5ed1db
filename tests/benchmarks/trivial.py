"""trivial: trials per minute through Ray Tune when training costs nothing: TPE over two axes, lanes in packs.

`python -m tests.benchmarks.trivial PROPOSALS SLOTS FOLDER` runs one such sweep and prints what it took, from before
Ray's start to the last outcome in the journal.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

from search_spaces import parse
from search_spaces.fields import field_types
from search_spaces.files import ResolvedSpace, Seeds
from sweeps.engine.driver import Driver
from sweeps.engine.launch import open_journals
from sweeps.engine.spec import Search, Spec
from sweeps.engine.store import Store
from sweeps.engine.tuning import CellTuning
from sweeps.engine.worker import Place
from tests.benchmarks.meter import as_json, metered
from tests.benchmarks.settings import Measured, Settings, cores, fresh_folder
from trainables.toys import LANES

PROPOSALS = 1000


def spec_of(folder: Path, proposals: int) -> Spec:
    """A sweep over the toy in lanes: its rate and its target are searched, one seed, one budget."""
    axes = {
        "learning_rate": {"low": 1e-3, "high": 1.0, "log": True},
        "target": {"low": 1e-6, "high": 1e-3, "log": True},
        "budget_steps": [20],
    }
    space = parse(axes, fields=field_types(LANES.config), conditions=LANES.conditions, cells=())
    return Spec(
        name="trivial",
        study=LANES,
        scale="tiny",
        preset="default",
        command="python -m tests.benchmarks.trivial",
        axes=axes,
        space=space,
        resolved=ResolvedSpace(axes, {}, Seeds(1, 0), {}, ()),
        budgets=(20,),
        tuning_seeds=(0,),
        fresh_seeds=(),
        search=Search("tpe", proposals),
        compare=(),
        results=folder,
    )


def sweep(proposals: int, slots: int, folder: Path) -> dict[str, float]:
    """Run it on a Ray of its own; seconds of wall clock, trials that completed, jobs that Tune ran."""
    from sweeps.engine.search import run_on_ray
    from sweeps.nodes.joining import Slots

    spec = spec_of(folder, proposals)
    store = Store(spec.results)
    store.prepare()
    began = time.perf_counter()
    tuning = CellTuning(spec, open_journals(spec, slots, record=True))
    driver = Driver(store, tuning, slots=slots)
    driver.start()
    try:
        place = Place(str(folder.resolve()), str(folder.resolve() / "stop"))
        run_on_ray(driver, place, Slots(slots), address=None)
    finally:
        tuning.close()
    took = time.perf_counter() - began
    complete = sum(entry.status == "complete" for entry in driver.entries)
    return {"wall_seconds": took, "complete": complete, "jobs": driver.queue.started}


def trivial(settings: Settings) -> Measured:
    proposals, rounds = (40 if settings.quick else PROPOSALS), []
    for _ in range(settings.rounds):
        with fresh_folder() as folder:
            words = [sys.executable, "-m", "tests.benchmarks.trivial", str(proposals), str(cores()), str(folder)]
            spent, printed = metered(words)
            rounds.append({**json.loads(printed.strip().splitlines()[-1]), "process": as_json(spent)})
    values = {
        "trials_per_minute": median(60 * one["complete"] / one["wall_seconds"] for one in rounds),
        "lost": sum(proposals - one["complete"] for one in rounds),
    }
    return Measured(values, {"proposals": proposals, "rounds": rounds})


if __name__ == "__main__":
    given, count, where = sys.argv[1:]
    print(json.dumps(sweep(int(given), int(count), Path(where))))
