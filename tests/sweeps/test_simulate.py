"""Simulated sweeps against closed forms of small ones, against plans, and against a sweep that was really run."""

import json
from dataclasses import dataclass, field, replace
from math import inf, isclose, log
from pathlib import Path
from random import Random
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.opening import open_records
from sweeps import simulate as command
from sweeps.engine.calibration import Executed, executed, measured_pace, start_seconds, wall_seconds
from sweeps.engine.dry_run import open_journals
from sweeps.engine.launch import Question, sweep
from sweeps.engine.simulation import Alone, Fleet, Losses, Pace, Simulated, simulate
from sweeps.engine.spec import Search
from sweeps.engine.tuning import CellTuning
from sweeps.engine.words import Refused, Resources
from tests.sweeps.engine_cases import open_sweep, toy_spec
from trainables import wsd
from trainables.toys import QUADRATIC

STEP_FLOPS = 10.0
STUDY = replace(QUADRATIC, units=lambda root: {"flops": STEP_FLOPS})
PACE = Pace(flops_per_second=STEP_FLOPS, source="a step takes a second")
CLONE = Path(__file__).resolve().parents[2]
SCRIPT = str(CLONE / "sweeps" / "wsd_budget.py")


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


@pytest.mark.parametrize(("gpus", "seconds"), [(8, 900), (1, 7200), (0, 7200)])
def test_a_slot_is_taken_away_as_often_as_any_of_its_gpus(gpus, seconds):
    """On average after an hour over the rate of all; a CPU core counts as one."""
    fleet, random = Fleet(1, gpus, preemptions_per_gpu_hour=0.5), Random(0)
    assert mean(fleet.until_taken(random) for _ in range(20_000)) == pytest.approx(seconds, rel=0.03)


@dataclass(frozen=True)
class TakenAt(Fleet):
    """A fleet that loses its slot once, at a stated second."""

    times: list[float] = field(default_factory=list)

    def until_taken(self, random):
        return self.times.pop(0) if self.times else inf


def test_a_preemption_costs_what_was_not_committed_the_time_away_and_a_start(tmp_path):
    """By hand: start to 10, commit at 110, taken at 150, back at 210, started at 220, then the 300 steps that lack.

    Beside it another trial of 400 steps runs undisturbed on a slot of its own.
    """
    spec = toy_spec(tmp_path, STUDY, rates=(0.1, 0.2), budgets=(400,))
    fleet = TakenAt(2, 1, away_seconds=60.0, times=[150.0])
    found = run(spec, fleet, replace(PACE, job_seconds=10.0), every=100)
    assert isclose(found.wall_seconds, 520) and isclose(found.busy_seconds, 150 + 310 + 410)
    assert (found.preemptions, found.lost_steps, found.executed_steps) == (1, 40, 840)


def test_what_would_be_cut_short_too_often_is_refused_and_what_just_would_not_is_not():
    """A stretch in which ln 51 GPUs are lost is tried 51 times: 50 times in vain."""
    fleet = Fleet(3, 8, preemptions_per_gpu_hour=log(51) / 8)
    stretches = [3590.0] * 100
    pace = replace(PACE, job_seconds=10.0)
    command.refuse_endless(fleet, Simulated(stretches=stretches[1:]), pace, 1000)
    with pytest.raises(Refused, match=r"at most 5,000 jobs cut short, got about 5e\+03: .*=0.49\d* a job loses 3.9"):
        command.refuse_endless(fleet, Simulated(stretches=[*stretches, 3590.0]), pace, 1000)
    command.refuse_endless(replace(fleet, gpus_per_slot=7), Simulated(stretches=stretches), pace, 1000)
    with pytest.raises(Refused, match="checkpoint_every=null"):  # beyond what a float holds
        command.refuse_endless(replace(fleet, preemptions_per_gpu_hour=1e6), Simulated(stretches=stretches), pace, None)


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


STAGES = [  # root, first and last step, light and full measurements, trials on it, when its job began
    ("A", 0, 100, (25, 50, 75), (100,), ["one", "two"], "10:00:00.000"),
    ("A", 100, 150, (125,), (150,), ["one"], "10:00:06.800"),
    ("A", 100, 200, (130, 160), (200,), ["two"], "10:01:00.000"),
]
FLOPS_PER_SECOND, LIGHT, FULL, START, CHECKPOINT, BETWEEN = 1e9, 0.5, 3.0, 0.25, 0.05, 7.0
RUN = "python sweeps/wsd_budget.py"


def made_up(folder, devices=("cpu",), command=f"{RUN} scale=laptop", sessions=()):
    """A results folder with a ledger of three stages in two jobs, every second of which is known.

    Each job is one slot's: the second begins BETWEEN seconds after the first one's end.
    """
    sweep = folder / "sweeps" / "wsd-made-up"
    sweep.mkdir(parents=True)
    trials, points, ledger = [], [], []
    for trial, steps in (("one", 150), ("two", 200)):
        asked = {"config": "{}", "root": "A", "seed": 0, "budget_steps": steps, "key": trial}
        cost = {"flops_nominal": 2e7 * steps, "steps_nominal": float(steps)}
        trials.append(
            {"sweep": "s", "study": "wsd", "trial": trial, "phase": "tune", "status": "complete"} | asked | cost
        )
    began = 0.0
    for place, (root, first, last, light, full, passing, _) in enumerate(STAGES):
        for trial in passing:
            at = [(step, False) for step in light] + [(step, True) for step in full]
            points += [{"sweep": "s", "trial": trial, "step": step, "full": whole} for step, whole in at]
        seconds = {"train_seconds": 2e7 * (last - first) / FLOPS_PER_SECOND}
        seconds |= {"evaluation_seconds": LIGHT * len(light) + FULL * len(full)}
        seconds |= {"startup_seconds": START, "checkpoint_seconds": CHECKPOINT}
        began += BETWEEN if place == 2 else 0.0
        ledger.append(
            {"sweep": "s", "stage": f"{first}-{last}", "root": root, "from_step": first, "to_step": last}
            | {"trials": passing, "executed_steps": last - first, "device": devices[place % len(devices)], "lanes": 1}
            | {"session": "", "job": "job-2" if place == 2 else "job-1", "node": "n", "status": "complete"}
            | {"started_at": f"2026-01-01T00:{int(began // 60):02d}:{began % 60:06.3f}+00:00", **seconds}
        )
        began += sum(seconds.values())
    for name, rows in {"trials": trials, "measurements": points, "ledger": ledger}.items():
        pq.write_table(pa.Table.from_pylist(rows), sweep / f"{name}.parquet")
    (sweep / "sweep.json").write_text(json.dumps({"sweep": "s", "command": command, "sessions": list(sessions)}))
    return folder


