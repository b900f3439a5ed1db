"""How the bigram sweeps are read: which rows a decay improves, how steep they are, and when WSD beats a cosine.

Source, sizes and margins are ours; arXiv:2410.05192 is tested in kind (its own bigram settings were not at hand).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis import schedule_maps
from analysis.choice import trial_frame
from analysis.claims import Claim, Evidence, Observation, Statistic
from analysis.paired_schedules import (
    PEAK,
    decay_gain_share,
    edges,
    equal_peak_difference,
    equal_peak_differences,
    on_fresh_seeds,
    summary_table,
    tuned,
    tuned_difference,
)
from analysis.reading import Reading
from analysis.records import Records

_MAIN = "python sweeps/bigram_hill_and_river.py"
_PAPER = "arXiv:2410.05192, abstract"
_OURS = "ours, for the toy"
_LONG_TAIL, _EQUAL = {"zipf": 1.3}, {"zipf": 0.0}
_WSD_COSINE = {"method": "wsd", "reference": "cosine"}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "B1", "What the decay takes off is the KL of uncertain rows: more than 80 % of it, at the best peak.",
        _PAPER + " (uncertainty in the data shapes the landscape; the share is ours)", "decay_gain_share", "greater",
        0.8, "fresh", _LONG_TAIL, {"of": "kl_uncertain", "method": "wsd"}, _MAIN,
    ),
    Claim(
        "B2", "At the end uncertain rows, 30 % of the data, hold more than 80 % of the Hessian's trace.",
        _OURS, "hessian_share", "greater", 0.8, "fresh", _LONG_TAIL, {"method": "wsd"}, _MAIN,
    ),
    Claim(
        "B3", "River-limited (lowest peak): WSD reaches a lower loss than cosine at the same peak.",
        _OURS, "equal_peak_difference", "less", 0.0, "any", _LONG_TAIL, {**_WSD_COSINE, "peak": "lowest"}, _MAIN,
    ),
    Claim(
        "B4", "Noise-limited (highest peak): cosine reaches a lower loss than WSD at the same peak.",
        _OURS, "equal_peak_difference", "greater", 0.0, "any", _LONG_TAIL, {**_WSD_COSINE, "peak": "highest"}, _MAIN,
    ),
    Claim(
        "B5", "Each at its best peak, cosine reaches a lower loss than WSD.",
        _OURS, "tuned_difference", "greater", 0.0, "fresh", _LONG_TAIL, _WSD_COSINE, _MAIN,
    ),
    Claim(
        "B6", "WSD-S reaches a lower loss than WSD at equal compute of the family, at every budget after the first.",
        _PAPER, "tuned_difference", "less", 0.0, "fresh", _LONG_TAIL,
        {"method": "wsd_s", "reference": "wsd", "later": True}, _MAIN,
    ),
    Claim(
        "B7", "WSD-S reaches a lower loss than cyclic cosine at every budget after the first.",
        _PAPER, "tuned_difference", "less", 0.0, "fresh", _LONG_TAIL,
        {"method": "wsd_s", "reference": "cyclic_cosine", "later": True}, _MAIN,
    ),
    Claim(
        "B8", "With equally frequent contexts there is hardly a river: at its best peak cosine beats WSD.",
        _OURS, "tuned_difference", "greater", 0.0, "fresh", _EQUAL, _WSD_COSINE, f"{_MAIN} preset=equal_contexts",
    ),
)  # fmt: skip


def hessian_share(evidence: Evidence, method: str) -> Observation:
    """Share of the Hessian's trace on uncertain rows at the end, at the method's best peak; per budget."""
    used = [choice for choice in tuned(evidence.frame) if choice.method == method]
    parts = {
        f"budget {choice.budget}": on_fresh_seeds(evidence.frame, choice, "report/hessian_share_uncertain")
        for choice in used
    }
    missing = "" if parts else f"trials of {method}"
    return Observation(pd.DataFrame(parts).dropna(), edges(evidence.records, used), missing)


STATISTICS: Mapping[str, Statistic] = {
    function.__name__: function
    for function in (decay_gain_share, hessian_share, equal_peak_difference, tuned_difference)
}


def peak_map(records: Records) -> Figure:
    """WSD minus cosine at equal peaks over peak and budget, a panel per exponent of Zipf's law."""
    table = equal_peak_differences(trial_frame(records), "wsd", "cosine", ["zipf"])
    return schedule_maps.plot_map(table, rows=PEAK, columns="budget_steps", panels="config.zipf")


def components(records: Records) -> Figure:
    """KL of both kinds of rows along training under WSD and cosine, at the largest budget."""
    return schedule_maps.plot_components(
        records, trial_frame(records), ("kl_uncertain", "kl_deterministic", "hessian_share_uncertain")
    )


def best_peaks(records: Records) -> Figure:
    """Best peak per budget and method."""
    return schedule_maps.plot_best_peaks(trial_frame(records), ["zipf"])


def summary(records: Records) -> pd.DataFrame:
    return summary_table(
        trial_frame(records), ["zipf"], ["kl_deterministic", "kl_uncertain", "hessian_share_uncertain"]
    )


READING = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures={"peak_map": peak_map, "components": components, "best_peaks": best_peaks},
    summary=summary,
)
