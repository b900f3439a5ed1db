"""Networks on parities with noise: how often they find the secret, from how many samples, and how many it takes at all.

An instance is a seed. The chosen configs are judged on fresh seeds; where a sweep has none, on those that chose them.
A trial that found no secret is censored: its samples are a lower bound and enter medians and ratios as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from analysis.choice import trial_frame
from analysis.claims import Claim, Evidence, Observation
from analysis.plots import legend_below, side_by_side, style, styled
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.stats import Interval

_MAIN = "python sweeps/lpn_noise.py"
_RAN = ("complete", "diverged")
_SOLVED, _SAMPLES, _WALSH = "report/solved", "report/samples_to_secret", "report/walsh_samples"
_PROBLEM = {"dimension": "n", "noise_rate": "tau", "samples": "m", "network": "", "activation": ""}
_CONDITIONS = ["config.dimension", "config.noise_rate"]
_DENSE = {"setting": "abundant", "secret_rate": 0.5}
_LAPTOP = {"dimension": [10, 12, 14], "noise_rate": [0.1, 0.3, 0.4]}
_OURS = "ours; the paper's abstract claims that nets solve such problems, not how they compare with this"
LABELS = {
    "solved": "share of secrets found",
    "samples": "training samples to the secret",
    "device_seconds_alone": "device seconds of a run alone",
    "config.noise_rate": "noise rate",
}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "LPN1", "Two-layer nets find dense secrets of up to 14 bits at noise rates of up to 0.4 (more often than not).",
        "arXiv:2303.07987, abstract (nets solve LPN; dimensions, rates and the margin are ours)",
        "solve_rate", "greater", 0.5, "fresh", _DENSE | _LAPTOP, command=_MAIN,
    ),
    Claim(
        "LPN2", "Abundant samples: a net draws over 100 times as many as maximum likelihood needs (log2 of the ratio).",
        _OURS, "samples_over_walsh", "greater", float(np.log2(100)), "fresh",
        _DENSE, command=_MAIN,
    ),
    Claim(
        "LPN3", "Restricted samples: the smallest pool is over twice that of maximum likelihood (log2 of the ratio).",
        _OURS, "samples_over_walsh", "greater", 1.0, "fresh",
        {"setting": "restricted"}, command=f"{_MAIN} preset=restricted",
    ),
    Claim(
        "LPN4", "At 10 to 14 bits a net's samples less than double with each bit of a dense secret.",
        "ours", "doublings_per_bit", "less", 1.0, "fresh",
        _DENSE | _LAPTOP, command=_MAIN,
    ),
    Claim(
        "LPN5", "A net's samples grow with the noise more slowly than the 1/(1 - 2 tau)^2 of maximum likelihood.",
        "ours", "noise_exponent", "less", 1.0, "fresh",
        _DENSE, command=_MAIN,
    ),
    Claim(
        "LPN6", "Two-layer nets find a secret of 26 bits at a noise rate of 0.498.",
        "arXiv:2303.07987, abstract", "solve_rate", "greater", 0.5, "fresh",
        {"dimension": 26, "noise_rate": 0.498}, command=f"{_MAIN} scale=gpu preset=n26",
    ),
)  # fmt: skip


def solve_rate(evidence: Evidence) -> Observation:
    """1 where the secret was found, by seed and problem."""
    return Observation(by_seed(evidence, lambda rows: rows[_SOLVED].fillna(0.0).astype(float)))


def samples_over_walsh(evidence: Evidence) -> Observation:
    """log2 of the net's training samples over those of maximum likelihood on the same instance, by seed and problem."""
    parts = by_seed(evidence, lambda rows: (spent(rows) / column(rows, _WALSH)).map(np.log2))
    return Observation(parts.dropna(axis=1, how="all"), exploratory=censored(evidence))


def doublings_per_bit(evidence: Evidence) -> Observation:
    """Least-squares slope of log2 samples on the dimension, by seed and noise rate."""
    return _slopes(evidence, "dimension", lambda rows: rows["config.dimension"].astype(float))


def noise_exponent(evidence: Evidence) -> Observation:
    """Least-squares slope of log2 samples on log2 of 1/(1 - 2 tau)^2, by seed and dimension."""
    return _slopes(
        evidence, "noise_rate", lambda rows: -2 * (1 - 2 * rows["config.noise_rate"].astype(float)).map(np.log2)
    )


def _slopes(evidence: Evidence, along: str, abscissa: Callable[[pd.DataFrame], pd.Series]) -> Observation:
    rows = judged(evidence.frame, evidence.seeds)
    rows = rows.assign(x=abscissa(rows), y=spent(rows).map(np.log2))
    parts: dict[str, pd.Series] = {}
    for name, same in rows.groupby(names_of(rows, without=along)):
        whole = same.groupby("seed")["x"].nunique()
        seeds = whole.index[(whole == same["x"].nunique()) & (whole >= 2)]
        slopes = {
            seed: float(np.polyfit(one["x"], one["y"], 1)[0]) for seed, one in same.groupby("seed") if seed in seeds
        }
        if slopes:
            parts[str(name)] = pd.Series(slopes)
    missing = "" if parts else f"seeds that ran at two values of {along}"
    return Observation(pd.DataFrame(parts).dropna(), missing=missing, exploratory=censored(evidence))


