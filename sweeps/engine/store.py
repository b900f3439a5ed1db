"""The stage store: committed stages with their rows, and a few kept states. The only truth of a results folder.

    store/stages/<key[:2]>/<key>-<start>-<token>.json   one manifest per executed stage, written last
    store/stages/<key[:2]>/<key>-lanes-<token>.json     one for lanes of a fused study that ended within a second
    store/rows/<sha256>.json                            its measurements
    store/states/<sha256>.safetensors                   the state at its end, where it is kept
    store/packs/<study>-<hash>.json                     how many lanes of a shape train together on a device

Files are named by their content and moved into place whole; a manifest carries the checksums of what it names and of
itself. What does not match is reported and counts as never having been written. Nothing is executed from a file:
states are safetensors, all else is JSON of stated types, and links, pipes and devices are not opened.
"""

import hashlib
import json
import os
import platform
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainables.study import Row, Stage, Tensors

FORMAT = 1
WRITING = ".writing-"
ABANDONED_SECONDS = 24 * 3600  # a file that has been in the writing so long belongs to a process that was killed

# JSON as it must be: nothing is converted, nothing is left over. Losses may be NaN, times and counts may not.
TYPED = ConfigDict(strict=True, extra="forbid", revalidate_instances="always")
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RowsFile = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.json$")]
StateFile = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.safetensors$")]


class DamagedStore(Exception):
    """A file of the store does not match its checksum or cannot be read."""


@dataclass(frozen=True)
class Commit:
    """A committed stage as its manifest tells it. `name` is the manifest's file name."""

    __pydantic_config__ = TYPED

    name: str
    study: str
    root_key: str
    key: str
    start: Count
    stop: Count
    status: Literal["complete", "diverged", "failed"]
    error: str | None
    executed_steps: Count
    rows_file: RowsFile
    state_file: StateFile | None
    state_bytes: Count
    train_seconds: Seconds
    evaluation_seconds: Seconds
    checkpoint_seconds: Seconds
    startup_seconds: Seconds
    device: str
    job: str
    started_at: str
    lost_keys: tuple[str, ...]
    lanes: Count = 1  # that trained together; its seconds are attributed unless it trained alone
    node: str = ""  # the name of the machine that ran it, as far as it was written down
    session: str = ""  # the run of a command that trained it, likewise


OBJECT, COMMIT, KEYS = TypeAdapter(dict[str, Any]), TypeAdapter(Commit), TypeAdapter(list[str], config=TYPED)
ROWS, ROWS_OF_LANES = TypeAdapter(list[Row], config=TYPED), TypeAdapter(list[list[Row]], config=TYPED)


