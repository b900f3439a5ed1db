"""Readings of made tables against counts, medians and slopes put into them, and intervals against textbook values."""

import json

import numpy as np
import pytest

from analysis.claims import decide
from analysis.lpn_reading import CLAIMS, READING, chosen, costs, summary
from analysis.opening import open_records
from analysis.records import RecordsError
from analysis.stats import wilson
from tests.analysis.conftest import Sweep

FRESH = (100, 101, 102, 103, 104)


def trial(n, tau, seed, found, *, walsh=100.0, fresh=True, rate=0.01, mean_error=0.1, **more):
    """A row of `trials`; found: samples to the secret, None where 10^6 gave none."""
    config = {"dimension": n, "noise_rate": tau, "seed": seed, "learning_rate": rate, "setting": "abundant"}
    config |= {"secret_rate": 0.5, "network": "mlp", "activation": "relu", "budget_steps": 3000, "samples": None}
    config |= {name: more.pop(name) for name in list(more) if name in config}
    name = json.dumps([n, tau, seed, rate, config["setting"], config["samples"]])
    return {
        "sweep": "s", "study": "lpn", "trial": name, "key": "k", "phase": "confirm" if fresh else "tune",
        "status": "complete", "config": json.dumps(config), "root": "r", "scale": "laptop", "seed": seed,
        "budget_steps": 3000, "budget_tokens": 3000 * 512, "parameters": 10 * n, "tokens_per_step": 512,
        "device": "a cpu", "data_sha": "", "steps_run": 50, "select/mean_error": mean_error,
        "report/solved": float(found is not None), "report/samples_to_secret": found,
        "samples": float(found or 1e6), "report/walsh_samples": walsh, **more,
    }  # fmt: skip


@pytest.fixture
def records(tmp_path):
    """Rows of `trials` as records, by way of a folder."""
    axes = {"learning_rate": {"low": 0.001, "high": 0.1}, "dimension": [10, 12]}
    spec = {"sweep": "s", "select": {"name": "select/mean_error"}, "report": {"name": "report/solved", "goal": "max"}}
    spec |= {"axes": axes, "conditions": ["dimension"]}
    step, stage = {"sweep": "s", "trial": "", "step": 1}, {"sweep": "s", "stage": "", "executed_steps": 1}
    return lambda rows: open_records(Sweep(rows, [step], [stage], spec).write(tmp_path))


@pytest.fixture
def verdicts(records):
    return lambda rows: {one.claim.id: one for one in decide(CLAIMS, records(rows), READING.statistics)}


def samples_of(n, tau, seed):
    """2^(0.8 n) (1 - 2 tau)^-1 with a little spread."""
    return float(1000 * 2 ** (0.8 * (n - 10)) / (1 - 2 * tau) * 1.05 ** (round(seed * n * (1 + 10 * tau)) % 5 - 2))


def grid(**options):
    return [
        trial(n, tau, seed, samples_of(n, tau, seed), walsh=2.0, **options)
        for n in (10, 12, 14) for tau in (0.1, 0.3, 0.4) for seed in FRESH
    ]  # fmt: skip


def test_wilson_is_the_textbook_interval():
    for successes, trials in ((0, 5), (5, 5), (9, 10), (37, 80)):
        z, p = 1.959963984540054, successes / trials
        middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
        reach = z / (1 + z**2 / trials) * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
        ends = wilson(successes, trials)
        assert (ends.low, ends.high) == pytest.approx((max(0, middle - reach), min(1, middle + reach)), abs=1e-12)


