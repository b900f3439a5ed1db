"""The three tables of a sweep, made from its entries and the store: trials, measurements, ledger (README, "Tables").

They can be made again at any time from the same command; `sweep.json` beside them says what the sweep was.
"""

import json
import os
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.records import SCHEMAS
from sweeps.engine.driver import Entry
from sweeps.engine.plan import Trial, make_trial, marginal_steps, plan
from sweeps.engine.spec import Spec
from sweeps.engine.store import Index
from sweeps.engine.tuning import configs_of
from trainables.common.timeline import Placed
from trainables.study import FusedStudy, StagedStudy, state_key

PACKAGES = ("ray", "torch", "optuna", "mlflow", "numpy", "pyarrow")
DATA_SHAS = ("data_sha", "corpus_sha", "task_sha")  # what roots call the checksum of what is trained on


@dataclass(frozen=True)
class Tables:
    trials: pa.Table
    measurements: pa.Table
    ledger: pa.Table

    def write(self, folder: Path) -> None:
        """Write the three Parquet files, each into place whole."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("trials", "measurements", "ledger"):
            written = folder / f".{name}.parquet.writing"
            pq.write_table(getattr(self, name), written)
            os.replace(written, folder / f"{name}.parquet")


class Recorder:
    """Makes the rows of a sweep. `entries` may grow; what depends on all of them is worked out again when it has."""

    def __init__(self, spec: Spec, entries: Sequence[Entry], device: str):
        self.spec, self.entries, self.device = spec, entries, device
        self._counted = -1
        self._marginal: dict[str, int] = {}
        self._passes: dict[str, int] = {}
        self._family: dict[tuple[int, str], int] = {}
        self._varying: list[str] = []

    def tables(self, index: Index) -> Tables:
        """All trials with costs and results, all their measurements, and every stage that was run for them."""
        return Tables(
            _table("trials", [self.trial_row(entry) for entry in self.entries]),
            _table("measurements", [row for entry in self.entries for row in self.measurement_rows(entry)]),
            _table("ledger", _ledger_rows(self.spec, self.entries, index)),
        )

    def _count(self) -> None:
        if self._counted == len(self.entries):
            return
        self._counted = len(self.entries)
        trials = {entry.trial.id: entry.trial for entry in self.entries}
        self._marginal = canonical_marginals(self.spec, trials.values())
        self._varying = varying_fields(self.entries)
        ends = Counter(trial.key for trial in trials.values())
        self._passes = {
            point.key: sum(ends[trial.key] for trial in node.trials)
            for tree in plan(trials.values()).trees
            for node in tree.nodes()
            for point in node.points
        }

    def trial_row(self, entry: Entry) -> dict[str, Any]:
        """An entry as a row of `trials`."""
        self._count()
        study, trial, config = self.spec.study, entry.trial, asdict(entry.trial.config)
        units, budget = study.units(trial.root), getattr(entry.trial.config, study.budget)
        tokens, flops = units.get("tokens", 1), units.get("flops", 0.0)
        family, marginal = self._family_steps(entry), self._marginal[trial.id]
        costs: dict[str, Any] = {}
        for kind, steps in (("nominal", trial.steps), ("family", family), ("marginal", marginal)):
            costs |= {f"steps_{kind}": steps, f"tokens_{kind}": int(steps * tokens), f"flops_{kind}": steps * flops}
        if isinstance(study, StagedStudy) and any(_step_cost(study, part) != 1 for part in trial.placed):
            plain_steps = sum(_step_cost(study, part) * (part.stop - part.start) for part in trial.placed)
            costs |= {"flops_nominal": plain_steps * flops, "flops_family": None, "flops_marginal": None}
        result = entry.result
        fused = entry.commit if isinstance(study, FusedStudy) else None
        seconds, lanes = (None, None) if fused is None else (fused.train_seconds, fused.lanes)
        return {
            "sweep": self.spec.sweep,
            "study": study.name,
            "trial": trial.id,
            "key": trial.key,
            "name": study.describe(trial.config, self._varying) if study.describe else trial.key[:12],
            "phase": entry.phase,
            "cell": entry.cell,
            "proposal": entry.proposal,
            "status": entry.status,
            "error": entry.error,
            "config": json.dumps(config, sort_keys=True),
            **{f"config.{key}": value for key, value in config.items() if isinstance(value, str | int | float)},
            "root": trial.root_key,
            "seed": config["seed"],
            "scale": self.spec.scale,
            "parameters": int(units.get("parameters", 0)),
            "budget_steps": budget,
            "budget_tokens": int(budget * tokens),
            "tokens_per_step": int(tokens),
            **{metric.name: None for metric in (study.select, study.report)},
            "steps_run": result.step if result else None,
            **(result.metrics | result.arrays if result else {}),
            **costs,
            "device_seconds_alone": seconds if lanes == 1 else None,
            "device_seconds_attributed": seconds,
            "lanes": lanes,
            "data_sha": next((getattr(trial.root, name) for name in DATA_SHAS if hasattr(trial.root, name)), ""),
            "git_commit": git_commit(),
            "torch_version": installed_version("torch"),
            "device": entry.commit.device if entry.commit else self.device,  # the driver's may have no GPU
            "varying": self._varying,
        }

    def _family_steps(self, entry: Entry) -> int:
        """`family_steps`, which is the same for every seed."""
        key = (getattr(entry.trial.config, self.spec.study.budget), repr(sorted(entry.values.items(), key=str)))
        if key not in self._family:
            self._family[key] = family_steps(self.spec, entry)
        return self._family[key]

    def measurement_rows(self, entry: Entry) -> list[dict[str, Any]]:
        """An entry's whole curve as rows of `measurements`, what it shares with others included."""
        self._count()
        tokens = self.spec.study.units(entry.trial.root).get("tokens", 1)
        return [
            {
                "sweep": self.spec.sweep,
                "trial": entry.trial.id,
                "step": row.step,
                "tokens": int(row.step * tokens),
                **row.knobs,
                "phase_of_schedule": _stretch(entry.trial, row.step),
                "key": row.key,
                "shared": self._passes.get(row.key, 1) > 1,
                "full": row.full,
                **row.metrics,
            }
            for row in entry.rows
        ]


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table with every column that any row has; without rows, as where all trials fail, with its schema's."""
    if not rows:
        return pa.schema(list(SCHEMAS[name].items())).empty_table()
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])


