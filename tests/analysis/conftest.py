"""Synthetic sweeps with a known ground truth, written as the engine writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.opening import open_records
from analysis.records import Records

TOKENS_PER_STEP = 512
PARAMETERS = 140_000
OFFSETS = {"cosine": 0.0, "wsd": -0.02, "wsd_s": -0.018, "cyclic_cosine": 0.03}  # nats, against cosine


def best_peak(budget: int) -> float:
    """The true best peak learning rate: falls as budget ** -0.5."""
    return 3e-3 * (budget / 1000) ** -0.5


def true_loss(method: str, peak: float, budget: int, fraction: float = 0.1, shape: str = "linear") -> float:
    """Loss after the decay, without seed noise, nats per token."""
    river = 1.5 + 12 * budget**-0.4 + 0.03 * np.log(peak / best_peak(budget)) ** 2
    decay = 0.004 / max(fraction, 1e-9) ** 0.8 if method.startswith("wsd") else 0.0
    decay -= 0.004 / 0.1**0.8 if method.startswith("wsd") else 0.0
    return float(river + OFFSETS[method] + decay + {"linear": 0.0, "one_minus_sqrt": -0.005}.get(shape, 0.002))


def hill(peak: float) -> float:
    """Height of the stable phase above the decayed loss, nats per token."""
    return 0.05 + 30 * peak


def family_steps(method: str, budgets: list[int], fraction: float) -> int:
    decays = [max(1, round(fraction * b)) for b in budgets]
    if method == "cosine":
        return sum(budgets)
    return budgets[-1] + (sum(decays[:-1]) if method == "wsd" else 0)


def key_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass
class Sweep:
    """Rows of the three tables, before they are written."""

    trials: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("trials", "measurements", "ledger"):
            rows = getattr(self, name)
            columns = {c: [row.get(c) for row in rows] for c in dict.fromkeys(c for row in rows for c in row)}
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        (folder / "sweep.json").write_text(json.dumps(self.spec))
        return folder


@dataclass
class Maker:
    """`maker.sweep(...)` gives rows to be changed, `maker.records(...)` writes and opens them."""

    folder: Path

    def sweep(
        self,
        methods: tuple[str, ...] = ("cosine", "wsd", "wsd_s", "cyclic_cosine"),
        peaks: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        budgets: tuple[int, ...] = (500, 1000, 2000),
        fractions: tuple[float, ...] = (0.1,),
        shapes: tuple[str, ...] = ("linear",),
        tuning: tuple[int, ...] = (0, 1),
        fresh: tuple[int, ...] = (100, 101, 102, 103),
        noise: float = 2e-3,
        name: str = "sweep0",
        documents: int = 16,
        measured: int = 10,
    ) -> Sweep:
        made = Sweep(spec=_spec(name, tuning, fresh))
        budgets_list = list(budgets)
        for method in methods:
            branches = [(f, s) for f in fractions for s in shapes] if method == "wsd" else [(0.1, "linear")]
            for at, budget in enumerate(budgets_list):
                best = min(
                    ((p, f, s) for p in peaks for f, s in branches),
                    key=lambda c: true_loss(method, c[0], budget, *c[1:]),
                )
                for proposal, peak in enumerate(peaks):
                    for fraction, shape in branches:
                        one = (method, peak, budgets_list[: at + 1], fraction, shape, proposal)
                        for seed in tuning:
                            _add_trial(made, name, "tune", *one, seed, noise, documents, measured)
                        for seed in fresh if (peak, fraction, shape) == best else ():
                            _add_trial(made, name, "confirm", *one, seed, noise, documents, measured)
        return made

    def records(self, **options: Any) -> Records:
        return self.open(self.sweep(**options))

    def open(self, *sweeps: Sweep) -> Records:
        return open_records(self.write(*sweeps))

    def write(self, *sweeps: Sweep) -> Path:
        for at, sweep in enumerate(sweeps):
            sweep.write(self.folder / "sweeps" / f"s{at}")
        return self.folder


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "results")


@pytest.fixture
def make_records(maker: Maker) -> Callable[..., Records]:
    return maker.records


def _spec(name: str, tuning: tuple[int, ...], fresh: tuple[int, ...]) -> dict[str, Any]:
    return {
        "sweep": name,
        "study": "wsd",
        "paper": "2410.05192",
        "scale": "tiny",
        "preset": "synthetic",
        "select": {"name": "select/loss", "goal": "min"},
        "report": {"name": "report/loss", "goal": "min"},
        "conditions": [],
        "tuning_seeds": list(tuning),
        "fresh_seeds": list(fresh),
    }


def _noise(*parts: Any) -> np.random.Generator:
    return np.random.default_rng(int(key_of(*parts)[:15], 16))


def _add_trial(
    made: Sweep, name: str, phase: str, method: str, peak: float, budgets: list[int], fraction: float, shape: str,
    proposal: int, seed: int, noise: float, documents: int, measured: int,
) -> None:  # fmt: skip
    budget = budgets[-1]
    config: dict[str, Any] = {
        "method": method, "budget_steps": budget, "peak_lr": peak, "decay_fraction": fraction, "decay_shape": shape,
        "min_lr_ratio": 0.1, "warmup_steps": 50, "seed": seed,
    }  # fmt: skip
    if method in ("wsd_s", "cyclic_cosine"):
        config["earlier_budgets"] = budgets[:-1]
    key = key_of(config)
    shared, own = _noise("root", seed).normal() * 5 * noise, _noise("trial", config).normal() * noise
    select = true_loss(method, peak, budget, fraction, shape) + shared + own
    report = select + _noise("report", config).normal() * noise / 2
    family = family_steps(method, budgets, fraction)
    before = family_steps(method, budgets[:-1], fraction) if budgets[:-1] else 0
    steps = {"nominal": budget, "family": family, "marginal": family - before}
    flops = 6.0 * PARAMETERS * TOKENS_PER_STEP
    per_document = (
        report + _noise("documents").normal(size=documents) + _noise("d", config).normal(size=documents) * noise
    )
    made.trials.append(
        {
            "sweep": name, "study": "wsd", "trial": key[:12], "key": key, "phase": phase, "cell": f"method={method}",
            "name": f"{method} lr={peak:g} B={budget} f={fraction:g} s{seed}", "proposal": proposal,
            "status": "complete", "error": None, "config": json.dumps(config),
            **{f"config.{k}": v for k, v in config.items() if not isinstance(v, list)},
            "root": key_of("root", seed)[:16], "seed": seed, "scale": "tiny", "parameters": PARAMETERS,
            "budget_steps": budget, "budget_tokens": budget * TOKENS_PER_STEP, "tokens_per_step": TOKENS_PER_STEP,
            "select/loss": select, "report/loss": report, "report/bits_per_byte": report / np.log(2),
            "report/document_losses": per_document.astype(np.float32).tolist(),
            **{f"steps_{k}": v for k, v in steps.items()},
            **{f"tokens_{k}": v * TOKENS_PER_STEP for k, v in steps.items()},
            **{f"flops_{k}": v * flops for k, v in steps.items()},
            "device_seconds_alone": None, "data_sha": "d" * 64, "git_commit": "c0ffee", "torch_version": "2",
            "device": "cpu", "varying": ["method", "peak_lr", "budget_steps", "seed"],
        }
    )  # fmt: skip
    _add_curve(made, name, config, key, select, report, measured, budgets)


def _add_curve(
    made: Sweep,
    name: str,
    config: dict[str, Any],
    key: str,
    select: float,
    report: float,
    measured: int,
    budgets: list[int],
) -> None:
    """A curve that falls as 12 step ** -0.4, a hill above it while the rate is high; the fork is always measured."""
    budget, peak, method = config["budget_steps"], config["peak_lr"], config["method"]
    decay = max(1, round(config["decay_fraction"] * budget)) if method.startswith("wsd") else 0
    fork = budget - decay
    grid = {round(budget * i / measured) for i in range(1, measured)} | {fork, fork - decay, budget} - {0}
    wsd = method.startswith("wsd")
    for step in sorted(s for s in grid if s > 0):
        progress = max(0.0, (step - fork) / decay) if decay else step / budget
        height = hill(peak) * (1 - progress)
        river = 12 * (step**-0.4 - budget**-0.4)
        phase = ("decay" if step > fork else "warmup" if step <= 50 else "stable") if wsd else "cosine"
        rate = peak * (1 - 0.9 * progress) if wsd else peak * (0.55 + 0.45 * np.cos(np.pi * progress))
        state = {k: v for k, v in config.items() if k not in ("budget_steps", "decay_fraction", "decay_shape")}
        trunk = method == "wsd" and step <= fork
        at_end = step == budget
        state_key = key if at_end else key_of(state, step) if trunk else key_of(config, step)
        made.measurements.append(
            {
                "sweep": name, "trial": key[:12], "step": step, "tokens": step * TOKENS_PER_STEP, "lr": float(rate),
                "phase_of_schedule": phase, "key": state_key, "shared": trunk, "full": step in (fork, budget),
                "train/loss": select + river + height, "select/loss": select + (0 if at_end else river + height),
                "report/loss": report + (0 if at_end else river + height) if step in (fork, budget) else None,
            }
        )  # fmt: skip
    earlier = budgets[-2] if len(budgets) > 1 else 0
    last_fork = earlier - max(1, round(config["decay_fraction"] * earlier)) if earlier else 0
    stages = [(key, budget, {"wsd": decay, "cosine": budget}.get(method, budget - earlier))]
    if method == "wsd":
        trunk_state = {k: v for k, v in config.items() if k not in ("budget_steps", "decay_fraction", "decay_shape")}
        stages.append((key_of(trunk_state, fork), fork, fork - last_fork))
    known = {row["stage"]: row for row in made.ledger}
    for stage, to_step, executed in stages:
        if stage in known:
            continue
        made.ledger.append(
            {
                "sweep": name, "stage": stage, "root": key_of("root", config["seed"])[:16],
                "from_step": to_step - executed,
                "to_step": to_step, "executed_steps": executed, "train_seconds": executed * 0.01,
                "evaluation_seconds": 0.1, "checkpoint_seconds": 0.01, "startup_seconds": 0.0, "device": "cpu",
                "job": "job", "started_at": "2026-01-01T00:00:00", "status": "complete",
            }
        )  # fmt: skip
