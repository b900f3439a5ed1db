"""`python -m tests.faults [--times 10] [--faults actor,driver,...]`: every rehearsal at random times, and a table.

Each line is a fault: how often, how long until a job that began after it had committed (s), steps that were trained
twice, and whether proposals, trials and measurements equal those of the unbroken sweep.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.faults import mlflow_down, soak
from tests.faults.clusters import raylets
from tests.faults.kills import FAULTS, GROUP, Cost, rehearse

HANGS_AFTER_SECONDS = 900  # of one rehearsal, after which all stacks are printed and it ends
LAST = ("mlflow", "soak", "soak-groups")


def kill_again_and_again(fault: str, times: int, draw: Random, console: Console) -> list[Cost]:
    """One fault at random times in sweeps of one Ray."""
    costs = []
    with raylets(cpus=1) as cluster:
        for turn in range(times):
            faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True)
            grouped = fault in GROUP
            kind = "short" if grouped else draw.choice(["grid", "halving", "adaptive"])
            with tempfile.TemporaryDirectory(prefix="fault") as folder:
                cost = rehearse(cluster, (fault,), Path(folder), draw.randrange(2**32), kind=kind)
            costs.append(cost)
            console.print(f"{fault} {turn + 1} of {times}, {kind}: {cost}", highlight=False, soft_wrap=True)
    faulthandler.cancel_dump_traceback_later()
    return costs


def line_of(fault: str, costs: list[Cost]) -> list[str]:
    seconds = [cost.recovered_seconds for cost in costs]
    lost = [cost.steps_lost for cost in costs]
    return [
        f"kill -9: {fault}",
        str(len(costs)),
        f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
        f"{median(lost):g} ({min(lost)} to {max(lost)}) of {costs[0].steps}",
        yes(all(cost.equal for cost in costs)),
        yes(all(cost.good for cost in costs)),
    ]


def yes(good: bool) -> str:
    return "yes" if good else "NO"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="how often each process is killed")
    parser.add_argument("--faults", default=",".join((*FAULTS, *LAST)), help="some of them, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    given = parser.parse_args(arguments)
    wanted = given.faults.split(",")
    unknown = [fault for fault in wanted if fault not in (*FAULTS, *LAST)]
    if unknown or given.times < 1:
        parser.error(f"faults are {', '.join((*FAULTS, *LAST))}, times at least 1; got {unknown} and {given.times}")
    console, good = Console(), True
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it tells of every process that dies
    table = Table("fault", "runs", "recovered in s", "steps lost", "equal to unbroken", "nothing twice or left")
    for fault in wanted:
        draw = Random(f"{given.seed} {fault}")
        if fault in FAULTS:
            costs = kill_again_and_again(fault, given.times, draw, console)
            table.add_row(*line_of(fault, costs))
            good = good and all(cost.good for cost in costs)
        elif fault == "mlflow":
            good = mlflow_again_and_again(given.times, draw, console, table) and good
        else:
            good = soaked(fault, console, table) and good
    console.print(table)
    return 0 if good else 1


def mlflow_again_and_again(times: int, draw: Random, console: Console, table: Table) -> bool:
    found = []
    for turn in range(times):
        with tempfile.TemporaryDirectory(prefix="fault") as folder:
            found.append(mlflow_down.rehearse(Path(folder), draw.randrange(2**32)))
        console.print(f"mlflow {turn + 1} of {times}: {found[-1]}", highlight=False, soft_wrap=True)
    seconds = [one.recovered_seconds for one in found]
    equal = all(one.records_equal and one.mirror_equal for one in found)
    good = all(one.good for one in found)
    spread = f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    table.add_row("kill -9: MLflow's server", str(times), spread, "0", yes(equal), yes(good))
    return good


def soaked(fault: str, console: Console, table: Table) -> bool:
    workers, jobs = (2, 10) if fault == "soak-groups" else (1, 100)
    with tempfile.TemporaryDirectory(prefix="fault") as folder:
        found = soak.soak_alone(Path(folder), jobs, workers)
    console.print(f"{fault}: {found}", highlight=False, soft_wrap=True)
    name = f"{found.jobs} jobs in a row of {workers} workers: {found.megabytes_per_100:+.1f} MB per 100"
    table.add_row(name, "1", "", "", "", yes(found.good))
    return found.good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