def test_claims_are_decided_by_what_was_put_in(verdicts):
    found = verdicts(grid())
    assert {name: one.verdict for name, one in found.items()} == {
        "LPN1": "reproduced", "LPN2": "reproduced", "LPN3": "undecided", "LPN4": "reproduced", "LPN5": "reproduced",
        "LPN6": "undecided",
    }  # fmt: skip
    assert found["LPN4"].estimate == pytest.approx(0.8, abs=0.05) and found["LPN5"].estimate == pytest.approx(
        0.5, abs=0.1
    )
    assert found["LPN2"].parts["n=12 tau=0.3"] == pytest.approx(np.log2(1000 * 2**1.6 / 0.4 / 2), abs=0.1)
    assert found["LPN1"].parts.keys() == {f"n={n} tau={tau}" for n in (10, 12, 14) for tau in (0.1, 0.3, 0.4)}


def test_too_steep_growth_contradicts_and_unsolved_trials_count_with_what_they_drew(verdicts):
    steep = grid()
    for at, row in enumerate(steep):
        bits = json.loads(row["config"])["dimension"] - 10
        row["report/samples_to_secret"] = 1e3 * 3.0**bits * (1 + 0.03 * (at * at % 7))
    assert verdicts(steep)["LPN4"].verdict == "contradicted"
    censored = grid()
    censored[0] = trial(10, 0.1, FRESH[0], None, walsh=2.0)
    decision = verdicts(censored)["LPN2"]
    assert "1 of 45 trials found no secret" in decision.why


def test_a_cell_that_fails_on_some_seeds_leaves_the_claim_undecided(verdicts):
    rows = [row for row in grid() if json.loads(row["config"])["dimension"] < 14]
    rows += [trial(14, 0.4, seed, 1e5 if seed % 2 else None) for seed in FRESH]
    assert verdicts(rows)["LPN1"].verdict == "undecided"


def test_three_secrets_of_three_decide_nothing_and_five_of_five_only_exactly(verdicts):
    three = verdicts([row for row in grid() if row["seed"] < 103])["LPN1"]
    assert (three.verdict, three.p_value) == ("undecided", pytest.approx(0.5**3))
    assert str(three.interval) == str(wilson(3, 3))
    assert verdicts(grid())["LPN1"].p_value == pytest.approx(0.5**5)


def test_a_bound_does_not_favour_the_claim_it_stands_in(verdicts):
    open_ = [row | {"report/solved": 0.0, "report/samples_to_secret": None} for row in grid()]
    at = {name: [json.loads(row["config"])[name] for row in open_] for name in ("dimension", "noise_rate")}
    steep = [b if n == 14 and tau == 0.4 else a for a, b, n, tau in zip(grid(), open_, *at.values(), strict=True)]
    found = verdicts(steep)
    assert {found[name].verdict for name in ("LPN4", "LPN5")} == {"undecided"} and "favours" in found["LPN4"].why
    assert found["LPN2"].verdict == "reproduced"  # more samples than these: all the more
    flat = [b if n == 10 and tau == 0.1 else a for a, b, n, tau in zip(grid(), open_, *at.values(), strict=True)]
    assert verdicts(flat)["LPN4"].verdict == "reproduced"


def test_diverged_trials_found_nothing_and_leave_samples_undecided(verdicts, records):
    rows = grid()
    rows[0] |= {"status": "diverged", "report/solved": None, "report/samples_to_secret": None, "samples": None}
    found = verdicts(rows)
    assert found["LPN1"].parts["n=10 tau=0.1"] == 0.8 and "1 of 45 trials diverged" in found["LPN1"].why
    assert {found[name].verdict for name in ("LPN2", "LPN4", "LPN5")} == {"undecided"}
    assert summary(records(rows))["diverged"].sum() == 1


def tuned(best_rate):
    """The rates 0.001, 0.01 and 0.1 on two tuning seeds of each problem of `grid`, one of them best."""
    return [
        trial(n, tau, seed, 50.0, fresh=False, rate=rate, mean_error=0.1 if rate == best_rate else 0.3)
        for n in (10, 12, 14) for tau in (0.1, 0.3, 0.4) for seed in (0, 1) for rate in (0.001, 0.01, 0.1)
    ]  # fmt: skip


