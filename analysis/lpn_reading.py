"""Networks on parities with noise: how often they find the secret, from how many samples, and how many it takes at all.

An instance is a seed. The config that the tuning seeds choose for each problem is judged on fresh seeds; tables and
figures of a sweep that has none are of those that chose. A trial that found no secret is censored: its samples are a
lower bound and enter medians, ratios and slopes as such. One that diverged found nothing and has no samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import chosen_runs
from analysis.choice import trial_frame
from analysis.chosen_runs import RAN, Runs, column, runs_of
from analysis.claims import Claim, Evidence, Observation
from analysis.plots import legend_below, side_by_side, style, styled
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.stats import wilson

_MAIN = "python sweeps/lpn_noise.py"
_SOLVED, _SAMPLES, _WALSH = "report/solved", "report/samples_to_secret", "report/walsh_samples"
_PROBLEM = {
    "dimension": "n", "noise_rate": "tau", "setting": "", "samples": "m", "network": "", "activation": "",
    "secret_rate": "ones", "budget_steps": "B", "initialisations": "nets", "dropped_bits": "dropped",
    "xor_rounds": "xors", "block_bits": "block", "smallest_size": "least", "largest_size": "most",
}  # fmt: skip
"""What makes a problem, and its short names: the fields that are never tuned over, and the kinds of net."""
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
    """1 where the secret was found, by seed and problem; a trial that diverged found none."""
    seen = judged(evidence)
    parts = _by_seed(seen.rows, solved(seen.rows).astype(float))
    return Observation(parts, seen.edges, exploratory=_remark(seen), binary=True, unfit=seen.without)


def samples_over_walsh(evidence: Evidence) -> Observation:
    """log2 of the net's training samples over those of maximum likelihood on the same instance, by seed and problem."""
    seen = judged(evidence)
    rows = seen.rows
    parts = _by_seed(rows, (spent(rows) / column(rows, _WALSH)).map(np.log2)).dropna(axis=1, how="all")
    return _of_samples(seen, parts, frozenset(rows["part"][_censored(rows)]))


def doublings_per_bit(evidence: Evidence) -> Observation:
    """Least-squares slope of log2 samples on the dimension, by seed and noise rate."""
    return _slopes(evidence, "dimension", lambda rows: rows["config.dimension"].astype(float))


def noise_exponent(evidence: Evidence) -> Observation:
    """Least-squares slope of log2 samples on log2 of 1/(1 - 2 tau)^2, by seed and dimension."""
    return _slopes(
        evidence, "noise_rate", lambda rows: -2 * (1 - 2 * rows["config.noise_rate"].astype(float)).map(np.log2)
    )


def _slopes(evidence: Evidence, along: str, abscissa: Callable[[pd.DataFrame], pd.Series]) -> Observation:
    """One slope per seed. A bound on the samples at the upper end makes it a lower bound, at the lower end an upper."""
    seen = judged(evidence)
    rows = seen.rows.assign(x=abscissa(seen.rows), y=spent(seen.rows).map(np.log2), open=_censored(seen.rows))
    rows = rows.assign(name=names_of(rows, without=along)).dropna(subset="y")
    parts: dict[str, pd.Series] = {}
    at_least, at_most = set(), set()
    for name, same in rows.groupby("name"):
        whole = same.groupby("seed")["x"].nunique()
        seeds = whole.index[(whole == same["x"].nunique()) & (whole >= 2)]
        slopes = {
            seed: float(np.polyfit(one["x"], one["y"], 1)[0]) for seed, one in same.groupby("seed") if seed in seeds
        }
        if slopes:
            parts[str(name)] = pd.Series(slopes)
            bounds = same.loc[same["open"], "x"] - np.mean(same["x"].unique())
            at_least |= {str(name)} if (bounds > 0).any() else set()
            at_most |= {str(name)} if (bounds < 0).any() else set()
    missing = "" if parts else f"seeds that ran at two values of {along}"
    return _of_samples(seen, pd.DataFrame(parts).dropna(), frozenset(at_least), frozenset(at_most), missing)


