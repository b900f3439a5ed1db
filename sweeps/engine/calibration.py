"""How fast slots were in a results folder: FLOP/s, seconds of measurements, of stages and of starting a job."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls

import analysis
from analysis.records import Records
from sweeps.engine.simulation import Pace
from sweeps.engine.words import Refused, Resources, compose_words
from trainables.study import AnyStudy


@dataclass(frozen=True)
class Executed:
    """A stage as the ledger tells it, with the FLOPs that it trained and the measurements that it took."""

    node: str
    job: str  # with its session, where that was written down
    began: float
    ended: float
    train_seconds: float
    evaluation_seconds: float
    other_seconds: float
    flops: float
    light: int
    full: int


def measured_pace(results: Path, study: AnyStudy, resources: Resources) -> Pace:
    """The pace of one slot, from all stages of a study in a folder whose jobs had these resources.

    Training: the median of FLOP/s over stages. Measurements: least squares over stages. A job's start: the median gap
    between two jobs of one slot. Raises ValueError where there is no such stage, or where devices are mixed.
    """
    records = of_such_slots(analysis.open(results).where(study=study.name), study, resources, results)
    stages = [stage for stage in executed(records) if stage.flops and stage.train_seconds]
    if not stages:
        raise ValueError(f"{results} holds no stage of {study.name} with known FLOPs; run a sweep of it there first")
    device = one_device(records, resources, results)
    light, full = nnls(
        np.array([[stage.light, stage.full] for stage in stages], dtype=float),
        np.array([stage.evaluation_seconds for stage in stages]),
    )[0]
    flops = median(stage.flops / stage.train_seconds for stage in stages)
    each, start = median(stage.other_seconds for stage in stages), start_seconds(stages)
    source = (
        f"{flops:.3g} FLOP/s per slot ({said_of(resources)}; {device}), {light:.2g} s a measurement and {full:.2g} s a "
        f"full one, {each:.2g} s a stage, {start:.2g} s a job, as measured over {len(stages):,} stages in {results}"
    )
    return Pace(flops, source, float(light), float(full), each, start)


def of_such_slots(records: Records, study: AnyStudy, resources: Resources, results: Path) -> Records:
    """The sweeps whose every command gave its jobs these resources. Raises ValueError where there is none."""
    found = {str(spec["sweep"]): resources_of(spec, study) for spec in records.sweeps}
    alike = [sweep for sweep, known in found.items() if {said_of(one) for one in known} == {said_of(resources)}]
    if not alike:
        there = {said_of(one) for known in found.values() for one in known}
        raise ValueError(
            f"calibrate needs a sweep of {study.name} whose jobs had what this one's get ({said_of(resources)}), "
            f"{results} has {', or '.join(sorted(there)) or 'none whose command says what its jobs had'}; name another "
            "folder, or give flops_per_second"
        )
    return records.where(sweep=alike)


def resources_of(spec: Mapping[str, Any], study: AnyStudy) -> list[Resources]:
    """What the commands that ran a sweep gave each job; none for one that was not started by a sweep script."""
    last = str(spec.get("command", ""))
    commands = {str(session.get("command", last)) for session in spec.get("sessions", ())} or {last}
    found = []
    for command in commands:
        said = shlex.split(command)
        if len(said) < 2 or said[0] != "python" or not said[1].endswith(".py"):
            return []
        try:
            found.append(compose_words(study, said[2:])[0].resources)
        except Refused:  # words of another version, which say nothing certain now
            return []
    return found


def said_of(resources: Resources) -> str:
    """What decides how fast a slot is, in words."""
    workers, least = resources.workers, resources.min_workers or resources.workers
    count = f"{workers}" if least == workers else f"{least} to {workers}"
    how = f" under {resources.parallel}" if workers > 1 else ""
    lanes = "" if resources.pack is None else f", {resources.pack} lanes together"
    return f"{count} worker{'s' * (workers > 1)} with {resources.gpus:g} GPUs each{how}{lanes}"


def one_device(records: Records, resources: Resources, results: Path) -> str:
    """The device of all stages. Raises ValueError for several, and for one that such jobs would not have trained on."""
    devices = sorted({str(device) for device in records.ledger.column("device").to_pylist()})
    if len(devices) > 1:
        raise ValueError(
            f"calibrate needs stages of one kind of device, {results} has {', '.join(devices)}, and a pace between "
            "theirs is that of none; name a folder of one of them, or give flops_per_second"
        )
    if (devices[0] == "cpu") == (resources.gpus > 0):
        raise ValueError(
            f"calibrate needs stages that ran where this sweep's jobs run ({said_of(resources)}), {results} has those "
            f"of {devices[0]}; name another folder, or give flops_per_second"
        )
    return devices[0]


def executed(records: Records) -> list[Executed]:
    """The stages of a ledger. A measurement that several trials share was taken once."""
    trials = records.to_pandas().drop_duplicates("root").set_index("root")
    flops = (trials["flops_nominal"] / trials["steps_nominal"]).fillna(0.0).to_dict()
    points: dict[str, list[tuple[int, bool]]] = {}
    for row in records.measurements.select(["trial", "step", "full"]).to_pylist():
        points.setdefault(row["trial"], []).append((row["step"], bool(row["full"])))
    found = []
    for row in records.ledger.to_pylist():
        first, last, trial = row["from_step"], row["to_step"], next(iter(row.get("trials") or ()), "")
        taken = [full for step, full in points.get(trial, ()) if first < step <= last]
        other = row["startup_seconds"] + row["checkpoint_seconds"]
        spent = row["train_seconds"] + row["evaluation_seconds"] + other
        began = datetime.fromisoformat(row["started_at"]).timestamp()
        found.append(
            Executed(
                *(
                    row["node"] or "",
                    f"{row.get('session') or ''}/{row['job']}",
                    began,
                    began + spent,
                    row["train_seconds"],
                ),
                *(row["evaluation_seconds"], other, flops.get(row["root"], 0.0) * row["executed_steps"]),
                *(taken.count(False), taken.count(True)),
            )
        )
    return found


def start_seconds(stages: Iterable[Executed]) -> float:
    """Median gap between a job and the next one that its slot took; 0 where there was none.

    Slots are not written down: a job follows the one that had ended last before it began, on its node.
    """
    jobs: dict[tuple[str, str], list[Executed]] = {}
    for stage in stages:
        jobs.setdefault((stage.node, stage.job), []).append(stage)
    gaps: list[float] = []
    ends: dict[str, list[float]] = {}
    for (node, _), own in sorted(jobs.items(), key=lambda job: min(stage.began for stage in job[1])):
        began, slots = min(stage.began for stage in own), ends.setdefault(node, [])
        before = max((end for end in slots if end <= began), default=None)
        if before is not None:
            slots.remove(before)
            gaps.append(began - before)
        slots.append(max(stage.ended for stage in own))
    return median(gaps) if gaps else 0.0


def wall_seconds(stages: Sequence[Executed]) -> float:
    """From the first stage's start to the last one's end."""
    return max(stage.ended for stage in stages) - min(stage.began for stage in stages)
