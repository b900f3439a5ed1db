"""What MLflow is to hold of a sweep, worked out from its records without MLflow: one parent run, a child per trial."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Row = Mapping[str, Any]
Point = tuple[str, int, float]  # metric, step, value

CHILDREN = 500  # what a page of the MLflow UI can still show; of a larger sweep it gets the trials that matter
CURVES = ("train/loss", "select/loss", "report/loss", "report/bits_per_byte", "lr", "tokens", "shared")
AT_THE_END = ("budget_steps", "budget_tokens", "steps_nominal", "steps_family", "steps_marginal", "flops_nominal")
PROVENANCE = ("trial", "key", "root", "cell", "phase", "proposal", "status", "scale", "data_sha", "device")
RUN_STATUS = {"complete": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "pruned": "KILLED"}  # trial -> MLflow


@dataclass
class MirroredRun:
    """One run as MLflow will hold it."""

    identity: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    points: list[Point] = field(default_factory=list)
    span: tuple[int, int] | None = None  # start and end of the work that was this trial's own, in ms since 1970

    @property
    def fingerprint(self) -> str:
        """Changes when a value or a parameter does."""
        return hashlib.sha256(json.dumps([sorted(self.points), self.params]).encode()).hexdigest()[:16]


def allowed(name: str) -> str:
    """`name` in the characters that MLflow takes for metrics and parameters.

    >>> allowed("frontier/method=wsd, shape=linear")
    'frontier/method:wsd shape:linear'
    """
    return re.sub(r"[^\w\-. :/]", "", name.replace("=", ":"))[:250]


def rounded(value: float) -> float:
    """6 significant digits: a value that went through float32 in the tables is still the same.

    >>> rounded(1.2345678e-5)
    1.23457e-05
    """
    return float(f"{value:.6g}")


def is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def config_of(trial: Row) -> dict[str, Any]:
    return json.loads(trial["config"]) if trial.get("config") else {}


def identity(trial: Row) -> str:
    """Two configs may reach one state (a timeline under two names), so the state key alone does not name a trial."""
    config = hashlib.sha256(json.dumps(config_of(trial), sort_keys=True).encode()).hexdigest()
    return f"{trial['key'][:16]}-{config[:8]}"


def constants(trials: Sequence[Row]) -> dict[str, Any]:
    """The config fields that have one value in all trials; a declared `varying` field is never one of them."""
    configs = [config_of(trial) for trial in trials]
    varying = {name for trial in trials for name in trial.get("varying") or ()}
    names = sorted({name for config in configs for name in config} - varying)
    return {name: configs[0].get(name) for name in names if all(c.get(name) == configs[0].get(name) for c in configs)}


def better(spec: Mapping[str, Any]) -> tuple[str, int]:
    """The select metric, and the sign that makes less the better."""
    select = spec.get("select") or {}
    return str(select.get("name", "select/loss")), -1 if select.get("goal") == "max" else 1


def best(trials: Sequence[Row], spec: Mapping[str, Any]) -> list[Row]:
    """Of each phase, cell and budget the complete trial that is best on the select metric."""
    select, sign = better(spec)
    complete = [trial for trial in trials if trial["status"] == "complete" and is_number(trial.get(select))]
    found: dict[tuple[Any, ...], Row] = {}
    for trial in sorted(complete, key=lambda trial: (sign * trial[select], trial["key"]), reverse=True):
        found[trial.get("phase"), trial.get("cell"), trial.get("budget_steps")] = trial
    return list(found.values())


def chosen(trials: Sequence[Row], spec: Mapping[str, Any], limit: int = CHILDREN) -> list[Row]:
    """All trials that ended, or, of more than `limit`, those that a reader looks for.

    These are the best of each cell and budget, of which the frontier is made, and its fresh seeds; then the failed
    ones, as many as there is room for.
    """
    ended = [trial for trial in trials if trial["status"] in RUN_STATUS]
    if len(ended) <= limit:
        return ended
    fresh = [trial for trial in ended if trial.get("phase") == "confirm" and trial["status"] == "complete"]
    failed = [trial for trial in ended if trial["status"] in ("failed", "diverged")]
    return list({identity(trial): trial for trial in [*best(ended, spec), *fresh, *failed]}.values())[:limit]


def curve(measurements: Iterable[Row]) -> Iterator[Point]:
    """The whole curve, trunk included: every finite value of `CURVES` at its step."""
    for row in measurements:
        yield from ((name, int(row["step"]), rounded(row[name])) for name in CURVES if is_number(row.get(name)))


def child(
    trial: Row, measurements: Sequence[Row], constant: Iterable[str], span: tuple[int, int] | None = None
) -> MirroredRun:
    """A trial. Only what varies is a parameter: the UI's columns are the axes of the sweep and nothing else."""
    constant, rows = set(constant), sorted(measurements, key=lambda row: row["step"])
    tags = {f"anabranch.{name}": str(trial[name]) for name in PROVENANCE if trial.get(name) is not None}
    tags |= {f"anabranch.{name}": str(trial[name]) for name in trial if name.endswith("_version") and trial[name]}
    if trial.get("git_commit"):
        tags["mlflow.source.git.commit"] = str(trial["git_commit"])
    if trial.get("error"):
        tags["anabranch.error"] = str(trial["error"])[-5000:]  # the end of a traceback says what happened
    tags["anabranch.shared_until_step"] = str(max((int(row["step"]) for row in rows if row.get("shared")), default=0))
    lost = sum(row.get(name) is not None and not math.isfinite(row[name]) for row in rows for name in CURVES)
    if lost:
        tags["anabranch.not_finite"] = f"{lost} values were nan or infinite; they are in the records alone"
    last = int(rows[-1]["step"]) if rows else 0
    ends = [(name, last, rounded(trial[name])) for name in AT_THE_END if is_number(trial.get(name))]
    return MirroredRun(
        identity=identity(trial),
        name=str(trial.get("name") or trial["trial"]),
        status=RUN_STATUS[trial["status"]],
        params={allowed(name): str(value) for name, value in config_of(trial).items() if name not in constant},
        tags=tags,
        points=[*curve(rows), *ends],
        span=span,
    )


