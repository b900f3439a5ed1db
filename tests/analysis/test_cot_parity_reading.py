"""Readings of made tables against ratios, slopes and medians put into them, and bounds that must not decide."""

import json

import numpy as np
import pytest

from analysis.claims import decide
from analysis.cot_parity_reading import CLAIMS, READING, summary
from analysis.cot_parity_runs import chosen, least_over_rates
from analysis.opening import open_records
from analysis.records import RecordsError
from tests.analysis.conftest import Sweep

FRESH = (100, 101, 102, 103, 104)
BUDGET = 100_032.0


def trial(k, chain, seed, found, *, fresh=True, rate=1e-3, log_samples=4.0, **more):
    """A row of `trials`; found: samples to success, None where the budget gave none."""
    config = {"input_bits": 12, "secret_bits": k, "chain_of_thought": chain, "seed": seed, "learning_rate": rate}
    config |= {
        "layers": 1,
        "heads": 1,
        "train_size": None,
        "entropy_bonus": 0.0,
        "start": "random",
        "budget_steps": 1563,
        "batch_size": 64,
    }
    config |= {name: more.pop(name) for name in list(more) if name in config}
    row = {
        "sweep": "s", "study": "cot_parity", "trial": json.dumps(config), "key": "k",
        "phase": "confirm" if fresh else "tune", "status": "complete", "config": json.dumps(config), "root": "r",
        "scale": "laptop", "seed": seed, "budget_steps": 1563, "budget_tokens": 1563 * 64, "parameters": 50_000,
        "tokens_per_step": 64 * (12 + k * chain), "device": "a cpu", "data_sha": "", "select/log_samples": log_samples,
        "samples": float(found or BUDGET), "report/censored": float(found is None), "report/sample_complexity": found,
        "report/exact_match": 0.5 if found is None else 1.0, "report/least_exact_match": 0.4,
        "report/free_running_accuracy": 1.0, "report/entropy_at_success": None if found is None else 0.1,
        "entropy_min": 0.1, "train/exact_match": 0.99, "report/samples_trace": [64.0, 128.0],
        "report/exact_match_trace": [0.5, 1.0], "report/train_exact_match_trace": [0.4, 0.9],
    }  # fmt: skip
    heads = config["layers"] * config["heads"]
    row |= {f"report/{name}_trace": [0.9] * heads + [0.2] * heads for name in ("least_entropy", "secret_mass")}
    return row | more


@pytest.fixture
def records(tmp_path):
    """Rows of `trials` as records, by way of a folder."""
    axes = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "secret_bits": [1, 2, 3]}
    spec = {"sweep": "s", "centre": "median", "select": {"name": "select/log_samples"}, "axes": axes}
    spec |= {"report": {"name": "report/exact_match", "goal": "max"}, "conditions": ["secret_bits", "chain_of_thought"]}
    step, stage = {"sweep": "s", "trial": "", "step": 1}, {"sweep": "s", "stage": "", "executed_steps": 1}
    return lambda rows: open_records(Sweep(rows, [step], [stage], spec).write(tmp_path))


@pytest.fixture
def verdicts(records):
    return lambda rows: {one.claim.id: one for one in decide(CLAIMS, records(rows), READING.statistics)}


def samples_of(k, chain, seed):
    """Flat in k with a chain and four times as many for each bit without, with a little spread."""
    return 1000.0 * (1 if chain else 4 ** (k - 1)) * 1.06 ** ((7 * seed + 3 * k + chain) % 5 - 2)


def grid(bits=(1, 2, 3), **options):
    return [trial(k, chain, seed, samples_of(k, chain, seed), **options)
            for k in bits for chain in (True, False) for seed in FRESH]  # fmt: skip


def test_claims_are_decided_by_what_was_put_in(verdicts):
    found = verdicts(grid())
    assert {name: one.verdict for name, one in found.items() if one.verdict != "undecided"} == {
        "CP1": "reproduced", "CP2": "reproduced", "CP3": "reproduced", "CP4": "reproduced", "CP7": "reproduced",
    }  # fmt: skip
    assert found["CP1"].estimate == pytest.approx(4, abs=0.2) and found["CP4"].estimate == pytest.approx(2, abs=0.1)
    pairs = [np.log2(samples_of(3, False, seed) / samples_of(3, True, seed)) for seed in FRESH]
    assert found["CP1"].parts["n=12 k=3"] == pytest.approx(np.mean(pairs))
    assert "five values of secret_bits without a censored run; there are 3 at most" in found["CP5"].why


def test_the_opposite_is_contradicted(verdicts):
    swapped = [trial(k, not chain, seed, samples_of(k, chain, seed)) for k in (1, 2, 3) for chain in (True, False)
               for seed in FRESH]  # fmt: skip
    found = verdicts(swapped)
    assert {found[name].verdict for name in ("CP1", "CP3", "CP4")} == {"contradicted"}


