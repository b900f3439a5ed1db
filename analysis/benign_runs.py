"""The runs of `benign` that count: settings, arms, the config chosen for each, and the net near the threshold.

A setting is a problem up to width and noise rate: data, kind of net, their sizes, the sweep. An arm is a setting with a
width, a noise rate, a repair and a budget; its learning rate and weight decay are chosen on the tuning seeds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.choice import edges_of, seed_matrix
from analysis.chosen_runs import chosen, of_chosen_configs, runs_of
from analysis.claims import Evidence, Observation
from analysis.records import Records, RecordsError

FITS = 0.9  # of the noisy training labels: a net that fits as many can interpolate (ours)
EDGE_ERROR = (
    0.03  # an edge counts only where no config inside is as good to this: two standard errors of 1000 labels (ours)
)
ARM = ("setting", "width", "noise", "repair", "budget")
_SETTING = {
    "data": "", "model": "", "depth": "depth", "blocks": "blocks", "train_size": "n", "noise_kind": "",
    "sweep": "",
}  # fmt: skip
"""Config fields (and the sweep) that make a setting, and their short names."""


def arms(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns of ARM. A setting is named by its data and net, and by what differs between settings."""
    names = pd.Series([""] * len(frame), index=frame.index)
    for field, label in _SETTING.items():
        column = field if field == "sweep" else f"config.{field}"
        if column not in frame:
            continue
        texts = frame[column].map(lambda value: "x".join(map(str, value)) if _many(value) else str(value))
        if field in ("data", "model") or texts.nunique() > 1:
            names = names + " " + (f"{label} " if label else "") + texts
    taught = frame["config.rounds"].map(lambda rounds: f" x{rounds}" if rounds > 1 else "")
    step = frame["config.teacher_step"].map(lambda step: "" if pd.isna(step) else f" from {step:g}")
    return frame.assign(
        setting=names.str.strip(),
        width=frame["config.width"].astype(int),
        noise=frame["config.noise_rate"].astype(float),
        repair=frame["config.repair"] + taught + step,
        budget=frame["budget_steps"].astype(int),
    )


