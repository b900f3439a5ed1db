"""`python -m analysis summary|frontier|pareto|claims|replay|figures|export RESULTS`: results from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from analysis.claims import decide, decisions_table
from analysis.figures import draw_all, schedules
from analysis.frontier import AXES, frontier
from analysis.opening import open_records
from analysis.pareto import objective_named, pareto
from analysis.plots import save
from analysis.reading import Reading
from analysis.readings import WSD, by_study, reading_of
from analysis.records import Records, RecordsError
from analysis.replay import replay
from analysis.tables import FORMATS, of_frame

WRONG_INPUT, UNREADABLE = 2, 1  # exit codes
NO_TRIALS = "there are no trials in these records; widen --where, or open another folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 records refused, 2 wrong words)."""
    words = _parser().parse_args(arguments)
    try:
        records = open_records(words.results)
        for condition in words.where:
            records = records.where(**dict([_condition(condition)]))
        words.command(records, words)
    except (RecordsError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]refused:[/] {_plain(error)}")
        return UNREADABLE
    return 0


def _summary(records: Records, words: argparse.Namespace) -> None:
    for each, title, reading in _problems(records):
        table = of_frame(reading.summary(each), "markdown" if words.format == "rich" else words.format)
        if words.format == "rich":
            _rich(title, table, "", range(1))
        else:
            _write(table, words.out)


def _frontier(records: Records, words: argparse.Namespace) -> None:
    def show(each: Records, title: str, _: int) -> None:
        found = frontier(each, x=words.x, by=words.by, reference=tuple(words.reference))
        if words.format != "rich":
            _write(found.table(words.format), words.out)
            return
        frame = found.table("text").split("\n\n")
        keys = range(1 + len(found.by))
        _rich(title, found.table("markdown", notes=False), frame[1] if len(frame) > 1 else "", keys)

    _one_by_one(_with_fields(records, words.by), show)


def _pareto(records: Records, words: argparse.Namespace) -> None:
    objectives = [objective_named(text) for text in words.objective] if words.objective else None

    def show(each: Records, title: str, at: int) -> None:
        found = pareto(each, objectives, by=words.by)
        if words.figure is not None:
            for file in save(found.plot(), words.figure + (f"_{at}" if at else "")):
                print(file)
        if words.format != "rich":
            _write(found.table(words.format), words.out)
            return
        table, _, rest = found.table("markdown").partition("\n\n")
        below = "\n".join(line.removeprefix("- ") for line in rest.splitlines())
        _rich(title, table, below, range(2 + len(found.by)))

    _one_by_one(_by_regime(records), show)


def _one_by_one(problems: Iterator[tuple[Records, str]], show: Callable[[Records, str, int], None]) -> None:
    """Show each problem, numbered; those that cannot be read are named. Raises RecordsError where none can."""
    every, refused = list(problems), {}
    for at, (each, title) in enumerate(every):
        try:
            show(each, title, at)
        except RecordsError as error:
            study = str(each.trials.column("study")[0])
            refused[title if study in title else f"{study} {title}".strip()] = error
    if len(every) == len(refused) == 1:
        raise next(iter(refused.values()))
    lines = [f"{problem}: not read, {error}" for problem, error in refused.items()]
    if every and len(every) == len(refused):
        raise RecordsError("none of these can be read\n" + "\n".join(lines))
    for line in lines:
        Console(stderr=True, highlight=False, soft_wrap=True).print(_plain(line))


def _claims(records: Records, words: argparse.Namespace) -> None:
    ids = [claim.id for study in by_study(records) for claim in reading_of(study).claims]
    unknown = set(words.only or ()) - set(ids)
    if unknown:
        raise RecordsError(f"no claim {', '.join(sorted(unknown))}; there are {', '.join(ids)}")
    for each, title, reading in _problems(records):
        chosen = [claim for claim in reading.claims if not words.only or claim.id in words.only]
        decisions = decide(chosen, each, None if reading is WSD else reading.statistics)
        if words.format != "rich":
            _write(decisions_table(decisions, words.format), words.out)
            continue
        table, _, rest = decisions_table(decisions, "markdown").partition("\n\n")
        _rich(title, table, "\n".join(line.removeprefix("- ") for line in rest.splitlines()), range(2))


def _replay(records: Records, words: argparse.Namespace) -> None:
    for each, title in _with_fields(records, ["decay_fraction", "peak_lr"]):
        found = replay(each, brackets=words.brackets, arms=words.arms, seed=words.seed, decay_fraction=words.fraction)
        _write(
            (f"{title}\n\n" if title else "") + found.table("text" if words.format == "rich" else words.format),
            words.out,
        )


def _export(records: Records, words: argparse.Namespace) -> None:
    for file in records.export(words.out, words.format):
        print(file)


