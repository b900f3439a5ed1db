"""Loss along straight lines between a trunk's checkpoints (arXiv:2410.05192; lines as in arXiv:2507.09846).

Three kinds of line: stable to stable, stable to its own decayed branch, decayed to decayed. In a river valley the
first dips or bulges, the second falls all the way, the third stays low.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch

from sweeps.engine.plan import Trial, make_trial
from sweeps.engine.states import config_from, states
from trainables.common.interpolation import interpolate
from trainables.study import LocalRun, StagedStudy, Tensors

ALPHAS = tuple(step / 10 for step in range(11))


def decay_start(trial: Trial) -> int:
    """The step at which a trial's last decay leaves its stable stretch. Raises ValueError where it has none."""
    last, before = trial.placed[-1], trial.placed[-2] if len(trial.placed) > 1 else None
    if before is None or not last.segment.falling or not before.segment.constant:
        raise ValueError("this trial does not decay from a stable stretch")
    return last.start


def lines(study: StagedStudy, configs: Sequence[dict[str, object]], results: Path) -> pd.DataFrame:
    """Select loss along the lines between the checkpoints of one trunk's branches.

    `configs` are the branches, shortest budget first, as JSON values. Columns: pair, from_step, to_step, alpha, loss
    (nats per token). Raises ValueError for fewer than two branches.
    """
    trials = [make_trial(study, config_from(study, dict(config))) for config in configs]
    if len(trials) < 2 or len({trial.root_key for trial in trials}) > 1:
        raise ValueError("lines between checkpoints need at least two branches of one trunk")
    stable: dict[int, Tensors] = {}
    decayed: dict[int, Tensors] = {}
    for trial in trials:
        start = decay_start(trial)
        found = states(results, trial, [trial.point_at[start].key, trial.key])
        stable[start], decayed[trial.steps] = found[trial.point_at[start].key], found[trial.key]
    rows = []
    state = study.start(trials[0].root, LocalRun())
    pairs = [("stable to stable", a, b, stable[a], stable[b]) for a, b in pairwise(sorted(stable))]
    pairs += [
        ("stable to its decayed", decay_start(trial), trial.steps, stable[decay_start(trial)], decayed[trial.steps])
        for trial in trials
    ]
    pairs += [("decayed to decayed", a, b, decayed[a], decayed[b]) for a, b in pairwise(sorted(decayed))]
    for kind, start, stop, first, second in pairs:
        for alpha in ALPHAS:
            state.load_tensors(between(first, second, alpha))
            loss = study.measure(state, LocalRun(), False)[study.select.name]
            rows.append({"pair": kind, "from_step": start, "to_step": stop, "alpha": alpha, "loss": loss})
    return pd.DataFrame(rows)


def between(first: Tensors, second: Tensors, alpha: float) -> dict[str, torch.Tensor]:
    """A state whose model lies on the line and whose optimizer is that of `first`."""
    model = {name: value for name, value in first.items() if name.startswith("model.")}
    other = {name: second[name] for name in model}
    return {**first, **interpolate(model, other, alpha)}