def by_seed(evidence: Evidence, value: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
    """`value` of the judged trials by seed (rows) and problem (columns)."""
    rows = judged(evidence.frame, evidence.seeds)
    table = rows.assign(value=value(rows), part=names_of(rows))
    return table.pivot_table(index="seed", columns="part", values="value", aggfunc="mean", sort=False)


def judged(frame: pd.DataFrame, seeds: str = "fresh") -> pd.DataFrame:
    """The trials that count: those that ran, on fresh seeds where asked. Raises RecordsError where there are none."""
    rows = frame[frame["status"].isin(_RAN)]
    rows = rows[rows["fresh"]] if seeds == "fresh" else rows
    if rows.empty:
        raise RecordsError("no trial on fresh seeds has ended; run the sweep with seeds.fresh=3 or more")
    return rows


def chosen(records: Records) -> pd.DataFrame:
    """Trials of the chosen configs: on fresh seeds, or the tuning trials of the best select metric of each problem."""
    frame = trial_frame(records)
    ran = frame[frame["status"].isin(_RAN)]
    if ran["fresh"].any():
        return ran[ran["fresh"]]
    if ran.empty:
        raise RecordsError("no trial has ended")
    means = ran.groupby([names_of(ran), "config_id"], sort=False)["select"].mean()
    best = {index[1] for index in means.groupby(level=0, sort=False).idxmin()}
    return ran[ran["config_id"].isin(best)]


def names_of(rows: pd.DataFrame, without: str = "") -> pd.Series:
    """A name for each trial's problem and kind of net, of the fields that differ between these trials."""
    names = pd.Series([""] * len(rows), index=rows.index)
    for field, label in _PROBLEM.items():
        values = column(rows, f"config.{field}")
        if field == without or (field not in ("dimension", "noise_rate") and values.nunique(dropna=False) < 2):
            continue
        texts = values.map(lambda value: f"{value:.10g}" if isinstance(value, int | float) else str(value))
        names = names + " " + (label + "=" if label else "") + texts
    return names.str.strip()


def column(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column, or nothing but nan where no trial of the sweep had it."""
    return rows[name] if name in rows else pd.Series(np.nan, index=rows.index)


def spent(rows: pd.DataFrame) -> pd.Series:
    """Training samples until the secret; all that were drawn where it was not found, which is a lower bound."""
    return column(rows, _SAMPLES).astype(float).fillna(column(rows, "samples").astype(float))


def censored(evidence: Evidence) -> str:
    rows = judged(evidence.frame, evidence.seeds)
    count = int((rows[_SOLVED].fillna(0) == 0).sum())
    return f"{count} of {len(rows)} trials found no secret and enter with all samples they drew" if count else ""


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's 95 % interval for a proportion.

    >>> print(wilson(9, 10))
    [0.5958, 0.9821]
    """
    ends = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(float(ends.low), float(ends.high))


def costs(rows: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """One row per problem: how many were solved, with Wilson's interval, and medians of what it took."""
    found = []
    for keys, same in rows.assign(part=names_of(rows)).groupby([*_CONDITIONS, "part", *extra], dropna=False):
        solved, needed = int((same[_SOLVED] == 1).sum()), spent(same)
        ends = wilson(solved, len(same))
        found.append(
            {
                **dict(zip([*_CONDITIONS, "part", *extra], keys, strict=True)),
                "trials": len(same),
                "solved": solved / len(same),
                "low": ends.low,
                "high": ends.high,
                "steps": float(column(same, "steps_run").astype(float).median()),
                "samples": float(needed.median()),
                "least": float(needed.min()),
                "most": float(needed.max()),
                "walsh_samples": float(column(same, _WALSH).astype(float).median()),
                "device_seconds_alone": float(column(same, "device_seconds_alone").astype(float).median()),
            }
        )
    return pd.DataFrame(found)


def summary(records: Records) -> pd.DataFrame:
    """The table at the end of a sweep; `>` marks medians of samples in which an unsolved trial takes part."""
    table = costs(chosen(records))
    times = table["samples"] / table["walsh_samples"]
    bound = np.where(table["solved"] <= 0.5, "> ", "")
    return pd.DataFrame(
        {
            "problem": table["part"],
            "trials": table["trials"],
            "solved": table["solved"],
            "95 % (Wilson)": [
                f"[{low:.2f}, {high:.2f}]" for low, high in zip(table["low"], table["high"], strict=True)
            ],
            "steps": table["steps"],
            "samples": [f"{mark}{value:,.0f}" for mark, value in zip(bound, table["samples"], strict=True)],
            "max. likelihood's": table["walsh_samples"],
            "times as many": times.round(0),
            "device s alone": table["device_seconds_alone"],
        }
    )


@styled
def plot_solved(records: Records) -> Figure:
    """Share of secrets found against the noise rate, by dimension, with Wilson's 95 % intervals."""
    table = costs(chosen(records))
    figure, (axes,) = side_by_side(1, width=5.4, height=3.6)
    lines = list(table.groupby(["config.dimension", _kind(table)], sort=True))
    for at, ((dimension, kind), line) in enumerate(lines):
        _, colour, marker, dashes = style((f"n = {dimension}{kind}",), at)
        x = line["config.noise_rate"] + 0.004 * (at - (len(lines) - 1) / 2)
        axes.vlines(x, line["low"], line["high"], color=colour, linewidth=1.3)
        counts = sorted({int(line["trials"].min()), int(line["trials"].max())})
        label = f"n = {dimension}{kind} ({'-'.join(map(str, counts))} secrets)"
        axes.plot(x, line["solved"], color=colour, marker=marker, linestyle=dashes, markersize=5, label=label)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(LABELS["config.noise_rate"])
    axes.set_ylabel(LABELS["solved"])
    legend_below(figure, axes)
    return figure


@styled
def plot_samples(records: Records) -> Figure:
    """Median and range of the samples to the secret against the noise rate, maximum likelihood's drawn beside."""
    table = costs(chosen(records))
    figure, (axes,) = side_by_side(1, width=5.4, height=3.9)
    for at, ((dimension, kind), line) in enumerate(table.groupby(["config.dimension", _kind(table)], sort=True)):
        _, colour, marker, dashes = style((f"n = {dimension}{kind}",), at)
        x = line["config.noise_rate"]
        axes.vlines(x, line["least"], line["most"], color=colour, linewidth=1.2)
        axes.plot(x, line["samples"], color=colour, marker=marker, linestyle=dashes, markersize=5, zorder=3)
        axes.plot([], [], color=colour, marker=marker, linestyle=dashes, label=f"network, n = {dimension}{kind}")
        open_ = line[line["solved"] < 1]  # at least one secret was not found: the truth lies above
        axes.plot(
            open_["config.noise_rate"], open_["samples"], marker=marker, color=colour, mfc="white", ls="", zorder=4
        )
        axes.plot(x, line["walsh_samples"], color=colour, marker=marker, linestyle="", markersize=4, alpha=0.55)
    axes.plot(
        [], [], color="#555555", marker="o", linestyle="", alpha=0.55, label="maximum likelihood (Walsh-Hadamard)"
    )
    axes.set_yscale("log")
    axes.set_xlabel(LABELS["config.noise_rate"])
    axes.set_ylabel(LABELS["samples"])
    axes.set_title("bars: from least to most; hollow: some secrets not found", fontsize=8.5)
    legend_below(figure, axes)
    return figure


@styled
def plot_device_seconds(records: Records) -> Figure:
    """Median device seconds of runs that trained alone against the noise rate: one type of device per panel."""
    rows = chosen(records)
    rows = rows[column(rows, "device_seconds_alone").notna()]
    if rows.empty:
        raise RecordsError(f"no net trained alone, and seconds in a pack are shared out: {_MAIN} resources.pack=1")
    table = costs(rows, extra=["device"])
    devices = sorted(table["device"].astype(str).unique())
    figure, panels = side_by_side(len(devices), width=4.6, height=3.8, share_y=True)
    for axes, device in zip(panels, devices, strict=True):
        same = table[table["device"].astype(str) == device]
        for at, ((dimension, kind), line) in enumerate(same.groupby(["config.dimension", _kind(same)], sort=True)):
            _, colour, marker, dashes = style((f"n = {dimension}{kind}",), at)
            label = f"n = {dimension}{kind}"
            look = {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 5, "label": label}
            axes.plot(line["config.noise_rate"], line["device_seconds_alone"], **look)
        axes.set_yscale("log")
        axes.set_title(device, fontsize=8.5)
        axes.set_xlabel(LABELS["config.noise_rate"])
    panels[0].set_ylabel(LABELS["device_seconds_alone"])
    legend_below(figure, panels[0])
    return figure


def _kind(table: pd.DataFrame) -> pd.Series:
    """What is left of a problem's name beside its dimension and noise rate, with a comma before it."""
    words = table["part"].str.split().map(lambda parts: [p for p in parts if not p.startswith(("n=", "tau="))])
    return words.map(lambda rest: f", {' '.join(rest)}" if rest else "").rename("kind")


READING = Reading(
    claims=CLAIMS,
    statistics={
        "solve_rate": solve_rate,
        "samples_over_walsh": samples_over_walsh,
        "doublings_per_bit": doublings_per_bit,
        "noise_exponent": noise_exponent,
    },
    figures={"solved": plot_solved, "samples": plot_samples, "device_seconds": plot_device_seconds},
    summary=summary,
)
