"""Simulated sweeps against closed forms of small ones, against plans, and against a sweep that was really run."""

from dataclasses import replace
from math import isclose

import pytest

from analysis.opening import open_records
from sweeps import simulate as command
from sweeps.engine.calibration import Executed, executed, measured_pace, start_seconds
from sweeps.engine.dry_run import open_journals
from sweeps.engine.launch import Question, sweep
from sweeps.engine.simulation import Alone, Fleet, Losses, Pace, Simulated, simulate
from sweeps.engine.spec import Search
from sweeps.engine.tuning import CellTuning
from tests.sweeps.engine_cases import open_sweep, toy_spec
from trainables import wsd
from trainables.toys import QUADRATIC

STEP_FLOPS = 10.0
STUDY = replace(QUADRATIC, units=lambda root: {"flops": STEP_FLOPS})
PACE = Pace(flops_per_second=STEP_FLOPS, source="a step takes a second")
SCRIPT = "sweeps/wsd_budget.py"


def run(spec, fleet, pace=PACE, every=None, alone=False) -> Simulated:
    tuning = CellTuning(spec, open_journals(spec, fleet.slots, record=False))
    return simulate(spec, Alone(tuning) if alone else tuning, fleet, pace, every)


def planned(spec, every=None) -> int:
    return open_sweep(spec, checkpoint_every=every, record=False).driver.current_plan().steps_to_run


def test_one_slot_takes_the_steps_of_the_plan_each_one_second(tmp_path):
    spec = toy_spec(tmp_path, STUDY, budgets=(400, 800))
    found = run(spec, Fleet(1))
    assert found.executed_steps == planned(spec) < 3 * (400 + 800)
    assert isclose(found.wall_seconds, found.executed_steps) and isclose(found.busy_seconds, found.wall_seconds)
    assert found.trials == 6 and found.incomplete == found.lost_steps == found.preemptions == 0


def test_alone_every_trial_trains_all_of_its_steps(tmp_path):
    spec = toy_spec(tmp_path, STUDY, budgets=(400, 800))
    assert run(spec, Fleet(1), alone=True).executed_steps == 3 * (400 + 800)


def test_equal_trials_are_spread_evenly_and_each_job_pays_its_start(tmp_path):
    spec = toy_spec(tmp_path, STUDY, rates=tuple(0.01 * k for k in range(1, 9)), budgets=(1000,))
    assert isclose(run(spec, Fleet(4)).wall_seconds, 2 * 1000)
    slow = run(spec, Fleet(8), replace(PACE, job_seconds=30.0))
    assert isclose(slow.wall_seconds, 1030) and slow.jobs == 8 and isclose(slow.useful_seconds, 8 * 1000)


def test_with_slots_for_all_the_wall_time_is_the_longest_chain_of_each_phase(tmp_path):
    spec = toy_spec(tmp_path, STUDY, budgets=(400, 800), fresh=2)
    assert isclose(run(spec, Fleet(1000)).wall_seconds, 800 + 800)


def test_measurements_and_stages_take_their_stated_time(tmp_path):
    spec = toy_spec(tmp_path, STUDY, budgets=(400,))
    sweep = open_sweep(spec, record=False)
    points = [point for entry in sweep.entries for point in entry.trial.points]
    light, full = sum(not point.full for point in points), sum(point.full for point in points)
    stages = sweep.driver.current_plan().stages
    found = run(spec, Fleet(1), replace(PACE, light_seconds=2.0, full_seconds=7.0, stage_seconds=100.0))
    assert isclose(found.wall_seconds, 3 * 400 + 2 * light + 7 * full + 100 * stages)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_preempted_job_loses_what_it_had_not_committed_and_no_more(tmp_path, slots):
    """Also while other jobs end: their end must not drop the checkpoints of those that run."""
    every, rates = 100, tuple(0.01 * k for k in range(1, 6))
    spec = toy_spec(tmp_path, STUDY, rates=rates, budgets=(500, 1000))
    fleet = Fleet(slots, 1, preemptions_per_gpu_hour=18.0, away_seconds=60.0, seed=3)
    found = run(spec, fleet, every=every)
    assert found.incomplete == 0 and found.preemptions > 10
    assert found.executed_steps - found.lost_steps == planned(spec, every)
    assert 0 < found.lost_steps <= found.preemptions * every
    assert found == run(spec, fleet, every=every)
    assert found != run(spec, replace(fleet, seed=4), every=every)


def test_without_checkpoints_a_preemption_costs_more(tmp_path):
    spec = toy_spec(tmp_path, STUDY, budgets=(1000, 2000))
    fleet = Fleet(2, 1, preemptions_per_gpu_hour=6.0, away_seconds=60.0)
    assert run(spec, fleet).lost_steps > 2 * run(spec, fleet, every=50).lost_steps > 0


