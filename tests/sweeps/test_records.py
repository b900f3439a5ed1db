"""The three tables against what was trained and measured, counted by hand from configs and commits."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, replace
from datetime import datetime

import pyarrow.parquet as pq
import pytest

import analysis
from sweeps.engine.driver import Entry
from sweeps.engine.launch import Question, sweep
from sweeps.engine.plan import make_trial, plan
from sweeps.engine.records import Recorder, canonical_marginals, describe_spec, write_spec
from tests.sweeps.engine_cases import FREE, Free, run_sweep, toy_spec
from trainables import sam_net, toys
from trainables.common.timeline import Ramp, segment

SHAPE = dict(rates=(0.1, 0.2), budgets=(20, 40), decay_fraction=[0.1, 0.5], tuning=1, fresh=1)


def tables_of(sweep):
    return Recorder(sweep.spec, sweep.entries, "the driver's").tables(sweep.driver.index)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    sweep = run_sweep(toy_spec(tmp_path_factory.mktemp("records"), **SHAPE))
    return sweep, tables_of(sweep)


def test_trials_carry_their_config_result_and_provenance(done):
    sweep, tables = done
    rows = tables.trials.to_pylist()
    assert len(rows) == len(sweep.entries) == 2 * 2 * 2 + 2
    for row, entry in zip(rows, sweep.entries, strict=True):
        config = entry.trial.config
        assert json.loads(row["config"]) == asdict(config)
        assert row["config.learning_rate"] == config.learning_rate and row["seed"] == config.seed
        assert (row["key"], row["trial"]) == (entry.trial.key, entry.trial.id)
        assert row["select/loss"] == entry.rows[-1].metrics["select/loss"] == row["report/loss"]
        assert (row["status"], row["phase"], row["error"]) == ("complete", entry.phase, None)
        assert (row["parameters"], row["tokens_per_step"], row["budget_steps"]) == (4, 1, config.budget_steps)
        assert row["varying"] == ["budget_steps", "learning_rate", "decay_fraction", "seed"]
        assert row["git_commit"] and row["torch_version"] and row["device"] == "cpu"
        assert row["device_seconds_alone"] is None


def test_costs_written_out(done):
    _, tables = done
    rows = {
        (row["config.budget_steps"], row["config.decay_fraction"], row["config.learning_rate"]): row
        for row in tables.trials.to_pylist()
        if row["phase"] == "tune"
    }
    for rate in (0.1, 0.2):
        at = {key[:2]: row for key, row in rows.items() if key[2] == rate}
        assert {key: row["steps_nominal"] for key, row in at.items()} == {key: key[0] for key in at}
        # trunk 18 + decay 2, then the trunk to 36 and its decay 4; trunk 10 + decay 10, then to 20 and decay 20
        assert {key: row["steps_family"] for key, row in at.items()} == {
            (20, 0.1): 20,
            (40, 0.1): 42,
            (20, 0.5): 20,
            (40, 0.5): 50,
        }
        assert all(row["flops_family"] == 16 * row["steps_family"] for row in at.values())
    assert sum(row["steps_marginal"] for row in rows.values()) == 2 * (36 + 2 + 4 + 10 + 20)


def test_marginal_costs_add_up_to_the_tree_and_do_not_depend_on_what_ran_first(done):
    sweep, tables = done
    total = sum(row["steps_marginal"] for row in tables.trials.to_pylist())
    assert total == sweep.driver.current_plan().steps_shared
    backwards = Recorder(sweep.spec, sweep.entries[::-1], "cpu").tables(sweep.driver.index).trials.to_pylist()
    costs = {row["key"]: row["steps_marginal"] for row in tables.trials.to_pylist()}
    assert costs == {row["key"]: row["steps_marginal"] for row in backwards}


def test_measurements_hold_the_whole_curve_with_what_is_shared_marked(done):
    sweep, tables = done
    rows = tables.measurements.to_pylist()
    assert len(rows) == sum(len(entry.trial.points) for entry in sweep.entries)
    trials = {entry.trial.id: entry.trial for entry in sweep.entries}
    assert len(trials) == len(sweep.entries)
    for row in rows:
        trial = trials[row["trial"]]
        config, step = trial.config, row["step"]
        stable = config.budget_steps - round(config.decay_fraction * config.budget_steps)
        others = [
            other.config
            for other in trials.values()
            if other is not trial
            and (other.config.learning_rate, other.config.seed) == (config.learning_rate, config.seed)
        ]
        trunks = [other.budget_steps - round(other.decay_fraction * other.budget_steps) for other in others]
        # The state lies on another's timeline if that is still on the trunk there (decays of two trials all differ).
        assert row["shared"] == (step <= stable and any(step <= trunk for trunk in trunks)), (config, step)
        assert row["phase_of_schedule"] == ("stable" if step <= stable else "decay")
        assert row["lr"] == pytest.approx(
            config.learning_rate * (1 if step <= stable else 1 - (step - 1 - stable) / (config.budget_steps - stable))
        )
        assert (row["report/loss"] is not None) == row["full"]
        assert row["tokens"] == step


def test_the_ledger_says_what_was_run_and_when_it_is_read_again_says_the_same(done):
    sweep, tables = done
    rows = tables.ledger.to_pylist()
    assert sum(row["executed_steps"] for row in rows) == sweep.executed == sweep.driver.current_plan().steps_shared
    assert all(row["to_step"] - row["from_step"] == row["executed_steps"] for row in rows)
    assert all(row["train_seconds"] > 0 and row["device"] == "cpu" and row["status"] == "complete" for row in rows)
    assert {row["phase_of_schedule"] for row in rows} == {"stable", "decay"} and {row["lanes"] for row in rows} == {1}
    for job in {row["job"] for row in rows}:  # to the millisecond, stages of a job follow each other
        own = sorted((row for row in rows if row["job"] == job), key=lambda row: row["started_at"])
        starts = [(datetime.fromisoformat(row["started_at"]), row) for row in own]
        for (begun, row), (following, _) in itertools.pairwise(starts):
            spent = sum(row[f"{part}_seconds"] for part in ("startup", "train", "evaluation", "checkpoint"))
            assert (following - begun).total_seconds() >= spent - 0.002
    again = tables_of(run_sweep(sweep.spec))
    for name in ("trials", "measurements", "ledger"):
        one, two = (sorted(map(repr, getattr(each, name).to_pylist())) for each in (again, tables))
        assert one == two


def test_the_ledger_leaves_out_stages_of_other_sweeps_in_the_same_folder(tmp_path):
    run_sweep(toy_spec(tmp_path, **{**SHAPE, "rates": (0.3, 0.4)}))
    sweep = run_sweep(toy_spec(tmp_path, **SHAPE))
    ledger = tables_of(sweep).ledger.to_pylist()
    assert sum(row["executed_steps"] for row in ledger) == sweep.executed


def test_a_failed_and_a_diverged_trial_keep_their_rows(tmp_path):
    def advance(state, placed, span, run):
        if placed.at(span.start)["lr"] == 0.2 and placed.segment.constant:
            raise RuntimeError("boom")
        toys.advance(state, placed, span, run)

    sweep = run_sweep(
        toy_spec(tmp_path, replace(toys.QUADRATIC, advance=advance), **{**SHAPE, "rates": (0.1, 0.2, 1e25)})
    )
    tables = tables_of(sweep)
    by_rate = {}
    for row in tables.trials.to_pylist():
        by_rate.setdefault(row["config.learning_rate"], set()).add(row["status"])
        if row["status"] != "complete":
            assert row["error"] and row["select/loss"] is None and row["steps_nominal"] > 0
    assert by_rate == {0.1: {"complete"}, 0.2: {"failed"}, 1e25: {"diverged"}}
    assert {row["status"] for row in tables.ledger.to_pylist()} == {"complete", "failed", "diverged"}


def test_written_tables_open_in_analysis(done, tmp_path):
    sweep, tables = done
    tables.write(sweep.spec.folder)
    write_spec(sweep.spec, describe_spec(sweep.spec, [], {"trials": 10}))
    assert sorted(path.name for path in sweep.spec.folder.iterdir()) == [
        "ledger.parquet",
        "measurements.parquet",
        "sweep.json",
        "trials.parquet",
    ]
    assert pq.read_table(sweep.spec.folder / "trials.parquet").num_rows == 10
    found = analysis.open(sweep.spec.folder)
    assert "10 trials" in repr(found)


def test_claims_are_those_of_the_first_run_and_looks_are_counted(tmp_path):
    spec = toy_spec(tmp_path, **SHAPE)
    write_spec(spec, describe_spec(spec, [{"name": "first"}], {"slots": 2}))
    write_spec(spec, describe_spec(spec, [{"name": "changed after the evidence"}], {"slots": 4}))
    content = json.loads((spec.folder / "sweep.json").read_text())
    assert (content["claims"], content["looks"]) == ([{"name": "first"}], 2)
    assert [session["slots"] for session in content["sessions"]] == [2, 4]
    assert content["select"] == {"name": "select/loss", "goal": "min"} and content["command"] == "pytest"


def test_canonical_marginals_of_a_large_grid_take_seconds(tmp_path):
    spec = replace(toy_spec(tmp_path, **SHAPE), study=FREE)
    trials = [
        make_trial(
            FREE,
            Free((segment(budget - round(f * budget), lr=1.0), segment(round(f * budget), lr=Ramp(1.0, 0.1, shape)))),
        )
        for budget in range(100, 3_100, 100)
        for f in (0.05, 0.1, 0.2, 0.4)
        for shape in ("linear", "cosine", "square")
    ]
    began = time.process_time()
    marginal = canonical_marginals(spec, trials)
    assert time.process_time() - began < 4.0
    assert sum(marginal.values()) == plan(trials).steps_shared


def test_two_configs_that_end_in_one_state_are_two_trials_of_which_one_is_billed(tmp_path):
    """Two methods may agree up to their first budget, as WSD and WSD-S do."""
    study = replace(toys.QUADRATIC, timeline=lambda config: (segment(config.budget_steps, lr=config.learning_rate),))
    sweep = run_sweep(toy_spec(tmp_path, study, **{**SHAPE, "fresh": 0}, cells=("decay_fraction",)))
    rows = tables_of(sweep).trials.to_pylist()
    assert len({row["trial"] for row in rows}) == 8 and len({row["key"] for row in rows}) == 4
    assert sum(row["steps_marginal"] for row in rows) == sweep.executed == 2 * 40
    assert {row["shared"] for row in tables_of(sweep).measurements.to_pylist()} == {True}


def test_an_empty_sweep_has_empty_tables(tmp_path):
    spec = toy_spec(tmp_path, **SHAPE)
    tables = Recorder(spec, [], "cpu").tables(run_sweep(spec).driver.index)
    assert tables.trials.num_rows == 0 == tables.ledger.num_rows


def test_pending_trials_of_an_interrupted_sweep_are_rows_too(tmp_path):
    sweep = run_sweep(toy_spec(tmp_path, **SHAPE))
    pending = [Entry(entry.trial, entry.phase, entry.cell, entry.proposal, entry.values) for entry in sweep.entries]
    rows = Recorder(sweep.spec, pending, "cpu").tables(sweep.driver.index).trials.to_pylist()
    assert {row["status"] for row in rows} == {"pending"}


def test_a_step_that_costs_twice_is_billed_twice(tmp_path):
    """And as much as the study itself counted along the way."""
    words = ["scale=tiny", "seeds=0", "space.radius=[0,0.1]", "space.budget_steps=[12]", f"results={tmp_path}"]
    records = sweep(Question("bill", sam_net.STUDY, about=""), [*words, "executor=local", "tracking=none"])
    rows = records.to_pandas()
    assert rows["flops_nominal"].tolist() == rows["flops"].tolist()
    by_radius = rows.groupby("config.radius")["flops_nominal"].unique()
    assert by_radius[0.1].tolist() == [2 * cost for cost in by_radius[0.0]]
    assert rows.loc[rows["config.radius"] > 0, "flops_family"].isna().all()
