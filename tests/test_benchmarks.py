"""Benchmarks at their smallest size against the keys that are wanted, and the meter against processes' own clocks.

Nothing here judges a time.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweeps import wsd_budget
from sweeps.engine import launch
from tests.benchmarks import __main__ as command
from tests.benchmarks import arms, commands, forks, gpu, grids, lanes, loop, meter, packing, parity, planning, sequences
from tests.benchmarks.settings import Measured, Settings
from tests.benchmarks.wanted import WANTED, verdict
from trainables import wsd

QUICK = Settings(quick=True)
SPENT = meter.Spent(wall_seconds=2.0, reaped_seconds=3.0, sampled_seconds=4.0, status=0)


def test_every_benchmark_has_a_wanted_value_and_every_wanted_value_a_benchmark():
    assert command.BENCHMARKS.keys() == WANTED.keys()


def test_the_plan_is_the_closed_form():
    """L rates, budgets T, fractions F, S shapes: L (max of (1 - f) T + S sum of f T), and alone L |F| S sum of T."""
    budgets, fractions = [100 * 2**k for k in range(6)], [0.05, 0.1, 0.2, 0.4]
    decays = sum(round(f * budget) for budget in budgets for f in fractions)
    values = planning.plan(QUICK).values
    assert values["steps_shared"] == 5 * (3200 - 160 + 3 * decays) == WANTED["plan"]["steps_shared"].bound
    assert values["steps_alone"] == 5 * 4 * 3 * sum(budgets) == WANTED["plan"]["steps_alone"].bound


def test_no_fork_differs_from_a_straight_run():
    assert forks.fork(QUICK).values["unequal_forks"] == 0


def test_a_fork_that_ends_elsewhere_would_be_seen():
    straight = forks.straight(wsd.STUDY, wsd.STUDY.tiny)
    name = next(name for name in straight.tensors if name.startswith("model."))
    moved = straight.tensors[name].clone()
    moved.view(-1)[0] += 0.5
    other = forks.Ending(straight.tensors | {name: moved}, straight.rows)
    assert not straight.equals(other)
    assert straight.weight_difference(other) == pytest.approx(0.5, rel=1e-5)


def test_the_bare_loop_trains_the_same_weights_when_it_is_given_the_same_batches():
    config = wsd.STUDY.tiny
    ours, bare = loop.Ours(config), loop.Bare(config)
    tokens = bare.tokens.numpy()
    starts = iter(
        [wsd.batch(tokens, step, config.seed, config.batch_size, config.context) for step in range(3)]
    )  # what `Bare` gathers is replaced, all else is its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bare, "tokens", Batches(starts, len(tokens)))
        bare.advance(3)
    ours.advance(3)
    names = {name for name, _ in bare.model.named_parameters()}
    assert names == {name.removeprefix("model.") for name in ours.state.tensors() if name.startswith("model.")}
    for name, parameter in bare.model.named_parameters():
        torch.testing.assert_close(parameter, ours.state.tensors()["model." + name], rtol=0, atol=1e-6)  # fp32 rounding


class Batches:
    """Stands in for a row of tokens: every look-up gives the next of some batches [B, T + 1]."""

    def __init__(self, batches, length):
        self.batches, self.length = batches, length

    def __len__(self):
        return self.length

    def __getitem__(self, where):
        inputs, targets = next(self.batches)
        return torch.cat([inputs, targets[:, -1:]], 1)


def test_the_loop_hands_back_what_is_wanted():
    assert loop.loop(QUICK).values.keys() >= WANTED["loop"].keys()


BURN = "import time\nwhile time.process_time() < {}: pass\ntime.sleep(1)\n"  # rests, so that a sample sees all of it


@pytest.mark.parametrize(
    "benchmark",
    [
        lanes.lanes,
        packing.packing,
        parity.parity_secrets,
        parity.parity_walsh,
        sequences.sequence_lanes,
        sequences.scan,
    ],
)
def test_a_benchmark_of_lanes_hands_back_what_is_wanted(benchmark):
    values = benchmark(QUICK).values
    wanted = WANTED[benchmark.__name__]
    assert values.keys() >= wanted.keys()
    assert all(one.met(values[name]) for name, one in wanted.items() if not one.timed)


def test_the_meter_sees_a_child_an_orphan_and_a_child_that_nobody_waited_for():
    """Each burns CPU time by its own clock; the orphan outlives the command."""
    program = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"  # the kernel then adds nothing up for ended children
        f"subprocess.Popen([sys.executable, '-c', {BURN.format(1.0)!r}])\n"
        f"code = 'import subprocess, sys; subprocess.Popen([sys.executable, \"-c\", sys.argv[1]])'\n"
        f"subprocess.Popen([sys.executable, '-c', code, {BURN.format(1.0)!r}])\n" + BURN.format(1.0)
    )
    spent, _ = meter.metered([sys.executable, "-c", program])
    assert spent.cpu_seconds > 3.0 - 0.1  # clock ticks are a hundredth of a second


def test_the_meter_says_what_a_failed_command_printed():
    with pytest.raises(meter.CommandFailed, match="status 3\nlast words"):
        meter.metered([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])


def in_process(module, arm, given, environment=None):
    """`run_arm` without the meter and without Ray: what it trains is the same."""
    if arm in ("anabranch", "laptop"):
        words = [word for word in given["arguments"] if not word.startswith(("executor=", "slots=", "tracking="))]
        return SPENT, arms.ARMS[arm]({"arguments": [*words, "executor=local", "tracking=none"]})
    given = json.loads(json.dumps(given))
    return SPENT, {"losses": [{"config": values, **arms.losses_alone(values)} for values in given["configs"]]}


@pytest.mark.parametrize("benchmark", [grids.grid_trainer, grids.grid_function])
def test_both_arms_of_a_grid_reach_the_same_losses(benchmark, monkeypatch):
    monkeypatch.setattr(grids, "run_arm", in_process)
    values = benchmark(QUICK).values
    assert values["largest_loss_difference"] == 0
    assert values["steps_shared"] < values["steps_alone"]
    assert values["cpu_ratio"] == 1  # both arms are said to have cost SPENT
    assert values.keys() >= WANTED[benchmark.__name__].keys()


def test_a_tune_arm_is_tried_again_and_then_given_up(monkeypatch):
    failures = [meter.CommandFailed("died"), None]

    def sometimes(module, arm, given):
        if (failure := failures.pop(0)) is not None:
            raise failure
        return SPENT, {"losses": []}

    monkeypatch.setattr(grids, "run_arm", sometimes)
    assert grids.run_tune("trainer_trials", [], 1)[1]["tries"] == 2
    failures[:] = [meter.CommandFailed("died")] * grids.TRIES
    with pytest.raises(meter.CommandFailed):
        grids.run_tune("trainer_trials", [], 1)


def test_arms_that_trained_other_configs_are_not_compared():
    row = {"config": {"lr": 1}, **dict.fromkeys(arms.LOSSES, 1.0)}
    with pytest.raises(ValueError, match="1 and 1 configs, 0 alike"):
        grids.largest_difference([row], [row | {"config": {"lr": 2}}])


def test_the_shares_of_a_sweep_add_up_to_one(monkeypatch):
    monkeypatch.setattr(launch, "Progress", launch.Progress)  # put back afterwards
    monkeypatch.setattr(wsd_budget, "QUESTION", replace(wsd_budget.QUESTION, show=None))  # figures have their own tests
    monkeypatch.setattr(commands, "run_arm", in_process)
    values = commands.shares(QUICK).values
    assert sum(values[part] for part in ("training", "evaluation", "checkpoints", "startup", "waiting")) == (
        pytest.approx(1, abs=1e-5)  # five numbers rounded to six places
    )
    assert values.keys() >= WANTED["shares"].keys()


def test_startup_runs_the_tiny_command_on_fresh_folders(monkeypatch):
    seen = []

    def recorded(words, environment):
        seen.append((words, environment))
        return SPENT, ""

    monkeypatch.setattr(commands, "metered", recorded)
    assert commands.startup(Settings(repetitions=2)).values["wall_seconds"] == SPENT.wall_seconds
    assert all("scale=tiny" in words for words, _ in seen)
    assert len({words[-1] for words, _ in seen}) == len({env["ANABRANCH_DATA"] for _, env in seen}) == 2


def test_a_missed_value_is_said_and_is_no_failure(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setitem(command.BENCHMARKS, "loop", lambda settings: Measured({"part_of_bare": 0.5}))
    out = tmp_path / "made" / "bench.json"
    assert command.main(["loop", "--out", str(out)]) == 0
    assert "missed" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["benchmarks"]["loop"]["values"] == {"part_of_bare": 0.5}
    assert content["machine"]["cores"] >= 1


def test_a_benchmark_that_cannot_run_is_a_failure_and_the_others_are_kept(monkeypatch, tmp_path: Path, capsys):
    def broken(settings):
        raise RuntimeError("no such thing")

    out = tmp_path / "bench.json"
    monkeypatch.setitem(command.BENCHMARKS, "loop", lambda settings: Measured({"part_of_bare": 1.0}))
    monkeypatch.setitem(command.BENCHMARKS, "fork", broken)
    assert command.main(["loop", "--out", str(out)]) == 0
    assert command.main(["fork", "--out", str(out)]) == 1
    assert "no such thing" in capsys.readouterr().out
    assert json.loads(out.read_text())["benchmarks"].keys() == {"loop", "fork"}


def test_quick_times_are_not_judged_and_counts_are():
    assert verdict(WANTED["startup"]["wall_seconds"], 1e9, quick=True) == "not judged: quick"
    assert verdict(WANTED["fork"]["unequal_forks"], 1, quick=True) == "missed"


def test_gpu_says_so_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "not measured: no CUDA device\n"


def test_gpu_measures_all_it_names_on_the_cpu_too():
    found = gpu.measure(
        wsd.STUDY.tiny,
        torch.device("cpu"),
        until=float("inf"),
        variants=((4, None, False), (4, 2, False)),
        **{"steps": 2, "rounds": 1, "fork_steps": 12, "fork_cut": 5},
    )
    assert found["fork_difference"]["forked_weight_difference"] == 0  # bit-equal on one kind of CPU
    assert [row["problem"] for row in found["speeds"]] == [None, None]
    assert json.loads(json.dumps(found)) == found
    page = gpu.markdown(found)
    assert page.startswith("cpu, torch ") and page.count("peak not known") == 2


def test_gpu_leaves_out_what_does_not_fit_into_its_time():
    sizes = {"steps": 1, "rounds": 1, "fork_steps": 12, "fork_cut": 5}
    found = gpu.measure(wsd.STUDY.tiny, torch.device("cpu"), until=0, variants=((4, None, False),), **sizes)
    assert "out of time" in gpu.markdown(found)


def test_gpu_measures_the_scale_of_the_space_file():
    config = gpu.config_of_scale("gpu")
    assert (config.width, config.layers, config.precision) == (768, 12, "bf16")
    assert gpu.VARIANTS[0] == (config.batch_size, config.micro_batch_size, config.compile)


def test_gpu_needs_no_tuner_and_no_tracker():
    absent = ("ray", "mlflow", "optuna", "hydra", "omegaconf", "pyarrow", "pandas", "scipy", "psutil")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import tests.benchmarks.gpu"
    subprocess.run([sys.executable, "-c", program], cwd=meter.REPOSITORY, check=True)
