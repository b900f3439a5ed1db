"""The three tables of a sweep, read from Parquet, checked, filtered and exported.

`trials` has one row per trial, `measurements` one per trial and measured step, `ledger` one per executed stage.
Columns that the schemas below do not name are carried along. Nothing in a table is executed: configs are JSON.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from analysis.frontier import Frontier

TableName = Literal["trials", "measurements", "ledger"]
STATUSES = ("complete", "diverged", "failed", "pruned", "pending")
PHASES = ("tune", "confirm")  # tuning seeds choose, fresh seeds of the chosen configs confirm
COSTS = tuple(f"{unit}_{kind}" for unit in ("steps", "tokens", "flops") for kind in ("nominal", "family", "marginal"))

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
# name -> type; "required" columns must be there, the others are filled with nulls when they are absent.
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "trials": {
        **dict.fromkeys(("sweep", "study", "trial", "key", "name", "phase", "cell"), _TEXT),
        **dict.fromkeys(("status", "error", "config", "root", "scale"), _TEXT),
        **dict.fromkeys(("proposal", "seed", "parameters"), _INT),
        **dict.fromkeys(("budget_steps", "budget_tokens", "tokens_per_step"), _INT),
        **dict.fromkeys(("select/loss", "report/loss", "report/bits_per_byte"), _FLOAT),
        "report/document_losses": pa.list_(pa.float32()),
        **dict.fromkeys(COSTS, _FLOAT),
        "device_seconds_alone": _FLOAT,
        **dict.fromkeys(("data_sha", "git_commit", "torch_version", "device"), _TEXT),
        "varying": pa.list_(_TEXT),
    },
    "measurements": {
        **dict.fromkeys(("sweep", "trial", "phase_of_schedule", "key"), _TEXT),
        **dict.fromkeys(("step", "tokens"), _INT),
        **dict.fromkeys(("shared", "full"), _BOOL),
        **dict.fromkeys(("lr", "train/loss", "select/loss", "report/loss", "report/bits_per_byte"), _FLOAT),
    },
    "ledger": {
        **dict.fromkeys(("sweep", "stage", "root", "device", "started_at", "status", "phase_of_schedule"), _TEXT),
        **dict.fromkeys(("session", "job", "node"), _TEXT),
        **dict.fromkeys(("from_step", "to_step", "executed_steps", "lanes"), _INT),
        **dict.fromkeys(("train_seconds", "evaluation_seconds", "checkpoint_seconds", "startup_seconds"), _FLOAT),
    },
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "trials": ("sweep", "study", "trial", "key", "phase", "status", "config", "root", "seed", "budget_steps"),
    "measurements": ("sweep", "trial", "step"),
    "ledger": ("sweep", "stage", "executed_steps"),
}


class RecordsError(ValueError):
    """A results folder or table that cannot be read as records; the text says where and what to do."""


@dataclass(frozen=True, eq=False)
class Records:
    """Trials, measurements and ledger of one or several sweeps; `sweeps` holds their `sweep.json`."""

    trials: pa.Table
    measurements: pa.Table
    ledger: pa.Table
    sweeps: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default=())  # what was left out while reading

    def __repr__(self) -> str:
        counts = self.trials.column("status").value_counts().to_pylist() if len(self) else []
        states = ", ".join(f"{row['counts']} {row['values']}" for row in counts)
        sweeps = len(pc.unique(self.trials.column("sweep")))
        return f"Records({len(self)} trials of {sweeps} sweeps: {states or 'none'})"

    def __len__(self) -> int:
        return int(self.trials.num_rows)

    def to_pandas(self, table: TableName = "trials") -> pd.DataFrame:
        """One of the three tables as a data frame."""
        if table not in SCHEMAS:
            raise RecordsError(f"no table {table!r}; there are {', '.join(SCHEMAS)}")
        return getattr(self, table).to_pandas()

    def column(self, name: str) -> str:
        """The trials column behind a word: itself, or `config.<word>`."""
        return column_named(name, self.trials.column_names)

    def where(self, **conditions: Any) -> Records:
        """The trials that meet all conditions, their measurements, and the stages that no other trial alone owns.

        A condition is a value or a list of values of a column or of a config field:
        `records.where(method="wsd", budget_steps=[500, 1000])`.
        """
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in conditions.items():
            values = self.trials.column(self.column(name)).to_pandas()
            many = isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes)
            mask &= values.isin(list(wanted)).to_numpy() if many else (values == wanted).to_numpy(dtype=bool)
        return self._only(mask)

    def regimes(self) -> tuple[dict[str, Any], ...]:
        """The distinct problems in these records: what must be equal for two losses to be compared."""
        frame = self.to_pandas()[list(REGIME)].drop_duplicates()
        frame = frame.astype(object).where(frame.notna(), None)
        return tuple({str(k): v for k, v in row.items()} for row in frame.to_dict("records"))

    def in_regime(self, regime: Mapping[str, Any]) -> Records:
        """The trials of one of `regimes()`."""
        frame = self.to_pandas()
        mask = np.ones(len(frame), dtype=bool)
        for name, value in regime.items():
            mask &= (frame[name].isna() if value is None else frame[name] == value).to_numpy(dtype=bool)
        return self._only(mask)

    def _only(self, mask: np.ndarray) -> Records:
        if mask.all():
            return self
        trials = self.trials.filter(pa.array(mask))
        owned = _belonging(self.measurements, trials)
        kept = pd.concat([trials.column("key").to_pandas(), owned.column("key").to_pandas()])
        every = pd.concat([self.trials.column("key").to_pandas(), self.measurements.column("key").to_pandas()])
        stages = self.ledger.column("stage").to_pandas()
        sweeps = self.ledger.column("sweep").to_pandas().isin(trials.column("sweep").to_pandas())
        ledger = self.ledger.filter(pa.array((sweeps & (stages.isin(kept) | ~stages.isin(every))).to_numpy(dtype=bool)))
        present = set(pc.unique(trials.column("sweep")).to_pylist())
        specs = tuple(spec for spec in self.sweeps if spec.get("sweep") in present)
        trials = _typed_again(_without_empty(trials, specs))
        return replace(self, trials=trials, measurements=owned, ledger=ledger, sweeps=specs)

    def metric(self, role: Literal["select", "report"]) -> tuple[str, Literal["min", "max"]]:
        """Name and goal of the metric that chooses (`select`) or decides (`report`)."""
        present = set(pc.unique(self.trials.column("sweep")).to_pylist())
        named = {
            (spec[role]["name"], spec[role].get("goal", "min"))
            for spec in self.sweeps
            if role in spec and spec.get("sweep") in present
        } or {(f"{role}/loss", "min")}
        if len(named) > 1:
            raise RecordsError(
                f"these sweeps have different {role} metrics {sorted(named)}; take one: where(sweep=...)"
            )
        name, goal = named.pop()
        if name not in self.trials.column_names:
            raise RecordsError(f"the trials have no column {name!r}, which sweep.json names as {role} metric")
        return name, goal

    @cached_property
    def configs(self) -> tuple[dict[str, Any], ...]:
        """The parsed config of each trial, in the order of `trials`."""
        return tuple(json.loads(text) for text in self.trials.column("config").to_pylist())

    def export(self, folder: str | Path, format: Literal["csv", "parquet", "json"] = "parquet") -> list[Path]:
        """Write the three tables (and `sweep.json`) into `folder`; returns the files. Lists become JSON in CSV."""
        writers = {"csv": _write_csv, "parquet": pq.write_table, "json": _write_json}
        if format not in writers:
            raise RecordsError(f"no format {format!r}; there are {', '.join(writers)}")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for name in SCHEMAS:
            written.append(target / f"{name}.{format}")
            writers[format](getattr(self, name), written[-1])
        written.append(target / "sweep.json")
        written[-1].write_text(json.dumps(list(self.sweeps), indent=1), encoding="utf-8")
        return written

    def frontier(self, x: str = "flops_nominal", by: str | Sequence[str] = "method", **options: Any) -> Frontier:
        """The loss each group reaches per budget against its cost: see `analysis.frontier.frontier`."""
        from analysis.frontier import frontier

        return frontier(self, x=x, by=by, **options)


REGIME = ("study", "data_sha", "parameters", "tokens_per_step")


def column_named(name: str, columns: Sequence[str]) -> str:
    """`name` or `config.<name>`, whichever the table has."""
    for candidate in (name, f"config.{name}"):
        if candidate in columns:
            return candidate
    words = [c.removeprefix("config.") for c in columns]
    near = difflib.get_close_matches(name, words, n=3) or sorted(words)
    raise RecordsError(f"the trials have no column or config field {name!r}; did you mean {', '.join(near)}?")


def _without_empty(trials: pa.Table, specs: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Without the metrics of other studies, which are null here and may be called like a field of this one."""
    known = {
        *SCHEMAS["trials"],
        *(spec[role]["name"] for spec in specs for role in ("select", "report") if role in spec),
    }
    empty = [
        name
        for name in trials.column_names
        if name not in known and not name.startswith("config.") and trials.column(name).null_count == len(trials)
    ]
    return trials.drop_columns(empty)