def test_a_censored_run_bounds_a_ratio_and_favours_no_claim(verdicts):
    open_above = [row for row in grid() if json.loads(row["config"])["secret_bits"] == 3]
    hard = [trial(3, False, seed, None) for seed in FRESH]
    direct = verdicts([row for row in open_above if json.loads(row["config"])["chain_of_thought"]] + hard)["CP1"]
    assert direct.verdict == "reproduced" and "5 of 10 runs never learned" in direct.why
    assert direct.estimate == pytest.approx(np.log2(BUDGET / 1000), abs=0.1)
    chain = [trial(3, True, seed, None) for seed in FRESH]
    bounded = verdicts([row for row in open_above if not json.loads(row["config"])["chain_of_thought"]] + chain)["CP1"]
    assert bounded.verdict == "contradicted" and bounded.estimate < 0
    both = verdicts([*chain, *hard])["CP1"]
    assert both.verdict == "undecided"
    equal = verdicts([trial(1, chain, seed, None) for chain in (True, False) for seed in FRESH])["CP2"]
    assert equal.verdict == "undecided"


def test_a_slope_with_a_censored_end_is_a_lower_bound(verdicts):
    rows = [row for row in grid() if json.loads(row["config"])["chain_of_thought"]]
    for at, row in enumerate(rows):
        if json.loads(row["config"])["secret_bits"] == 3 and at % 2:
            rows[at] = row | {"report/censored": 1.0, "report/sample_complexity": None}
    assert verdicts(rows)["CP3"].verdict == "undecided" and "favours" in verdicts(rows)["CP3"].why


def test_five_uncensored_sizes_decide_the_shape(verdicts):
    direct = [row for row in grid((1, 2, 3, 4, 5)) if not json.loads(row["config"])["chain_of_thought"]]
    assert verdicts(direct)["CP5"].verdict == "reproduced"
    censored = [
        row | {"report/censored": 1.0} if json.loads(row["config"])["secret_bits"] == 5 else row for row in direct
    ]
    assert "there are 4 at most" in verdicts(censored)["CP5"].why
    lengths = [trial(3, True, seed, 20.0 * n**2 * 1.05 ** ((seed + n) % 3 - 1), input_bits=n)
               for n in (10, 12, 16, 20, 24) for seed in FRESH]  # fmt: skip
    assert verdicts(lengths)["CP6"].estimate > 2 and verdicts(lengths)["CP6"].verdict == "reproduced"


def test_entropy_is_of_runs_that_learned_and_others_are_counted(verdicts):
    rows = [trial(3, True, seed, 1000.0 + seed, **{"report/entropy_at_success": 0.5 + seed / 1000}) for seed in FRESH]
    stuck = [trial(2, True, seed, None) for seed in FRESH]
    found = verdicts([*rows, *stuck])["CP7"]
    assert found.verdict == "contradicted" and "of 5 runs that never learned 5 are as sparse" in found.why


def test_presets_have_claims_of_their_own(verdicts):
    small = [trial(3, False, seed, None, train_size=m, **{"report/exact_match": 0.5 + seed / 1e4 + (m > 500) * 0.4})
             for m in (500, 2000) for seed in FRESH]  # fmt: skip
    assert verdicts(small)["CP8"].estimate == pytest.approx(0.99 - 0.5102) and verdicts(small)["CP8"].roots == 5
    kept = [trial(3, False, seed, 64.0, start="constructed", **{"report/least_exact_match": 1.0}) for seed in FRESH]
    assert verdicts(kept)["CP9"].verdict == "reproduced"
    bonus = [
        trial(3, True, seed, (1 + b) * (1000.0 + seed), entropy_bonus=b) for b in (-0.3, 0.0, 0.3) for seed in FRESH
    ]
    found = verdicts(bonus)["CP10"]
    assert found.verdict == "reproduced" and found.estimate == pytest.approx(np.log2(1.3))
    assert verdicts(grid())["CP10"].verdict == "undecided" and verdicts(bonus)["CP3"].verdict == "undecided"


def tuned(values, found=2000.0):
    """Tuning trials at several rates: {rate: log_samples of each seed}."""
    return [trial(3, False, seed, found, fresh=False, rate=rate, log_samples=one)
            for rate, each in values.items() for seed, one in enumerate(each)]  # fmt: skip


def test_the_rate_is_chosen_by_the_median_and_the_author_takes_the_least(records):
    rates = {1e-4: [4.0, 4.0, 5.9], 1e-3: [4.4, 4.4, 4.4], 1e-2: [4.1, 5.5, 5.5]}
    fresh = [trial(3, False, seed, 3000.0, rate=rate) for seed in FRESH for rate in rates]
    found = records([*tuned(rates), *fresh])
    assert set(chosen(found)["config.learning_rate"]) == {1e-4}
    rows = tuned(rates)
    for row, samples in zip(rows, [9e3, 8e3, None, 4e3, None, None, 5e3, 7e3, None], strict=True):
        row |= {"report/sample_complexity": samples, "report/censored": float(samples is None), "samples": BUDGET}
    least = least_over_rates(records([*rows, *fresh]))
    assert least["time"].tolist() == [4e3, 7e3, BUDGET] and least["observed"].tolist() == [True, True, False]
    assert summary(records([*rows, *fresh]))["least over rates"].tolist() == ["7,000"]


