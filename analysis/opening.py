"""Records out of Parquet tables: opened, checked against their schemas, and several put together as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.records import PHASES, REQUIRED, SCHEMAS, STATUSES, Records, RecordsError

_REBUILD = "run the sweep's command again (it rewrites its tables from the store), or leave this folder out"


def open_records(path: str | Path | Sequence[str | Path]) -> Records:
    """Records of a results folder (all its sweeps), of one sweep folder, or of a list of them."""
    paths = [path] if isinstance(path, str | Path) else list(path)
    folders, notes = [], []
    for one in map(Path, paths):
        found, left_out = _sweep_folders(one)
        folders += found
        notes += left_out
    return combine([*(_read_sweep(folder) for folder in dict.fromkeys(folders))], notes=notes)


def combine(many: Sequence[Records], notes: Sequence[str] = ()) -> Records:
    """Several records as one. A trial of a sweep that occurs twice is taken once, from where it got furthest.

    Folders may hold parts of one sweep, run with different values of its axes: all their trials are taken.
    """
    if not many:
        raise RecordsError("nothing to combine: give at least one Records or folder")
    named = [r.trials.select(["sweep", "trial", "status"]).to_pandas().assign(part=at) for at, r in enumerate(many)]
    every = pd.concat(named, ignore_index=True)
    order = every["status"].map({status: rank for rank, status in enumerate(STATUSES)})
    twice = every.assign(order=order).sort_values("order", kind="stable").duplicated(["sweep", "trial"])
    once = ~twice.sort_index()
    many = [r._only(once[every["part"] == at].to_numpy(dtype=bool)) for at, r in enumerate(many)]
    tables = {name: with_schema(_joined([getattr(r, name) for r in many]), name) for name in SCHEMAS}
    stages = tables["ledger"].to_pandas().astype(str)  # a stage that trials of several folders share is run once
    tables["ledger"] = tables["ledger"].filter(pa.array(~stages.duplicated().to_numpy(dtype=bool)))
    specs = {json.dumps(spec, sort_keys=True): spec for r in many for spec in r.sweeps}
    return Records(**tables, sweeps=tuple(specs.values()), notes=(*notes, *(n for r in many for n in r.notes)))


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables one below the other. A column that is text in some and something else in others becomes text in all.

    Two studies may give one name to different things, such as a kind of layer and the number of one. The trials of one
    of them alone have its own type again: see `records._typed_again`.
    """
    kinds: dict[str, set[bool]] = {}
    for table in tables:
        for column in table.schema:
            if not pa.types.is_null(column.type):
                kinds.setdefault(column.name, set()).add(pa.types.is_string(column.type))
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    as_text = []
    for table in tables:
        for name in mixed & set(table.column_names):
            place = table.column_names.index(name)
            table = table.set_column(place, name, table.column(name).cast(pa.string()))
        as_text.append(table)
    return pa.concat_tables(as_text, promote_options="permissive")


def _sweep_folders(path: Path) -> tuple[list[Path], list[str]]:
    if (path / "trials.parquet").is_file():
        return [path], []
    if not path.is_dir():
        raise RecordsError(f"no folder {path}; give a results folder, or a sweep folder that holds trials.parquet")
    inside = path / "sweeps" if (path / "sweeps").is_dir() else path
    found = sorted(file.parent for file in inside.glob("*/trials.parquet"))
    if not found:
        raise RecordsError(
            f"{path} holds no sweep: no trials.parquet in it or under {inside}; "
            "run a sweep first (python sweeps/wsd_budget.py), or name the folder it wrote"
        )
    unfinished = [f for f in sorted(inside.iterdir()) if (f / "sweep.json").is_file() and f not in found]
    return found, [f"{folder} has no trials.parquet yet and was left out" for folder in unfinished]


def _read_sweep(folder: Path) -> Records:
    tables, notes = {}, []
    for name in SCHEMAS:
        file = folder / f"{name}.parquet"
        if name != "trials" and not file.is_file():
            notes.append(f"{file} is missing: read as an empty table")
            tables[name] = pa.table({c: pa.array([], t) for c, t in SCHEMAS[name].items()})
            continue
        tables[name] = with_schema(_read_parquet(file), name, file)
    _check_trials(tables["trials"], folder / "trials.parquet")
    tables["trials"] = with_config_columns(tables["trials"])
    return Records(**tables, sweeps=_read_specs(folder / "sweep.json"), notes=tuple(notes))


def _read_parquet(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RecordsError(f"{file} cannot be read as Parquet ({reason}); {_REBUILD}") from error


def _read_specs(file: Path) -> tuple[Mapping[str, Any], ...]:
    if not file.is_file():
        return ()
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordsError(f"{file} is not JSON ({error}); {_REBUILD}") from error
    specs = spec if isinstance(spec, list) else [spec]
    if not all(isinstance(one, dict) for one in specs):
        raise RecordsError(
            f"{file} must hold one object (or a list of them), got {type(specs[0]).__name__}; {_REBUILD}"
        )
    return tuple(specs)


def with_schema(table: pa.Table, name: str, file: Path | None = None) -> pa.Table:
    """`table` with the types of its schema, absent optional columns as nulls and unknown columns untouched."""
    where = file or f"the {name} table"
    missing = [c for c in REQUIRED[name] if c not in table.column_names]
    if missing:
        raise RecordsError(
            f"{where} lacks the column {', '.join(missing)}: it is no {name} table of a sweep; {_REBUILD}"
        )
    for column, wanted in SCHEMAS[name].items():
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, wanted))
            continue
        at = table.column_names.index(column)
        if table.schema.field(at).type == wanted:
            continue
        try:
            table = table.set_column(at, column, table.column(at).cast(wanted))
        except pa.ArrowException as error:
            found = table.schema.field(at).type
            raise RecordsError(
                f"{where}: column {column!r} must be {wanted}, got {found} ({error}); {_REBUILD}"
            ) from error
    return table


def _check_trials(table: pa.Table, file: Path) -> None:
    for column in REQUIRED["trials"]:
        if column != "root" and table.column(column).null_count:
            raise RecordsError(
                f"{file}: column {column!r} has {table.column(column).null_count} empty rows; {_REBUILD}"
            )
    for column, allowed in (("status", STATUSES), ("phase", PHASES)):
        strange = set(pc.unique(table.column(column)).to_pylist()) - set(allowed)
        if strange:
            raise RecordsError(
                f"{file}: {column} must be one of {', '.join(allowed)}, got {sorted(strange)}; {_REBUILD}"
            )
    for row, text in enumerate(table.column("config").to_pylist()):
        try:
            known = isinstance(json.loads(text), dict)
        except ValueError:
            known = False
        if not known:
            raise RecordsError(f"{file}: the config of row {row} is not a JSON object: {text[:60]!r}; {_REBUILD}")


def with_config_columns(table: pa.Table) -> pa.Table:
    """Adds `config.<field>` for scalar fields that the writer did not flatten."""
    configs = [json.loads(text) for text in table.column("config").to_pylist()]
    for name in dict.fromkeys(name for config in configs for name in config):
        values = [config.get(name) for config in configs]
        if f"config.{name}" in table.column_names or any(isinstance(v, list | dict) for v in values):
            continue
        try:
            table = table.append_column(f"config.{name}", pa.array(values))
        except pa.ArrowException:
            table = table.append_column(f"config.{name}", pa.array([None if v is None else str(v) for v in values]))
    return table
