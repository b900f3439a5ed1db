"""What the trials of `benign` say about arXiv:2206.00501: claims, statistics and the summary.

Harm is the excess: what the net at the end of training is worse, on clean test samples, than the one that early
stopping would have kept. The net "near the threshold" is the narrowest that fits 90 % of its noisy labels on the tuning
seeds. Errors, raw losses and losses at a fitted temperature have verdicts of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.benign_plots import plot_compute, plot_curves, plot_phase
from analysis.benign_runs import ARM, arms, chosen_arms, fitting_width, share, used, without_cost
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.reading import Reading
from analysis.records import Records, RecordsError

_MAIN = "python sweeps/benign_noise.py"
_PAPER = "arXiv:2206.00501"
_IMAGES = {"model": "mlp", "data": ["fashion_mnist", "digits"], "noise_kind": "symmetric"}
_NOISE = 0.4
MARGINS = {"error": 0.02, "loss": 0.05, "scaled_loss": 0.05}
"""What counts as no harm: errors as a share of samples, losses in nats."""
_NAMES = {"error": "error", "loss": "raw loss", "scaled_loss": "loss at a fitted temperature"}
STUDENTS = ("self_train_hard", "self_train_soft")


def _each(
    id: str,
    text: str,
    source: str,
    statistic: str,
    direction: Any,
    margins: Mapping[str, float],
    condition: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    preset: str = "",
) -> list[Claim]:
    """The same claim about each kind of measure."""
    return [
        Claim(
            id if kind == "error" else f"{id}-{kind.removesuffix('_loss')}",
            f"{text} ({_NAMES[kind]}).",
            f"{_PAPER}, {source} (margin: ours)",
            statistic,
            direction,
            margin,
            "fresh",
            condition,
            {"kind": kind, **(arguments or {})},
            f"{_MAIN}{preset}",
        )
        for kind, margin in margins.items()
    ]


_TWO = {"error": MARGINS["error"], "scaled_loss": MARGINS["scaled_loss"]}
CLAIMS: tuple[Claim, ...] = (
    *_each(
        "B1", "Without noise, training on until the labels are fitted does no harm at any width", "abstract",
        "excess", "less", MARGINS, {**_IMAGES, "noise_rate": 0.0}, {"at": "all"},
    ),
    *_each(
        "B2", "At noise 0.4 the narrowest net that fits its labels is harmed by fitting them", "abstract",
        "excess", "greater", {"error": 0.05, "loss": 0.1, "scaled_loss": 0.1}, {**_IMAGES, "noise_rate": _NOISE},
        {"at": "threshold"},
    ),
    *_each(
        "B3", "The widest net is harmed less than the narrowest that fits", "abstract",
        "widening", "greater", _TWO, {**_IMAGES, "noise_rate": _NOISE},
    ),
    *_each(
        "B4", "The widest net is not harmed at noise 0.4", "abstract",
        "excess", "less", _TWO, {**_IMAGES, "noise_rate": _NOISE}, {"at": "widest"},
    ),
    *_each(
        "B5", "Early stopping on noisy held-out samples takes away more than half of what noise 0.4 costs near the "
        "threshold", "summary of the theory", "removed", "greater", {"error": 0.5, "scaled_loss": 0.5}, _IMAGES,
        {"noise": _NOISE, "repairs": ["early_stop"]},
    ),
    *_each(
        "B6", "Self-training, hard and soft, takes away more than half of what noise 0.4 costs near the threshold",
        "abstract", "removed", "greater", {"error": 0.5, "scaled_loss": 0.5}, _IMAGES,
        {"noise": _NOISE, "repairs": list(STUDENTS)},
    ),
    *_each(
        "B7", "Students trained to the end are no worse than their early-stopped teacher", "abstract; that it is so is "
        "our expectation", "against_early_stop", "less", _TWO, {**_IMAGES, "noise_rate": _NOISE},
        {"repairs": list(STUDENTS)},
    ),
    *_each(
        "B8", "With the labels of one rater each and no noise added, the narrowest net that fits them is harmed",
        "noise that nobody injected; the data are ours", "excess", "greater", {"error": 0.01, "scaled_loss": 0.05},
        {"data": "movie_rater"}, {"at": "threshold"}, " preset=natural",
    ),
    *_each(
        "B9", "The narrowest ResNet that fits its labels is harmed at noise 0.4", "control runs on CIFAR-10",
        "excess", "greater", {"error": 0.05, "scaled_loss": 0.1}, {"model": "resnet", "noise_rate": _NOISE},
        {"at": "threshold"}, " preset=resnet",
    ),
    *_each(
        "B10", "Nets too small to fit their labels are not harmed at noise 0.4", "our expectation",
        "excess", "less", _TWO, {**_IMAGES, "noise_rate": _NOISE, "width": [2, 4]}, {"at": "all"},
        " preset=underfit",
    ),
    *_each(
        "B11", "At noise 0.2, training 16/9 as long does harm", "90 against 160 epochs of ImageNet",
        "longer", "greater", {"error": 0.0, "scaled_loss": 0.0}, {**_IMAGES, "noise_rate": 0.2},
        {"budgets": [900, 1600]}, " preset=budgets",
    ),
    *_each(
        "B12", "Without noise, training 16/9 as long changes nothing", "200 epochs of CIFAR-10",
        "longer", "equal", {"error": 0.01, "scaled_loss": 0.02}, {**_IMAGES, "noise_rate": 0.0},
        {"budgets": [900, 1600]}, " preset=budgets",
    ),
)  # fmt: skip


def excess(evidence: Evidence, kind: str, at: str) -> Observation:
    """report/excess_KIND of unrepaired nets at the largest budget: of all widths, the fitting or the widest one."""
    runs = chosen_arms(evidence)
    return _observed(evidence, runs, at, f"report/excess_{kind}")


def widening(evidence: Evidence, kind: str) -> Observation:
    """Excess of the narrowest net that fits less that of the widest, paired by seed."""
    runs = chosen_arms(evidence)
    both = [_observed(evidence, runs, at, f"report/excess_{kind}") for at in ("threshold", "widest")]
    narrow, wide = (one.parts.set_axis([_setting(part) for part in one.parts], axis=1) for one in both)
    return _joined((narrow - wide).dropna(), both)


def removed(evidence: Evidence, kind: str, noise: float, repairs: Sequence[str]) -> Observation:
    """(none - repair) / (none - none without noise) near the threshold, at the largest budget; paired by seed.

    Unfit where noise costs nothing on a seed: a share of that says nothing.
    """
    runs = chosen_arms(evidence)
    noisy, calm = runs[runs["noise"] == noise], runs[runs["noise"] == 0.0]
    if noisy.empty or calm.empty:
        raise RecordsError(f"trials at noise {noise:g} and without noise")
    return _by_repair(evidence, noisy, kind, repairs, calm)


def against_early_stop(evidence: Evidence, kind: str, repairs: Sequence[str]) -> Observation:
    """KIND of each repair less that of early stopping, near the threshold at the largest budget; paired by seed."""
    return _by_repair(evidence, chosen_arms(evidence), kind, repairs, None)


def longer(evidence: Evidence, kind: str, budgets: Sequence[int]) -> Observation:
    """KIND of unrepaired nets at the second budget less that at the first, by setting and width; paired by seed."""
    runs = chosen_arms(evidence, every_budget=True)
    runs = runs[(runs["repair"] == "none") & runs["budget"].isin(budgets)]
    runs = runs.assign(part=runs["setting"] + ", width " + runs["width"].astype(str))
    table = runs.pivot_table(index="seed", columns=["part", "budget"], values=f"report/{kind}")
    parts = {
        str(part): table[part][budgets[1]] - table[part][budgets[0]]
        for part in table.columns.get_level_values("part").unique()
        if set(budgets) <= set(table[part].columns)
    }
    if not parts:
        raise RecordsError(f"no net was trained for {budgets[0]} and for {budgets[1]} steps")
    return used(evidence, runs, pd.DataFrame(parts).dropna())


def _observed(evidence: Evidence, runs: pd.DataFrame, at: str, column: str) -> Observation:
    rows = _at(evidence, runs[runs["repair"] == "none"], at)
    rows = rows.assign(part=rows["setting"] + ", width " + rows["width"].astype(str))
    return used(evidence, rows, rows.pivot_table(index="seed", columns="part", values=column).dropna())


def _at(evidence: Evidence, rows: pd.DataFrame, at: str) -> pd.DataFrame:
    """The rows of one width of each setting, or all."""
    if rows.empty:
        raise RecordsError("no unrepaired net has ended on fresh seeds")
    if at == "all":
        return rows
    frame = arms(evidence.frame)
    kept = []
    for setting, same in rows.groupby("setting", sort=False):
        width = same["width"].max() if at == "widest" else fitting_width(evidence.records, frame, str(setting), same)
        kept.append(same[same["width"] == width])
    return pd.concat(kept)


def _by_repair(
    evidence: Evidence, rows: pd.DataFrame, kind: str, repairs: Sequence[str], calm: pd.DataFrame | None
) -> Observation:
    """One part per setting and repair: the share of the noise's cost taken away, or the distance to early stopping."""
    column, among, flat = f"report/{kind}", [], list[str]()
    parts: dict[str, pd.Series] = {}
    frame = arms(evidence.frame)
    for setting, same in rows.groupby("setting", sort=False):
        width = fitting_width(evidence.records, frame, str(setting), same[same["repair"] == "none"])
        near = same[same["width"] == width]
        by_repair = near.pivot_table(index="seed", columns="repair", values=column)
        missing = [name for name in ("none", "early_stop", *repairs) if name not in by_repair]
        if missing:
            raise RecordsError(f"{setting}: no trial of {', '.join(missing)} has ended on fresh seeds")
        among.append(near)
        if calm is None:
            parts |= {f"{setting}, {repair}": by_repair[repair] - by_repair["early_stop"] for repair in repairs}
            continue
        without = calm[(calm["setting"] == setting) & (calm["width"] == width) & (calm["repair"] == "none")]
        cost = by_repair["none"] - without.set_index("seed")[column]
        flat.append(without_cost(f"{setting}, width {width}, {kind} with noise less that without", cost))
        for repair in repairs:
            parts[f"{setting}, {repair}"] = share(by_repair["none"] - by_repair[repair], cost)
        among.append(without)
    seen = used(evidence, pd.concat(among), pd.DataFrame(parts).dropna())
    return replace(seen, unfit="; ".join(filter(None, [seen.unfit, *flat])))


