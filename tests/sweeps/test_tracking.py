"""What MLflow returns over its own API against the made-up records that were mirrored into it."""

from __future__ import annotations

import itertools
import json
import math
import socket
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeps.engine import mirrored, tracking
from sweeps.tracking import main

PEAKS, BUDGETS = (1e-3, 3e-3, 1e-2), (200, 400)


def loss(method: str, peak: float, budget: int, step: int, seed: int) -> float:
    return 2 + 3 / (1 + step / 50) + abs(math.log10(peak / 3e-3)) * (0.1 if method == "wsd" else 0.2) + 0.01 * seed


def made_up(
    methods: tuple[str, ...] = ("wsd", "cosine"),
    peaks: tuple[float, ...] = PEAKS,
    budgets: tuple[int, ...] = BUDGETS,
    seeds: tuple[int, ...] = (0,),
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """A sweep as the engine records it: spec, trials, measurements, ledger. Every point is known in closed form."""
    trials, measurements, ledger = [], [], []
    for method, peak, budget, seed in itertools.product(methods, peaks, budgets, seeds):
        config = {
            "method": method,
            "peak_lr": peak,
            "budget_steps": budget,
            "seed": seed,
            "width": 64,
            "shape": "linear",
        }
        key = sha256(json.dumps(config).encode()).hexdigest()
        curve = []
        for step in range(20, budget + 1, 20):
            value = loss(method, peak, budget, step, seed)
            curve.append(
                {"sweep": "made-up", "trial": key[:12], "step": step, "tokens": 512 * step, "lr": peak, "key": key}
                | {"shared": method == "wsd" and step <= 0.8 * budget, "full": step == budget}
                | {
                    "train/loss": value - 0.05,
                    "select/loss": value,
                    "report/loss": value + 0.01 if step == budget else None,
                }
            )
        trials.append(
            {"sweep": "made-up", "study": "wsd", "trial": key[:12], "key": key, "root": f"root{seed}", "phase": "tune"}
            | {"name": f"{method} lr={peak:g} B={budget} s{seed}", "cell": f"method={method}", "status": "complete"}
            | {"error": None, "config": json.dumps(config), "varying": ["method", "peak_lr", "budget_steps", "seed"]}
            | {"budget_steps": budget, "budget_tokens": 512 * budget, "steps_nominal": budget, "steps_marginal": budget}
            | {"select/loss": value, "report/loss": value + 0.01, "data_sha": "d" * 64, "git_commit": "c" * 40}
            | {"torch_version": "2.13.0", "device": "cpu", "scale": "tiny", "report/document_losses": [1.0, 2.0]}
        )
        ledger.append(
            {"sweep": "made-up", "stage": key, "executed_steps": budget // 2, "started_at": "2026-01-02T03:04:05+00:00"}
            | {"train_seconds": 3.0, "evaluation_seconds": 1.0, "checkpoint_seconds": 0.5, "startup_seconds": 0.0}
        )
        measurements += curve
    spec = {"sweep": "made-up", "study": "wsd", "paper": "2410.05192", "scale": "tiny", "preset": "grid"}
    spec |= {"command": "python sweeps/wsd_budget.py scale=tiny", "versions": {"torch": "2.13.0", "ray": "2.60.0"}}
    spec |= {"select": {"name": "select/loss", "goal": "min"}, "report": {"name": "report/loss", "goal": "min"}}
    return spec, trials, measurements, ledger


def record(results: Path, spec: dict[str, Any], trials: list, measurements: list, ledger: list) -> Path:
    """Writes a sweep's folder; returns it."""
    folder = results / "sweeps" / spec["sweep"]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / "frontier.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "sweep.json").write_text(json.dumps(spec))
    for name, table in (("trials", trials), ("measurements", measurements), ("ledger", ledger)):
        pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def client_of():
    """One database for the module: MLflow takes seconds to make one. Sweeps of the tests differ by id and study."""
    from mlflow import MlflowClient

    return lambda results: MlflowClient(tracking_uri=tracking.database(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def named(sweep: tuple, name: str) -> tuple:
    """The sweep under another id, so that tests can share a database."""
    spec, *tables = sweep
    return ({**spec, "sweep": name}, *([{**row, "sweep": name} for row in table] for table in tables))


def runs_of(client: Any, sweep: str) -> tuple[list, list]:
    """(parents, children) that MLflow holds of a sweep."""
    experiment = client.get_experiment_by_name("wsd")
    runs = list(client.search_runs([experiment.experiment_id], f"tags.`anabranch.sweep` = '{sweep}'", max_results=1000))
    return [r for r in runs if "mlflow.parentRunId" not in r.data.tags], [
        r for r in runs if "mlflow.parentRunId" in r.data.tags
    ]


def history(client: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_mlflow_returns_what_the_records_say(results: Path, client_of, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # another program's run: not to be written into
    spec, trials, measurements, ledger = named(made_up(), "first")
    done = tracking.mirror(record(results, spec, trials, measurements, ledger))
    assert (done.written, done.unchanged, done.left_out) == (12, 0, 0)
    client = client_of(results)
    experiment = client.get_experiment_by_name("wsd")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    (parent,), children = runs_of(client, "first")

    assert parent.info.run_id == done.parent and parent.info.status == "FINISHED"
    assert parent.data.params == {"width": "64", "shape": "linear"}  # the constants, and nothing else
    assert parent.data.metrics["steps_alone"] == 12 * 300
    assert parent.data.metrics["saving"] == pytest.approx(2.0)
    frontier = history(client, parent, "frontier/method:wsd")
    assert frontier == [(b, pytest.approx(loss("wsd", 3e-3, b, b, 0) + 0.01, rel=1e-5)) for b in BUDGETS]
    artifacts = {file.path for folder in ("records", "figures") for file in client.list_artifacts(done.parent, folder)}
    assert artifacts == {f"records/{n}.parquet" for n in ("trials", "measurements", "ledger")} | {
        "records/sweep.json",
        "figures/frontier.svg",
    }

    by_name = {run.info.run_name: run for run in children}
    assert set(by_name) == {trial["name"] for trial in trials}
    run, trial = by_name["wsd lr=0.003 B=400 s0"], next(t for t in trials if t["name"] == "wsd lr=0.003 B=400 s0")
    assert run.data.params == {"method": "wsd", "peak_lr": "0.003", "budget_steps": "400", "seed": "0"}
    assert run.data.tags["mlflow.parentRunId"] == done.parent
    assert run.data.tags["anabranch.trial"] == trial["trial"] and run.data.tags["anabranch.key"] == trial["key"]
    assert run.data.tags["anabranch.shared_until_step"] == "320"
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    rows = [row for row in measurements if row["trial"] == trial["trial"]]
    for metric in ("select/loss", "tokens", "shared"):
        assert history(client, run, metric) == [(r["step"], pytest.approx(float(r[metric]), rel=1e-5)) for r in rows]
    assert [step for step, _ in history(client, run, "report/loss")] == [400]
    assert run.info.end_time - run.info.start_time == 4500  # the seconds of its own stage


def test_a_second_pass_changes_nothing_and_a_killed_one_is_completed(results: Path, client_of):
    folder = record(results, *named(made_up(), "again"))
    put, count = tracking.Writer.batch, 0

    def killed(self, number, points=(), params=None, tags=None, at=0):
        nonlocal count
        count += 1
        if count == 6:  # half of a run is in, its fingerprint is not
            put(self, number, points[: len(points) // 2], at=at)
            raise KeyboardInterrupt
        return put(self, number, points, params, tags, at)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.Writer, "batch", killed)
        tracking.mirror(folder)
    done = tracking.mirror(folder)
    assert (done.written, done.unchanged) == (8, 4)
    again = tracking.mirror(folder)
    assert (again.written, again.unchanged, again.parent) == (0, 12, done.parent)
    client = client_of(results)
    (_,), children = runs_of(client, "again")
    assert len(children) == 12
    for run in children:
        steps = [step for step, _ in history(client, run, "select/loss")]
        assert steps == list(range(20, int(run.data.params["budget_steps"]) + 1, 20))


def test_a_sweep_that_grew_and_a_trial_that_came_through_are_brought_up_to_date(results: Path, client_of):
    spec, trials, measurements, ledger = named(made_up(), "grown")
    failed = trials[0]["trial"]
    half = [row for row in measurements if row["trial"] != failed or row["step"] <= 100]
    first = [{**trials[0], "status": "failed", "error": "Boom", "select/loss": math.nan}, *trials[1:]]
    before = tracking.mirror(record(results, spec, first, half, ledger))
    client = client_of(results)
    (_,), children = runs_of(client, "grown")
    (broken,) = [run for run in children if run.data.tags["anabranch.trial"] == failed]
    assert broken.info.status == "FAILED" and broken.data.tags["anabranch.error"] == "Boom"

    more = [{**row, "shared": True} if row["trial"] == trials[1]["trial"] else row for row in measurements]
    wide = [
        dict(t, config=json.dumps({**json.loads(t["config"]), "width": 64 if t is not trials[2] else 128}))
        for t in trials
    ]
    after = tracking.mirror(record(results, spec, wide, more, ledger))
    (parent,), children = runs_of(client, "grown")
    assert after.parent == parent.info.run_id != before.parent  # `width` is no longer a constant
    assert parent.data.params == {"shape": "linear"}
    assert len(children) == 12  # the trial of another config replaced the one that the records no longer have
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {after.parent}
    (mended,) = [run for run in children if run.data.tags["anabranch.trial"] == failed]
    assert mended.info.run_id == broken.info.run_id and mended.info.status == "FINISHED"
    assert [step for step, _ in history(client, mended, "select/loss")] == list(range(20, 201, 20))
    (changed,) = [run for run in children if run.data.tags["anabranch.trial"] == trials[1]["trial"]]
    assert all(value == 1 for _, value in history(client, changed, "shared"))


def test_values_that_are_not_finite_stay_in_the_records():
    _, trials, measurements, _ = made_up()
    rows = [dict(row) for row in measurements if row["trial"] == trials[0]["trial"]]
    rows[-1]["select/loss"], rows[-1]["train/loss"] = math.nan, math.inf
    run = mirrored.child({**trials[0], "status": "diverged"}, rows, ())
    assert all(math.isfinite(value) for _, _, value in run.points)
    assert run.status == "FAILED" and run.tags["anabranch.not_finite"].startswith("2 values")
    assert [step for name, step, _ in run.points if name == "select/loss"] == list(range(20, 200, 20))


def test_a_large_sweep_shows_its_best_its_fresh_seeds_and_what_failed():
    spec, trials, *_ = made_up(seeds=tuple(range(60)))  # 720 trials
    trials = [{**trial, "status": "diverged"} if trial["root"] == "root7" else trial for trial in trials]
    trials = [{**trial, "phase": "confirm"} if trial["root"] == "root8" else trial for trial in trials]
    trials.append({**trials[0], "key": "pending", "status": "pending"})
    shown = mirrored.chosen(trials, spec)
    names = {trial["name"] for trial in shown}
    best = {f"{method} lr=0.003 B={budget} s0" for method in ("wsd", "cosine") for budget in BUDGETS}
    assert best <= names
    assert {t["name"] for t in trials if t["root"] in ("root7", "root8")} <= names
    assert len(shown) == len(names) == 4 + 12 + 12
    tags = mirrored.parent(spec, trials, [], len(shown), running=False).tags
    assert tags["anabranch.mirrored"].startswith("28 of 720 trials")
    few = mirrored.chosen(trials, spec, limit=10)
    assert len(few) == 10 and best <= {trial["name"] for trial in few}


def test_two_configs_that_reach_one_state_are_two_runs():
    _, (trial, *_), *_ = made_up()
    other = {**trial, "config": json.dumps({**json.loads(trial["config"]), "method": "constant"})}
    assert mirrored.identity(trial) != mirrored.identity(other)


def test_a_running_sweep_is_mirrored_in_the_background(results: Path, client_of):
    spec, trials, measurements, ledger = named(made_up(), "live")
    folder = record(results, spec, [], [], [])
    (folder / "sweep.json").unlink()  # the engine writes the records at the end
    said: list[str] = []
    mirror = tracking.Mirror(folder, spec, planned=len(trials), say=said.append, every=0.05)
    mirror.update(trials[:5], [row for row in measurements if row["trial"] in {t["trial"] for t in trials[:5]}])
    client, parents, children, deadline = client_of(results), [], [], time.monotonic() + 30
    while len(children) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        parents, children = runs_of(client, "live") if client.get_experiment_by_name("wsd") else ([], [])
    (parent,) = parents
    assert parent.info.status == "RUNNING" and "width" not in children[0].data.params
    record(results, spec, trials, measurements, ledger)
    mirror.close()
    (after,), everything = runs_of(client, "live")
    assert after.info.run_id == parent.info.run_id and after.info.status == "FINISHED"
    assert len(everything) == 12 and {run.info.run_id for run in children} <= {run.info.run_id for run in everything}
    assert said == []


def test_an_unreachable_server_is_said_once_and_the_sweep_goes_on(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    folder = record(tmp_path, *made_up())
    spec, trials, measurements, _ = made_up()
    said: list[str] = []
    mirror = tracking.Mirror(folder, spec, uri, say=said.append, every=0.01)
    for trial in trials:
        mirror.update([trial], measurements)
        time.sleep(0.01)
    mirror.close()
    assert len(said) == 1 and "python -m sweeps.tracking sync" in said[0]
    assert "secret" not in said[0]
    with pytest.raises(tracking.Unreachable, match="records are whole"):
        tracking.mirror(folder, uri)


def test_the_command_syncs_all_sweeps_of_a_folder(results: Path, client_of, capsys: pytest.CaptureFixture[str]):
    record(results, *named(made_up(peaks=(3e-3,), budgets=(200,)), "small"))
    assert main(["sync", str(results), "--sweep", "small"]) == 0
    assert "small: 2 trials written, 0 unchanged" in (printed := capsys.readouterr().out)
    assert "mlflow ui --backend-store-uri sqlite:///" in printed
    assert len(runs_of(client_of(results), "small")[1]) == 2
    assert main(["sync", str(results / "nowhere")]) == 2
    assert "no sweeps in" in capsys.readouterr().err
