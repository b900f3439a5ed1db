"""What the trials of `masked_lm` say: is an encoder trained on masked words better than one that sees no context, and
does the decay of the learning rate do for it what arXiv:2410.05192 says of causal models?

Nothing is tuned in the default preset, so that every seed may decide. Differences are paired by seed and peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import wsd_claims
from analysis.choice import trial_frame
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.plots import log_x, side_by_side, style, styled
from analysis.reading import Reading
from analysis.records import Records, RecordsError

_MAIN = "python sweeps/masked_lm.py"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "M1", "Its loss is below that of a model that knows the shares of words and sees no context, at every budget.",
        "ours (the object is arXiv:1810.04805's)", "final_difference", "less", 0.0, "any", {"method": "wsd"},
        {"column": "report/loss", "reference": "report/unigram_loss"}, _MAIN,
    ),
    Claim(
        "M2", "It fills in more masked words right than by always naming the commonest, at every budget.",
        "ours (the object is arXiv:1810.04805's)", "final_difference", "greater", 0.0, "any", {"method": "wsd"},
        {"column": "report/accuracy", "reference": "report/unigram_accuracy"}, _MAIN,
    ),
    Claim(
        "M3", "With the decay it ends below the constant rate, at every budget.",
        "arXiv:2410.05192, abstract, on causal models (that it holds for masked words is ours)", "decay_gain", "less",
        0.0, "any", command=_MAIN,
    ),
    Claim(
        "M4", "The loss falls more than twice as far during the decay as over the equally long stretch before it.",
        "arXiv:2410.05192, abstract, on causal models (the factor two is ours)", "decay_drop_excess", "greater", 0.0,
        "any", {"method": "wsd", "decay_fraction": 0.2}, {"factor": 2.0}, _MAIN,
    ),
)  # fmt: skip


def final_difference(evidence: Evidence, column: str, reference: str) -> Observation:
    """Final value of a column minus that of another of the same trial; per seed and budget."""
    frame = _complete(evidence.frame)
    return _by_budget(evidence, frame.assign(value=frame[column] - frame[reference]))


def decay_gain(evidence: Evidence) -> Observation:
    """Final report loss of wsd minus that of the constant rate of the same config but for the decay; nats per token."""
    frame = _complete(evidence.frame)
    same = ["seed", "budget_steps", *(name for name in _settings(frame) if name not in _DECAY)]
    wsd, constant = (frame[frame["config.method"] == method] for method in ("wsd", "constant"))
    both = wsd.merge(constant[[*same, "report/loss"]], on=same, suffixes=("", " constant"))
    if both.empty:
        return Observation(pd.DataFrame(), missing="seeds with method=wsd and method=constant at one budget and peak")
    return _by_budget(evidence, both.assign(value=both["report/loss"] - both["report/loss constant"]))


def decay_drop_excess(evidence: Evidence, factor: float) -> Observation:
    """As `wsd_claims.decay_drop_excess`, where no run of the largest budget was lost."""
    seen, frame = wsd_claims.decay_drop_excess(evidence, factor), evidence.frame
    return replace(seen, unfit=_lost(frame[frame["budget_steps"] == frame["budget_steps"].max()]))


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function for function in (final_difference, decay_gain, decay_drop_excess)
}

_SETTINGS = {"config.peak_lr": "peak", "config.decay_fraction": "fraction"}
_DECAY = ("config.min_lr_ratio", "config.decay_fraction", "config.decay_shape")  # what method=wsd alone reads


def _settings(frame: pd.DataFrame) -> list[str]:
    """The columns of config fields that tell runs of one method, budget and seed apart."""
    away = ("config.method", "config.budget_steps", "config.seed")
    return [str(name) for name in frame if str(name).startswith("config.") and name not in away]


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["status"] == "complete"]


def _lost(frame: pd.DataFrame) -> str:
    """Why what completed cannot decide, where something did not."""
    lost = int((frame["status"] != "complete").sum())
    return f"{lost} trials did not complete: what is left may be the better ones" if lost else ""


def _by_budget(evidence: Evidence, rows: pd.DataFrame) -> Observation:
    """One part per budget, and per setting where these vary; one row per seed that has all of them."""
    if rows.empty:
        return Observation(pd.DataFrame(), missing="completed trials of this kind")
    varying = [name for name in _settings(rows) if rows[name].nunique() > 1]
    parts = []
    for _, row in rows.iterrows():
        values = {_SETTINGS.get(name, name.removeprefix("config.")): row[name] for name in varying}
        words = [f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in values.items()]
        parts.append(", ".join([f"budget {row['budget_steps']}", *words]))
    named = rows.assign(part=parts)
    twice = named[named.duplicated(["seed", "part"])]
    if len(twice):
        raise RecordsError(
            f"several trials are {twice['part'].iloc[0]} of seed {twice['seed'].iloc[0]}, and no setting tells them "
            "apart (another corpus file or version of torch?); keep the sweeps in folders of their own"
        )
    without = sorted(set(evidence.frame["budget_steps"]) - set(rows["budget_steps"]))
    unfit = [_lost(evidence.frame), f"nothing to compare at budget {', '.join(map(str, without))}" if without else ""]
    table = named.pivot(index="seed", columns="part", values="value").dropna()
    return Observation(table, unfit="; ".join(filter(None, unfit)))


def summary(records: Records) -> pd.DataFrame:
    """A row per method, peak, fraction and budget: means over seeds at the end, beside what needs no context."""
    done = _complete(trial_frame(records))
    if done.empty:
        raise RecordsError("no trial completed, so there is nothing to sum up; see the errors in the trials table")
    by = ["config.method", *_SETTINGS, "budget_steps"]
    shown = ["select/loss", "report/loss", "report/unigram_loss", "report/accuracy", "report/unigram_accuracy"]
    same = done.groupby(by)
    table = same[shown].mean().assign(seeds=same["seed"].nunique(), tokens=same["budget_tokens"].mean()).reset_index()
    table = table.rename(columns=lambda name: str(name).removeprefix("config."))
    return table.drop(columns=[name for name in ("peak_lr", "decay_fraction") if table[name].nunique() < 2])


# Figures


@styled
def plot_budgets(records: Records) -> Figure:
    """Loss and accuracy on masked words of held-out documents against the budget; bars from the lowest to the highest
    seed, dotted what needs no context."""
    done = _complete(trial_frame(records))
    if done.empty:
        raise RecordsError("no trial completed")
    figure, (left, right) = side_by_side(2, width=3.7, height=3.4)
    _against_budget(left, done, "report/loss", "report/unigram_loss", "nats per masked token")
    _against_budget(right, done, "report/accuracy", "report/unigram_accuracy", "share filled in right")
    left.legend(loc="best", fontsize=7)
    return figure


def _against_budget(axes: Axes, done: pd.DataFrame, column: str, reference: str, label: str) -> None:
    for place, (method, same) in enumerate(done.groupby("config.method")):
        # of several peaks and fractions the best ones on the select split
        settings = same.groupby(["budget_steps", *_SETTINGS])["select/loss"].mean()
        best = [settings[budget].idxmin() for budget in sorted(set(same["budget_steps"]))]
        chosen = same.set_index(["budget_steps", *_SETTINGS]).sort_index()
        budgets = sorted(set(same["budget_steps"]))
        values = [np.atleast_1d(chosen.loc[(budget, *at), column]) for budget, at in zip(budgets, best, strict=True)]
        name, colour, marker, dashes = style((str(method),), place)
        middle = np.array([seeds.mean() for seeds in values])
        ends = [[mean - seeds.min(), seeds.max() - mean] for mean, seeds in zip(middle, values, strict=True)]
        axes.errorbar(
            budgets, middle, np.transpose(ends), color=colour, marker=marker, linestyle=dashes, label=name, capsize=2
        )
    level = done[reference].mean()
    axes.axhline(level, color="#22223b", linestyle=":", linewidth=1, label="shares of words, no context")
    log_x(axes, sorted(set(done["budget_steps"])))
    axes.set_xlabel("budget (steps)")
    axes.set_ylabel(label)


@styled
def plot_pretraining(records: Records) -> Figure:
    """Select loss of one seed along pre-training: the trunk, and the decay of each budget that leaves it."""
    done = _complete(trial_frame(records))
    done = done[(done["config.method"] == "wsd") & (done["seed"] == done["seed"].min())]
    if done.empty:
        raise RecordsError("there are no completed trials of method=wsd")
    wanted = ["trial", "budget_steps", "config.decay_fraction"]
    peak = done["config.peak_lr"].min()
    fraction = done.loc[done["config.peak_lr"] == peak, "config.decay_fraction"].min()
    done = done[(done["config.peak_lr"] == peak) & (done["config.decay_fraction"] == fraction)]
    rows = records.to_pandas("measurements").drop_duplicates(["trial", "step"]).merge(done[wanted], on="trial")
    figure, (axes,) = side_by_side(1, width=5.6, height=3.6)
    for place, (budget, curve) in enumerate(rows.sort_values("step").groupby("budget_steps")):
        fork = curve["step"].max() - round(fraction * curve["step"].max())
        _, colour, marker, _ = style((f"budget {budget}",), place)
        trunk, decay = curve[curve["step"] <= fork], curve[curve["step"] >= fork]
        axes.plot(trunk["step"], trunk["select/loss"], color="#8d99ae", linewidth=1.2, zorder=1)
        axes.plot(decay["step"], decay["select/loss"], color=colour, label=f"decay to {budget} steps")
        axes.plot(decay["step"].iloc[-1], decay["select/loss"].iloc[-1], marker, color=colour)
    axes.set_xlabel("step")
    axes.set_ylabel("select loss (nats per masked token)")
    axes.legend(loc="best")
    return figure


READING = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures={"budgets": plot_budgets, "pretraining": plot_pretraining},
    summary=summary,
    one_regime=True,
)
