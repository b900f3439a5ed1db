"""How fast slots were in a results folder: FLOP/s, seconds of measurements, of stages and of starting a job."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import nnls

import analysis
from analysis.records import Records
from sweeps.engine.simulation import Pace


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


def measured_pace(results: Path, study: str) -> Pace:
    """The pace of one slot, from all stages of a study in a folder. Raises ValueError where it holds none.

    Training: the median of FLOP/s over stages. Measurements: least squares over stages. A job's start: the median gap
    between two jobs of one slot.
    """
    records = analysis.open(results).where(study=study)
    stages = [stage for stage in executed(records) if stage.flops and stage.train_seconds]
    if not stages:
        raise ValueError(f"{results} holds no stage of {study} with known FLOPs; run a sweep of it there first")
    light, full = nnls(
        np.array([[stage.light, stage.full] for stage in stages], dtype=float),
        np.array([stage.evaluation_seconds for stage in stages]),
    )[0]
    flops = median(stage.flops / stage.train_seconds for stage in stages)
    each, start = median(stage.other_seconds for stage in stages), start_seconds(stages)
    devices = ", ".join(sorted({str(device) for device in records.ledger.column("device").to_pylist()}))
    source = (
        f"{flops:.3g} FLOP/s per slot ({devices}), {light:.2g} s a measurement and {full:.2g} s a full one, "
        f"{each:.2g} s a stage, {start:.2g} s a job, as measured over {len(stages):,} stages in {results}"
    )
    return Pace(flops, source, float(light), float(full), each, start)


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
