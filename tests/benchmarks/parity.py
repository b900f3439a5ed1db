"""parity_pack, parity_secrets, parity_walsh: nets on noisy parities in one job and alone, and what solves them faster.

`python -m tests.benchmarks.parity [--minutes M]` times the title instance (26 bits, noise rate 0.498) on a CUDA device.
`python -m tests.benchmarks.parity ARM GIVEN.json ANSWER.json` is one arm, which runs below the meter.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.arms import start_ray
from tests.benchmarks.meter import Spent, as_json, metered, run_arm
from tests.benchmarks.settings import Measured, Settings, cores, fresh_folder
from trainables import lpn
from trainables.common.parity import fused_mlp, networks, walsh
from trainables.common.parity.baselines import Instance
from trainables.common.parity.racing import Race
from trainables.common.parity.samples import inputs, labels
from trainables.common.process import reset_process
from trainables.pack import PackRun
from trainables.study import LocalRun
from trainables.walk import train

ME = "tests.benchmarks.parity"
NETS = 16
PACK = lpn.Config(dimension=20, noise_rate=0.3, width=64, batch_size=256, budget_steps=8000, measure_every=500)
SECRETS = {
    "n16": lpn.Config(dimension=16, noise_rate=0.1, width=256, batch_size=1024),
    "n12": lpn.Config(dimension=12, noise_rate=0.45, width=256, batch_size=2048, learning_rate=3e-3, budget_steps=8000),
}
TITLE = lpn.Config(
    dimension=26, noise_rate=0.498, width=1000, batch_size=2**20, learning_rate=1e-3, select_samples=2**22,
    budget_steps=250_000, measure_every=250,
)  # fmt: skip
METRICS = ("select/error", "report/solved")


def parity_pack(settings: Settings) -> Measured:
    """16 nets of 64 units, batches of 256, in one job of ours, against a Tune function trial each in reused actors.

    20 bits are not learned in these steps, so that every net trains for as long. CPU seconds of all processes, Ray's
    among them. `step_ratio` leaves the start-up out: CPU of a step of torch.nn and torch.optim.Adam over one of a net
    in the pack.
    """
    base = replace(PACK, budget_steps=40, measure_every=20) if settings.quick else PACK
    rates = [round(1e-4 * 10 ** (lane / NETS), 9) for lane in range(NETS)]  # too small to learn 20 bits
    configs = [replace(base, learning_rate=rate) for rate in rates]
    ours: list[tuple[Spent, dict[str, Any]]] = []
    theirs: list[tuple[Spent, dict[str, Any]]] = []
    for _ in range(settings.rounds):
        ours.append(run_arm(ME, "pack", {"arguments": words(base, rates)}))
        given = {"configs": [asdict(config) for config in configs], "slots": cores()}
        theirs.append(run_arm(ME, "functions", given))
    our_cpu, their_cpu = (median(spent.cpu_seconds for spent, _ in arm) for arm in (ours, theirs))
    in_pack, plain = step_seconds(configs, 20 if settings.quick else 300)
    values = {
        "our_cpu_seconds": our_cpu,
        "their_cpu_seconds": their_cpu,
        "cpu_ratio": their_cpu / our_cpu,
        "our_wall_seconds": median(spent.wall_seconds for spent, _ in ours),
        "their_wall_seconds": median(spent.wall_seconds for spent, _ in theirs),
        "net_step_seconds": in_pack,
        "plain_step_seconds": plain,
        "step_ratio": plain / in_pack,
        "largest_difference": max(
            largest_difference(one["rows"], two["rows"]) for (_, one), (_, two) in zip(ours, theirs, strict=True)
        ),
    }
    runs = {"ours": [as_json(spent) for spent, _ in ours], "functions": [as_json(spent) for spent, _ in theirs]}
    return Measured(values, {"arguments": words(base, rates), "nets": NETS, **runs})


def words(config: lpn.Config, rates: Sequence[float]) -> list[str]:
    """The command that trains a config at these rates as one job."""
    axes = ("dimension", "noise_rate", "width", "budget_steps")
    fields = ("batch_size", "measure_every", "select_samples")
    return [
        *("scale=laptop", "seeds=0", "tracking=none", "executor=ray", "cluster=local", f"resources.pack={NETS}"),
        f"space.learning_rate=[{','.join(map(str, rates))}]",
        *(f"space.{name}={getattr(config, name)}" for name in axes),
        *(f"study.{name}={getattr(config, name)}" for name in fields),
    ]


def largest_difference(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float:
    """Between the errors of two arms, matched by learning rate. Raises ValueError when the rates differ."""
    first, second = ({row["config"]["learning_rate"]: row for row in rows} for rows in (one, other))
    if first.keys() != second.keys():
        raise ValueError(f"the arms trained different rates: {sorted(first.keys() ^ second.keys())}")
    return max(abs(first[rate][name] - second[rate][name]) for rate in first for name in METRICS)


def race_of(configs: Sequence[lpn.Config], device: torch.device) -> Race:
    """A race on fresh samples that has not begun."""
    problem, training = lpn.prepared(configs, device)
    return Race(training, problem, range(len(configs)), None)


def step_seconds(configs: Sequence[lpn.Config], steps: int) -> tuple[float, float]:
    """CPU seconds of a step of one net in the pack, and of one net by torch's modules and optimizer, on one thread."""
    reset_process(threads=1)
    first = configs[0]
    race, single = race_of(configs, torch.device("cpu")), race_of([first], torch.device("cpu"))
    module = torch.nn.Sequential(
        torch.nn.Linear(first.dimension, first.width), torch.nn.ReLU(), torch.nn.Linear(first.width, 1)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def plain() -> None:
        single.step_count.add_(1)
        samples = single.batch()[0]
        optimizer.zero_grad()
        scores = module(inputs(samples, first.dimension)[:, :-1])[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(scores, labels(samples).float()).backward()
        optimizer.step()

    found: dict[str, list[float]] = {"race": [], "plain": []}
    for _ in range(3):  # in turns
        for name, step in (("race", race.step), ("plain", plain)):
            step()
            began = time.process_time()
            for _ in range(steps):
                step()
            found[name].append((time.process_time() - began) / steps)
    return median(found["race"]) / len(configs), median(found["plain"])


def parity_secrets(settings: Settings) -> Measured:
    """16 bits at a noise rate of 0.1 and 12 bits at 0.45: a process each, from its start to the verified secret."""
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, config in SECRETS.items():
        config = replace(config, dimension=8) if settings.quick else config
        runs = [
            run_arm(ME, "secret", {"config": asdict(replace(config, seed=seed))}) for seed in range(settings.rounds)
        ]
        values[f"{name}_wall_seconds"] = max(spent.wall_seconds for spent, _ in runs)
        values[f"{name}_cpu_seconds"] = max(spent.cpu_seconds for spent, _ in runs)
        values[f"{name}_samples"] = max(answer["samples"] for _, answer in runs)
        details[name] = [as_json(spent) | answer for spent, answer in runs]
    unsolved = [1 - answer["report/solved"] for runs in details.values() for answer in runs]
    return Measured({**values, "unsolved": sum(unsolved)}, details)


def parity_walsh(settings: Settings) -> Measured:
    """One fast Walsh-Hadamard transform on the title instance: 26 bits, noise rate 0.498, four million samples."""
    size = ("16", "0.45") if settings.quick else ("26", "0.498")
    runs = []
    for _ in range(settings.rounds):
        spent, printed = metered([sys.executable, "-m", "trainables.common.parity", *size])
        runs.append(as_json(spent) | json.loads(printed.splitlines()[-1]))
    values = {
        "unsolved": float(sum(not run["walsh_solved"] for run in runs)),
        "cpu_seconds": median(run["walsh_cpu_seconds"] for run in runs),
        "process_cpu_seconds": median(run["cpu_seconds"] for run in runs),
        "peak_gigabytes": max(run["peak_bytes"] for run in runs) / 1e9,
        "samples": float(runs[0]["walsh_samples"]),
    }
    return Measured(values, {"runs": runs})


def pack(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"arguments": words of the command}. Answers the metrics by config."""
    from sweeps.engine.launch import Question, sweep

    with fresh_folder() as folder:
        arguments = [*given["arguments"], f"results={folder}", f"slots={cores()}"]
        records = sweep(Question("benchmark", lpn.STUDY, about=""), arguments)
    assert records is not None
    rows = records.trials.to_pylist()
    return {"rows": [{"config": json.loads(row["config"]), **{name: row[name] for name in METRICS}} for row in rows]}


def functions(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"configs": ..., "slots": ...}. One Tune trial per config, as many at a time as slots."""
    from ray import tune

    def trial(parameters: dict[str, Any]) -> None:
        tune.report(alone(parameters["config"]))

    start_ray(given["slots"])
    with fresh_folder() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            param_space={"config": tune.grid_search(given["configs"])},
            tune_config=tune.TuneConfig(max_concurrent_trials=given["slots"], reuse_actors=True),
            run_config=tune.RunConfig(name="functions", storage_path=str(folder), verbose=0),
        )
        results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} of {len(results)} Tune trials failed: {results.errors[0]}")
    return {
        "rows": [{"config": one.config["config"], **{name: one.metrics[name] for name in METRICS}} for one in results]
    }


