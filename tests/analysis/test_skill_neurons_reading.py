"""Readings of made tables of the skill-neuron study against what was put into them; ranks against a definition."""

import json

import numpy as np
import pytest

from analysis.claims import decide
from analysis.opening import open_records
from analysis.records import RecordsError
from analysis.skill_neurons_reading import CLAIMS, READING, summary
from analysis.skill_neurons_runs import by_arm, correlation, likenesses, paired, runs
from tests.analysis.conftest import Sweep

SEEDS = (0, 1, 2, 3)
NEURONS = 60


def ranks(task, seed, half):
    """Half of a neuron's rank is its task's, the rest is of this half of the texts."""
    own = np.random.default_rng(len(task)).random(NEURONS)
    return (own + np.random.default_rng((seed, half, len(task))).random(NEURONS)).tolist()


def trial(
    seed, task="amazon", action="perturb", tuning="prompt", encoder="minilm", status="complete", settings=(), **metrics
):
    config = {"task": task, "encoder": encoder, "readout": "mean", "tuning": tuning, "action": action, "seed": seed}
    config |= {"kind": "noise_sigma", "size": 1.0, "fraction": 0.1, "budget_steps": 80, "learning_rate": 0.03}
    config |= {"prompt_length": 8, "keep_fraction": 0.2 if action == "prune" else 0.1, "first_layer": 0, "draws": 2}
    config |= dict(settings)
    found = {
        "report/accuracy": 0.7, "report/zero_shot_accuracy": 0.6 + 0.001 * seed, "report/error": 0.3,
        "report/top_dev": 0.68, "report/top_test": 0.64 + 0.001 * seed, "report/null_top_dev": 0.57,
        "report/null_top_test": 0.5, "report/layers_dev": [0.6, 0.7], "report/layers_test": [0.6, 0.65],
        "report/layers_null": [0.5, 0.5],
    }  # fmt: skip
    if action == "perturb":
        found |= {"report/drop_skill": 0.1 + 0.002 * seed, "report/drop_random": 0.05, "report/drop_matched": 0.13}
        found |= {f"report/rise_{arm}": 0.1 for arm in ("skill", "random", "matched")}
        found["report/separation"] = found["report/drop_skill"] - found["report/drop_random"]
        found["report/separation_matched"] = found["report/drop_skill"] - found["report/drop_matched"]
    if action == "probe":
        found |= {"report/first_half": ranks(task, seed, 1), "report/second_half": ranks(task, seed, 2)}
    if action == "prune":
        found |= {"report/cpu_speed_up": 1.5 + 0.01 * seed, "report/parameters_kept": 0.5}
    return {
        "sweep": "s", "study": "skill_neurons", "trial": json.dumps(config), "key": json.dumps(config),
        "phase": "tune", "status": status, "config": json.dumps(config), "root": "r", "scale": "laptop",
        "seed": seed, "budget_steps": 80, "budget_tokens": 1, "parameters": 10, "tokens_per_step": 1,
        "device": "a cpu", "data_sha": "", "select/loss": 0.5, **found, **metrics,
    }  # fmt: skip


def opened(tmp_path, trials, measurements=None):
    step = {"sweep": "s", "trial": "", "step": 1, "report/accuracy": None}
    spec = {"sweep": "s", "select": {"name": "select/loss"}, "report": {"name": "report/error"}}
    spec["claims"] = [claim.declared() for claim in CLAIMS]
    ledger = {"sweep": "s", "stage": "", "executed_steps": 1}
    return open_records(Sweep(trials, measurements or [step], [ledger], spec).write(tmp_path / "sweep"))


def decided(records):
    return {one.claim.id: one for one in decide(CLAIMS, records, READING.statistics)}


def test_claims_are_decided_by_what_was_put_in(tmp_path):
    trials = [trial(seed, task) for seed in SEEDS for task in ("amazon", "nyt", "tweets")]
    trials += [trial(seed, "movie", tuning=tuning) for seed in SEEDS for tuning in ("prompt", "bitfit", "adapter")]
    trials += [trial(seed, "movie", encoder="random:minilm", **{"report/top_test": 0.5}) for seed in SEEDS]
    trials += [trial(seed, task, "probe") for seed in SEEDS for task in ("amazon", "nyt-times")]
    cut = [trial(seed, "movie", "prune", **{"report/accuracy": 0.66 + 0.001 * seed}) for seed in SEEDS]
    points = [
        {"sweep": "s", "trial": one["trial"], "step": step, "report/accuracy": accuracy}
        for one in cut
        for step, accuracy in ((81, 0.7), (82, 0.55), (112, one["report/accuracy"]))
    ]
    found = decided(opened(tmp_path, [*trials, *cut], points))
    verdicts = {name: one.verdict for name, one in found.items()}
    assert verdicts == {
        "K1": "reproduced", "K2": "reproduced", "K3": "reproduced", "K4": "contradicted", "K5": "reproduced",
        "K6": "reproduced", "K7": "reproduced", "K8": "reproduced", "K9": "reproduced", "K10": "reproduced",
    }  # fmt: skip
    assert found["K1"].estimate == pytest.approx(0.1 - 0.0015) and found["K3"].estimate == pytest.approx(0.053)
    assert found["K8"].estimate == pytest.approx(0.1415) and found["K9"].estimate == pytest.approx(0.0385)
    assert all(one.declared for one in found.values())


