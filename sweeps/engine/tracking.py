"""MLflow as a mirror of the records: an experiment per study, a parent run per sweep, a child run per trial.

The three tables of a sweep folder are the truth; what is here can be deleted and written again. The driver alone
writes, in batches. A run is known by its tags and finished by its fingerprint, so writing twice changes nothing and
a sync that was killed is completed by the next one. `mirrored.py` says what a run holds, `mlflow_writer.py` puts
it there.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow.parquet as pq
from filelock import FileLock

from sweeps.engine.mirrored import CHILDREN, Row, chosen, config_of, constants, parent
from sweeps.engine.mlflow_writer import Mirrored, Writer

UNWANTED = ("report/document_losses",)  # large, and nothing that MLflow could show


class Unreachable(RuntimeError):
    """MLflow does not answer or refuses to write; the records are unharmed and can be mirrored later."""


def database(results: Path) -> str:
    """The tracking URI of a results folder: a database of its own, wherever the command was given."""
    return f"sqlite:///{results.resolve() / 'mlflow.db'}"


def ui_command(results: Path, uri: str | None = None) -> str:
    """The one line that opens the MLflow UI on a results folder; of a server, its address."""
    if uri and uri.startswith(("http://", "https://")):
        return f"open {without_password(uri)}"
    here = f"sqlite:///{os.path.relpath(results / 'mlflow.db')}"
    return f"mlflow ui --backend-store-uri {uri or here}"


def page(done: Mirrored, sweep: str, server: str = "http://127.0.0.1:5000") -> str:
    """Where the UI shows a sweep with what varies as columns; `&compareRunsMode=CHART` shows its curves."""
    return f"{server}/#/experiments/{done.experiment}/runs?workflowType=machine_learning&viewStateShareKey={sweep}"


def without_password(uri: str) -> str:
    """
    >>> without_password("https://me:secret@tracking.example/x")
    'https://me:***@tracking.example/x'
    """
    password = urlparse(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


def rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    names = [name for name in pq.read_schema(file).names if name not in UNWANTED]
    return pq.read_table(file, columns=names).to_pylist()


def mirror(folder: Path, uri: str | None = None) -> Mirrored:
    """Makes MLflow hold what the records of the sweep in `folder` (results/sweeps/ID) say.

    Raises `Unreachable` with the way out, whatever went wrong on MLflow's side.
    """
    folder = Path(folder).resolve()
    if not (folder / "sweep.json").exists():
        raise FileNotFoundError(f"no sweep.json in {folder}; a sweep folder is RESULTS/sweeps/ID")
    spec = json.loads((folder / "sweep.json").read_text())
    trials, ledger = rows(folder / "trials.parquet"), rows(folder / "ledger.parquet")
    measurements = rows(folder / "measurements.parquet")
    results = folder.parent.parent
    with writing(results, uri or database(results), spec) as writer:
        shown = chosen(trials, spec)
        number, _ = writer.put(parent(spec, trials, ledger, len(shown), running=False))
        writer.prune(shown)
        writer.adopt(number)
        done = writer.children(number, shown, measurements, constants(trials), ledger)
        writer.files(number, folder)
        writer.view(number, trials, spec)
    done.left_out = len(trials) - len(shown)
    return done


@contextmanager
def writing(results: Path, uri: str, spec: Mapping[str, Any]) -> Iterator[Writer]:
    """A writer of one sweep, alone on this results folder; all that goes wrong leaves as `Unreachable`."""
    try:
        with FileLock(results / "mlflow.lock", timeout=600):
            yield Writer(uri, results, str(spec["study"]), str(spec["sweep"]))
    except Exception as error:  # MLflow and its stores raise of every kind; none of it may stop a sweep
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        command = f"python -m sweeps.tracking sync {os.path.relpath(results)} --uri {without_password(uri)}"
        raise Unreachable(
            f"MLflow at {without_password(uri)} cannot be written: {reason}. The records are whole and the sweep goes "
            f"on without it; to mirror them later: {command}"
        ) from error


class Mirror:
    """Mirrors a running sweep from a thread of its own: it never blocks the sweep and never ends it.

    `update` takes rows of the tables as they come; `close` mirrors the finished records. What goes wrong is said once.
    A sweep that plans more than `CHILDREN` trials is mirrored at its end, when it is known which of them matter.
    """

    def __init__(
        self,
        folder: Path,
        spec: Mapping[str, Any],
        uri: str | None = None,
        planned: int = 0,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        every: float = 10.0,
    ) -> None:
        self.folder, self.spec, self.say, self.every = Path(folder).resolve(), spec, say, every
        self.results = self.folder.parent.parent
        self.uri = uri or database(self.results)
        self.live, self.said = planned <= CHILDREN, False
        self.waiting: list[tuple[Sequence[Row], Sequence[Row]]] = []
        self.guard, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.run, name="mlflow-mirror", daemon=True)
        self.thread.start()

    def update(self, trials: Sequence[Row], measurements: Sequence[Row] = ()) -> None:
        """Trials that have ended, and all measurements on their timelines; returns at once."""
        if self.live:
            with self.guard:
                self.waiting.append((trials, measurements))

    def close(self, timeout: float = 120.0) -> None:
        """Mirrors the records in the sweep's folder and waits for it, at most `timeout` seconds."""
        self.ended.set()
        self.thread.join(timeout)
        if self.thread.is_alive():
            self.warn(f"MLflow is behind; to finish: python -m sweeps.tracking sync {os.path.relpath(self.results)}")

    def run(self) -> None:
        if hasattr(os, "setpriority"):  # on Linux of this thread alone: the mirror makes way for the training
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        if self.live:  # MLflow's import and its new database take seconds: now, while the first jobs start
            self.attempt(self.connect)
        while not self.ended.wait(self.every):
            with self.guard:
                batch, self.waiting = self.waiting, []
            if batch and not self.said:
                self.attempt(lambda batch=batch: self.write(batch))  # type: ignore[misc]
        if (self.folder / "sweep.json").exists():
            self.attempt(lambda: mirror(self.folder, self.uri))

    def connect(self) -> None:
        with writing(self.results, self.uri, self.spec):
            pass

    def write(self, batch: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> None:
        trials = [trial for some, _ in batch for trial in chosen(some, self.spec)]
        measurements = [row for _, some in batch for row in some]
        varying = {name for trial in trials for name in trial.get("varying") or ()}
        constant = {name for trial in trials for name in config_of(trial)} - varying
        with writing(self.results, self.uri, self.spec) as writer:
            number = writer.sweep_run() or writer.put(parent(self.spec, [], [], len(trials), running=True))[0]
            writer.children(number, trials, measurements, constant, ())

    def attempt(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            self.warn(str(error))

    def warn(self, text: str) -> None:
        if not self.said:
            self.said = True
            self.say(text)