def test_a_pace_is_what_a_ledger_with_known_seconds_says(tmp_path):
    pace = measured_pace(made_up(tmp_path), wsd.STUDY, Resources())
    assert pace.flops_per_second == pytest.approx(FLOPS_PER_SECOND)
    assert (pace.light_seconds, pace.full_seconds) == pytest.approx((LIGHT, FULL))
    assert (pace.stage_seconds, pace.job_seconds) == pytest.approx((START + CHECKPOINT, BETWEEN))
    assert "1 worker with 0 GPUs each; cpu" in pace.source and "3 stages" in pace.source


GROUP = Resources(gpus=1, workers=8)
PAPER = f"{RUN} scale=paper"


@pytest.mark.parametrize(
    ("made", "resources", "rule"),
    [
        ({"devices": ("cpu", "H100")}, Resources(), "one kind of device, .* has H100, cpu"),
        ({"devices": ("A100", "H100"), "command": PAPER}, GROUP, "one kind of device, .* has A100, H100"),
        ({"devices": ("H100",), "command": f"{RUN} scale=gpu"}, GROUP, r"8 workers with 1 GPUs each .* has 1 worker"),
        ({}, GROUP, r"\(8 workers with 1 GPUs each under ddp\), .* has 1 worker with 0 GPUs each; .*flops_per_second"),
        ({"command": PAPER}, GROUP, r"ran where this sweep's jobs run .* has those of cpu"),
        ({"devices": ("H100",)}, Resources(), r"ran where this sweep's jobs run .* has those of H100"),
        ({"command": f"{PAPER} resources.min_workers=2"}, GROUP, "has 2 to 8 workers"),
        ({"command": f"{PAPER} resources.parallel=fsdp"}, GROUP, "under ddp.* has 8 workers .* under fsdp"),
        ({"sessions": [{"command": f"{RUN} resources.workers=2"}, {}]}, Resources(), "has 1 worker .*, or 2 workers"),
        ({"command": "python -m sweeps.store branch x"}, Resources(), "has none whose command says"),
        ({"command": f"{RUN} a_word_of_old=3"}, Resources(), "has none whose command says"),
    ],
)
def test_a_pace_of_other_slots_than_the_sweeps_own_is_refused(tmp_path, made, resources, rule):
    with pytest.raises(ValueError, match=rule):
        measured_pace(made_up(tmp_path, **made), wsd.STUDY, resources)


def test_a_pace_of_groups_is_that_of_all_their_gpus(tmp_path):
    there = made_up(tmp_path, devices=("H100",), command=PAPER, sessions=[{"command": f"{PAPER} seeds=2"}, {}])
    simulation = command.Simulation(calibrate=str(there), gpus=[8])
    spec, words = command.make_spec(wsd.STUDY, ["scale=paper", "results=none"], "wsd_budget")
    assert command.pace_of(spec, words, simulation).flops_per_second == pytest.approx(FLOPS_PER_SECOND)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small sweep that was really run, in this process."""
    results = tmp_path_factory.mktemp("trained") / "results"
    words = ["scale=tiny", "executor=local", "tracking=none", "space.method=[wsd,cosine]", "seeds=1"]
    sweep(Question("wsd_budget", wsd.STUDY, about=""), [*words, f"results={results}"])
    return results


def test_the_pace_is_that_of_the_ledger(trained):
    records = open_records(trained)
    pace = measured_pace(trained, wsd.STUDY, Resources())
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
    stages = executed(records)  # of which one waited for imports, which no median knows
    measured = wall_seconds(stages) - max(stage.other_seconds for stage in stages)
    assert measured / 4 < line.sweep.wall_seconds < 4 * measured


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
        (["scale=paper", "gpus=[8]", "preemptions_per_gpu_hour=1.5"], "jobs cut short"),
    ],
)
def test_what_cannot_be_simulated_is_refused(capsys, words, rule):
    status, out, err = say(capsys, SCRIPT, *words)
    assert status == 2 and out == "" and err.startswith("refused: ") and rule in err


def test_a_script_without_a_question_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert say(capsys, str(tmp_path / "mine.py"))[0] == 2
    assert say(capsys, str(CLONE / "sweeps" / "nothing.py"))[0] == 2


def test_lanes_are_simulated_without_a_column_for_each_trial_alone(capsys):
    status, out, _ = say(capsys, str(CLONE / "sweeps" / "lpn_noise.py"), "scale=tiny", "slots=[2]")
    assert status == 0 and "Lanes of one shape" in out
