"""grid_trainer, grid_function: a grid of decay fractions and shapes that is really trained, by us and by plain Tune.

Both arms train the same configs with the same measurements to the same losses; each runs in a fresh process with a Ray
of its own, and arms take turns. CPU seconds are those of all processes, start-up included.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tests.benchmarks import arms
from tests.benchmarks.arms import LOSSES
from tests.benchmarks.meter import CommandFailed, Spent, as_json, run_arm
from tests.benchmarks.planning import planned
from tests.benchmarks.settings import Measured, Settings, cores, fresh_folder

GRID = ("preset=fractions_and_shapes", "seeds=0", "tracking=none", "executor=ray", "cluster=local")
QUICK = (*GRID, "scale=tiny", "space.peak_lr=0.01", "space.budget_steps=[20]", "space.decay_fraction=0.4")
SHORT = (*GRID, "scale=laptop", "space.peak_lr=0.003", "space.budget_steps=[400]")
LONG = (*GRID, "scale=laptop", "space.peak_lr=0.003", "space.budget_steps=[4800]")


def grid_trainer(settings: Settings) -> Measured:
    """12 trials of 400 steps: a TorchTrainer per Tune trial, where start-up weighs most, against our engine."""
    return compared(QUICK if settings.quick else SHORT, "trainer_trials", settings)


def grid_function(settings: Settings) -> Measured:
    """12 trials of 4800 steps, where training weighs most: Tune's fastest plain way against our engine."""
    return compared(QUICK if settings.quick else LONG, "function_trials", settings)


def compared(arguments: Sequence[str], other: str, settings: Settings) -> Measured:
    """Our engine on a command against a Tune arm on the configs of that command."""
    configs, plan = planned(arguments)
    slots = cores()
    ours: list[tuple[Spent, dict[str, Any]]] = []
    theirs: list[tuple[Spent, dict[str, Any]]] = []
    for _ in range(settings.rounds):
        with fresh_folder() as folder:
            ours.append(
                run_arm(arms.__name__, "anabranch", {"arguments": [*arguments, f"results={folder}", f"slots={slots}"]})
            )
        theirs.append(run_tune(other, configs, slots))
    differences = [
        largest_difference(one["losses"], two["losses"]) for (_, one), (_, two) in zip(ours, theirs, strict=True)
    ]
    executed = [answer["steps"] for _, answer in ours]
    if set(executed) != {plan.steps_shared}:
        raise RuntimeError(f"the plan said {plan.steps_shared} steps, executed were {executed}")
    our_cpu, their_cpu = (median(spent.cpu_seconds for spent, _ in arm) for arm in (ours, theirs))
    step_ratio = plan.steps_alone / plan.steps_shared
    values = {
        "trials": len(configs),
        "steps_alone": plan.steps_alone,
        "steps_shared": plan.steps_shared,
        "step_ratio": step_ratio,
        "our_cpu_seconds": our_cpu,
        "their_cpu_seconds": their_cpu,
        "cpu_ratio": their_cpu / our_cpu,
        "part_of_step_ratio": their_cpu / our_cpu / step_ratio,
        "our_wall_seconds": median(spent.wall_seconds for spent, _ in ours),
        "their_wall_seconds": median(spent.wall_seconds for spent, _ in theirs),
        "training_seconds": median(answer["training_seconds"] for _, answer in ours),
        "largest_loss_difference": max(differences),
    }
    details = {
        "command": list(arguments),
        "slots": slots,
        "ours": [as_json(spent) | without_losses(answer) for spent, answer in ours],
        other: [as_json(spent) | without_losses(answer) for spent, answer in theirs],
    }
    return Measured(values, details)


TRIES = 3


def run_tune(arm: str, configs: Sequence[Any], slots: int) -> tuple[Spent, dict[str, Any]]:
    """A Tune arm, run again when a trial of it died, as a trainer's workers may on a busy machine.

    Only the run that succeeds counts. Raises CommandFailed after TRIES failures.
    """
    for number in range(1, TRIES + 1):
        with fresh_folder() as folder:
            given = {"configs": [asdict(config) for config in configs], "slots": slots, "folder": str(folder)}
            try:
                spent, answer = run_arm(arms.__name__, arm, given)
                return spent, answer | {"tries": number}
            except CommandFailed:
                if number == TRIES:
                    raise
    raise AssertionError("unreachable")


def largest_difference(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> float:
    """Between the losses of two arms, matched by config. Raises ValueError when they trained different configs.

    >>> rows = [{"config": {"lr": 1}, "select/loss": 2.0, "report/loss": 3.0}]
    >>> largest_difference(rows, [rows[0] | {"report/loss": 3.5}])
    0.5
    """
    first, second = ({json.dumps(row["config"], sort_keys=True): row for row in rows} for rows in (one, other))
    if first.keys() != second.keys():
        raise ValueError(
            f"the arms trained {len(first)} and {len(second)} configs, {len(first.keys() & second.keys())} alike"
        )
    return max(abs(first[key][name] - second[key][name]) for key in first for name in LOSSES)


def without_losses(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "losses"}
