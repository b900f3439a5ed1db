"""Puts the runs of one sweep into MLflow, in batches, and knows which are there already."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sweeps.engine.mirrored import MirroredRun, Row, allowed, child, identity, spans

# Opens the view of runs and curves; without it MLflow shows an experiment as one of language-model traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST = 1000  # metrics, parameters and tags together in one log_batch
MOST_PARAMS = 100
PARENT, IDENTITY, FINGERPRINT = "mlflow.parentRunId", "anabranch.identity", "anabranch.fingerprint"


@dataclass
class Mirrored:
    """What one pass over a sweep did, in trials; `left_out` ones are in the records alone."""

    written: int = 0
    unchanged: int = 0
    left_out: int = 0
    parent: str = ""  # MLflow's run id
    experiment: str = ""  # MLflow's experiment id


@dataclass
class There:
    """What MLflow has under an identity."""

    number: str  # MLflow's run id
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[str]
    started: int  # in ms since 1970


class Writer:
    """Puts the runs of one sweep into MLflow; knows which are there already."""

    def __init__(self, uri: str, results: Path, study: str, sweep: str) -> None:
        self.uri, self.results, self.sweep = uri, results, sweep
        self.client = connect(uri)
        self.experiment = self.experiment_of(study)
        self.refresh()

    def experiment_of(self, study: str) -> str:
        experiment = self.client.get_experiment_by_name(study)
        if experiment is None:
            local = (
                (self.results / "mlartifacts" / study).resolve().as_uri() if self.uri.startswith("sqlite:") else None
            )
            return self.client.create_experiment(study, artifact_location=local, tags=EXPERIMENT_TAGS)
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        for name, value in EXPERIMENT_TAGS.items():
            if name not in experiment.tags:
                self.client.set_experiment_tag(experiment.experiment_id, name, value)
        return experiment.experiment_id

    def refresh(self) -> None:
        """Reads the sweep's runs back: `there` maps an identity to what MLflow has under it."""
        self.there: dict[str, There] = {}
        token: str | None = None
        while True:
            words = f"tags.`anabranch.sweep` = '{self.sweep}'"
            page = self.client.search_runs([self.experiment], words, max_results=1000, page_token=token)
            for run in page:
                if IDENTITY in run.data.tags:
                    info, data = run.info, run.data
                    there = There(
                        info.run_id,
                        info.run_name,
                        info.status,
                        data.tags,
                        data.params,
                        list(data.metrics),
                        info.start_time,
                    )
                    self.there[data.tags[IDENTITY]] = there
            token = page.token
            if not token:
                return

    def put(self, run: MirroredRun, parent: str | None = None) -> tuple[str, bool]:
        """Makes MLflow's run equal to `run`; returns its id, and whether anything had to be written.

        What MLflow cannot change (a parameter, a value at a step) is written anew, in a fresh run.
        """
        tags = run.tags | {IDENTITY: run.identity, "anabranch.sweep": self.sweep} | ({PARENT: parent} if parent else {})
        tags[FINGERPRINT] = run.fingerprint
        old = self.there.get(run.identity)
        if old and old.tags.get(FINGERPRINT) == run.fingerprint:
            changed = {name: value for name, value in tags.items() if old.tags.get(name) != value}
            renamed = (old.status, old.name) != (run.status, run.name)
            if renamed:
                self.client.update_run(old.number, status=run.status, name=run.name)
            self.batch(old.number, tags=changed)
            return old.number, renamed or bool(changed)
        points, params = run.points, run.params
        if old:
            have = self.history(old)
            agree = all(have.get((name, step), value) == value for name, step, value in points)
            if agree and all(params.get(name) == value for name, value in old.params.items()):
                points = [point for point in points if point[:2] not in have]
                params = {name: value for name, value in params.items() if name not in old.params}
            else:
                self.client.delete_run(old.number)
                old = None
        start, end = run.span or (int(1000 * time.time()),) * 2
        if old:
            number, start, end = old.number, old.started, max(end, old.started)
        else:
            early = {name: value for name, value in tags.items() if name in (IDENTITY, "anabranch.sweep", PARENT)}
            made = self.client.create_run(self.experiment, start_time=start, tags=early, run_name=run.name)
            number = made.info.run_id
        if run.status == "RUNNING" or (old and old.name != run.name):
            self.client.update_run(number, status=run.status, name=run.name)
        if run.status != "RUNNING":
            self.client.set_terminated(number, run.status, end_time=end)
        self.batch(number, points, params, tags, at=start)  # the fingerprint with it: last, and only if all went well
        self.there[run.identity] = There(
            number, run.name, run.status, tags, run.params, [p[0] for p in run.points], start
        )
        return number, True

    def history(self, run: There) -> dict[tuple[str, int], float]:
        """Every value that a run holds already, by metric and step."""
        return {
            (name, point.step): point.value
            for name in set(run.metrics)
            for point in self.client.get_metric_history(run.number, name)
        }

    def batch(
        self,
        number: str,
        points: Sequence[tuple[str, int, float]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        at: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(name, value, at, step) for name, step, value in points]
        entries = [Param(name, value) for name, value in (params or {}).items()]
        labels = [RunTag(name, value) for name, value in (tags or {}).items()]
        if len(metrics) + len(entries) + len(labels) > MOST or len(entries) > MOST_PARAMS:
            for i in range(0, len(metrics), MOST):
                self.client.log_batch(number, metrics=metrics[i : i + MOST])
            for i in range(0, len(entries), MOST_PARAMS):
                self.client.log_batch(number, params=entries[i : i + MOST_PARAMS])
            metrics, entries = [], []
        if metrics or entries or labels:
            self.client.log_batch(number, metrics=metrics, params=entries, tags=labels)

    def files(self, number: str, folder: Path) -> None:
        """The tables and figures of a sweep as artifacts of its parent run, once per content."""
        files = [(file, "records") for file in sorted([*folder.glob("*.parquet"), *folder.glob("sweep.json")])]
        files += [(f, "figures") for f in sorted((folder / "figures").glob("*")) if f.suffix in (".png", ".svg")]
        content = sha256(b"".join(sha256(file.read_bytes()).digest() for file, _ in files)).hexdigest()[:16]
        if self.client.get_run(number).data.tags.get("anabranch.files") != content:
            for file, place in files:
                self.client.log_artifact(number, str(file), place)
            self.client.set_tag(number, "anabranch.files", content)

    def sweep_run(self) -> str | None:
        """The parent run, if MLflow has it."""
        return next((run.number for name, run in self.there.items() if name.startswith("sweep-")), None)

    def children(
        self,
        parent: str,
        trials: Sequence[Row],
        measurements: Sequence[Row],
        constant: Iterable[str],
        ledger: Sequence[Row],
    ) -> Mirrored:
        curves: dict[str, list[Row]] = defaultdict(list)
        for row in measurements:
            curves[row["trial"]].append(row)
        constant, span, done = set(constant), spans(ledger), Mirrored(parent=parent, experiment=self.experiment)
        for trial in trials:
            _, new = self.put(child(trial, curves[trial["trial"]], constant, span.get(trial["key"])), parent)
            done.written, done.unchanged = done.written + new, done.unchanged + (not new)
        return done

    def view(self, parent: str, trials: Sequence[Row], spec: Mapping[str, Any]) -> None:
        """A shared view of the sweep for the UI: what varies beside the report metric, curves against tokens."""
        report = f"metrics.`{(spec.get('report') or {}).get('name', 'report/loss')}`"
        varying = sorted({name for trial in trials for name in trial.get("varying") or ()})
        state = {
            "selectedColumns": [report, *(f"params.`{allowed(name)}`" for name in varying)],
            "searchFilter": f"tags.`anabranch.sweep` = '{self.sweep}'",
            "orderByKey": report,
            "orderByAsc": (spec.get("report") or {}).get("goal") != "max",
            "runsExpanded": {parent: True},
            "globalLineChartConfig": {"xAxisKey": "metric", "selectedXAxisMetricKey": "tokens", "lineSmoothness": 0},
        }
        tag, value = f"mlflow.sharedViewState.{self.sweep}", json.dumps(state)
        if self.client.get_experiment(self.experiment).tags.get(tag) != value:
            self.client.set_experiment_tag(self.experiment, tag, value)

    def prune(self, trials: Sequence[Row]) -> None:
        """Takes away the children that are not among `trials`: the records no longer have or no longer show them."""
        keep = {identity(trial) for trial in trials}
        for name in [name for name in self.there if name not in keep and not name.startswith("sweep-")]:
            self.client.delete_run(self.there.pop(name).number)

    def adopt(self, number: str) -> None:
        """Hangs all trials under a parent that was written anew."""
        for run in self.there.values():
            if run.tags.get(PARENT, number) != number:
                self.client.set_tag(run.number, PARENT, number)
                run.tags[PARENT] = number


def connect(uri: str) -> Any:
    """A client of MLflow that fails within seconds rather than minutes, and keeps its migrations to itself."""
    where = urlparse(uri)
    if where.scheme in ("http", "https"):
        port = where.port or (443 if where.scheme == "https" else 80)
        with socket.create_connection((where.hostname or "", port), timeout=3):
            pass
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line per run, amid the display
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)
