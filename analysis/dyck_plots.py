"""Figures of nets that read brackets: attention side by side, how it varies, balance, accuracy by length."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.dyck_runs import (
    EQUAL_FUNCTION,
    OOD_ERROR,
    PAIR_VARIANCE,
    TOKENS,
    VIOLATION,
    all_pairs,
    attention_of,
    chosen,
    disjoint_pairs,
    equal_in_function,
    lengths_of,
    random_attention,
)
from analysis.plots import legend_below, side_by_side, style, styled
from analysis.records import Records, RecordsError
from analysis.stats import t_interval

SHOWN = 4  # nets side by side
RANDOM_SEED = 0  # of the random attention that is drawn beside them
OPENING, CLOSING = "([{<", ")]}>"
LABELS = {
    VIOLATION: "balance violation, scaled",
    PAIR_VARIANCE: "variance of pairs' score differences",
    "ood": "closed right on the longest rows",
    "length": "brackets read, up to",
    "right": "share of brackets closed right",
    "variation": "squared distance of two nets' attention\nover that of random attention",
}


@styled
def plot_attention(records: Records) -> Figure:
    """Attention of nets equal in function on one probe row, an arm per line, and random attention at the end."""
    equal = equal_in_function(chosen(records))
    arms = [(str(arm), rows) for arm, rows in equal.groupby("arm", sort=False) if len(rows) > 1]
    if not arms:
        raise RecordsError(f"no two nets of an arm close over {EQUAL_FUNCTION:.0%} right; train longer: budget_steps")
    figure = Figure(figsize=(2.35 * (SHOWN + 1), 2.55 * len(arms) + 0.3), layout="constrained")
    grid = figure.subplots(len(arms), SHOWN + 1, squeeze=False)
    for line, (arm, rows) in zip(grid, arms, strict=True):
        maps, positions = attention_of(rows)[:, 0], int(rows["config.probe_length"].iloc[0]) + 1
        words = bracket_words(np.asarray(rows[TOKENS].iloc[0])[:positions], int(rows["config.kinds"].iloc[0]))
        titles = [f"seed {seed}" for seed in rows["seed"]]
        drawn = random_attention(positions, np.random.default_rng(RANDOM_SEED))
        shown = [*zip(titles[:SHOWN], maps[:SHOWN], strict=True), ("random", drawn)]
        for axes, (title, attention) in zip([*line[: len(shown) - 1], line[-1]], shown, strict=True):
            axes.imshow(np.sqrt(attention), cmap="magma_r", vmin=0, vmax=1)
            axes.set_title(title, fontsize=8)
            axes.set_xticks(range(positions), words, fontsize=5)
            axes.set_yticks(range(positions), words, fontsize=5)
            axes.grid(visible=False)
        for axes in line[len(shown) - 1 : -1]:
            axes.set_visible(False)
        line[0].set_ylabel(f"{arm}\nquery", fontsize=8)
        line[0].set_xlabel("key", fontsize=8)
    figure.suptitle("attention of the last block on the same row, dark: much (square root)", fontsize=9)
    return figure


def bracket_words(tokens: np.ndarray, kinds: int) -> list[str]:
    """Tokens as brackets, with a dot for the beginning; kinds beyond the fourth by number.

    >>> bracket_words(np.array([4, 0, 1, 3, 2]), kinds=2)
    ['.', '(', '[', ']', ')']
    """
    words = []
    for token in tokens.astype(int):
        signs, kind = (OPENING, token) if token < kinds else (CLOSING, token - kinds)
        words.append("." if token == 2 * kinds else signs[kind] if kinds <= len(signs) else f"{signs[0]}{kind}")
    return words


@styled
def plot_variation(records: Records) -> Figure:
    """Variation over the random baseline: every pair as a dot, mean and t interval of disjoint pairs beside them."""
    equal = equal_in_function(chosen(records))
    arms = [(str(arm), rows) for arm, rows in equal.groupby("arm", sort=False) if len(rows) > 1]
    if not arms:
        raise RecordsError(f"no two nets of an arm close over {EQUAL_FUNCTION:.0%} right; train longer: budget_steps")
    figure, (axes,) = side_by_side(1, width=max(4.2, 1.5 * len(arms) + 1.5), height=3.8)
    for at, (arm, rows) in enumerate(arms):
        _, colour, marker, _ = style((arm,), at)
        pairs = all_pairs(rows)["variation"]
        beside = np.linspace(-0.16, 0.16, len(pairs))
        axes.plot(at + beside, pairs, ".", color=colour, alpha=0.25, markersize=4)
        apart = disjoint_pairs(rows)
        ends = t_interval(apart.to_numpy())
        axes.plot(at + 0.3, apart.mean(), marker=marker, color=colour, markersize=6)
        if ends is not None:
            axes.vlines(at + 0.3, ends.low, ends.high, color=colour)
    axes.axhline(1, color="#555555", linestyle="--", linewidth=1)
    axes.text(len(arms) - 0.45, 1, "random", va="bottom", ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(arms)), [f"{arm}\n{len(rows)} nets" for arm, rows in arms], fontsize=8)
    axes.set_ylabel(LABELS["variation"])
    axes.set_title(f"nets that close over {EQUAL_FUNCTION:.0%} right; right of the dots: disjoint pairs", fontsize=8.5)
    return figure


@styled
def plot_violation(records: Records) -> Figure:
    """Balance violation, scaled and not, against accuracy on the longest rows: one dot per run."""
    rows = chosen(records)
    figure, panels = side_by_side(2, width=4.2, height=3.9, share_y=True)
    for axes, column in zip(panels, (VIOLATION, PAIR_VARIANCE), strict=True):
        for at, (arm, same) in enumerate(rows.groupby("arm", sort=False)):
            _, colour, marker, _ = style((str(arm),), at)
            x, y = same[column].astype(float), 1 - same[OOD_ERROR].astype(float)
            axes.plot(x, y, marker=marker, linestyle="", color=colour, markersize=4, alpha=0.8, label=str(arm))
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_xlabel(LABELS[column])
    panels[0].set_ylabel(LABELS["ood"])
    legend_below(figure, panels[0])
    return figure


@styled
def plot_lengths(records: Records) -> Figure:
    """Accuracy by length: mean over runs, with the range of runs as bars."""
    rows = chosen(records)
    figure, (axes,) = side_by_side(1, width=5.4, height=3.8)
    for at, (arm, same) in enumerate(rows.groupby("arm", sort=False)):
        _, colour, marker, dashes = style((str(arm),), at)
        lengths = lengths_of(same)
        table = pd.DataFrame({n: same[f"report/accuracy_{n}"].astype(float) for n in lengths})
        x = np.array(lengths) * 1.02 ** (at - rows["arm"].nunique() / 2)
        axes.vlines(x, table.min(), table.max(), color=colour, linewidth=1)
        label = f"{arm} ({len(same)} runs)"
        axes.plot(x, table.mean(), color=colour, marker=marker, linestyle=dashes, markersize=5, label=label)
    axes.axvline(float(rows["config.length"].max()), color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(lengths_of(rows), [str(n) for n in lengths_of(rows)])
    axes.minorticks_off()
    axes.set_xlabel(LABELS["length"])
    axes.set_ylabel(LABELS["right"])
    legend_below(figure, axes)
    return figure
