"""limits: what a sweep of 1,000 trials and 10,000 measurements costs its driver and its readers, in CPU seconds.

The sweep is run to its end in simulated time, by the driver and queue of a real one; what is timed is theirs. Its
tables are written, opened, and read as a frontier, claims and figures.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import analysis
from analysis.claims import decide
from analysis.figures import by_groups, draw_all
from analysis.frontier import frontier
from analysis.wsd_claims import CLAIMS
from sweeps.engine.dry_run import open_journals
from sweeps.engine.jobs import Queue
from sweeps.engine.records import Recorder, describe_spec, write_spec
from sweeps.engine.simulation import Clockwork, Fleet, Pace
from sweeps.engine.tuning import CellTuning
from sweeps.engine.words import make_spec
from tests.benchmarks import meter
from tests.benchmarks.settings import Measured, Settings, fresh_folder
from trainables import wsd

SLOTS = 8
PEAKS = 16  # of 72 trials each
TIMED = ("plan_seconds", "drive_seconds", "tables_seconds", "read_seconds")


def words(peaks: int, results: Path) -> list[str]:
    """4 fractions x 3 shapes x 3 budgets x 2 seeds for each peak, of one trunk per peak and seed."""
    sizes = ["space.budget_steps=[500,1000,2000]", "study.measure_every=125", "tuning_seeds=2", "seeds=1"]
    return [
        "scale=laptop",
        "preset=fractions_and_shapes",
        f"space.peak_lr.points={peaks}",
        *sizes,
        f"results={results}",
    ]


def sweep_of(peaks: int, figures: bool = True) -> dict[str, Any]:
    """CPU seconds of planning, driving and reading a sweep, and the peak of this process' memory by then."""
    wsd.corpus_of("pycode", "bytes")  # opened once, before the clock starts
    with fresh_folder() as folder:
        spec, _ = make_spec(wsd.STUDY, words(peaks, folder), "limits")
        clock = time.process_time
        began = clock()
        tuning = CellTuning(spec, open_journals(spec, SLOTS, record=False))
        swept = Clockwork(spec, tuning, Fleet(SLOTS), Pace(25e9, "assumed"), checkpoint_every=500)
        swept.driver.start()
        plan = swept.driver.current_plan()
        Queue(SLOTS).offer(plan)
        planned = clock()
        found = swept.run()
        driven = clock()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        recorder = Recorder(spec, swept.driver.entries, "cpu")
        recorder.tables(swept.driver.index).write(spec.folder)
        write_spec(spec, describe_spec(spec, [claim.declared() for claim in CLAIMS], {}))
        written = clock()
        records = analysis.open(folder)
        points = frontier(records, by=["method"])
        points.table("text")
        decide(list(CLAIMS), records)
        read = clock()
        if figures:
            draw_all(records, folder / "figures", by_groups(["method"]))
        return {
            "trials": found.trials,
            "measurements": records.measurements.num_rows,
            "jobs": found.jobs,
            "incomplete": found.incomplete,
            "plan_seconds": planned - began,
            "drive_seconds": driven - planned,
            "tables_seconds": written - driven,
            "read_seconds": read - written,
            "figures_seconds": clock() - read,
            "memory_gigabytes": memory / 1e9,
        }


def limits(settings: Settings) -> Measured:
    """Each sweep in a process of its own, whose memory nothing else has grown."""
    peaks = 2 if settings.quick else PEAKS
    once = meter.run_arm(__name__, "sweep_of", {"peaks": peaks})[1]
    more = meter.run_arm(__name__, "sweep_of", {"peaks": 4 * peaks, "figures": False})[1]
    values = {**once, **{f"{name}_ratio": more[name] / once[name] for name in TIMED}}
    return Measured(values, {"four_times": more, "words": words(peaks, Path("RESULTS"))})


def main(arguments: Sequence[str]) -> None:
    arm, given, answer = arguments
    assert arm == sweep_of.__name__
    Path(answer).write_text(json.dumps(sweep_of(**json.loads(Path(given).read_text()))))


if __name__ == "__main__":
    main(sys.argv[1:])