def canonical_marginals(spec: Spec, trials: Iterable[Trial]) -> dict[str, int]:
    """By trial id, the steps that each adds in the canonical order of its tree: by budget, then key."""
    ordered = sorted(trials, key=lambda trial: (getattr(trial.config, spec.study.budget), trial.key, trial.id))
    marginal = {trial.id: 0 for trial in ordered}
    place: dict[str, int] = {}
    for number, trial in enumerate(ordered):
        place.setdefault(trial.key, number)
    for tree in plan(ordered).trees:
        for node in tree.nodes():
            first = min(place[trial.key] for trial in node.trials)
            marginal[ordered[first].id] += node.steps
    return marginal


def family_steps(spec: Spec, entry: Entry) -> int:
    """Steps that the trial's method trains to have a checkpoint at every budget of the sweep up to its own."""
    if len(spec.budgets) == 1:
        return entry.trial.steps
    own = getattr(entry.trial.config, spec.study.budget)
    configs = configs_of(spec, entry.values, entry.trial.config.seed)
    configs = [config for config in configs if getattr(config, spec.study.budget) <= own]
    if isinstance(spec.study, FusedStudy):
        return spec.study.family_cost(configs)
    family = [make_trial(spec.study, config) for config in configs]
    return sum(marginal_steps(family))


def varying_fields(entries: Sequence[Entry]) -> list[str]:
    """Config fields, in their own order, that differ between trials."""
    configs = [vars(entry.trial.config) for entry in entries]
    return [name for name in configs[0] if len({repr(config[name]) for config in configs}) > 1] if configs else []


def _stretch(trial: Trial, step: int) -> str:
    """What the schedule was doing in the step before `step`."""
    place = next((place for place, part in enumerate(trial.placed) if part.start < step <= part.stop), 0)
    part = trial.placed[place].segment
    if part.constant:
        return "stable"
    if not part.falling:
        return "warmup"
    return "decay" if place and trial.placed[place - 1].segment.constant else "cosine"


