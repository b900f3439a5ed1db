"""An Optuna study as lines of a file that survive the death of the process that appends them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweeps.engine.samplers import DIRECTIONS, Outcome, complete, failed, pruned

CHECKSUM = "crc32"


class Lines(JournalFileBackend):
    """A journal's file. A line is in it at once, so a killed process loses none; `Proposals.sync` does for the machine.

    No lock per line either: the journal's own lock is held as long as it is open. Each line carries a checksum of the
    rest of it, of which Optuna takes no notice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self.path.open("ab") as file:
            file.writelines(_line({**log, CHECKSUM: _checksum(log)}) + b"\n" for log in logs)


def open_study(path: Path) -> optuna.Study | None:
    """Optuna's study in a journal file, None if there is none yet. RuntimeError for a damaged file."""
    if not path.exists():
        return None
    with damage_told(path):
        _check(path.read_bytes())
        storage = _storage(path)
        return optuna.load_study(study_name=None, storage=storage) if storage.get_all_studies() else None


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """What reading a journal raises when a line is not what was written, as one RuntimeError with the way out."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError) as error:
        raise RuntimeError(
            f"the journal {path} is damaged ({type(error).__name__}: {error}); move it away and run again: "
            "the same proposals are made again, and finished trials are answered from the store"
        ) from error


def _check(content: bytes) -> None:
    """Raises ValueError for a line that does not match its checksum. Lines of before there were any have none."""
    checked = False
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        log = json.loads(line)
        checksum = log.pop(CHECKSUM, None)
        if checksum != _checksum(log) and (checked or checksum is not None):
            raise ValueError(f"line {number} does not match its checksum")
        checked = checked or checksum is not None


def _line(log: Mapping[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode()


def _checksum(log: Mapping[str, Any]) -> int:
    return zlib.crc32(_line(log))


def new_study(path: Path, goals: Sequence[str]) -> optuna.Study:
    return optuna.create_study(storage=_storage(path), directions=[DIRECTIONS[goal] for goal in goals])


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(Lines(path))


def outcome_of(trial: FrozenTrial) -> Outcome | None:
    match trial.state:
        case TrialState.COMPLETE:
            return complete(*trial.values)
        case TrialState.PRUNED:
            return pruned()
        case TrialState.FAIL:
            return failed()
    return None


def drop_torn_line(path: Path) -> None:
    """Cut off the line that a killed process or machine left half written at the end; whole lines stay."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
