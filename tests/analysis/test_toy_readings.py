"""The readings of the two toy studies on tables whose truth is a formula: statistics, claims, maps and figures."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import bigram_reading, river_valley_reading
from analysis.choice import trial_frame
from analysis.claims import Evidence, rule
from analysis.opening import open_records
from analysis.paired_schedules import (
    decay_gain_share,
    equal_peak_differences,
    mapped,
    summary_table,
    tuned,
    tuned_differences,
)
from analysis.records import RecordsError
from tests.analysis.conftest import Sweep, key_of

PEAKS, BUDGETS, NOISES = (1e-3, 2e-3, 4e-3, 8e-3), (500, 2000, 8000), (0.25, 1.0, 4.0)
TUNING, FRESH = (0, 1, 2), (100, 101, 102, 103)
SPEED = {"wsd": 0.95, "wsd_s": 1.0, "cosine": 0.55, "cyclic_cosine": 0.5}  # mean rate over the peak rate
LEFT = {"wsd": 0.15, "wsd_s": 0.15, "cosine": 0.05, "cyclic_cosine": 0.05}  # share of the hill left at the end


def hill(noise, peak):
    """At a constant rate."""
    return 0.5 * peak * noise**2


def river(method, peak, budget):
    """Falls with the way made, down to a limit at peak 4e-3."""
    return 1 - 1e-3 * SPEED[method] * budget * min(peak, 8e-3 - peak)


def loss(method, peak, budget, noise):
    return hill(noise, peak) * LEFT[method] + river(method, peak, budget)


def best_peak(method, budget, noise):
    return min(PEAKS, key=lambda peak: loss(method, peak, budget, noise))


def row(config, phase, metrics):
    key = key_of(config)
    return {
        "sweep": "toy", "study": "toy", "trial": key[:12], "key": key, "phase": phase, "cell": "all", "name": key[:8],
        "proposal": PEAKS.index(config["peak_lr"]), "status": "complete", "error": None,
        "config": json.dumps(config), "root": key[:16], "seed": config["seed"], "scale": "tiny", "parameters": 2,
        "budget_steps": config["budget_steps"], "tokens_per_step": 1, "data_sha": "", "varying": ["method"], **metrics,
    }  # fmt: skip


def seed_shift(seed):
    """What a seed does to all its trials alike: it must cancel."""
    return 0.3 * np.sin(seed)


def valley(methods=tuple(SPEED), diverged=()):
    made = Sweep(
        spec={"sweep": "toy", "study": "toy", "conditions": [], "axes": {"peak_lr": {"low": 1e-3, "high": 8e-3}}}
    )
    for method in methods:
        for noise in NOISES:
            for budget in BUDGETS:
                for peak in PEAKS:
                    seeds = [("tune", seed) for seed in TUNING]
                    seeds += [("confirm", seed) for seed in FRESH if peak == best_peak(method, budget, noise)]
                    for phase, seed in seeds:
                        config = dict(
                            method=method, peak_lr=peak, budget_steps=budget, noise=noise, seed=seed, curvature=100.0,
                            height=1.0,
                        )  # fmt: skip
                        ends = {"hill": hill(noise, peak) * LEFT[method], "river": river(method, peak, budget)}
                        total = sum(ends.values()) + seed_shift(seed)
                        metrics = {"select/loss": total, "report/loss": total, **ends}
                        metrics |= {f"report/{name}": value for name, value in ends.items()}
                        if method == "wsd":
                            before = {"hill": hill(noise, peak), "river": ends["river"] + 0.1 * hill(noise, peak)}
                            before["loss"] = sum(before.values()) + seed_shift(seed)
                            metrics |= {f"report/{name}_before_decay": value for name, value in before.items()}
                        made.trials.append(row(config, phase, metrics))
                        if (method, peak) in diverged:
                            made.trials[-1] |= {"status": "diverged", "report/loss": float("nan")}
                        for step in (budget // 2, budget):
                            made.measurements.append(
                                {"sweep": "toy", "trial": key_of(config)[:12], "step": step, "lr": peak, "key": "k",
                                 **{name: metrics[name] for name in ("select/loss", "hill", "river")}}
                            )  # fmt: skip
    made.ledger.append({"sweep": "toy", "stage": "s", "executed_steps": 1})
    return made


@pytest.fixture
def records(tmp_path):
    return open_records(valley().write(tmp_path / "toy"))


def evidence(records, seeds="any", **conditions):
    frame = trial_frame(records)
    for name, value in conditions.items():
        frame = frame[frame[records.column(name)] == value]
    return Evidence(records, frame, {}, seeds)


def seen(reading, claim, records):
    """What a claim's statistic sees, with the claim's own condition and arguments."""
    asked = evidence(records, claim.seeds, **claim.condition)
    return reading.statistics[claim.statistic](asked, **claim.arguments)


def test_each_method_is_tuned_within_its_condition(records):
    choices = tuned(trial_frame(records), ["noise"])
    assert len(choices) == len(SPEED) * len(NOISES) * len(BUDGETS)
    for choice in choices:
        assert choice.peak == best_peak(choice.method, choice.budget, choice.condition[0])
        assert choice.tried == PEAKS


def test_differences_are_the_formulas_and_seeds_cancel(records):
    frame = trial_frame(records)
    equal = equal_peak_differences(frame, "wsd", "cosine", ["noise"])
    assert len(equal) == len(NOISES) * len(BUDGETS) * len(PEAKS) * len(TUNING)
    for _, one in equal.iterrows():
        at = one["config.peak_lr"], one["budget_steps"], one["config.noise"]
        assert one["difference"] == pytest.approx(loss("wsd", *at) - loss("cosine", *at), abs=1e-12)
    best = tuned_differences(frame, "wsd", "cosine", ["noise"])
    assert set(best["seed"]) == set(FRESH)
    for _, one in best.iterrows():
        at = one["budget_steps"], one["config.noise"]
        wsd, cosine = (loss(m, best_peak(m, *at), *at) for m in ("wsd", "cosine"))
        assert one["difference"] == pytest.approx(wsd - cosine, abs=1e-12)


def test_the_claims_about_the_valley_see_the_formulas(records):
    claims = {claim.id: claim for claim in river_valley_reading.CLAIMS}
    observed = {name: seen(river_valley_reading.READING, claim, records) for name, claim in claims.items()}
    assert not [name for name, one in observed.items() if one.missing]
    assert np.allclose(observed["V1"].parts, 1.0)  # hill ~ peak
    took = hill(1.0, 1.0) * np.array([1 - LEFT["wsd"], 0.1])  # off the hill, off the river
    assert np.allclose(observed["V2"].parts, took[0] / took.sum())
    calm = np.log(PEAKS[:3])  # peak * curvature at most 0.5
    slopes = [np.polyfit(calm, [-river("wsd", peak, budget) for peak in PEAKS[:3]], 1)[0] for budget in BUDGETS]
    assert np.allclose(observed["V3"].parts, slopes)
    assert np.allclose(observed["V4"].parts, river("wsd", 8e-3, 8000) - river("wsd", 4e-3, 8000))
    for name, noise, budget in (("V5", 0.25, 8000), ("V6", 4.0, 500)):
        mean = np.mean([loss("wsd", p, budget, noise) - loss("cosine", p, budget, noise) for p in PEAKS])
        assert np.allclose(observed[name].parts, mean) and list(observed[name].parts.index) == list(TUNING)
    assert list(observed["V8"].parts) == ["budget 2000", "budget 8000"]
    assert list(observed["V8"].parts.index) == list(FRESH)
    verdicts = dict(zip(claims, rule(list(claims.values()), list(observed.values())), strict=True))
    assert {name: ruling.verdict for name, ruling in verdicts.items()} == {name: "reproduced" for name in claims}


def test_an_optimum_at_the_end_of_the_peaks_is_said(records):
    claim = next(claim for claim in river_valley_reading.CLAIMS if claim.id == "V7")
    short = replace(claim, condition={"noise": 4.0, "budget_steps": 500})
    assert best_peak("wsd", 500, 4.0) == PEAKS[0]
    assert any("space.peak_lr.low" in words for words in seen(river_valley_reading.READING, short, records).edges)
    assert not seen(river_valley_reading.READING, claim, records).edges
    ends = evidence(records, "fresh", noise=4.0, budget_steps=500)
    assert decay_gain_share(ends, "hill", "wsd").edges == ("space.peak_lr.low=0.0005",)


def test_what_diverged_leaves_its_seeds_out_of_means_and_a_cross_on_the_map(tmp_path):
    records = open_records(valley(("wsd", "cosine"), diverged=[("wsd", 8e-3)]).write(tmp_path / "toy"))
    table = equal_peak_differences(trial_frame(records), "wsd", "cosine", ["noise"])
    lost = mapped(table[table["config.noise"] == 1.0], ["config.peak_lr", "budget_steps"])
    assert all(np.isnan(cell.difference) == (key[0] == 8e-3) for key, cell in lost.items())
    claim = next(claim for claim in river_valley_reading.CLAIMS if claim.id == "V5")
    assert not np.isfinite(seen(river_valley_reading.READING, claim, records).parts).any().any()
    river_valley_reading.regime_map(records)


def test_a_map_tells_what_seeds_cannot_tell():
    rows = [{"y": y, "x": 1.0, "seed": s, "difference": y + shift} for y, shifts in
            ((0.1, (-1, 0, 1)), (2.0, (-0.1, 0, 0.1))) for s, shift in enumerate(shifts)]  # fmt: skip
    cells = mapped(pd.DataFrame(rows), ["y", "x"])
    assert not cells[0.1, 1.0].clear and cells[2.0, 1.0].clear and cells[2.0, 1.0].seeds == 3
    assert not mapped(pd.DataFrame(rows[:2]), ["y", "x"])[0.1, 1.0].clear  # two seeds decide nothing


def test_the_summary_has_a_row_per_noise_budget_and_method(records):
    table = summary_table(trial_frame(records), ["noise"], ["hill", "river"])
    assert len(table) == len(NOISES) * len(BUDGETS) * len(SPEED)
    one = table[(table["noise"] == 1.0) & (table["budget"] == 2000) & (table["method"] == "wsd")].iloc[0]
    peaks = {m: best_peak(m, 2000, 1.0) for m in ("wsd", "cosine")}
    assert one["peak"] == peaks["wsd"] and one["seeds"] == len(FRESH)
    assert one["hill"] == pytest.approx(hill(1.0, peaks["wsd"]) * LEFT["wsd"])
    wanted = loss("wsd", peaks["wsd"], 2000, 1.0) - loss("cosine", peaks["cosine"], 2000, 1.0)
    assert one["minus cosine"] == pytest.approx(wanted)
    assert table[table["method"] == "cosine"]["minus cosine"].isna().all()


@pytest.mark.parametrize("name", list(river_valley_reading.READING.figures))
def test_the_figures_of_the_valley_are_drawn(records, name):
    figure = river_valley_reading.READING.figures[name](records)
    drawn = [axes for axes in figure.axes if axes.get_visible() and (axes.lines or axes.collections)]
    assert len(drawn) >= {"regime_map": 3, "tuned_map": 1, "components": 4, "best_peaks": 3}[name]


def test_figures_say_what_they_lack(tmp_path):
    records = open_records(valley(("cosine",)).write(tmp_path / "toy"))
    for name in ("regime_map", "tuned_map", "components"):
        with pytest.raises(RecordsError, match="need"):
            river_valley_reading.READING.figures[name](records)


def bigram(zipf=1.3):
    made = Sweep(spec={"sweep": "toy", "study": "toy", "conditions": [], "axes": {}})
    for method in SPEED:
        for budget in BUDGETS:
            for peak in PEAKS:
                for phase, seeds in (("tune", TUNING), ("confirm", FRESH if peak == 2e-3 else ())):
                    for seed in seeds:
                        config = dict(method=method, peak_lr=peak, budget_steps=budget, zipf=zipf, seed=seed)
                        side = 1 if method == "cosine" else -1
                        value = 1 + abs(np.log(peak / 2e-3)) + 0.1 * side * (2.5e-3 - peak) + seed_shift(seed)
                        last = {"kl_uncertain": 0.1, "kl_deterministic": 0.2, "hessian_share_uncertain": 0.9}
                        before = {"kl_uncertain": 0.19, "kl_deterministic": 0.21, "loss": value + 0.1}
                        metrics = {"select/loss": value, "report/loss": value, **last}
                        metrics |= {f"report/{name}": one for name, one in last.items()}
                        metrics |= {f"report/{name}_before_decay": one for name, one in before.items()}
                        made.trials.append(row(config, phase, metrics))
                        made.measurements.append(
                            {"sweep": "toy", "trial": made.trials[-1]["trial"], "step": budget, "lr": peak, "key": "k",
                             "select/loss": value, **last}
                        )  # fmt: skip
    made.ledger.append({"sweep": "toy", "stage": "s", "executed_steps": 1})
    return made


def test_the_claims_about_bigrams_see_the_formulas(tmp_path):
    records = open_records(bigram().write(tmp_path / "toy"))
    claims = {claim.id: claim for claim in bigram_reading.CLAIMS if claim.id != "B8"}
    parts = {name: seen(bigram_reading.READING, claim, records).parts for name, claim in claims.items()}
    assert np.allclose(parts["B1"], 0.9) and np.allclose(parts["B2"], 0.9)
    assert np.allclose(parts["B3"], -0.2 * 1.5e-3) and np.allclose(parts["B4"], 0.2 * 5.5e-3)
    assert np.allclose(parts["B5"], -0.2 * 5e-4) and np.allclose(parts["B6"], 0)
    for draw in bigram_reading.READING.figures.values():
        assert draw(records).axes
    assert {"kl_uncertain", "minus cosine"} <= set(bigram_reading.READING.summary(records))


def test_claims_name_statistics_that_exist_and_hold_their_hashes_apart():
    for reading in (river_valley_reading.READING, bigram_reading.READING):
        assert {claim.statistic for claim in reading.claims} <= set(reading.statistics)
        assert len({claim.hash for claim in reading.claims}) == len(reading.claims)