def _typed_again(trials: pa.Table) -> pa.Table:
    """With the config fields that became text beside another study's as the numbers and flags that they are."""
    if not len(trials) or len(pc.unique(trials.column("study"))) > 1:
        return trials
    for place, name in enumerate(trials.column_names):
        field, column = name.removeprefix("config."), trials.column(name)
        if field == name or not pa.types.is_string(column.type) or column.null_count == len(column):
            continue
        said = pc.index(column.is_valid(), True).as_py()  # a field may be None in the first trials
        if not isinstance(json.loads(trials.column("config")[said].as_py()).get(field), str):
            values = [json.loads(config).get(field) for config in trials.column("config").to_pylist()]
            trials = trials.set_column(place, name, pa.array(values))
    return trials


def _belonging(rows: pa.Table, trials: pa.Table) -> pa.Table:
    kept = pd.MultiIndex.from_arrays([trials.column("sweep").to_pandas(), trials.column("trial").to_pandas()])
    owners = pd.MultiIndex.from_arrays([rows.column("sweep").to_pandas(), rows.column("trial").to_pandas()])
    return rows.filter(pa.array(owners.isin(kept)))


def _write_csv(table: pa.Table, file: Path) -> None:
    for at, column in enumerate(table.schema):
        if pa.types.is_nested(column.type):
            texts = [None if v is None else json.dumps(v) for v in table.column(at).to_pylist()]
            table = table.set_column(at, column.name, pa.array(texts, pa.string()))
    pyarrow.csv.write_csv(table, file)


def _write_json(table: pa.Table, file: Path) -> None:
    def plain(value: Any) -> Any:  # JSON has no NaN
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    rows = [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]
    file.write_text(json.dumps(rows, indent=0, allow_nan=False, default=str), encoding="utf-8")
