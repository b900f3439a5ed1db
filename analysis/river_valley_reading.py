"""How the river-valley sweeps are read: where WSD beats a cosine, what its decay removes, how fast the river is.

The valley is our own toy after the picture of arXiv:2410.05192; the paper's own toy settings were not at hand, so its
claims are tested in kind and every margin is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import schedule_maps
from analysis.choice import trial_frame
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.paired_schedules import (
    PEAK,
    decay_gain_share,
    equal_peak_difference,
    equal_peak_differences,
    summary_table,
    tuned_difference,
    tuned_differences,
)
from analysis.reading import Reading
from analysis.records import Records

_MAIN = "python sweeps/river_valley.py"
_PAPER = "arXiv:2410.05192, abstract"
_OURS = "ours, for the toy"
LOWEST_NOISE, MIDDLE_NOISE, HIGHEST_NOISE = 0.25, 1.0, 4.0  # that the default preset and the regime map both have
SHORTEST, LONGEST = 500, 8000
CALM = 0.5  # peak times curvature: below it the hill is close to its value on a straight floor
STABLE = 1.0  # the winding floor is at most twice as steep as k, so below this no step overshoots

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "V1", "At the end of the stable stretch the hill grows with the rate: exponent above 0.5.",
        _PAPER + " (a high rate oscillates more; the exponent is ours)", "hill_exponent", "greater", 0.5, "any",
        {"method": "wsd", "noise": MIDDLE_NOISE}, command=_MAIN,
    ),
    Claim(
        "V2", "What the decay takes off is the hill: more than 80 % of it, at the best peak.",
        _PAPER + " (decay removes the oscillation; the share is ours)", "decay_gain_share", "greater", 0.8, "fresh",
        {"noise": MIDDLE_NOISE}, {"of": "hill", "method": "wsd"}, _MAIN,
    ),
    Claim(
        "V3", "At low rates the progress along the river grows with the rate (loss per factor e of peak).",
        _PAPER + " (a high rate makes faster progress)", "river_slope", "greater", 0.0, "any",
        {"method": "wsd", "noise": MIDDLE_NOISE}, command=_MAIN,
    ),
    Claim(
        "V4", "The river has a fastest rate: after many bends, the highest peak is less far down than the fastest one.",
        _OURS, "river_beyond_fastest", "greater", 0.0, "any",
        {"method": "wsd", "noise": LOWEST_NOISE, "budget_steps": LONGEST}, command=_MAIN,
    ),
    Claim(
        "V5", "River-limited (long budget, little noise): at equal stable peaks WSD reaches a lower loss than cosine.",
        _OURS, "difference_at_stable_peaks", "less", 0.0, "any",
        {"noise": LOWEST_NOISE, "budget_steps": LONGEST}, {"method": "wsd", "reference": "cosine"}, _MAIN,
    ),
    Claim(
        "V6", "Noise-limited (short budget, much noise): at equal stable peaks cosine reaches a lower loss than WSD.",
        _OURS, "difference_at_stable_peaks", "greater", 0.0, "any",
        {"noise": HIGHEST_NOISE, "budget_steps": SHORTEST}, {"method": "wsd", "reference": "cosine"}, _MAIN,
    ),
    Claim(
        "V7", "River-limited, each at its best peak: WSD reaches a lower loss than cosine.",
        _OURS, "tuned_difference", "less", 0.0, "fresh",
        {"noise": LOWEST_NOISE, "budget_steps": LONGEST}, {"method": "wsd", "reference": "cosine"}, _MAIN,
    ),
    Claim(
        "V8", "WSD-S reaches a lower loss than WSD at equal compute of the family, at every budget after the first.",
        _PAPER, "tuned_difference", "less", 0.0, "fresh",
        {"noise": MIDDLE_NOISE}, {"method": "wsd_s", "reference": "wsd", "later": True}, _MAIN,
    ),
    Claim(
        "V9", "WSD-S reaches a lower loss than cyclic cosine at every budget after the first.",
        _PAPER, "tuned_difference", "less", 0.0, "fresh",
        {"noise": MIDDLE_NOISE}, {"method": "wsd_s", "reference": "cyclic_cosine", "later": True}, _MAIN,
    ),
)  # fmt: skip


def hill_exponent(evidence: Evidence) -> Observation:
    """Exponent a of hill ~ peak ** a at the end of the stable stretch, at calm peaks; seed by seed, per budget."""
    frame = evidence.frame
    if "report/hill_before_decay" not in frame:
        return Observation(pd.DataFrame(), missing="wsd trials")
    return _slope_on_log_peak(frame.assign(value=np.log(frame["report/hill_before_decay"].astype(float))))


def river_slope(evidence: Evidence) -> Observation:
    """Slope of the progress along the river, -river, on log peak at calm peaks; seed by seed, per budget."""
    return _slope_on_log_peak(evidence.frame.assign(value=-evidence.frame["report/river"]))


def river_beyond_fastest(evidence: Evidence) -> Observation:
    """River loss at the highest peak that trains on every seed minus that at the fastest peak, per budget.

    The fastest peak is chosen on the select replicas (`river`), its loss read off the report replicas.
    """
    parts = {}
    for budget, rows in _tuning(evidence.frame).groupby("budget_steps"):
        chosen, judged = (
            rows.pivot_table(index="seed", columns=PEAK, values=name) for name in ("river", "report/river")
        )
        whole = [float(str(peak)) for peak in chosen if chosen[peak].notna().all()]
        if len(whole) > 1:
            fastest = chosen[whole].mean().idxmin()
            parts[f"budget {budget}"] = judged[max(whole)] - judged[fastest]
    return Observation(pd.DataFrame(parts).dropna(), missing="" if parts else "wsd trials at two peaks")


def difference_at_stable_peaks(evidence: Evidence, method: str, reference: str) -> Observation:
    """Mean over all peaks below 1/k of the report loss of `method` minus that of `reference` at the same peak."""
    frame = evidence.frame
    stable = frame[frame[PEAK] * frame["config.curvature"] < STABLE]
    return equal_peak_difference(replace(evidence, frame=stable), method, reference, "all")


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function
    for function in (
        hill_exponent, river_slope, river_beyond_fastest, difference_at_stable_peaks, tuned_difference,
        decay_gain_share,
    )
}  # fmt: skip


def _tuning(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["phase"] == "tune") & np.isfinite(frame["report"])]


def _slope_on_log_peak(frame: pd.DataFrame) -> Observation:
    """Least-squares slope of `value` on log peak over the calm peaks of the tuning trials."""
    rows = _tuning(frame)
    rows = rows[rows[PEAK] * rows["config.curvature"] <= CALM]
    parts = {}
    for budget, same in rows.groupby("budget_steps"):
        table = same.pivot_table(index="seed", columns=PEAK, values="value").dropna()
        if table.shape[1] > 1 and len(table):
            logs = np.log(table.columns.to_numpy(dtype=float))
            centred = logs - logs.mean()
            parts[f"budget {budget}"] = table @ (centred / (centred**2).sum())
    missing = "" if parts else f"two peaks below {CALM:g} / curvature on the same seeds"
    return Observation(pd.DataFrame(parts).dropna(), missing=missing)


def regime_map(records: Records) -> Figure:
    """WSD minus cosine at equal peaks over peak and budget, a panel per noise."""
    table = equal_peak_differences(trial_frame(records), "wsd", "cosine", ["noise"])
    return schedule_maps.plot_map(table, rows=PEAK, columns="budget_steps", panels="config.noise")


def tuned_map(records: Records) -> Figure:
    """WSD minus cosine, each at its best peak, over noise and budget; fresh seeds."""
    table = tuned_differences(trial_frame(records), "wsd", "cosine", ["noise"])
    return schedule_maps.plot_map(table, rows="config.noise", columns="budget_steps")


def components(records: Records) -> Figure:
    """Loss, hill and river along training under WSD and cosine, at the largest budget and the middle noise."""
    frame = trial_frame(records)
    noises = sorted(frame["config.noise"].unique())
    noise = min(noises, key=lambda value: abs(np.log(value / MIDDLE_NOISE)) if value > 0 else np.inf)
    return schedule_maps.plot_components(
        records, frame[frame["config.noise"] == noise], ("hill", "river"), title=f"noise {noise:g}"
    )


def best_peaks(records: Records) -> Figure:
    """Best peak per budget and method, a panel per noise."""
    return schedule_maps.plot_best_peaks(trial_frame(records), ["noise"])


def summary(records: Records) -> pd.DataFrame:
    return summary_table(trial_frame(records), ["noise"], ["hill", "river"])


READING = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures={"regime_map": regime_map, "tuned_map": tuned_map, "components": components, "best_peaks": best_peaks},
    summary=summary,
)
