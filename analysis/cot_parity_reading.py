"""What the runs of `cot_parity` say about arXiv:2410.05459: claims, statistics and the summary.

The learning rate is the one that the median over tuning seeds chooses; what is said is of fresh seeds. Samples are
compared within a seed, which gives both layouts the same secret and the same held-out rows. A censored run enters a
ratio or a slope with the samples it drew, and the number is then a bound that cannot favour its claim. A shape is only
decided on five uncensored sizes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import cot_parity_plots
from analysis.chosen_runs import Runs, column
from analysis.claims import Claim, Evidence, Observation
from analysis.cot_parity_runs import chosen, judged, least_over_rates, plain
from analysis.reading import Reading
from analysis.records import Records
from analysis.survival import Median, median_time, restricted_ratio, shape_aic

_MAIN = "python sweeps/parity_samples.py"
_PAPER = "arXiv:2410.05459, abstract (sizes and margin are ours)"
_ABSCISSA = {"secret_bits": "k", "input_bits": "n"}
SPARSE = 0.3  # normalised entropy below which attention is called sparse (ours)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "CP1", "Three secret bits take over 4 times as many samples without a chain of thought (log2 of the ratio).",
        _PAPER, "samples_ratio", "greater", 2.0, "fresh", {"secret_bits": 3}, command=_MAIN,
    ),
    Claim(
        "CP2", "One secret bit takes the same samples within a factor of 2, with a chain or without (log2).",
        "ours; a chain of one bit says nothing more", "samples_ratio", "equal", 1.0, "fresh", {"secret_bits": 1},
        command=_MAIN,
    ),
    Claim(
        "CP3", "With a chain, samples grow less than 0.66 doublings for each further secret bit: nearly flat.",
        _PAPER, "doublings_per_bit", "less", 0.66, "fresh", {"chain_of_thought": True}, command=_MAIN,
    ),
    Claim(
        "CP4", "Without a chain, samples grow more than 1.66 doublings for each further secret bit.",
        _PAPER, "doublings_per_bit", "greater", 1.66, "fresh", {"chain_of_thought": False}, command=_MAIN,
    ),
    Claim(
        "CP5", "Without a chain, growth with the secret bits is exponential, not polynomial (AICc, 2 or more better).",
        _PAPER, "shape", "greater", 2.0, "fresh", {"chain_of_thought": False},
        {"along": "secret_bits", "shape": "exponential", "over": "polynomial"}, f"{_MAIN} scale=gpu",
    ),
    Claim(
        "CP6", "With a chain, growth with the input bits is polynomial, not exponential (AICc, 2 or more better).",
        _PAPER, "shape", "greater", 2.0, "fresh", {"chain_of_thought": True},
        {"along": "input_bits", "shape": "polynomial", "over": "exponential"}, f"{_MAIN} preset=against_n",
    ),
    Claim(
        "CP7", "When a net with a chain succeeds, the least normalised entropy of some head is below 0.3.",
        _PAPER, "entropy_at_success", "less", SPARSE, "fresh", {"chain_of_thought": True}, command=_MAIN,
    ),
    Claim(
        "CP8", "Without a chain, a small training set is memorised: its rows are right 0.25 more often than others.",
        "ours; of the smallest training set of the sweep", "memorisation", "greater", 0.25, "fresh",
        {"chain_of_thought": False}, command=f"{_MAIN} preset=multi_pass",
    ),
    Claim(
        "CP9", "A written-down solution without a chain stays right on 99 % of rows throughout its training.",
        "ours; that a net of this size can hold a solution and keep it", "kept", "greater", 0.99, "fresh",
        {"start": "constructed"}, command=f"{_MAIN} preset=stability",
    ),
    Claim(
        "CP10", "A bonus on attention's entropy delays success (log2 of samples with it over those without).",
        "ours; if sparse attention is what is learned, hindering it must cost", "intervention", "greater", 0.0, "fresh",
        command=f"{_MAIN} preset=sparsity",
    ),
)  # fmt: skip


def samples_ratio(evidence: Evidence) -> Observation:
    """log2 of samples without a chain over those with it, by seed and problem. Bounded where a run is censored."""
    runs = judged(evidence)
    direct, chain = (_by_seed(runs.rows, plain(runs.rows)["layout"] == name) for name in ("direct", "chain"))
    return _ratios(runs, direct, chain, "runs with a chain and without one, on the same seeds")


def intervention(evidence: Evidence) -> Observation:
    """log2 of samples with the largest bonus over those with none, by seed and problem."""
    runs = judged(evidence)
    bonus = column(runs.rows, "config.entropy_bonus").fillna(0.0)
    names = runs.rows["problem"].str.replace(r" bonus=\S+", "", regex=True)
    runs = runs._replace(rows=runs.rows.assign(pair=names))
    if not (bonus > 0).any():
        return Observation(pd.DataFrame(), runs.edges, "runs with an entropy bonus above 0")
    more, none = (_by_seed(runs.rows, mask) for mask in (bonus == bonus.max(), bonus == 0))
    return _ratios(runs, more, none, "runs with a bonus and with none, on the same seeds")


def _by_seed(rows: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """log2 samples and whether they were observed, by (pair, seed), of the runs under a mask."""
    some = rows.loc[mask[mask].index]
    return some.assign(log=np.log2(some["time"])).set_index(["pair", "seed"])[["log", "observed"]]


def _ratios(runs: Runs, above: pd.DataFrame, below: pd.DataFrame, wanted: str) -> Observation:
    both = above.add_suffix("_above").join(below.add_suffix("_below"), how="inner")
    if both.empty:
        return Observation(pd.DataFrame(), runs.edges, wanted)
    both = both.assign(ratio=both["log_above"] - both["log_below"]).reset_index()
    table = both.pivot_table(index="seed", columns="pair", values="ratio", sort=False)
    lower, upper = (frozenset(both.loc[~both[f"observed_{side}"], "pair"]) for side in ("above", "below"))
    return _observed(runs, table, lower, upper, _censored(runs.rows))


def _observed(
    runs: Runs, table: pd.DataFrame, lower: frozenset[str], upper: frozenset[str], remark: str = "", unfit: str = ""
) -> Observation:
    """Where a run diverged it counts as one that never learned; so only arms without any run are missed."""
    said = "; ".join(filter(None, [remark, f"{runs.gone} runs did not end" if runs.gone else ""]))
    lost = "; ".join(filter(None, [runs.without, unfit]))
    return Observation(table, runs.edges, exploratory=said, lower_bounds=lower, upper_bounds=upper, unfit=lost)


def _censored(rows: pd.DataFrame) -> str:
    count = int((~rows["observed"]).sum())
    return f"{count} of {len(rows)} runs never learned and enter with the samples they drew" if count else ""


def doublings_per_bit(evidence: Evidence) -> Observation:
    """Least-squares slope of log2 samples on the secret bits, by seed. A censored run makes it a bound."""
    runs = judged(evidence)
    parts: dict[str, pd.Series] = {}
    lower, upper = set(), set()
    for name, same in _along(plain(runs.rows), "secret_bits"):
        centre = same["size"].unique().mean()
        slopes = {
            seed: float(np.polyfit(one["size"], np.log2(one["time"]), 1)[0])
            for seed, one in same.groupby("seed")
            if one["size"].nunique() == same["size"].nunique() >= 2
        }
        if slopes:
            parts[name] = pd.Series(slopes)
            open_ = same.loc[~same["observed"], "size"]
            lower |= {name} if (open_ > centre).any() else set()
            upper |= {name} if (open_ < centre).any() else set()
    if not parts:
        return Observation(pd.DataFrame(), runs.edges, "seeds that ran with two numbers of secret bits or more")
    return _observed(runs, pd.DataFrame(parts).dropna(), frozenset(lower), frozenset(upper), _censored(runs.rows))


def shape(evidence: Evidence, along: str, shape: str, over: str) -> Observation:
    """AICc of one shape of growth less that of another, so that above 0 the first is better; by seed.

    Sizes at which a run is censored are left out of all seeds. Nothing is said of fewer than five others.
    """
    runs = judged(evidence)
    parts: dict[str, pd.Series] = {}
    most = 0
    for name, same in _along(plain(runs.rows), along):
        whole = same.groupby("size")["observed"].all()
        points = same[same["size"].isin(whole.index[whole])]
        most = max(most, points["size"].nunique())
        found = {}
        for seed, one in points.groupby("seed"):
            criteria = shape_aic(one["size"], one["time"]) if one["size"].nunique() == whole.sum() else None
            if criteria is not None:
                found[seed] = criteria[over] - criteria[shape]
        if found:
            parts[name] = pd.Series(found)
    if not parts:
        missing = f"five values of {along} without a censored run; there are {most} at most"
        return Observation(pd.DataFrame(), runs.edges, missing)
    return _observed(runs, pd.DataFrame(parts), frozenset(), frozenset())


def _along(rows: pd.DataFrame, name: str) -> list[tuple[str, pd.DataFrame]]:
    """Problems that differ in one field alone, together, with that field as `size`."""
    label = _ABSCISSA[name]
    rest = rows["problem"].str.replace(rf"\b{label}=\S+ ", "", regex=True)
    sized = rows.assign(size=column(rows, f"config.{name}").astype(float))
    return [(str(part), same) for part, same in sized.groupby(rest, sort=False)]


def entropy_at_success(evidence: Evidence) -> Observation:
    """Least normalised entropy of a head at success, by seed and problem, of the runs that learned."""
    runs = judged(evidence)
    rows = plain(runs.rows)
    learned, others = rows[rows["observed"]], rows[~rows["observed"]]
    sparse = int((column(others, "entropy_min") < SPARSE).sum())
    remark = f"of {len(others)} runs that never learned {sparse} are as sparse in the end" if len(others) else ""
    if learned.empty:
        return Observation(pd.DataFrame(), runs.edges, "runs that learned")
    table = learned.pivot_table(index="seed", columns="problem", values="report/entropy_at_success", sort=False)
    return _observed(runs, table, frozenset(), frozenset(), remark)


def memorisation(evidence: Evidence) -> Observation:
    """Share of training rows that are right less that of report rows at the end, by seed; smallest training set."""
    runs = judged(evidence)
    sizes = column(runs.rows, "config.train_size")
    rows = runs.rows[sizes == sizes.min()]
    if rows.empty:
        return Observation(pd.DataFrame(), runs.edges, "runs with a finite training set")
    gap = rows.assign(gap=rows["train/exact_match"] - rows["report/exact_match"])
    diverged = int((rows["status"] == "diverged").sum())
    lost = f"{diverged} of {len(rows)} runs diverged: what they would have memorised is not known" if diverged else ""
    table = gap.pivot_table(index="seed", columns="problem", values="gap")
    return _observed(runs, table, frozenset(), frozenset(), unfit=lost)


def kept(evidence: Evidence) -> Observation:
    """The least exact match of report rows over all evaluations, by seed and problem; 0 where the run diverged."""
    runs = judged(evidence)
    least = column(runs.rows, "report/least_exact_match").astype(float).mask(runs.rows["status"] == "diverged", 0.0)
    table = runs.rows.assign(least=least).pivot_table(index="seed", columns="problem", values="least", sort=False)
    return _observed(runs, table, frozenset(), frozenset())


def summary(records: Records) -> pd.DataFrame:
    """The table at the end of a sweep, a row per problem. `>` marks medians that censoring leaves open."""
    rows, least = chosen(records), least_over_rates(records)
    found = []
    for problem, same in rows.groupby("problem", sort=False):
        own = median_time(same["time"], same["observed"])
        of_author = least[least["problem"] == problem]
        author = median_time(of_author["time"], of_author["observed"]) if len(of_author) else None
        found.append(
            {
                "problem": problem,
                "seeds": len(same),
                "learned": int(same["observed"].sum()),
                "samples (median)": _median(own, same["time"].max()),
                "95 %": _interval(own),
                "without / with a chain": _ratio(rows, same) if same["layout"].iloc[0] == "direct" else "",
                "least over rates": "" if author is None else _median(author, of_author["time"].max()),
                "rate": f"{same['config.learning_rate'].iloc[0]:.2g}",
                "exact match": same["report/exact_match"].median(),
                "own chain": same["report/free_running_accuracy"].median(),
                "entropy": column(same, "report/entropy_at_success").astype(float).median(),
            }
        )
    return pd.DataFrame(found)


def _median(median: Median, drawn: float) -> str:
    return f"> {drawn:,.0f}" if np.isinf(median.value) else f"{median.value:,.0f}"


def _interval(median: Median) -> str:
    high = "..." if np.isinf(median.high) else f"{median.high:,.0f}"
    return "" if np.isnan(median.low) else f"[{median.low:,.0f}, {high}]"


def _ratio(rows: pd.DataFrame, direct: pd.DataFrame) -> str:
    """Ratio of restricted geometric means up to the least samples that a censored run drew, and log-rank's p.

    `>` at least, `<` at most, `~` neither: censored runs without a chain, with one, in both layouts.
    """
    chain = rows[(rows["pair"] == direct["pair"].iloc[0]) & (rows["layout"] == "chain")]
    if chain.empty:
        return ""
    both = pd.concat([direct, chain])
    horizon = both.loc[~both["observed"], "time"].min() if (~both["observed"]).any() else both["time"].max()
    first, second = ((one["time"], one["observed"]) for one in (direct, chain))
    found = restricted_ratio(first, second, float(horizon))
    mark = {(True, True): "", (False, True): "> ", (True, False): "< ", (False, False): "~ "}[
        bool(direct["observed"].all()), bool(chain["observed"].all())
    ]
    return f"{mark}{found.value:.3g} {found.interval or ''} p={found.p_value:.2g}"


READING = Reading(
    claims=CLAIMS,
    statistics={
        "samples_ratio": samples_ratio,
        "doublings_per_bit": doublings_per_bit,
        "shape": shape,
        "entropy_at_success": entropy_at_success,
        "memorisation": memorisation,
        "kept": kept,
        "intervention": intervention,
    },
    figures=cot_parity_plots.FIGURES,
    summary=summary,
)