@pytest.mark.parametrize(
    "search",
    [Search(sampler="tpe", proposals=12), Search(sampler="qmc", proposals=8, bracket=4), Search(sampler="grid")],
)
def test_every_search_ends_and_finds_the_best_place_of_the_made_up_losses(tmp_path, search):
    rates = {"low": 0.01, "high": 1.0, "log": True, "points": 12}
    spec = toy_spec(tmp_path, STUDY, rates=rates, budgets=(100, 200), search=search, fresh=1)
    tuning = CellTuning(spec, open_journals(spec, 2, record=False))
    assert simulate(spec, tuning, Fleet(2), PACE).incomplete == 0
    entries = [entry for asked in tuning.cells[0].asked.values() for entry in asked.entries]
    losses = {round(Losses(spec).of(entry), 6) for entry in entries if entry.trial.steps == 200}
    assert min(losses) < sorted(losses)[len(losses) // 2]
    chosen = min(
        (entry for entry in entries if entry.trial.steps == 200), key=lambda entry: entry.result.metrics["select/loss"]
    )
    assert isclose(chosen.result.metrics["select/loss"], Losses(spec).of(chosen)) and min(losses) == round(
        Losses(spec).of(chosen), 6
    )


def test_a_gap_is_counted_from_the_job_that_the_slot_ran_before():
    def stage(job, began, ended):
        return Executed("", job, began, ended, 1.0, 0.0, 0.0, 1.0, 0, 1)

    two_slots = [stage("a", 0, 10), stage("b", 0, 20), stage("c", 13, 30), stage("d", 25, 40), stage("d", 40, 45)]
    assert start_seconds(two_slots) == 4.0  # c follows a by 3, d follows b by 5
    assert start_seconds(two_slots[:2]) == 0.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small sweep that was really run, in this process."""
    results = tmp_path_factory.mktemp("trained") / "results"
    words = ["scale=tiny", "executor=local", "tracking=none", "space.method=[wsd,cosine]", "seeds=1"]
    sweep(Question("wsd_budget", wsd.STUDY, about=""), [*words, f"results={results}"])
    return results


def test_the_pace_is_that_of_the_ledger(trained):
    records = open_records(trained)
    pace = measured_pace(trained, "wsd")
    stages = executed(records)
    ledger = records.to_pandas("ledger")
    flops = records.to_pandas()["flops_nominal"] / records.to_pandas()["steps_nominal"]
    assert sum(stage.flops for stage in stages) == pytest.approx(ledger["executed_steps"].sum() * flops.iloc[0])
    fastest = max(stage.flops / stage.train_seconds for stage in stages)
    assert 0 < pace.flops_per_second <= fastest and pace.full_seconds >= 0 and pace.light_seconds >= 0
    distinct = records.to_pandas("measurements").drop_duplicates("key")
    assert sum(stage.light + stage.full for stage in stages) == len(distinct)


def say(capsys, *words) -> tuple[int, str, str]:
    status = command.main([*words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_a_simulated_sweep_runs_the_steps_and_trials_that_the_real_one_ran(trained):
    words = ["scale=tiny", "space.method=[wsd,cosine]", "seeds=1", f"calibrate={trained}", "slots=[1]"]
    simulation, rest = command.read_words(words)
    spec, given = command.make_spec(command.question_of(SCRIPT).study, [*rest, "results=none"], "wsd_budget")
    (line,), _ = command.run(spec, given, simulation)
    records = open_records(trained)
    assert line.sweep.trials == len(records)
    assert line.sweep.executed_steps == records.to_pandas("ledger")["executed_steps"].sum()


def test_the_table_of_a_paper_scale_sweep_keeps_its_promises(capsys):
    status, out, _ = say(
        capsys, SCRIPT, "scale=paper", "gpus=[8,256]", "format=markdown", "space.budget_steps=[12500,25000]"
    )
    assert status == 0 and "Simulated" in out and "ASSUMED" in out
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in out.split("\n\n")[0].splitlines()
    ]
    few, many = (dict(zip(header, row, strict=True)) for row in rows)
    assert few["GPUs"] == "8" and few["jobs at a time"] == "1" and many["jobs at a time"] == "32"
    for row in (few, many):
        assert 0 < float(row["efficiency"].rstrip("%")) <= 100
        assert float(row["saving"].rstrip("x")) > 1
        assert float(row["GPU-hours"].replace(",", "")) < float(row["its GPU-hours"].replace(",", ""))


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["gpus=[4]", "scale=paper"], "takes 8 GPUs"),
        (["gpus=[64]", "scale=tiny"], "gpus= says nothing at scale=tiny, whose fleets are given by slots"),
        (["slots=[2]", "scale=gpu"], "slots= says nothing at scale=gpu, whose fleets are given by gpus"),
        (["gpus=[]"], "gpus is a list"),
        (["preemptions_per_gpu_hour=-1"], "at least 0"),
        (["flops_per_second=1e12", "calibrate=there"], "give one"),
        (["format=html"], "no format"),
        (["gpus=many"], "not a ListConfig"),
        (["scael=paper"], "scael"),
        (["calibrate=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_simulated_is_refused(capsys, words, rule):
    status, out, err = say(capsys, SCRIPT, *words)
    assert status == 2 and out == "" and err.startswith("refused: ") and rule in err


def test_a_script_without_a_question_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert say(capsys, str(tmp_path / "mine.py"))[0] == 2
    assert say(capsys, "sweeps/nothing.py")[0] == 2


def test_lanes_are_simulated_without_a_column_for_each_trial_alone(capsys):
    status, out, _ = say(capsys, "sweeps/lpn_noise.py", "scale=tiny", "slots=[2]")
    assert status == 0 and "Lanes of one shape" in out