def _many(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def chosen_arms(evidence: Evidence, every_budget: bool = False, tuned_as_well: bool = False) -> pd.DataFrame:
    """Runs of each arm's chosen config that ended, on the seeds that decide; of each setting at its largest budget.

    tuned_as_well: on the tuning seeds where there are no others. Raises RecordsError where there are none.
    """
    frame = arms(evidence.frame)
    if not every_budget:
        frame = frame[frame["budget"] == frame.groupby("setting")["budget"].transform("max")]
    if tuned_as_well:
        return chosen(evidence.records, frame, ARM)
    found = runs_of(evidence, frame, ARM)
    return found.rows.assign(lost=found.lost)


def fitting_width(records: Records, frame: pd.DataFrame, setting: str, rows: pd.DataFrame) -> int:
    """The narrowest net that fits FITS of its noisy training labels on the tuning seeds, at the rows' noise and budget.

    Where the tuning trials were filtered away, on the rows themselves. Raises RecordsError where none does.
    """
    same = frame[(frame["setting"] == setting) & (frame["repair"] == "none")]
    same = same[same["noise"].isin(rows["noise"]) & same["budget"].isin(rows["budget"])]
    tuned = of_chosen_configs(same, ARM)
    tuned = tuned[(tuned["phase"] == "tune") & (tuned["status"] == "complete")]
    fits = 1 - (rows if tuned.empty else tuned).groupby("width")["train/noisy_error"].mean()
    if not (fits >= FITS).any():
        shown = ", ".join(f"width {width} fits {share:.2f}" for width, share in fits.items())
        raise RecordsError(f"{setting}: no net fits {FITS:g} of its labels ({shown}); train longer or widen")
    return int(fits.index[fits >= FITS].min())


def used(evidence: Evidence, rows: pd.DataFrame, parts: pd.DataFrame) -> Observation:
    """An observation on these runs, with the edges that their configs lie at and with what was lost of them."""
    lost = "; ".join(dict.fromkeys(filter(None, rows["lost"])))
    return Observation(parts, edges=edges(evidence, rows), unfit=lost)


def edges(evidence: Evidence, rows: pd.DataFrame) -> tuple[str, ...]:
    """Words that widen the space where a chosen config lies at its end and none inside is as good to EDGE_ERROR."""
    frame, words = arms(evidence.frame), list[str]()
    for arm, same in rows.groupby(list(ARM), sort=False):
        among = frame[(frame[list(ARM)] == list(arm)).all(axis=1)]
        config = str(same["config_id"].iloc[0])
        found = edges_of(evidence.records, among, config)
        if found and not _as_good_inside(evidence.records, among):
            words += [edge.words for edge in found]
    return tuple(dict.fromkeys(words))


def _as_good_inside(records: Records, among: pd.DataFrame) -> bool:
    tune = among[among["phase"] == "tune"]
    means = seed_matrix(tune, "select").mean(axis=1)
    near = means.index[means <= means.min() + EDGE_ERROR]
    return any(not edges_of(records, among, str(config)) for config in near)


def share(gain: pd.Series, cost: pd.Series) -> pd.Series:
    """gain / cost by seed; infinite where the cost is 0, so that the seed stays and no estimate takes it."""
    return (gain / cost).where(cost != 0, np.inf)


def without_cost(part: str, cost: pd.Series) -> str:
    """Why shares of these costs, one per seed, decide nothing; "" where each cost is above 0."""
    flat = cost[cost <= 0]
    if flat.empty:
        return ""
    seeds = ", ".join(map(str, flat.index))
    return f"{part}: there is no cost to take a share of on seed {seeds} (the least is {flat.min():.3g})"


RESAMPLES = 2000


def boundary(evidence: Evidence, setting: str, harm: float) -> pd.DataFrame:
    """By width, the noise rate at which the mean excess error of unrepaired nets first passes `harm`.

    On straight lines between the noise rates that were tried, at the largest budget. low, high: 95 % of the crossings
    when seeds are drawn again with replacement (too narrow for few seeds); nan where a crossing lies beyond `most`, the
    largest rate tried. Fresh seeds where every noise rate has some, else the tuning seeds.
    """
    frame = arms(evidence.frame)
    frame = frame[(frame["setting"] == setting) & (frame["repair"] == "none") & (frame["status"] == "complete")]
    frame = of_chosen_configs(frame[frame["budget"] == frame["budget"].max()], ARM)
    found = []
    for width, same in frame.groupby("width"):
        fresh = same[same["fresh"]]
        own = fresh if set(fresh["noise"]) == set(same["noise"]) else same[same["phase"] == "tune"]
        table = own.pivot_table(index="seed", columns="noise", values="report/excess_error").dropna()
        if table.shape[1] < 2 or table.empty:
            continue
        rates, values = table.columns.to_numpy(dtype=float), table.to_numpy()
        random = np.random.default_rng(0)
        draws = random.integers(len(values), size=(RESAMPLES, len(values)))
        beyond = [crossing(rates, values[rows].mean(0), harm) for rows in draws]
        ends = np.quantile(np.where(np.isnan(beyond), np.inf, beyond), [0.025, 0.975], method="nearest")
        low, high = np.where(np.isfinite(ends), ends, np.nan)
        found.append(
            {"width": width, "parameters": own["parameters"].iloc[0], "samples": own["config.train_size"].iloc[0],
             "noise": crossing(rates, values.mean(0), harm), "low": low, "high": high,
             "most": rates.max(), "seeds": len(values)}
        )  # fmt: skip
    if not found:
        raise RecordsError("a boundary needs seeds with two noise rates; run preset=default or boundary")
    return pd.DataFrame(found)


def crossing(rates: np.ndarray, values: np.ndarray, harm: float) -> float:
    """Where a broken line first passes `harm`; its first rate if it starts above, nan if it never does.

    >>> crossing(np.array([0.0, 0.2, 0.4]), np.array([0.0, 0.04, 0.08]), 0.05)
    0.25
    """
    above = np.flatnonzero(values >= harm)
    if not len(above):
        return float("nan")
    at = above[0]
    if at == 0:
        return float(rates[0])
    share = (harm - values[at - 1]) / (values[at] - values[at - 1])
    return float(rates[at - 1] + share * (rates[at] - rates[at - 1]))
