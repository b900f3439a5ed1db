"""`python -m tests.benchmarks [NAME ...] [--quick] [--repetitions N] [--out results/bench.json]`: numbers on a CPU.

Prints a table of what was measured beside what was wanted, and writes JSON with every repetition. A wanted value that
is missed is said, not hidden, and the exit status stays 0; it is 1 when a benchmark could not run.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.commands import shares, startup
from tests.benchmarks.forks import fork
from tests.benchmarks.grids import grid_function, grid_trainer
from tests.benchmarks.lanes import lanes
from tests.benchmarks.limits import limits
from tests.benchmarks.loop import loop
from tests.benchmarks.packing import packing
from tests.benchmarks.parity import parity_pack, parity_secrets, parity_walsh
from tests.benchmarks.planning import plan
from tests.benchmarks.sequences import scan, sequence_lanes
from tests.benchmarks.settings import Measured, Settings, machine
from tests.benchmarks.trivial import trivial
from tests.benchmarks.wanted import WANTED, verdict

BENCHMARKS: dict[str, Callable[[Settings], Measured]] = {
    run.__name__: run
    for run in (
        *(plan, limits, fork, loop, startup, shares, grid_trainer, grid_function),
        *(lanes, packing, trivial, parity_pack, parity_secrets, parity_walsh, sequence_lanes, scan),
    )
}


def rows(name: str, entry: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, measured, wanted, verdict) of one benchmark's entry in the JSON file."""
    if "error" in entry:
        return [(name, "could not run", "", entry["error"].strip().splitlines()[-1])]
    found = []
    for key, wanted in WANTED[name].items():
        value = entry["values"][key]
        bound = f"{wanted.rule} {number(wanted.bound)} {wanted.unit}".strip()
        measured = f"{number(value)} {wanted.unit}".strip()
        found.append((wanted.what, measured, bound, verdict(wanted, value, entry["quick"])))
    return found


def number(value: float) -> str:
    """
    >>> number(86075), number(0.9512), number(12.34), number(0.0)
    ('86,075', '0.951', '12.3', '0')
    """
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def table(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    drawn = Table(title="Benchmarks", show_lines=False)
    for column, justify in (("what", "left"), ("measured", "right"), ("wanted", "right"), ("", "left")):
        drawn.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name, entry in entries.items():
        for row in rows(name, entry):
            drawn.add_row(*row)
    return drawn


def run_one(name: str, settings: Settings) -> dict[str, Any]:
    """One benchmark as its entry: values and details, or the traceback of what went wrong."""
    began = time.monotonic()
    try:
        entry = asdict(BENCHMARKS[name](settings))
    except Exception:
        entry = {"error": traceback.format_exc()}
    return entry | {
        "quick": settings.quick,
        "repetitions": settings.rounds,
        "took_seconds": round(time.monotonic() - began, 1),
    }


def earlier(out: Path) -> dict[str, Any]:
    """Entries of an earlier call on this machine, which a call for some benchmarks adds to."""
    try:
        content = json.loads(out.read_text())
    except (OSError, ValueError):
        return {}
    if content.get("machine") != machine():
        return {}
    return {
        name: entry
        for name, entry in content["benchmarks"].items()
        if name in WANTED and WANTED[name].keys() <= entry.get("values", {}).keys()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").split("\n\n")[1])
    about = "; ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, all by default: {about}")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to see that all runs; no timings")
    parser.add_argument("--repetitions", type=int, default=3, help="of each arm, taking turns (default 3)")
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"))
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown or given.repetitions < 1:
        parser.error(
            f"no benchmark {unknown[0]!r}; there are {about}" if unknown else "--repetitions must be at least 1"
        )
    settings, console = Settings(given.quick, given.repetitions), Console()
    entries = earlier(given.out) if given.names else {}
    for name in given.names or BENCHMARKS:
        console.print(f"{name} ...", highlight=False)
        entries[name] = run_one(name, settings)
        if "error" in entries[name]:
            console.print(entries[name]["error"], markup=False, highlight=False)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "benchmarks": entries}
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(table({name: entries[name] for name in BENCHMARKS if name in entries}))
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()), highlight=False)
    console.print(f"all numbers: {given.out}", highlight=False)
    return int(any("error" in entries[name] for name in given.names or BENCHMARKS))


if __name__ == "__main__":
    sys.exit(main())
