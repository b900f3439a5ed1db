"""What runs below the meter: `python -m tests.benchmarks.arms ARM GIVEN.json ANSWER.json`, a process per arm.

anabranch          a command line through our engine, on Ray, without a study's own report at the end
laptop             sweeps/wsd_budget.py itself, its report included; answers the shares of all slots' time
function_trials    Tune trials that are plain functions, in reused actors
trainer_trials     Tune trials that build a TorchTrainer each, as Ray's documentation has it

The Tune arms train each config from its first step to its last through `trainables.study.train`, with the same
measurements, and as many at a time as our engine runs jobs.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainables import wsd
from trainables.common.process import reset_process
from trainables.walk import train

LOSSES = (wsd.STUDY.select.name, wsd.STUDY.report.name)
TRAINER_CPUS = 0.1  # of the Tune trial that waits for its trainer; the rest of a core goes to the trainer's worker


def config_of(values: dict[str, Any]) -> wsd.Config:
    """A config from JSON, where tuples have become lists."""
    return wsd.Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def losses_alone(values: dict[str, Any]) -> dict[str, float]:
    """The losses at a config's end, trained on its own in this process."""
    reset_process(threads=1)
    metrics = train(wsd.STUDY, config_of(values)).rows[-1].metrics
    return {name: metrics[name] for name in LOSSES}


def anabranch(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"arguments": words of the command}. Answers the losses by config, the ledger's seconds and steps."""
    from sweeps.engine.launch import Question, sweep

    records = sweep(Question("benchmark", wsd.STUDY, about=""), given["arguments"])
    assert records is not None
    ledger = records.ledger.to_pylist()
    return {
        "losses": [
            {"config": json.loads(row["config"]), **{name: row[name] for name in LOSSES}}
            for row in records.trials.to_pylist()
        ],
        "steps": sum(row["executed_steps"] for row in ledger),
        "training_seconds": sum(row["train_seconds"] for row in ledger),
        "evaluation_seconds": sum(row["evaluation_seconds"] for row in ledger),
        "checkpoint_seconds": sum(row["checkpoint_seconds"] for row in ledger),
    }


def laptop(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"arguments": ...}. Answers Progress.shares() and the seconds behind them."""
    from sweeps import wsd_budget
    from sweeps.engine import launch

    seen = []

    class Seen(launch.Progress):
        """The engine's own Progress, kept so that its shares can be read when the sweep has ended."""

        def __post_init__(self) -> None:
            super().__post_init__()
            seen.append(self)

    launch.Progress = Seen
    launch.sweep(wsd_budget.QUESTION, given["arguments"])
    progress = seen[-1]
    return {
        "shares": progress.shares(),
        "slot_seconds": dict(progress.seconds),
        "slots": progress.slots,
        "elapsed_seconds": progress.elapsed,
        "steps": progress.steps_run,
        "trials": progress.complete,
    }


def start_ray(slots: int) -> None:
    """The same Ray as our engine starts."""
    import ray

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(address="local", num_cpus=slots, include_dashboard=False, log_to_driver=False)


def function_trials(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"configs": ..., "slots": ..., "folder": ...}."""
    from ray import tune

    def trial(parameters: dict[str, Any]) -> None:
        tune.report(losses_alone(parameters["config"]))

    start_ray(given["slots"])
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        param_space={"config": tune.grid_search(given["configs"])},
        tune_config=tune.TuneConfig(max_concurrent_trials=given["slots"], reuse_actors=True),
        run_config=tune.RunConfig(name="functions", storage_path=given["folder"], verbose=0),
    )
    return {"losses": collected(tuner.fit())}


def trainer_trials(given: dict[str, Any]) -> dict[str, Any]:
    """given: as above. Tune reserves a tenth of a core per trial and no more trials than slots run at a time, so that
    trials that wait can never fill the cores that their workers need."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def loop(parameters: dict[str, Any]) -> None:
        ray.train.report(losses_alone(parameters["config"]))

    def trial(parameters: dict[str, Any]) -> None:
        TorchTrainer(
            loop,
            train_loop_config=parameters,
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1 - TRAINER_CPUS}),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=given["folder"],
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    start_ray(given["slots"])
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": TRAINER_CPUS}),
        param_space={"config": tune.grid_search(given["configs"])},
        tune_config=tune.TuneConfig(max_concurrent_trials=given["slots"]),
        run_config=tune.RunConfig(name="trainers", storage_path=given["folder"], verbose=0),
    )
    return {"losses": collected(tuner.fit())}


def collected(results: Any) -> list[dict[str, Any]]:
    """Losses by config. Raises RuntimeError when a trial failed."""
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} of {len(results)} Tune trials failed: {results.errors[0]}")
    return [
        {"config": result.config["config"], **{name: result.metrics[name] for name in LOSSES}} for result in results
    ]


ARMS = {arm.__name__: arm for arm in (anabranch, laptop, function_trials, trainer_trials)}


def main(words: Sequence[str]) -> None:
    arm, given, answer = words
    torch.set_num_threads(1)
    found = ARMS[arm](json.loads(Path(given).read_text()))
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