def _ledger_rows(spec: Spec, entries: Sequence[Entry], index: Index) -> list[dict[str, Any]]:
    """Every executed stage that lies on some trial of the sweep, whichever command ran it."""
    by_id = {entry.trial.id: entry.trial for entry in entries}
    by_root: dict[str, dict[str, Trial]] = {}
    for entry in entries:
        by_root.setdefault(entry.trial.root_key, {})[entry.trial.id] = entry.trial
    passing: dict[tuple[str, int], dict[str, list[str]]] = {}
    rows = []
    for commit in index.commits.values():
        place = (commit.root_key, commit.stop)
        if place not in passing:
            through = passing.setdefault(place, {})
            for trial in by_root.get(commit.root_key, {}).values():
                if trial.steps >= commit.stop:
                    key = state_key(commit.root_key, trial.placed, commit.stop)
                    through.setdefault(key, []).append(trial.id)
        if commit.key in passing[place]:
            rows.append(
                {
                    "sweep": spec.sweep,
                    "stage": commit.key,
                    "trials": passing[place][commit.key],
                    "root": commit.root_key,
                    "from_step": commit.start,
                    "to_step": commit.stop,
                    "phase_of_schedule": _stretch(by_id[passing[place][commit.key][0]], commit.stop),
                    "executed_steps": commit.executed_steps,
                    "train_seconds": commit.train_seconds,
                    "evaluation_seconds": commit.evaluation_seconds,
                    "checkpoint_seconds": commit.checkpoint_seconds,
                    "startup_seconds": commit.startup_seconds,
                    "device": commit.device,
                    "lanes": commit.lanes,
                    "session": commit.session,
                    "job": commit.job,
                    "node": commit.node,
                    "started_at": commit.started_at,
                    "status": commit.status,
                }
            )
    return sorted(rows, key=lambda row: (row["root"], row["from_step"], row["stage"], row["started_at"]))


def new_session() -> str:
    """A name for one run of a command: when it began, and a token that no other has."""
    return f"{datetime.now(UTC).isoformat(timespec='seconds')}-{uuid.uuid4().hex[:6]}"


def describe_spec(
    spec: Spec, claims: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any], session: str = ""
) -> dict[str, Any]:
    """What `sweep.json` says of a sweep, for readers of its tables. `numbers`: its plan's, with the slots."""
    study = spec.study
    return {
        "sweep": spec.sweep,
        "study": study.name,
        "paper": study.paper,
        "scale": spec.scale,
        "preset": spec.preset,
        "command": spec.command,
        "axes": dict(spec.axes),
        "fields": {"all": spec.resolved.study, **spec.resolved.within},
        "conditions": list(study.conditions),
        "centre": study.centre,
        "select": study.select._asdict(),
        "report": study.report._asdict(),
        "objectives": [list(metric) for metric in spec.objectives],
        "claims": list(claims),
        "tuning_seeds": list(spec.tuning_seeds),
        "fresh_seeds": list(spec.fresh_seeds),
        "sampler": spec.search.sampler,
        "plan": dict(numbers),
        "sessions": [{"name": session, "slots": numbers.get("slots", 1), "command": spec.command}],
        "versions": {name: installed_version(name) for name in PACKAGES},
        "git_commit": git_commit(),
    }


def write_spec(spec: Spec, content: Mapping[str, Any]) -> None:
    """Write `sweep.json` before anything is trained, so that claims are declared before their evidence.

    Each run of the command is one more look at the claims, and one more session. A claim that a first run had not
    declared, or that was changed since, counts as declared after it.
    """
    spec.folder.mkdir(parents=True, exist_ok=True)
    file = spec.folder / "sweep.json"
    before: dict[str, Any] = {"claims": content["claims"], "looks": 0, "sessions": []}
    if file.exists():
        with suppress(ValueError):  # a damaged one counts as none
            before |= {name: value for name, value in json.loads(file.read_text()).items() if name in before}
    sessions = [*before["sessions"], *content["sessions"]]
    content = {**content, "claims": before["claims"], "looks": before["looks"] + 1, "sessions": sessions}
    written = spec.folder / ".sweep.json.writing"
    written.write_text(json.dumps(content, indent=1, default=list))
    os.replace(written, file)


@cache
def installed_version(package: str) -> str:
    return version(package)


@cache
def git_commit() -> str:
    """The clone's commit, with "+" when files differ from it; "unknown" outside a clone."""
    here = Path(__file__).parent
    words = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--match="]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _step_cost(study: StagedStudy, part: Placed) -> float:
    return study.step_cost(part.at(part.start))
