"""`python -m tests.benchmarks.gpu`: the model of scale=gpu on a CUDA device. Needs torch, numpy, PyYAML, safetensors.

Tokens per second and the share of the device's peak (MFU) under bf16 autocast, with and without torch.compile, by batch
and micro-batch; what a fork costs, to the device's memory and to disk; how far a forked run ends from a straight one,
beside how far two equal straight runs end from one another. Prints a markdown table, writes JSON with --out, and leaves
out what does not fit into --minutes.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from sweeps.engine.store import Store
from tests.benchmarks.forks import forked, straight
from tests.benchmarks.settings import fresh_folder
from trainables import wsd
from trainables.common.flops import model_flops_utilization
from trainables.common.process import reset_process
from trainables.common.timeline import Placed, segment
from trainables.study import Cost, LocalRun, Span, Stage, alone
from trainables.walk import clone

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "wsd.yaml"
VARIANTS = (  # (sequences a step, of these at a time, torch.compile); the first is scale=gpu as it is
    (32, None, False),
    (32, None, True),
    (64, None, True),
    (128, 64, True),
    (32, 16, True),
    (64, None, False),
    (128, 64, False),
    (32, 16, False),
    (32, 8, False),
)
FORK_STEPS, FORK_CUT, FORK_DECAY = 60, 30, 0.4  # of the runs that are compared


def config_of_scale(scale: str) -> wsd.Config:
    """The fields that a scale sets in search_spaces/wsd.yaml, read without the engine, which needs Hydra and Optuna.

    >>> config_of_scale("gpu").precision
    'bf16'
    """
    layer = yaml.safe_load(SPACE.read_text())["scales"][scale]
    return wsd.Config(method="wsd", budget_steps=max(layer["axes"]["budget_steps"]), **layer["study"])


@dataclass(frozen=True)
class Speed:
    """One variant. `first_seconds` is its first step, compilation included; `mfu` None where the peak is not known."""

    batch_size: int
    micro_batch_size: int | None
    compile: bool
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    first_seconds: float | None = None
    problem: str | None = None


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Wall seconds of some work on the device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def speed(config: wsd.Config, device: torch.device, *, steps: int = 15, rounds: int = 5) -> Speed:
    """Training steps as the study runs them, their data included: the median of some rounds after a warm-up."""
    root, run = wsd.root(config), LocalRun(device=device)
    variant = Speed(config.batch_size, config.micro_batch_size, config.compile)
    placed, step = Placed(segment(1_000_000, lr=config.peak_lr), 0), 0

    def advance(count: int) -> Callable[[], None]:
        nonlocal step
        span, step = Span(step, step + count), step + count
        return lambda: wsd.advance(state, placed, span, run)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    state = wsd.start(root, run)
    try:
        first = timed(device, advance(1))
        wsd.advance(state, placed, Span(1, 5), run)
        step = 5
        seconds = median(timed(device, advance(steps)) / steps for _ in range(rounds))
    except torch.OutOfMemoryError:
        return replace(variant, problem="out of memory")
    except Exception as error:  # a compiler that is missing, say: the other variants go on
        return replace(variant, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    units = wsd.units(root)
    tokens_per_second = units["tokens"] / seconds
    return replace(
        variant,
        tokens_per_second=tokens_per_second,
        step_seconds=seconds,
        mfu=model_flops_utilization(tokens_per_second, units["flops"] / units["tokens"], device_name(device)),
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        first_seconds=first,
    )


def free() -> None:
    """Give back what the last variant held."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fork_cost(config: wsd.Config, device: torch.device, rounds: int = 5) -> dict[str, float]:
    """Seconds to copy a state on the device, to load it back, to commit it to a store and to read it from there."""
    root, branch = alone(wsd.STUDY, config)
    state = wsd.start(root, LocalRun(device=device))
    wsd.advance(state, Placed(segment(2, lr=1e-3), 0), Span(0, 2), LocalRun(device=device))
    copies = [timed(device, lambda: clone(state.tensors())) for _ in range(rounds)]
    copied = clone(state.tensors())
    loads = [timed(device, lambda: state.load_tensors(copied)) for _ in range(rounds)]
    commits, reads = [], []
    with fresh_folder() as folder:
        store = Store(folder)
        store.prepare()
        for number in range(rounds):
            wsd.advance(state, Placed(segment(100, lr=1e-3), 0), Span(2 + number, 3 + number), LocalRun(device=device))
            stage = Stage(replace(branch, keep=True), [], clone(state.tensors()), Cost(), 1)
            wait(device)
            began = time.perf_counter()
            about = {"job": "benchmark", "device": device_name(device), "started_at": "", "startup": 0.0}
            commit = store.commit("wsd", wsd.STUDY.root_key(root), stage, **about)
            commits.append(time.perf_counter() - began)
            began = time.perf_counter()
            state.load_tensors(store.load_state(commit))
            wait(device)
            reads.append(time.perf_counter() - began)
            store.drop_state(commit)
    return {
        "state_bytes": sum(value.numel() * value.element_size() for value in copied.values()),
        "copy_seconds": median(copies),
        "load_seconds": median(loads),
        "commit_seconds": median(commits),
        "read_seconds": median(reads),
    }