def test_a_rate_at_the_end_of_its_range_leaves_claims_undecided(verdicts):
    rates = {1e-4: [4.0] * 3, 1e-3: [5.0] * 3, 1e-2: [5.0] * 3}
    rows = [*tuned(rates), *(trial(3, False, seed, None, rate=1e-4) for seed in FRESH)]
    rows += [row for row in grid((3,)) if json.loads(row["config"])["chain_of_thought"]]
    assert "space.learning_rate.low=" in verdicts(rows)["CP1"].why


def test_the_summary_says_bounds_and_ratios(records):
    rows = [trial(3, True, seed, 1000.0 * (seed - 99)) for seed in FRESH]
    rows += [trial(3, False, seed, None if seed < 103 else 50_000.0) for seed in FRESH]
    chain, direct = summary(records(rows)).to_dict("records")
    assert chain["samples (median)"] == "3,000" and chain["learned"] == 5 and chain["without / with a chain"] == ""
    assert direct["samples (median)"] == "> 100,032" and direct["learned"] == 2 and direct["95 %"].endswith("...]")
    logs = np.log10([BUDGET] * 3 + [50_000.0] * 2), np.log10([1000.0 * at for at in (1, 2, 3, 4, 5)])
    assert direct["without / with a chain"].startswith(f"> {10 ** (logs[0].mean() - logs[1].mean()):.3g} [")


def test_diverged_runs_are_censored(records):
    rows = grid((3,))
    rows[0] |= {"status": "diverged", "report/sample_complexity": None, "report/censored": None}
    rows[0] |= {"samples": 256.0, "report/samples_trace": None, "report/exact_match_trace": None}
    found = records(rows)
    table = summary(found).set_index("problem")
    assert table["learned"].tolist() == [4, 5]
    assert chosen(found)["time"].max() == BUDGET  # not where it diverged
    assert table.loc["n=12 k=3 direct", "without / with a chain"].startswith("< ")
    assert len(READING.figures["along_training"](found).axes) == 6


def test_a_solution_that_diverged_was_not_kept(verdicts):
    rows = [trial(3, False, seed, 500.0, start="constructed") | {"report/least_exact_match": 1.0} for seed in FRESH]
    assert verdicts(rows)["CP9"].verdict == "reproduced"
    rows[1] |= {"status": "diverged", "report/least_exact_match": None}
    assert verdicts(rows)["CP9"].verdict != "reproduced" and verdicts(rows)["CP9"].roots == len(FRESH)


def test_nothing_is_said_of_memorising_when_a_run_diverged(verdicts):
    rows = [trial(3, False, seed, None, train_size=64) | {"train/exact_match": 1.0} for seed in FRESH]
    assert verdicts(rows)["CP8"].verdict == "reproduced"
    rows[1] |= {"status": "diverged", "train/exact_match": None, "report/exact_match": None}
    assert verdicts(rows)["CP8"].verdict == "undecided" and "diverged" in verdicts(rows)["CP8"].why


def test_figures_draw_their_numbers_and_say_what_they_lack(records):
    rows = grid()
    rows[-1] |= {"report/censored": 1.0, "report/sample_complexity": None}
    figures, found = READING.figures, records(rows)
    (axes,) = figures["samples_against_secret_bits"](found).axes
    drawn = [
        line.get_ydata()[0] for line in axes.lines if line.get_marker() not in ("None", None) and len(line.get_ydata())
    ]
    assert any(value == pytest.approx(np.median([samples_of(3, True, seed) for seed in FRESH])) for value in drawn)
    assert len(figures["along_training"](found).axes) == 6
    for name, words in (
        ("samples_against_input_bits", "preset=against_n"),
        ("layers_and_heads", "preset=layers_and_heads"),
        ("entropy_of_heads", "preset=layers_and_heads"),
    ):
        with pytest.raises(RecordsError, match=words):
            figures[name](found)
    nets = [trial(3, True, seed, 500.0 * layers * heads + seed, layers=layers, heads=heads)
            for layers in (1, 2) for heads in (1, 3) for seed in FRESH]  # fmt: skip
    (axes,) = figures["layers_and_heads"](records(nets)).axes
    drawn = [np.asarray(one.images[0].get_array()) for one in figures["entropy_of_heads"](records(nets)).axes[:-1]]
    assert [array.shape for array in drawn] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert all((array == 0.2).all() for array in drawn)
    assert [text.get_text() for text in axes.texts] == ["6e2", "1.6e3", "1.1e3", "3.1e3"]
    lengths = [trial(3, True, seed, 10.0 * n, input_bits=n) for n in (10, 20) for seed in FRESH]
    assert figures["samples_against_input_bits"](records(lengths)).axes[0].get_title().startswith("k=3;")


def test_records_without_an_ended_run_say_so(records):
    with pytest.raises(RecordsError, match="no trial has ended"):
        summary(records([row | {"status": "failed"} for row in grid()[:2]]))