def spans(ledger: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """When the last stage of each trial ran, by state key: start and end in ms since 1970."""
    found = {}
    for row in ledger:
        try:
            start = int(1000 * datetime.fromisoformat(str(row["started_at"])).timestamp())
        except (KeyError, ValueError):
            continue
        seconds = sum(row.get(f"{part}_seconds") or 0 for part in ("train", "evaluation", "checkpoint"))
        found[row["stage"]] = (start, start + int(1000 * seconds))
    return found


def sums(trials: Sequence[Row], ledger: Sequence[Row], spec: Mapping[str, Any]) -> list[Point]:
    """A sweep's own metrics: steps alone and shared, the saving, trials by status, and each cell's frontier.

    The step of a frontier's point is its budget in steps, its value the report loss of the trial that is best on
    select data. The others stand at the number of trials that have ended.
    """
    ended = [trial for trial in trials if trial["status"] in RUN_STATUS]
    alone = sum(trial.get("steps_nominal") or 0 for trial in ended)
    shared = sum(row.get("executed_steps") or 0 for row in ledger)
    values = {"steps_alone": alone, "steps_shared": shared, "saving": alone / shared if shared else None}
    values |= {f"trials/{status}": sum(trial["status"] == status for trial in ended) for status in RUN_STATUS}
    points = [(name, len(ended), rounded(value)) for name, value in values.items() if value is not None]
    report = str((spec.get("report") or {}).get("name", "report/loss"))
    for trial in best([trial for trial in ended if trial.get("phase", "tune") == "tune"], spec):
        if is_number(trial.get(report)):
            name = allowed(f"frontier/{trial.get('cell') or 'all'}")
            points.append((name, int(trial.get("budget_steps") or 0), rounded(trial[report])))
    return points


def parent(
    spec: Mapping[str, Any], trials: Sequence[Row], ledger: Sequence[Row], shown: int, running: bool
) -> MirroredRun:
    """The sweep: what it has in common as parameters, its sums as metrics, the command as description."""
    command = str(spec.get("command") or spec.get("command_line") or "")
    ended = sum(trial["status"] in RUN_STATUS for trial in trials)
    tags = {"anabranch.role": "sweep", "mlflow.source.type": "LOCAL", "mlflow.source.name": command or "anabranch"}
    tags |= {f"anabranch.{name}": str(spec[name]) for name in ("study", "paper", "scale", "preset") if spec.get(name)}
    tags |= {f"anabranch.version.{name}": str(value) for name, value in dict(spec.get("versions") or {}).items()}
    commit = spec.get("git_commit") or dict(spec.get("versions") or {}).get("git_commit")
    if commit:
        tags["mlflow.source.git.commit"] = str(commit)
    words = f"{shown} of {ended} trials are here"
    if shown < ended:
        words += ": the best of each cell and budget, fresh seeds, and failed ones; all are in records/"
    tags["anabranch.mirrored"] = words
    tags["mlflow.note.content"] = f"`{command}`\n\n{words}. The artifacts hold the tables (`records/`) and the figures."
    times = spans(ledger).values()
    name = " ".join(str(spec[part]) for part in ("study", "preset", "scale") if spec.get(part))
    return MirroredRun(
        identity=f"sweep-{spec['sweep']}",
        name=f"{name} {spec['sweep'][:8]}",
        status="RUNNING" if running else "FINISHED",
        params={} if running else {allowed(name): str(value) for name, value in constants(trials).items()},
        tags=tags,
        points=[] if running else sums(trials, ledger, spec),
        span=(min(start for start, _ in times), max(end for _, end in times)) if times else None,
    )
