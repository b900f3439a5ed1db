"""sequence_lanes, scan: tiny Transformers in one pack and a process each; the associative scan and a loop.

`python -m tests.benchmarks.sequences` times both on a CUDA device.
`python -m tests.benchmarks.sequences ARM GIVEN.json ANSWER.json` is one arm, which runs below the meter.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.gpu import timed
from tests.benchmarks.meter import Spent, as_json, run_arm
from tests.benchmarks.settings import Measured, Settings
from trainables import cot_parity
from trainables.common.process import reset_process
from trainables.common.sequence.scan import linear_recurrence
from trainables.pack import train_pack
from trainables.study import LocalRun, Stage
from trainables.walk import train

ME = "tests.benchmarks.sequences"
NETS = 16
NET = cot_parity.Config(
    input_bits=12, secret_bits=3, width=32, batch_size=64, budget_steps=400, held_out_rows=256, stop_when_learned=False
)
EARLY_STEPS = 64  # up to which lanes differ from nets alone by rounding; later, when a net learns, rounding grows
Arm = tuple[Spent, dict[str, Any]]
SCANNED = {"lanes": 1, "rows": 16, "channels": 64, "states": 16}  # of an ssm block of width 64 on 16 rows
LENGTHS = (64, 128, 256)


def sequence_lanes(settings: Settings) -> Measured:
    """16 Transformers of one block (12 bits, 400 steps): a process that trains all as lanes against a process each.

    CPU seconds with everything that a process costs. `step_ratio` leaves the start-up out: training alone in one
    process, one after the other, over the lanes.
    """
    base = replace(NET, budget_steps=20, held_out_rows=64) if settings.quick else NET
    configs = [asdict(replace(base, seed=seed)) for seed in range(2 if settings.quick else NETS)]
    together, apart = [], []
    for _ in range(settings.rounds):
        together.append(run_arm(ME, "pack", {"configs": configs}))
        apart.append([run_arm(ME, "pack", {"configs": [config]}) for config in configs])
    of_lanes = [spent.cpu_seconds for spent, _ in together]
    of_processes = [sum(spent.cpu_seconds for spent, _ in one) for one in apart]
    in_pack = median(answer["seconds"] for _, answer in together)
    alone = median(sum(answer["seconds"] for _, answer in one) for one in apart)
    values = {
        "cpu_ratio": median(of_processes) / median(of_lanes),
        "step_ratio": alone / in_pack,
        "lanes_cpu_seconds": median(of_lanes),
        "processes_cpu_seconds": median(of_processes),
        "early_loss_difference": largest_difference(together[0], apart[0], EARLY_STEPS),
        "loss_difference": largest_difference(together[0], apart[0], base.budget_steps),
    }
    runs = {"together": [as_json(spent) for spent, _ in together], "nets": len(configs)}
    return Measured(values, {**runs, "apart": [[as_json(spent) for spent, _ in one] for one in apart]})


def largest_difference(together: Arm, apart: Sequence[Arm], steps: int) -> float:
    """Between training losses of the lanes and of nets alone, at all measurements up to a step."""
    lanes, alone = together[1]["losses"], [answer["losses"][0] for _, answer in apart]
    return max(
        abs(one - other)
        for lane, net in zip(lanes, alone, strict=True)
        for (step, one), (_, other) in zip(lane, net, strict=True)
        if step <= steps
    )


def pack(given: dict[str, Any]) -> dict[str, Any]:
    """given: {"configs": ...}. Trains them as lanes; answers their losses by step and the CPU seconds of that."""
    reset_process(threads=1)
    configs = [cot_parity.Config(**values) for values in given["configs"]]
    stages: dict[int, Stage] = {}
    began = time.process_time()
    if len(configs) == 1:
        stages[0] = train(cot_parity.STUDY, configs[0])
    else:
        train_pack(cot_parity.STUDY, configs, LocalRun(), commit=stages.__setitem__)
    took = time.process_time() - began
    losses = [[(row.step, row.metrics["train/loss"]) for row in stages[lane].rows] for lane in sorted(stages)]
    return {"seconds": took, "losses": losses}


def step_by_step(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The recurrence of `linear_recurrence` as one would write it, position by position."""
    state, states = torch.zeros_like(inputs[..., 0]), []
    for decay_now, now in zip(decay.unbind(-1), inputs.unbind(-1), strict=True):
        state = decay_now * state + now
        states.append(state)
    return torch.stack(states, -1)


def scan_seconds(device: torch.device, rounds: int, lengths: Sequence[int]) -> tuple[dict[str, float], float]:
    """Seconds of forward and backward by form and length, medians of turns; the largest difference of states."""
    generator = torch.Generator().manual_seed(0)
    clock = time.process_time if device.type == "cpu" else None
    found, largest = {}, 0.0
    for length in lengths:
        shape = (*SCANNED.values(), length)
        decay = torch.rand(shape, generator=generator).to(device).requires_grad_()
        inputs = torch.randn(shape, generator=generator).to(device).requires_grad_()
        apart = linear_recurrence(decay.detach(), inputs.detach()) - step_by_step(decay.detach(), inputs.detach())
        largest = max(largest, float(apart.abs().max()))
        taken: dict[str, list[float]] = {"loop": [], "scan": []}
        for _ in range(rounds):
            for name, form in (("loop", step_by_step), ("scan", linear_recurrence)):

                def both_ways(form=form, decay=decay, inputs=inputs) -> None:
                    torch.autograd.grad(form(decay, inputs).sum(), (decay, inputs))

                if clock is None:
                    taken[name].append(timed(device, both_ways))
                else:
                    began = clock()
                    both_ways()
                    taken[name].append(clock() - began)
        found |= {f"{name}_{length}": median(seconds) for name, seconds in taken.items()}
    return found, largest


def scan(settings: Settings) -> Measured:
    """The scan of a state-space block (16 rows, 64 channels of 16 states) against a loop, forward and backward."""
    reset_process(threads=1)
    lengths = (8,) if settings.quick else LENGTHS
    seconds, largest = scan_seconds(torch.device("cpu"), 1 if settings.quick else 5, lengths)
    ratios = [seconds[f"loop_{length}"] / seconds[f"scan_{length}"] for length in lengths]
    return Measured({"least_ratio": min(ratios), "largest_difference": largest, **seconds}, {"shape": SCANNED})


def on_a_gpu(device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step of P Transformers, by P, and of the scan, by length."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device)}
    for lanes in (1, 16, 64, 256):
        configs = [replace(NET, seed=seed) for seed in range(lanes)]
        training = cot_parity.Training(configs, device)
        training.captured(5)
        found[f"step_seconds_{lanes}"] = timed(device, lambda training=training: training.captured(100)) / 100
    seconds, largest = scan_seconds(device, 5, LENGTHS)
    return {**found, **{f"scan_{name}": value for name, value in seconds.items()}, "largest_difference": largest}


ARMS = {"pack": pack}


def main(arguments: Sequence[str]) -> int:
    if len(arguments) == 3 and arguments[0] in ARMS:
        arm, given, answer = arguments
        Path(answer).write_text(json.dumps(ARMS[arm](json.loads(Path(given).read_text()))))
        return 0
    parser = argparse.ArgumentParser(prog=f"python -m {ME}", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench_sequences_gpu.json"))
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    found = on_a_gpu(torch.device("cuda"))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