def _setting(part: object) -> str:
    return str(part).rpartition(", width ")[0]


def _joined(parts: pd.DataFrame, seen: Sequence[Observation]) -> Observation:
    edges = tuple(dict.fromkeys(edge for one in seen for edge in one.edges))
    unfit = "; ".join(dict.fromkeys(one.unfit for one in seen if one.unfit))
    return Observation(parts, edges=edges, unfit=unfit)


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function for function in (excess, widening, removed, against_early_stop, longer)
}


def summary(records: Records) -> pd.DataFrame:
    """A row per setting, width, noise rate, repair and budget: means over the seeds of the chosen config."""
    rows = chosen_arms(Evidence.of(records, chosen=False), every_budget=True, tuned_as_well=True)
    shown = {
        "fits": 1 - rows["train/noisy_error"],
        "memorised": rows["train/memorised"],
        "held-out": rows["select/error"],
        "error": rows["report/error"],
        "early": rows["report/early_error"],
        "excess": rows["report/excess_error"],
        "excess, raw loss": rows["report/excess_loss"],
        "excess, scaled loss": rows["report/excess_scaled_loss"],
    }
    table = rows[[*ARM, "seed"]].assign(**shown).groupby(list(ARM), sort=True)
    means = table[list(shown)].mean().reset_index()
    means.insert(len(ARM), "seeds", table["seed"].nunique().to_numpy())
    return means.drop(columns="setting") if means["setting"].nunique() == 1 else means


READING = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures={"phase": plot_phase, "curves": plot_curves, "compute": plot_compute},
    summary=summary,
)