def _of_samples(
    seen: Runs,
    parts: pd.DataFrame,
    lower_bounds: frozenset[str],
    upper_bounds: frozenset[str] = frozenset(),
    missing: str = "",
) -> Observation:
    """What is said of numbers of samples: a trial that diverged has none, and its seed cannot be left out."""
    diverged, censored = int((seen.rows["status"] == "diverged").sum()), int(_censored(seen.rows).sum())
    gone = f"{diverged} of {len(seen.rows)} trials diverged: what they would have taken is not known"
    open_ = f"{censored} of {len(seen.rows)} trials found no secret and enter with all samples they drew"
    return Observation(
        parts,
        seen.edges,
        missing,
        exploratory="; ".join(filter(None, [open_ if censored else "", _remark(seen)])),
        lower_bounds=lower_bounds,
        upper_bounds=upper_bounds,
        unfit="; ".join(filter(None, [gone if diverged else "", seen.without])),
    )


def _by_seed(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Values of the judged trials by seed (rows) and problem (columns)."""
    table = rows.assign(value=values)
    return table.pivot_table(index="seed", columns="part", values="value", aggfunc="first", sort=False)


def judged(evidence: Evidence) -> Runs:
    """The trials that may decide; `part` names their problem and kind of net."""
    return runs_of(evidence, evidence.frame.assign(part=names_of(evidence.frame)), ["part"], RAN)


def _remark(seen: Runs) -> str:
    """What became of those that are not among them, and of those that found nothing."""
    counts = {"diverged": int((seen.rows["status"] == "diverged").sum()), "did not end": seen.gone}
    total = len(seen.rows) + seen.gone
    return "; ".join(f"{count} of {total} trials {fate}" for fate, count in counts.items() if count)


def chosen(records: Records) -> pd.DataFrame:
    """The trials of the chosen configs that ran: on fresh seeds, or on those that chose them where there are none."""
    frame = trial_frame(records)
    return chosen_runs.chosen(records, frame.assign(part=names_of(frame)), ["part"], RAN)


def names_of(rows: pd.DataFrame, without: str = "") -> pd.Series:
    """A name for each trial's problem and kind of net: dimension, noise rate, and each field that tells more apart."""
    names = whole = pd.Series([""] * len(rows), index=rows.index)
    for field, label in _PROBLEM.items():
        values = column(rows, f"config.{field}")
        if f"config.{field}" not in _CONDITIONS and (values.groupby(whole).nunique(dropna=False) <= 1).all():
            continue
        texts = values.map(lambda value: f"{value:.10g}" if isinstance(value, int | float) else str(value))
        whole = whole + " " + (label + "=" if label else "") + texts
        names = names if field == without else names + " " + (label + "=" if label else "") + texts
    return names.str.strip()


def solved(rows: pd.DataFrame) -> pd.Series:
    """Which trials found the secret; none that diverged did."""
    return (column(rows, _SOLVED) == 1) & (rows["status"] != "diverged")


def spent(rows: pd.DataFrame) -> pd.Series:
    """Training samples until the secret; all that were drawn where it was not found; nan where the trial diverged."""
    drawn = column(rows, _SAMPLES).astype(float).fillna(column(rows, "samples").astype(float))
    return drawn.where(rows["status"] != "diverged")


def _censored(rows: pd.DataFrame) -> pd.Series:
    """Which trials found no secret in the samples they drew, so that these are a lower bound."""
    return ~solved(rows) & (rows["status"] != "diverged")


def costs(rows: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """One row per problem: how many were solved, with Wilson's interval, and medians of what it took."""
    found = []
    for keys, same in rows.assign(part=names_of(rows)).groupby([*_CONDITIONS, "part", *extra], dropna=False):
        found_it, needed = int(solved(same).sum()), spent(same)
        ends = wilson(found_it, len(same))
        found.append(
            {
                **dict(zip([*_CONDITIONS, "part", *extra], keys, strict=True)),
                "trials": len(same),
                "solved": found_it / len(same),
                "diverged": int((same["status"] == "diverged").sum()),
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
            "diverged": table["diverged"],
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
        raise RecordsError(
            f"no net trained alone, and seconds in a pack are shared out: {_MAIN} resources.pack=1 results=FOLDER"
        )
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
