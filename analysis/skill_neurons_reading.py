"""What the trials of `skill_neurons` say about arXiv:2211.07349: claims, statistics, figures and the summary.

Nothing is tuned but in preset=tune, so that every seed may decide. Settings were developed on task=movie; what is
claimed of neurons is claimed of other tasks. Each statistic gives one number per seed and arm.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis import skill_neurons_plots as plots
from analysis import skill_neurons_runs as runs
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.reading import Reading
from analysis.records import Records, RecordsError

_MAIN = "python sweeps/skill_neurons.py"
_PAPER = "arXiv:2211.07349"
OTHER_TASKS = ["amazon", "nyt", "tweets"]
_NOISE = {"encoder": "minilm", "readout": "mean", "action": "perturb", "kind": "noise_sigma", "size": 1.0}
_DECIDE = {**_NOISE, "task": OTHER_TASKS, "tuning": "prompt"}


def _costs_more(id: str, tuning: str, control: str, text: str, condition: Mapping[str, object], preset: str) -> Claim:
    column = "report/separation" + ("_matched" if control == "matched" else "")
    return Claim(
        id, f"{text} costs more accuracy than perturbing as many {control} ones of the same layers.",
        f"{_PAPER}, on perturbed neurons (encoder, tasks, noise and control: ours)", "value", "greater", 0.0, "any",
        {**condition, "tuning": tuning}, {"column": column}, f"{_MAIN} preset={preset}",
    )  # fmt: skip


_MOVIE = {**_NOISE, "task": "movie"}
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "K1", "Prompt tuning gains more than 5 points of accuracy over the encoder without a prompt.",
        "prompt tuning (margin: ours)", "difference", "greater", 0.05, "any", {**_MOVIE, "tuning": "prompt"},
        {"one": "report/accuracy", "other": "report/zero_shot_accuracy"}, _MAIN,
    ),
    Claim(
        "K2", "The ten neurons that dev texts choose tell the class of other texts, by more than 5 points above the "
        "same choice under shuffled labels.", f"{_PAPER}, on predictivity (null and margin: ours)", "difference",
        "greater", 0.05, "any", _DECIDE, {"one": "report/top_test", "other": "report/null_top_test"},
        f"{_MAIN} preset=decide",
    ),
    _costs_more("K3", "prompt", "random", "Perturbing skill neurons", _DECIDE, "decide"),
    _costs_more("K4", "prompt", "matched", "Perturbing skill neurons", _DECIDE, "decide"),
    Claim(
        "K5", "Neurons rank more alike within a task than between two tasks, by more than 0.1 in Spearman's "
        "correlation of equally many texts.", f"{_PAPER}, on task specificity (ceiling and margin: ours)",
        "task_specificity", "greater", 0.1, "any", {"encoder": "minilm", "readout": "mean", "action": "probe"},
        command=f"{_MAIN} preset=specificity",
    ),
    _costs_more("K6", "bitfit", "random", "After BitFit, perturbing the neurons that prompts found", _MOVIE, "bitfit"),
    _costs_more("K7", "adapter", "random", "After adapters, perturbing the neurons that prompts found", _MOVIE,
                "bitfit"),
    Claim(
        "K8", "The ten neurons' accuracy on other texts is more than 5 points higher in the pre-trained encoder than "
        "in the same at random initialisation.", f"{_PAPER}, on the origin in pre-training (margin: ours)",
        "gain_over_random", "greater", 0.05, "any", {"action": "perturb", "kind": "noise_sigma", "tuning": "prompt"},
        {"column": "report/top_test"}, f"{_MAIN} preset=origin",
    ),
    Claim(
        "K9", "With a fifth of the neurons of each layer, the most predictive, and the prompt trained again, accuracy "
        "falls by less than 5 points.", f"{_PAPER}, on pruning (sizes and margin: ours)", "value", "less", 0.05, "any",
        {"task": "movie", "encoder": "minilm", "readout": "mean", "action": "prune", "keep_fraction": 0.2},
        {"column": "cost of pruning"}, f"{_MAIN} preset=prune",
    ),
    Claim(
        "K10", "The same cut makes evaluation more than 1.2 times as fast, in CPU seconds.",
        f"{_PAPER}, on pruning (sizes and margin: ours)", "value", "greater", 1.2, "any",
        {"task": "movie", "encoder": "minilm", "readout": "mean", "action": "prune", "keep_fraction": 0.2},
        {"column": "report/cpu_speed_up"}, f"{_MAIN} preset=prune",
    ),
)  # fmt: skip


def value(evidence: Evidence, column: str) -> Observation:
    """A column at the end of each trial, by seed and arm."""
    rows = runs.of_evidence(evidence, "report/accuracy")
    if column == runs.PRUNING_COST:
        rows = runs.with_pruning_cost(evidence.records, rows)
    if column not in rows or rows[column].isna().all():
        raise RecordsError(f"no trial has {column}")
    return _observed(evidence, runs.by_arm(rows, rows[column]))


def difference(evidence: Evidence, one: str, other: str) -> Observation:
    """One column less another, by seed and arm."""
    rows = runs.of_evidence(evidence, one, other)
    return _observed(evidence, runs.by_arm(rows, rows[one] - rows[other]))


def task_specificity(evidence: Evidence) -> Observation:
    """Correlation within tasks less that between them, mean over the pairs of tasks; by seed."""
    found = runs.likenesses(runs.of_evidence(evidence))
    gaps = pd.Series([pair.gap for pair in found]).groupby([pair.seed for pair in found]).mean()
    return _observed(evidence, pd.DataFrame({"mean of all pairs": gaps}))


def gain_over_random(evidence: Evidence, column: str) -> Observation:
    """A column of the pre-trained encoder less that of the same encoder at random initialisation, by seed and task."""
    rows = runs.of_evidence(evidence, column)
    return _observed(evidence, runs.paired(rows, "encoder", "minilm", "random:minilm", column))


def _observed(evidence: Evidence, parts: pd.DataFrame) -> Observation:
    """Lost trials forbid a decision: what is left may be what did well. Others are still to come."""
    status = evidence.frame["status"]
    lost, waiting = int(status.isin(("diverged", "failed")).sum()), int(status.isin(("pruned", "pending")).sum())
    return Observation(
        parts.dropna(),
        exploratory=f"{waiting} trials have not ended, and are left out" if waiting else "",
        unfit=f"{lost} trials diverged or failed, so that the others are a choice" if lost else "",
    )


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function for function in (value, difference, task_specificity, gain_over_random)
}

_SHOWN = {
    "accuracy": "report/accuracy", "zero-shot": "report/zero_shot_accuracy", "best ten, dev": "report/top_dev",
    "on test": "report/top_test", "shuffled, dev": "report/null_top_dev", "shuffled, test": "report/null_top_test",
    "drop skill": "report/drop_skill", "random": "report/drop_random", "matched": "report/drop_matched",
    "rise skill": "report/rise_skill", "rise random": "report/rise_random", "rise matched": "report/rise_matched",
    "push skill": "report/push_skill", "push random": "report/push_random", "push matched": "report/push_matched",
    "cost of pruning": runs.PRUNING_COST, "parameters": "report/parameters_kept", "speed-up": "report/cpu_speed_up",
}  # fmt: skip


def summary(records: Records) -> pd.DataFrame:
    """A row per arm, means over seeds. Drops are of accuracy, rises of loss in nats, on report texts."""
    frame = runs.with_pruning_cost(records, runs.runs(records))
    found = []
    for arm, rows in frame.groupby("arm", sort=False):
        means = {name: rows[column].mean() for name, column in _SHOWN.items() if column in rows}
        found.append({"arm": arm, "seeds": rows["seed"].nunique(), **means})
    return pd.DataFrame(found).dropna(axis=1, how="all").round(4)


READING = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures={
        "predictivity": plots.plot_predictivity,
        "drops": plots.plot_drops,
        "tasks": plots.plot_tasks,
        "pruning": plots.plot_pruning,
    },
    summary=summary,
)