def _figures(records: Records, words: argparse.Namespace) -> None:
    problems = list(_problems(records))
    for at, (each, _, reading) in enumerate(problems):
        folder = Path(words.out) / f"problem{at}" if len(problems) > 1 else Path(words.out)
        for line in draw_all(each, folder, reading.figures):
            print(line)
    if words.where:
        print("schedule: not drawn, --where leaves trials out and a schedule is all of a sweep's")
        return
    for line in draw_all(records, words.out, schedules(records)):
        print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Read the results of sweeps.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("results", nargs="+", help="a results folder, a sweep folder, or several")
        added.add_argument(
            "--where", action="append", default=[], metavar="FIELD=VALUE[,VALUE]", help="only these trials"
        )
        added.set_defaults(command=run)
        return added

    formats = ["rich", *FORMATS]
    added = command("summary", _summary, "What each study's sweeps found, a row per cell and condition.")
    added.add_argument("--format", choices=formats, default="rich")
    added.add_argument("--out", metavar="FILE", help="write here instead of the terminal")
    added = command("frontier", _frontier, "What loss each method reaches per budget, and at what cost.")
    added.add_argument("--x", default="flops_nominal", metavar="COST", help=f"cost axis, one of {', '.join(AXES)}")
    added.add_argument(
        "--by", nargs="+", default=["method"], metavar="FIELD", help="what makes a group (default: method)"
    )
    added.add_argument(
        "--reference", nargs="+", default=["cosine"], metavar="GROUP", help="what others are compared with"
    )
    added.add_argument("--format", choices=formats, default="rich")
    added.add_argument("--out", metavar="FILE", help="write here instead of the terminal")
    added = command("pareto", _pareto, "Which configs no other beats in all objectives, and their fresh seeds.")
    added.add_argument("--objective", nargs="+", metavar="NAME:min|max", help="default: those that the sweep followed")
    added.add_argument("--by", nargs="+", default=["cell"], metavar="FIELD", help="what makes a group (default: cell)")
    added.add_argument("--figure", metavar="PATH", help="draw it too, as PATH.png and PATH.svg")
    added.add_argument("--format", choices=formats, default="rich")
    added.add_argument("--out", metavar="FILE", help="write here instead of the terminal")
    added = command("claims", _claims, "Decide the declared claims: reproduced, contradicted or undecided.")
    added.add_argument("--only", nargs="+", metavar="ID", help="these claims; the correction is over what is decided")
    added.add_argument("--format", choices=formats, default="rich")
    added.add_argument("--out", metavar="FILE", help="write here instead of the terminal")
    added = command("replay", _replay, "Halving on stable-phase loss against halving on decayed loss, at equal cost.")
    added.add_argument("--brackets", type=_positive, default=10_000)
    added.add_argument("--arms", type=_positive, help="trunks per bracket (default: half of them, 8 at most)")
    added.add_argument("--fraction", type=float, help="decay fraction of the branches (default: the commonest)")
    added.add_argument("--seed", type=int, default=0, help="of the resampling")
    added.add_argument("--format", choices=formats, default="rich")
    added.add_argument("--out", metavar="FILE", help="write here instead of the terminal")
    added = command("export", _export, "Write the three tables of these sweeps as CSV, JSON or Parquet.")
    added.add_argument("--format", choices=["csv", "parquet", "json"], default="csv")
    added.add_argument("--out", metavar="FOLDER", default="export")
    added = command("figures", _figures, "Write every figure as PNG and SVG.")
    added.add_argument("--out", metavar="FOLDER", default="figures")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _condition(text: str) -> tuple[str, list[object]]:
    name, found, values = text.partition("=")
    if not found or not values:
        raise RecordsError(f"--where needs FIELD=VALUE, got {text!r}; for example --where method=wsd,cosine")
    return name, [_typed(value) for value in values.split(",")]


def _typed(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _by_regime(records: Records) -> Iterator[tuple[Records, str]]:
    regimes = records.regimes()
    if not regimes:
        raise RecordsError(NO_TRIALS)
    differing = [k for k in regimes[0] if len({r[k] for r in regimes}) > 1]
    for regime in regimes:
        yield records.in_regime(regime), ", ".join(f"{k}={str(regime[k])[:12]}" for k in differing)


def _problems(records: Records) -> Iterator[tuple[Records, str, Reading]]:
    """What is read as one, with its title: a study, or each regime of a study whose losses do not compare."""
    studies = by_study(records)
    if not studies:
        raise RecordsError(NO_TRIALS)
    for study, own in studies.items():
        reading = reading_of(study)
        name = study if len(studies) > 1 else ""
        if not reading.one_regime:
            yield own, name, reading
            continue
        for each, title in _by_regime(own):
            yield each, ": ".join(filter(None, [name, title])), reading


def _with_fields(records: Records, names: Sequence[str]) -> Iterator[tuple[Records, str]]:
    """The regimes of the studies that have these config fields. Raises RecordsError when no study has."""
    if not len(records):
        raise RecordsError(NO_TRIALS)
    columns = {name: records.column(name) for name in names}
    having = records.to_pandas()[list(columns.values())].notna().all(axis=1)
    studies = sorted(set(records.to_pandas()["study"][having]))
    if not studies:
        raise RecordsError(f"no study here has all of {', '.join(names)}; name other fields, or narrow --where")
    yield from _by_regime(records.where(study=studies))


def _write(text: str, out: str | None) -> None:
    if out is None:
        print(text)
        return
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a" if file in _WRITTEN else "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
    _WRITTEN.add(file)


_WRITTEN: set[Path] = set()  # files of this process: a second regime is appended


def _rich(title: str, markdown: str, below: str, keys: Sequence[int]) -> None:
    """A Markdown table drawn by rich, in several parts that repeat the columns `keys` where the terminal is narrow."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines()]
    console = Console(highlight=False)
    for columns in _fitting([header, *rows], keys, console.width):
        table = Table(title=title or None)
        for at in columns:
            table.add_column(_plain(header[at]), no_wrap=at in keys, overflow="fold")
        for row in rows:
            table.add_row(*(_plain(row[at]) for at in columns))
        console.print(table)
    console.print(_plain(below))


def _fitting(rows: Sequence[Sequence[str]], keys: Sequence[int], width: int) -> list[list[int]]:
    """Columns of each part: the keys, then as many others as fit."""
    needed = [max(len(row[at]) for row in rows) + 3 for at in range(len(rows[0]))]
    parts = [list(keys)]
    for at in range(len(needed)):
        if at in keys:
            continue
        if len(parts[-1]) > len(keys) and 1 + sum(needed[c] for c in [*parts[-1], at]) > width:
            parts.append(list(keys))
        parts[-1].append(at)
    return parts


def _plain(text: object) -> str:
    return str(text).replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