def fork_difference(config: wsd.Config, device: torch.device, steps: int, cut: int) -> dict[str, float]:
    """Largest difference of a weight, and of the final select loss, of a forked run and of a repeated straight run."""
    short = replace(config, budget_steps=steps, warmup_steps=min(config.warmup_steps, steps // 6))
    short = replace(short, decay_fraction=FORK_DECAY, measure_every=steps)
    run = LocalRun(device=device)
    first, again = straight(wsd.STUDY, short, run), straight(wsd.STUDY, short, run)
    branched = forked(wsd.STUDY, short, cut, run)
    loss = [ending.rows[-1].metrics["select/loss"] for ending in (first, again, branched)]
    return {
        "steps": steps,
        "cut": cut,
        "select_loss": loss[0],
        "repeated_weight_difference": first.weight_difference(again),
        "forked_weight_difference": first.weight_difference(branched),
        "repeated_loss_difference": abs(loss[0] - loss[1]),
        "forked_loss_difference": abs(loss[0] - loss[2]),
    }


def measure(config: wsd.Config, device: torch.device, until: float, variants: Any = VARIANTS, **sizes: int) -> dict:
    """All of it, until time.monotonic() reaches `until`; forks first, being few."""
    reset_process(threads=torch.get_num_threads())
    parameters = wsd.units(wsd.root(config))["parameters"]
    found: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "parameters": parameters}
    found["config"] = {name: getattr(config, name) for name in ("width", "layers", "heads", "context", "precision")}
    found["fork_cost"] = fork_cost(config, device)
    free()
    steps, cut = sizes.pop("fork_steps", FORK_STEPS), sizes.pop("fork_cut", FORK_CUT)
    found["fork_difference"] = fork_difference(config, device, steps, cut)
    found["speeds"] = []
    for batch_size, micro, compiled in variants:
        variant = replace(config, batch_size=batch_size, micro_batch_size=micro, compile=compiled)
        free()
        if time.monotonic() > until:
            result = Speed(batch_size, micro, compiled, problem="not measured: out of time")
        else:
            result = speed(variant, device, **sizes)
        found["speeds"].append(asdict(result))
        print(f"batch {batch_size}, micro {micro}, compile {compiled}: {result.problem or 'measured'}", file=sys.stderr)
    return found


def markdown(found: dict[str, Any]) -> str:
    """The findings as a page."""
    config, cost, apart = found["config"], found["fork_cost"], found["fork_difference"]
    lines = [
        f"{found['device']}, torch {found['torch']}: Llama of {found['parameters'] / 1e6:.1f} M parameters, width "
        f"{config['width']}, {config['layers']} layers, {config['context']} tokens a sequence, {config['precision']}",
        "",
        "| sequences a step | at a time | torch.compile | tokens/s | ms a step | MFU | peak memory | first step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["speeds"]:
        head = f"| {row['batch_size']} | {row['micro_batch_size'] or 'all'} | {'yes' if row['compile'] else 'no'} |"
        if row["problem"]:
            lines.append(f"{head} {row['problem']} | | | | |")
            continue
        mfu = "peak not known" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e9:.1f} GB"
        lines.append(
            f"{head} {row['tokens_per_second']:,.0f} | {1e3 * row['step_seconds']:.1f} | {mfu} | {memory} "
            f"| {row['first_seconds']:.1f} s |"
        )
    step = next((row["step_seconds"] for row in found["speeds"] if row["step_seconds"]), None)
    lines += ["", "| fork of a state | seconds | in steps of the first row |", "|---|---|---|"]
    names = {
        "copy_seconds": f"copy {cost['state_bytes'] / 1e9:.2f} GB on the device",
        "load_seconds": "load the copy back",
        "commit_seconds": "commit to the store on disk, checksum included",
        "read_seconds": "read from the store, checksum included",
    }
    for name, what in names.items():
        lines.append(f"| {what} | {cost[name]:.4f} | {'' if step is None else f'{cost[name] / step:.2f}'} |")
    lines += [
        "",
        f"| {apart['steps']} steps, to loss {apart['select_loss']:.4f} | largest weight difference | of the loss |",
        "|---|---|---|",
    ]
    for name, what in (
        ("repeated", "straight, run twice"),
        ("forked", f"forked at step {apart['cut']} against straight"),
    ):
        weight, loss = apart[f"{name}_weight_difference"], apart[f"{name}_loss_difference"]
        lines.append(f"| {what} | {weight:.2g} | {loss:.2g} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench_gpu.json"))
    parser.add_argument("--minutes", type=float, default=6.0, help="no variant starts after these (default 6)")
    parser.add_argument("--quick", action="store_true", help="two variants, few steps; no number to quote")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    until = time.monotonic() + 60 * given.minutes
    config, device = config_of_scale("gpu"), torch.device("cuda")
    torch.set_num_threads(min(8, os.cpu_count() or 1))
    sizes = {"steps": 2, "rounds": 2, "fork_steps": 12, "fork_cut": 5} if given.quick else {}
    found = measure(config, device, until, VARIANTS[:2] if given.quick else VARIANTS, **sizes)
    print(markdown(found))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
