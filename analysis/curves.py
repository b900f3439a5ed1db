"""Curves within trials: imported ones, a trunk with its branches, and the split of a trunk into hill and river."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from analysis.opening import with_config_columns, with_schema
from analysis.records import SCHEMAS, Records, RecordsError

CURVE_COLUMNS = ("step", "lr", "loss")


def import_curves(
    csv: str | Path,
    *,
    method: str,
    tokens_per_step: int,
    parameters: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Records:
    """One loss curve from elsewhere (CSV with columns step, lr, loss; loss in nats per token) as records.

    Its budget is the last step, its peak the largest lr; `config` adds fields. FLOPs are 6 * parameters * tokens, and
    empty without `parameters`. The curve has one loss, so select and report are the same: read comparisons with care.
    """
    file = Path(csv)
    try:
        table = pyarrow.csv.read_csv(file)
    except (pa.ArrowException, OSError) as error:
        raise RecordsError(f"{file} cannot be read as CSV ({error}); it needs the columns step, lr, loss") from error
    missing = [c for c in CURVE_COLUMNS if c not in table.column_names]
    if missing:
        raise RecordsError(f"{file} lacks the column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    try:
        step, lr, loss = (table.column(c).cast(pa.float64()).to_numpy() for c in CURVE_COLUMNS)
    except pa.ArrowException as error:
        raise RecordsError(f"{file}: step, lr and loss must be numbers ({error})") from error
    if not len(step) or (np.diff(step) <= 0).any() or (step % 1 != 0).any():
        raise RecordsError(
            f"{file}: step must be increasing whole numbers, one row at least; got {step[:5].tolist()} ..."
        )
    if tokens_per_step < 1:
        raise RecordsError(f"tokens_per_step must be 1 or more, got {tokens_per_step}")

    budget, sha = int(step[-1]), hashlib.sha256(file.read_bytes()).hexdigest()
    fields = {"method": method, "budget_steps": budget, "peak_lr": float(np.nanmax(lr)), "seed": seed, **(config or {})}
    name = f"{method} {file.stem}"
    sweep, tokens = f"imported-{sha[:12]}", budget * tokens_per_step
    flops = None if parameters is None else 6.0 * parameters * tokens
    row: dict[str, Any] = {
        "sweep": sweep, "study": "imported", "trial": sha[:12], "key": sha, "name": name, "phase": "tune",
        "cell": f"method={method}", "status": "complete" if np.isfinite(loss[-1]) else "diverged",
        "config": json.dumps(fields), "root": f"seed {seed}", "seed": seed, "parameters": parameters,
        "budget_steps": budget, "budget_tokens": tokens, "tokens_per_step": tokens_per_step,
        "select/loss": float(loss[-1]), "report/loss": float(loss[-1]), "steps_nominal": budget,
        "tokens_nominal": tokens, "flops_nominal": flops,
    }  # fmt: skip
    trials = pa.table({k: pa.array([v], SCHEMAS["trials"][k]) for k, v in row.items()})
    rows = len(step)
    measurements = pa.table(
        {
            "sweep": [sweep] * rows,
            "trial": [sha[:12]] * rows,
            "step": step.astype(np.int64),
            "tokens": step.astype(np.int64) * tokens_per_step,
            "lr": lr,
            "phase_of_schedule": _phases(lr),
            "select/loss": loss,
            "report/loss": loss,
            "full": [True] * rows,
        }
    )
    ledger = pa.table({c: pa.array([], t) for c, t in SCHEMAS["ledger"].items()})
    return Records(
        with_config_columns(with_schema(trials, "trials")),
        with_schema(measurements, "measurements"),
        ledger,
        sweeps=({"sweep": sweep, "study": "imported"},),
        notes=(f"{name}: imported, select and report are the same loss",),
    )


def _phases(lr: np.ndarray) -> list[str]:
    peak = np.nanmax(lr)
    high = np.flatnonzero(lr >= peak * (1 - 1e-6))
    first, last = high[0], high[-1]
    return ["warmup" if i < first else "stable" if i <= last else "decay" for i in range(len(lr))]


@dataclass(frozen=True)
class Branch:
    """One trial drawn from a trunk: its steps from the fork on."""

    trial: str
    name: str
    budget: int
    fork_step: int
    curve: pd.DataFrame  # step, tokens, lr, select/loss, report/loss


@dataclass(frozen=True)
class Trunk:
    """The stable phase of one root at one peak, with the decays that leave it."""

    title: str
    curve: pd.DataFrame
    branches: tuple[Branch, ...]


def trunk(records: Records, loss: str = "select/loss", **conditions: Any) -> Trunk:
    """The trunk of one root with its branches, from WSD trials that differ in budget alone.

    Takes the seed and config with the lowest loss at the largest budget unless `conditions` (fields) name others.
    """
    found = records.where(**({"method": "wsd"} | conditions))
    frame = found.to_pandas()
    frame = frame[frame["status"] == "complete"]
    if frame.empty:
        raise RecordsError("no completed wsd trial meets the conditions: a trunk needs at least one")
    frame["_rest"] = [_without(config, "budget_steps") for config in _configs(found, frame.index)]
    largest = frame[frame["budget_steps"] == frame["budget_steps"].max()]
    best = largest.loc[largest[found.metric("select")[0]].idxmin()]
    family = frame[frame["_rest"] == best["_rest"]].drop_duplicates("trial").sort_values("budget_steps")
    rows = found.to_pandas("measurements")
    branches, stems = [], []
    for row in family.itertuples():
        curve = rows[(rows["trial"] == row.trial) & (rows["sweep"] == row.sweep)].sort_values("step")
        curve = curve.dropna(subset=[loss])
        stem, after = split_at_decay(curve)
        if stem.empty or after.empty:
            continue
        stems.append(stem)
        branch_curve = pd.concat([stem.tail(1), after])
        branches.append(
            Branch(row.trial, str(row.name), int(row.budget_steps), int(stem["step"].iloc[-1]), branch_curve)
        )
    if not branches:
        raise RecordsError("these wsd trials have no measurements on both sides of a decay; nothing to draw")
    curve = pd.concat(stems).drop_duplicates("step").sort_values("step")
    peak = best.get("config.peak_lr")
    title = f"peak learning rate {peak:g}, seed {best['seed']}" if peak is not None else str(best["name"])
    return Trunk(title, curve, tuple(branches))


def split_at_decay(curve: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows before the last decay (its fork included) and those inside it.

    A row's phase is that of the step before it, so the last row that is not `decay` is the fork state.
    """
    decaying = (curve["phase_of_schedule"] == "decay").to_numpy()
    before = np.flatnonzero(~decaying)
    if not len(before):
        return curve.iloc[:0], curve
    return curve.iloc[: before[-1] + 1], curve.iloc[before[-1] + 1 :]


def hill_and_river(records: Records, metric: str = "report/loss", **conditions: Any) -> pd.DataFrame:
    """Split of a trunk's loss at each fork: hill = L(fork) - L(decayed from it), river = L(decayed); nats per token.

    The loss after a decay also profits from the steps of the decay itself, so the hill is an upper estimate.
    Columns: budget_steps, fork_step, tokens (at the fork), trunk, river, hill.
    """
    rows = []
    for branch in trunk(records, loss=metric, **conditions).branches:
        first, last = branch.curve.iloc[0], branch.curve.iloc[-1]
        row = {"budget_steps": branch.budget, "fork_step": branch.fork_step, "tokens": int(first["tokens"])}
        rows.append(row | {"trunk": first[metric], "river": last[metric], "hill": first[metric] - last[metric]})
    return pd.DataFrame(rows)


def _configs(records: Records, index: pd.Index) -> list[dict[str, Any]]:
    return [records.configs[i] for i in index]


def _without(config: dict[str, Any], *names: str) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in names}, sort_keys=True)
