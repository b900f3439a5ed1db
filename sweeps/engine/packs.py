"""How many lanes train together: measured once per shape where the job runs, stored, and reused.

More lanes share what every step costs beside its arithmetic, until their tensors leave the cache. So the fastest size
is found by trying a short stand-in of the pack, larger and larger as long as that pays. A pack of one is one at a time.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from trainables.pack import train_pack
from trainables.study import FusedStudy, LocalRun, Run, Stage

GROWTH = 4  # a pack is tried at 1, 4, 16 ... lanes
NEAR_FASTEST = 1.05  # the smallest pack within 5 % of the fastest is taken
LONGEST_TRY_SECONDS = 2.0  # a larger pack is not tried beyond this
WORTH_MEASURING = 8  # steps to train over those of one try: with less, measuring would cost more than it saves


@dataclass(frozen=True)
class PackSize:
    """The lanes that one pack takes, and the seconds per lane of a stand-in at each size that was tried.

    `open`: the largest size tried was the fastest, and there were no more lanes to try.
    """

    lanes: int
    tried: dict[int, float]
    open: bool

    def settles(self, lanes: int) -> bool:
        """Is this the answer for so many lanes, too?"""
        return not self.open or lanes < GROWTH * max(self.tried)


def pack_size(folder: Path, study: FusedStudy, configs: Sequence[Any], run: Run) -> int:
    """Lanes per pack for configs of one shape on this device: the stored size, else measured now and stored.

    `folder` holds a file per study, version, shape and device. Without one, and with little to train, all lanes go
    together and nothing is stored.
    """
    file = _file(folder, study, configs[0], run.device)
    stored = _read(file)
    if stored is None or not stored.settles(len(configs)):
        if not worth_measuring(study, configs):
            return len(configs)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # two jobs that measured at once would disturb and contradict each other
            stored = _read(file)
            if stored is None or not stored.settles(len(configs)):
                try:
                    stored = measure(study, configs, run)
                except StandInFailed:
                    return len(configs)  # whose lane it is that raises, their pack will find out
                written = file.with_suffix(".writing")
                written.write_text(json.dumps(asdict(stored)))
                os.replace(written, file)
    return len(configs) if stored.open else stored.lanes


class StandInFailed(RuntimeError):
    """A short stand-in raised, so that its time says nothing."""


def worth_measuring(study: FusedStudy, configs: Sequence[Any]) -> bool:
    steps = sum(study.steps(config) for config in configs)
    return len(configs) > 1 and steps >= WORTH_MEASURING * study.steps(study.short(configs[0]))


def measure(study: FusedStudy, configs: Sequence[Any], run: Run) -> PackSize:
    """Seconds per lane of a short stand-in at growing sizes; it ends where more lanes stop paying."""
    short = [study.short(config) for config in configs]
    _seconds(study, short[:1], run)  # first calls load libraries
    tried: dict[int, float] = {}
    size, more = 1, True
    while more:
        took = _seconds(study, short[:size], run)
        tried[size] = took / size
        pays = tried[size] <= NEAR_FASTEST * min(tried.values()) and took <= LONGEST_TRY_SECONDS
        more = pays and size < len(short)
        size = min(size * GROWTH, len(short)) if more else size
    fastest = min(tried.values())
    best = min(lanes for lanes, each in tried.items() if each <= NEAR_FASTEST * fastest)
    return PackSize(best, tried, open=pays and size == len(short))


def _seconds(study: FusedStudy, configs: Sequence[Any], run: Run) -> float:
    """Seconds of one pack; process time on a CPU, where neighbours would count otherwise."""
    clock = time.perf_counter if run.device.type == "cuda" else time.process_time
    quiet = LocalRun(device=run.device, stop=run.should_stop)
    began = clock()
    train_pack(study, configs, quiet, commit=_refuse_failed)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return max(clock() - began, 1e-9)


def _refuse_failed(lane: int, stage: Stage) -> None:
    if stage.status == "failed":
        raise StandInFailed(stage.error)


def _file(folder: Path, study: FusedStudy, config: Any, device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    content = repr((study.name, study.version, study.shape(config), name, torch.__version__))
    return folder / f"{study.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> PackSize | None:
    """A stored size; a damaged file counts as none."""
    try:
        values = json.loads(file.read_text())
        tried = {int(lanes): float(each) for lanes, each in values["tried"].items()}
        return PackSize(int(values["lanes"]), tried, bool(values["open"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