def test_one_task_against_the_effect_keeps_the_claim_from_standing(tmp_path):
    trials = [trial(seed, task) for seed in SEEDS for task in ("amazon", "nyt")]
    trials += [trial(seed, "tweets", **{"report/separation": -0.03 + 0.001 * seed}) for seed in SEEDS]
    assert decided(opened(tmp_path, trials))["K3"].verdict == "contradicted"


def test_missing_trials_leave_claims_undecided_with_the_command_that_makes_them(tmp_path):
    found = decided(opened(tmp_path, [trial(seed, "movie") for seed in SEEDS]))
    assert found["K1"].verdict == "reproduced"
    for name, preset in (("K3", "decide"), ("K5", "specificity"), ("K6", "bitfit"), ("K8", "origin"), ("K9", "prune")):
        assert found[name].verdict == "undecided" and f"preset={preset}" in found[name].why


@pytest.mark.parametrize(("status", "verdict"), [("diverged", "undecided"), ("failed", "undecided")])
def test_a_lost_trial_forbids_a_decision(tmp_path, status, verdict):
    trials = [trial(seed, "movie", status=status if seed == 9 else "complete") for seed in (*SEEDS, 9)]
    found = decided(opened(tmp_path, trials))["K1"]
    assert found.verdict == verdict and "1 trials diverged or failed" in found.why


def test_every_setting_that_varies_makes_an_arm(tmp_path):
    trials = [
        trial(seed, settings=dict(dev_size=size, verbaliser=words, batch_size=16), **{"report/accuracy": size / 1e3})
        for seed in SEEDS for size in (300, 600) for words in (None, "bad,good")
    ]  # fmt: skip
    rows = runs(opened(tmp_path, trials))
    table = by_arm(rows, rows["report/accuracy"])
    assert set(table) == {
        f"dev_size {size} verbaliser {words}" for size in (300, 600) for words in ("none", "bad,good")
    }
    assert table.filter(like="300").to_numpy() == pytest.approx(0.3)


def test_pairs_differ_in_nothing_else_and_are_one_each(tmp_path):
    trials = [
        trial(seed, encoder=encoder, settings={"draws": draws}, **{"report/top_test": 0.1 * draws + gain})
        for seed in SEEDS for draws in (1, 2) for encoder, gain in (("minilm", 0.05 * draws), ("random:minilm", 0.0))
    ]  # fmt: skip
    rows = runs(opened(tmp_path / "one", trials))
    table = paired(rows, "encoder", "minilm", "random:minilm", "report/top_test")
    assert table["draws 1"].to_numpy() == pytest.approx(0.05) and table["draws 2"].to_numpy() == pytest.approx(0.1)
    twice = trial(0) | {"trial": "another", "key": "another"}
    rows = runs(opened(tmp_path / "two", [trial(0), twice, trial(0, encoder="random:minilm")]))
    with pytest.raises(RecordsError, match="settings of another"):
        paired(rows, "encoder", "minilm", "random:minilm", "report/top_test")


def test_tasks_are_compared_half_by_half(tmp_path):
    records = opened(tmp_path, [trial(seed, task, "probe") for seed in SEEDS for task in ("amazon", "nyt-times")])
    pairs = likenesses(runs(records))
    assert len(pairs) == len(SEEDS) and {(pair.one, pair.other) for pair in pairs} == {("amazon", "nyt-times")}
    wanted = correlation(ranks("amazon", 0, 1), ranks("amazon", 0, 2))
    wanted += correlation(ranks("nyt-times", 0, 1), ranks("nyt-times", 0, 2))
    assert pairs[0].within == pytest.approx(wanted / 2)
    assert abs(pairs[0].between) < 0.3 < pairs[0].within
    with pytest.raises(RecordsError, match="two tasks"):
        likenesses(runs(opened(tmp_path / "one", [trial(0, "amazon", "probe")])))


def test_correlation_is_pearsons_of_the_places():
    x, y = np.random.default_rng(0).random((2, 40))
    places = [values.argsort().argsort() for values in (x, y)]
    assert correlation(x, y) == pytest.approx(np.corrcoef(*places)[0, 1])
    assert correlation(np.ones(5), np.arange(5)) == 0.0


def test_the_summary_and_every_figure_show_each_arm(tmp_path):
    trials = [trial(seed, task, action) for seed in SEEDS for task in ("amazon", "nyt-times")
              for action in ("perturb", "probe", "prune")]  # fmt: skip
    points = [
        {"sweep": "s", "trial": one["trial"], "step": step, "report/accuracy": accuracy}
        for one in trials
        for step, accuracy in ((81, 0.7), (82, 0.5), (112, 0.6))
    ]
    records = opened(tmp_path, trials, points)
    table = summary(records)
    assert len(table) == 6 and set(table["seeds"]) == {4}
    cut = table[table["arm"].str.contains("prune")]
    assert np.allclose(cut["cost of pruning"], 0.0) and np.allclose(cut["speed-up"], 1.515)
    for name, draw in READING.figures.items():
        figure = draw(records)
        texts = [text.get_text() for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        assert any(texts), name