def secret(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"config": ...}."""
    return alone(given["config"])


def alone(values: dict[str, Any]) -> dict[str, float]:
    """The metrics at a config's end, trained on its own in this process."""
    reset_process(threads=1)
    return train(lpn.STUDY, lpn.Config(**values)).rows[-1].metrics


ARMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {arm.__name__: arm for arm in (pack, functions, secret)}


def on_a_gpu(minutes: float, device: torch.device, config: lpn.Config = TITLE) -> dict[str, Any]:
    """The title instance on a device: a step with and without the fused kernels, the secret, and the transform."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    race = race_of([config], device)
    flat, samples = race.of_all_nets(race.batch())
    named = networks.Architecture.named(config.net, flat)
    given = samples, named["hidden1"], named["readout"][..., 0], config.dimension
    plain, residual = fused_mlp.moments(*given)
    found["plain_gradient_seconds"] = timed(device, lambda: fused_mlp.moments(*given))
    if fused_mlp.fusable(samples, config.dimension):
        fused, fused_residual = fused_mlp.fused_moments(*given)
        found["largest_difference"] = float((fused - plain).abs().max() / plain.abs().max())
        found["residual_difference"] = float((fused_residual - residual).abs().max())
        found["fused_gradient_seconds"] = timed(device, lambda: fused_mlp.fused_moments(*given))
    found["step_seconds"] = timed(device, lambda: race.captured(10)) / 10
    began = time.monotonic()
    local = LocalRun(device=device, stop=lambda: time.monotonic() > began + 60 * minutes)
    run = PackRun(lpn.STUDY, [config], local, commit=lambda lane, stage: None, heed=lambda: None)
    rows: list[dict[str, Any]] = []
    race = race_of([config], device)
    for step, seen in race.run(run):
        solved = seen[0].secret == int(race.problem.whole_secret_P[0])
        rows.append({"step": step, "seconds": time.monotonic() - began, "error": seen[0].error, "solved": solved})
    found["race"] = rows
    instance = Instance(config.dimension, config.noise_rate, config.weight, config.seed, device)
    count = round(64 / (1 - 2 * config.noise_rate) ** 2)
    found["walsh_seconds"] = timed(device, lambda: walsh.likeliest(instance.samples(count), config.dimension, device))
    return found


def timed(device: torch.device, work: Callable[[], Any], rounds: int = 3) -> float:
    """Median wall seconds of some work on the device, after once for warm-up."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return median(taken[1:])


def main(arguments: Sequence[str]) -> int:
    if len(arguments) == 3 and arguments[0] in ARMS:
        arm, given, answer = arguments
        torch.set_num_threads(1)
        Path(answer).write_text(json.dumps(ARMS[arm](json.loads(Path(given).read_text()))))
        return 0
    parser = argparse.ArgumentParser(prog=f"python -m {ME}", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench_parity_gpu.json"))
    parser.add_argument("--minutes", type=float, default=20.0, help="the race ends after these (default 20)")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    found = on_a_gpu(asked.minutes, torch.device("cuda"))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    last = found["race"][-1] if found["race"] else {"step": 0, "seconds": 0.0, "error": 0.5, "solved": False}
    print(
        f"{found['device']}: {1e3 * found['step_seconds']:.2f} ms a step; Walsh-Hadamard {found['walsh_seconds']:.2f} s"
    )
    words = "secret found" if last["solved"] else "no secret"
    print(f"{words} after {last['step']:,} steps, {last['seconds']:.0f} s; estimated error {last['error']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
