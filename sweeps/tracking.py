"""`python -m sweeps.tracking sync RESULTS [--uri URI] [--sweep ID]`: MLflow's mirror, made anew from the records."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sweeps.engine.tracking import Unreachable, mirror, ui_command


def sync(results: Path, uri: str | None = None, sweep: str | None = None) -> int:
    """Mirrors every sweep of a results folder, or the one named; returns the exit status."""
    folders = sorted(file.parent for file in (results / "sweeps").glob(f"{sweep or '*'}/sweep.json"))
    if not folders:
        wanted = f"sweep {sweep}" if sweep else "sweeps"
        print(f"no {wanted} in {results}; expected {results}/sweeps/ID/sweep.json", file=sys.stderr)
        return 2
    for folder in folders:
        started = time.monotonic()
        try:
            done = mirror(folder, uri)
        except Unreachable as error:
            print(error, file=sys.stderr)
            return 1
        print(
            f"{folder.name}: {done.written} trials written, {done.unchanged} unchanged, "
            f"{done.left_out} only in the records ({time.monotonic() - started:.1f} s)"
        )
    print(ui_command(results, uri))
    return 0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweeps.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("sync", help="write to MLflow what the records of a results folder say")
    one.add_argument("results", type=Path, help="the results folder")
    one.add_argument("--uri", help="MLflow's tracking URI (default: the database RESULTS/mlflow.db)")
    one.add_argument("--sweep", help="the id of one sweep (default: all)")
    given = parser.parse_args(words)
    return sync(given.results, given.uri, given.sweep)


if __name__ == "__main__":
    sys.exit(main())
