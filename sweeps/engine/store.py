"""The stage store: committed stages with their rows, and a few kept states. The only truth of a results folder.

    store/stages/<key[:2]>/<key>-<start>-<token>.json   one manifest per executed stage, written last
    store/stages/<key[:2]>/<key>-lanes-<token>.json     one for lanes of a fused study that ended within a second
    store/rows/<sha256>.json                            its measurements
    store/states/<sha256>.safetensors                   the state at its end, where it is kept
    store/packs/<study>-<hash>.json                     how many lanes of a shape train together on a device

Files are named by their content and moved into place whole; a manifest carries the checksums of what it names and of
itself. What does not match is reported and counts as never having been written. Nothing is executed from a file:
states are safetensors, all else is JSON.
"""

import hashlib
import json
import os
import platform
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainables.study import Row, Stage, Tensors

FORMAT = 1
STATE_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


class DamagedStore(Exception):
    """A file of the store does not match its checksum or cannot be read."""


@dataclass(frozen=True)
class Commit:
    """A committed stage as its manifest tells it. `name` is the manifest's file name."""

    name: str
    study: str
    root_key: str
    key: str
    start: int
    stop: int
    status: str
    error: str | None
    executed_steps: int
    rows_file: str
    state_file: str | None
    state_bytes: int
    train_seconds: float
    evaluation_seconds: float
    checkpoint_seconds: float
    startup_seconds: float
    device: str
    job: str
    started_at: str
    lost_keys: tuple[str, ...]
    lanes: int = 1  # that trained together; its seconds are attributed unless it trained alone
    node: str = ""  # the name of the machine that ran it, as far as it was written down


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

    def __init__(self, results: str | Path):
        self.folder = Path(results) / "store"
        self.stages, self.rows, self.states = (self.folder / name for name in ("stages", "rows", "states"))
        self.packs = self.folder / "packs"

    def prepare(self) -> None:
        """Make the folders and prove that a file can be written there."""
        try:
            for folder in (self.stages, self.rows, self.states):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"x")
        except OSError as error:
            raise OSError(
                f"cannot write to {self.folder}: {error}; free space there or choose results=FOLDER"
            ) from error

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
            payload = (self.rows / commits[0].rows_file).read_bytes()
            if _sha(payload) + ".json" != commits[0].rows_file:
                raise DamagedStore(f"{self.rows / commits[0].rows_file} does not match its checksum")
            rows = json.loads(payload) if many else [json.loads(payload)]
            return [(commit, [Row(**row) for row in own]) for commit, own in zip(commits, rows, strict=True)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DamagedStore(f"{path} cannot be read: {error}") from error

    def _put_sealed(self, name: str, values: Mapping[str, Any]) -> None:
        content = json.dumps({"format": FORMAT, **values}, sort_keys=True)
        sealed = json.dumps({"sha256": _sha(content.encode()), "content": content})
        self._put(self._manifest(name), sealed.encode())

    def _sealed(self, path: Path) -> dict[str, Any]:
        sealed = json.loads(path.read_bytes())
        content = sealed["content"]
        if _sha(content.encode()) != sealed["sha256"]:
            raise DamagedStore(f"{path} does not match its checksum")
        values = json.loads(content)
        if values.pop("format") != FORMAT:
            raise DamagedStore(f"{path} has another format; this version writes format {FORMAT}")
        return dict(values)

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
    commit = Commit(**{**values, "lost_keys": tuple(values["lost_keys"])})
    if commit.state_file is not None and not STATE_FILE.fullmatch(commit.state_file):
        raise DamagedStore(f"{path} names a state outside the store: {commit.state_file!r}")
    return commit


def _writing(folder: Path) -> Path:
    """A name of one's own in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".writing-{uuid.uuid4().hex}"


def _sha(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _sha_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