def test_only_the_chosen_config_of_a_problem_speaks(verdicts):
    other = [row | {"report/samples_to_secret": 1.0} for row in grid(rate=0.1)]
    assert verdicts([*grid(), *other, *tuned(0.01)])["LPN2"].estimate == verdicts(grid())["LPN2"].estimate
    assert "no tuning trials" in verdicts([*grid(), *other])["LPN2"].why


def test_conditions_are_parts_and_never_chosen_over(verdicts):
    longer = grid(budget_steps=6000)
    for row in longer:
        row["trial"] += "longer"
    parts = verdicts([*grid(), *longer])["LPN1"].parts
    assert len(parts) == 18 and "n=10 tau=0.1 B=6000" in parts


def test_a_rate_at_the_end_of_its_range_leaves_all_undecided(verdicts):
    found = verdicts([*grid(rate=0.1), *tuned(0.1)])
    assert {one.verdict for one in found.values()} == {"undecided"}
    assert "space.learning_rate.high=1" in found["LPN1"].why
    assert verdicts([*grid(), *tuned(0.01)])["LPN1"].verdict == "reproduced"


def test_restricted_trials_have_their_own_claim(verdicts):
    rows = [trial(10, 0.1, seed, 150.0 + seed % 3, walsh=16.0, setting="restricted") for seed in FRESH]
    found = verdicts(rows)
    assert found["LPN3"].verdict == "reproduced" and found["LPN2"].verdict == "undecided"
    assert found["LPN3"].estimate == pytest.approx(np.mean(np.log2((150.0 + np.array(FRESH) % 3) / 16)))


def test_costs_are_medians_over_fresh_secrets_alone(records):
    rows = [trial(10, 0.1, seed, float(10 * seed)) for seed in FRESH] + [trial(10, 0.1, 0, 1.0, fresh=False)]
    (row,) = costs(chosen(records(rows))).to_dict("records")
    assert (row["trials"], row["solved"], row["samples"], row["least"], row["most"]) == (5, 1.0, 1020.0, 1000.0, 1040.0)
    assert row["walsh_samples"] == 100


def test_without_fresh_seeds_the_best_config_of_each_problem_is_shown(records):
    rows = [
        trial(n, 0.1, 0, 100.0 * k, fresh=False, rate=rate, mean_error=error)
        for n in (8, 9) for k, (rate, error) in enumerate(((0.1, 0.3), (0.2, 0.2 / n), (0.3, 0.25)), 1)
    ]  # fmt: skip
    assert costs(chosen(records(rows)))["samples"].tolist() == [200.0, 200.0]


def test_the_summary_marks_medians_that_are_bounds_and_names_what_differs(records):
    rows = [trial(10, 0.4, seed, None if seed < 103 else 5e4, samples=m) for seed in FRESH for m in (1000, 2000)]
    table = summary(records(rows))
    assert table["problem"].tolist() == ["n=10 tau=0.4 m=1000", "n=10 tau=0.4 m=2000"]
    assert table["samples"].str.startswith("> ").all() and table["solved"].tolist() == [0.4, 0.4]


def test_figures_draw_their_numbers_and_say_what_they_lack(records):
    rows = grid()
    for name in ("solved", "samples"):
        assert READING.figures[name](records(rows)).axes
    with pytest.raises(RecordsError, match=r"resources\.pack=1"):
        READING.figures["device_seconds"](records(rows))
    alone = [row | {"device_seconds_alone": 2.0, "device": f"device {at % 2}"} for at, row in enumerate(rows)]
    panels = READING.figures["device_seconds"](records(alone)).axes
    assert [axes.get_title() for axes in panels] == ["device 0", "device 1"]


def test_records_without_an_ended_trial_say_so(records):
    rows = [row | {"status": "failed", "report/solved": None} for row in grid()[:2]]
    with pytest.raises(RecordsError, match="no trial has ended"):
        summary(records(rows))