@dataclass
class Index:
    """What a store holds, in memory: rows and failures by state key, kept states and ways by root, all commits.

    `ways`: root -> the keys of all rows on it, which for a fused trial are its curve.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    states: dict[str, dict[str, Commit]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    ways: dict[str, dict[str, Commit]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def add(self, commit: Commit, rows: list[Row]) -> None:
        if commit.name in self.commits:
            return
        self.commits[commit.name] = commit
        for row in rows:
            if row.key not in self.rows or row.full:
                self.rows[row.key] = row
            self.ways.setdefault(commit.root_key, {})[row.key] = commit
        if commit.state_file is not None:
            self.states.setdefault(commit.root_key, {})[commit.key] = commit

    def measured(self, key: str) -> bool | None:
        row = self.rows.get(key)
        return None if row is None else row.full

    def finite(self, key: str) -> bool:
        return all(isfinite(value) for value in self.rows[key].metrics.values())

    def kept(self, root_key: str) -> Mapping[str, int]:
        return {key: commit.stop for key, commit in self.states.get(root_key, {}).items()}

    def failure(self, key: str) -> str | None:
        return self.failures.get(key)


class Store:
    """The store of one results folder. Raises PermissionError or OSError, with the path, when it cannot be written."""

    def __init__(self, results: str | Path, session: str = ""):
        self.folder, self.session = Path(results) / "store", session
        self.stages, self.rows, self.states = (self.folder / name for name in ("stages", "rows", "states"))
        self.packs = self.folder / "packs"

    def prepare(self) -> None:
        """Make the folders, take away what killed processes left half written, prove that a file can be written."""
        try:
            for folder in (self.stages, self.rows, self.states):
                folder.mkdir(parents=True, exist_ok=True)
            self._take_away_abandoned()
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"x")
        except OSError as error:
            raise OSError(
                f"cannot write to {self.folder}: {error}; free space there or choose results=FOLDER"
            ) from error

    def _take_away_abandoned(self) -> None:
        for path in self.folder.rglob(f"{WRITING}*"):
            with suppress(FileNotFoundError):  # its writer has just moved it into place
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()

    def commit(
        self,
        study: str,
        root_key: str,
        stage: Stage,
        *,
        job: str,
        device: str,
        started_at: str,
        startup: float = 0.0,
    ) -> Commit:
        """Write a finished stage: rows and state first, the manifest last. Returns it as read back by `scan`."""
        rows_file = self._put_json(self.rows, [row._asdict() for row in stage.rows])
        state_file, state_bytes = None, 0
        if stage.tensors is not None:
            state_file, state_bytes = self._put_state(stage.tensors)
        name = f"{stage.branch.key}-{stage.branch.start}-{uuid.uuid4().hex[:8]}.json"
        commit = Commit(
            name=name,
            study=study,
            root_key=root_key,
            **_told_by(stage),
            rows_file=rows_file,
            state_file=state_file,
            state_bytes=state_bytes,
            startup_seconds=startup,
            device=device,
            job=job,
            started_at=started_at,
            node=platform.node(),
            session=self.session,
        )
        self._put_sealed(name, asdict(commit))
        return commit

    def commit_lanes(
        self,
        study: str,
        lanes: Sequence[tuple[str, Stage]],
        *,
        job: str,
        device: str,
        started_at: str,
        startup: float = 0.0,
        together: int = 1,
    ) -> str:
        """Write finished lanes, (root key, stage) each, as one manifest, whose name it returns.

        `together` is how many trained in their pack; its `startup` goes to the first of these.
        """
        rows_file = self._put_json(self.rows, [[row._asdict() for row in stage.rows] for _, stage in lanes])
        name = f"{lanes[0][1].branch.key}-lanes-{uuid.uuid4().hex[:8]}.json"
        commits = [
            Commit(
                name=f"{name}#{place}",
                study=study,
                root_key=root_key,
                **_told_by(stage),
                rows_file=rows_file,
                state_file=None,
                state_bytes=0,
                startup_seconds=startup if place == 0 else 0.0,
                device=device,
                job=job,
                started_at=started_at,
                lanes=together,
                node=platform.node(),
                session=self.session,
            )
            for place, (root_key, stage) in enumerate(lanes)
        ]
        self._put_sealed(name, {"ended": [asdict(commit) for commit in commits]})
        return name

    def read(self, name: str) -> list[tuple[Commit, list[Row]]]:
        """What a manifest commits: one stage, or lanes. Raises DamagedStore when it does not match its checksum."""
        path = self._manifest(name)
        try:
            values = self._sealed(path)
            many = "ended" in values
            commits = [_commit(path, one) for one in (values["ended"] if many else [values])]
            payload = _read(self.rows / commits[0].rows_file)
            if _sha(payload) + ".json" != commits[0].rows_file:
                raise DamagedStore(f"{self.rows / commits[0].rows_file} does not match its checksum")
            rows = ROWS_OF_LANES.validate_json(payload) if many else [ROWS.validate_json(payload)]
            return list(zip(commits, rows, strict=True))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DamagedStore(f"{path} cannot be read: {error}") from error

    def _put_sealed(self, name: str, values: Mapping[str, Any]) -> None:
        content = json.dumps({"format": FORMAT, **values}, sort_keys=True)
        sealed = json.dumps({"sha256": _sha(content.encode()), "content": content})
        self._put(self._manifest(name), sealed.encode())

    def _sealed(self, path: Path) -> dict[str, Any]:
        sealed = OBJECT.validate_json(_read(path))
        content = sealed["content"]
        if _sha(content.encode()) != sealed["sha256"]:
            raise DamagedStore(f"{path} does not match its checksum")
        values = OBJECT.validate_json(content)
        if values.pop("format") != FORMAT:
            raise DamagedStore(f"{path} has another format; this version writes format {FORMAT}")
        return values

    def names(self) -> Iterator[str]:
        return (path.name for path in sorted(self.stages.glob("*/*.json")))

    def scan(self) -> Index:
        """Read all manifests. Damaged ones are listed in `damaged` and count as never written.

        Failures of earlier sessions are left out, so that they are tried again; divergence stays, being a result.
        """
        index = Index()
        for name in self.names():
            try:
                for commit, rows in self.read(name):
                    index.add(commit, rows)
            except DamagedStore as error:
                index.damaged.append(str(error))
        for kept in index.states.values():
            for key in [key for key, commit in kept.items() if not self._state(commit).exists()]:
                del kept[key]
        return index

    def load_state(self, commit: Commit) -> Tensors:
        """The tensors of a kept state. Raises DamagedStore when the file does not match its name."""
        path = self._state(commit)
        try:
            _refuse_all_but_files(path)
            if _sha_file(path) + ".safetensors" != path.name:
                raise DamagedStore(f"{path} does not match its checksum; delete it and its stage is trained again")
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DamagedStore(f"{path} cannot be read: {error}") from error

    def drop_state(self, commit: Commit) -> None:
        self._state(commit).unlink(missing_ok=True)

    def _state(self, commit: Commit) -> Path:
        if commit.state_file is None:
            raise ValueError(f"the stage {commit.name} kept no state")
        return self.states / commit.state_file

    def _manifest(self, name: str) -> Path:
        return self.stages / name[:2] / name

    def _put_json(self, folder: Path, value: Any) -> str:
        payload = json.dumps(value).encode()
        name = _sha(payload) + ".json"
        self._put(folder / name, payload)
        return name

    def _put_state(self, tensors: Tensors) -> tuple[str, int]:
        path = _writing(self.states)
        try:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
            path.chmod(0o644)  # safetensors makes it private; other users of a shared folder read it too
            name, size = _sha_file(path) + ".safetensors", path.stat().st_size
            os.replace(path, self.states / name)
        except SafetensorError as error:  # how it says that the disk is full
            raise OSError(f"{self.states}: {error}") from error
        finally:
            path.unlink(missing_ok=True)
        return name, size

    def _put(self, path: Path, payload: bytes) -> None:
        temporary = _writing(path.parent)
        try:
            temporary.write_bytes(payload)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _told_by(stage: Stage) -> dict[str, Any]:
    """What a stage itself says of its commit."""
    branch = stage.branch
    lost: tuple[str, ...] = ()
    if stage.status == "failed":
        measured = {row.key for row in stage.rows}
        lost = (*(point.key for point in branch.points if point.key not in measured), branch.key)
    return {
        "key": branch.key,
        "start": branch.start,
        "stop": branch.stop,
        "status": stage.status,
        "error": stage.error,
        "executed_steps": stage.executed_steps,
        "lost_keys": lost,
        **asdict(stage.cost),
    }


def _commit(path: Path, values: Mapping[str, Any]) -> Commit:
    commit = COMMIT.validate_python(Commit(**{**values, "lost_keys": tuple(KEYS.validate_python(values["lost_keys"]))}))
    if commit.name.partition("#")[0] != path.name:
        raise DamagedStore(f"{path} is the manifest of another stage: it says {commit.name!r}")
    return commit


def _refuse_all_but_files(path: Path) -> None:
    """Raises DamagedStore for a link, which leads out of the store, and for what never ends when it is read."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise DamagedStore(f"{path} is a link, a folder, a pipe or a device, none of which the store writes; delete it")


def _read(path: Path) -> bytes:
    _refuse_all_but_files(path)
    return path.read_bytes()


def _writing(folder: Path) -> Path:
    """A name of one's own in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{WRITING}{uuid.uuid4().hex}"


def _sha(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _sha_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
