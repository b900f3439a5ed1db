"""Readings of made tables against what was put into them; the random baseline and the jackknife against definitions."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.claims import decide
from analysis.dyck_reading import CLAIMS, READING, pseudo_values, rank_correlation, summary
from analysis.dyck_runs import (
    all_pairs,
    chosen,
    disjoint_pairs,
    equal_in_function,
    moved,
    random_attention,
    random_variation,
    variation,
    where_open,
)
from analysis.opening import open_records
from analysis.records import RecordsError
from tests.analysis.conftest import Sweep

FRESH = tuple(range(100, 112))
POSITIONS = 6  # of the made probe rows, BOS among them


def attention(size, seed):
    """Two probe rows of uniform attention, `size` of the last position's moved to a place that the seed names."""
    maps = np.tril(np.ones((2, POSITIONS, POSITIONS)))
    maps /= maps.sum(-1, keepdims=True)
    maps[:, -1] *= 1 - size
    maps[:, -1, seed % 3] += size
    return maps


def trial(seed, *, fresh=True, rate=0.01, within=0.995, error=0.1, violation=0.5, size=0.9, **more):
    config = {"first_layer": "onehot", "positions": "none", "norm": True, "trains": "weights", "prefix_length": 0}
    config |= {"contrast": 0.0, "budget_steps": 400, "kinds": 2, "depth": 4, "length": 28, "learning_rate": rate}
    config |= {"probe_rows": 2, "probe_length": POSITIONS - 1, "seed": seed}
    config |= {name: more.pop(name) for name in list(more) if name in config}
    return {
        "sweep": more.pop("sweep", "s"), "study": "dyck", "trial": json.dumps(config), "key": "k",
        "phase": "confirm" if fresh else "tune", "status": "complete", "config": json.dumps(config), "root": "r",
        "scale": "laptop", "seed": seed, "budget_steps": 400, "budget_tokens": 1, "parameters": 10,
        "tokens_per_step": 1, "device": "a cpu", "data_sha": "", "select/excess_loss": abs(rate - 0.01),
        "report/ood_error": error, "report/excess_loss": 0.01, "report/accuracy_28": within,
        "report/accuracy_52": within - 0.01, "report/accuracy_200": 1 - error,
        "report/balance_violation": violation, "report/pair_score_variance": 2 * violation,
        "report/within_class_share": 0.0, "report/attention_on_top": 0.2,
        "report/probe_attention": attention(size, seed).ravel().tolist(),
        "report/probe_tokens": [4, 0, 1, 3, 2, 0] * 2, **more,
    }  # fmt: skip


@pytest.fixture
def records(tmp_path):
    step, stage = {"sweep": "s", "trial": "", "step": 1}, {"sweep": "s", "stage": "", "executed_steps": 1}
    base = {"select": {"name": "select/excess_loss"}, "report": {"name": "report/ood_error", "goal": "min"}}
    base |= {"axes": {"learning_rate": {"low": 0.001, "high": 0.1}}, "conditions": ["first_layer"]}

    def opened(rows, **axes):
        named = {row["sweep"] for row in rows}
        for name in named:
            spec = base | {"sweep": name, "axes": base["axes"] | axes.get(name, {})}
            own = [row for row in rows if row["sweep"] == name]
            Sweep(own, [step | {"sweep": name}], [stage | {"sweep": name}], spec).write(tmp_path / "sweeps" / name)
        return open_records(tmp_path)

    return opened


@pytest.fixture
def verdicts(records):
    return lambda rows: {one.claim.id: one for one in decide(CLAIMS, records(rows), READING.statistics)}


def plain(**options):
    """Twelve seeds whose violation and error rise together but for one."""
    order = [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]
    return [
        trial(seed, violation=0.1 + 0.02 * at, error=0.05 + 0.01 * order[at], **options)
        for at, seed in enumerate(FRESH)
    ]


def test_the_random_baseline_is_what_random_attention_gives():
    generator = np.random.default_rng(0)
    drawn = [
        variation(random_attention(12, generator)[None], random_attention(12, generator)[None]) for _ in range(4000)
    ]
    error = np.std(drawn) / len(drawn) ** 0.5
    assert abs(np.mean(drawn) - random_variation(12)) < 4 * error and error < 0.01 * random_variation(12)
    one = random_attention(7, generator)
    assert np.allclose(one.sum(1), 1) and np.triu(one, 1).max() == 0


def test_variation_and_moved_attention_are_those_of_loops(records):
    rows = equal_in_function(chosen(records(plain())))
    pairs = all_pairs(rows)
    assert len(pairs) == 66 and len(disjoint_pairs(rows)) == 6
    one, other = attention(0.9, 100), attention(0.9, 101)
    squares = sum((one[r, q, k] - other[r, q, k]) ** 2 for r in (0, 1) for q in range(6) for k in range(6)) / 2
    assert squares == pytest.approx(2 * 0.9**2) == variation(one, other)
    assert moved(one, other) == pytest.approx(0.9 / 5)
    assert where_open(rows).tolist() == [[False, True, True, True, False, True]] * 2  # . ( [ ] ) (
    counted = np.array([[0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0]])
    assert variation(one, other, counted) == pytest.approx(squares / 2)
    simplex = [2 * (n - 1) / (n * (n + 1)) for n in (2, 3, 4, 6)]
    assert pairs["open"].iloc[0] == pytest.approx(squares / sum(simplex))
    assert disjoint_pairs(rows)["100, 101"] == pytest.approx(squares / random_variation(POSITIONS))
    assert pairs["variation"].iloc[0] == pytest.approx(squares / random_variation(POSITIONS))
    assert pairs["variation"].min() == 0 == all_pairs(rows.iloc[[0, 3]])["variation"].iloc[0]  # the same place
    assert all_pairs(rows.iloc[:1]).empty


def test_pseudo_values_are_n_times_all_less_the_rest_without_one():
    def by_squares(a, b):
        ranks = (np.argsort(np.argsort(one)) for one in (a, b))
        return 1 - 6 * sum((x - y) ** 2 for x, y in zip(*ranks, strict=True)) / (len(a) * (len(a) ** 2 - 1))

    generator = np.random.default_rng(1)
    x, y = generator.normal(size=8), generator.normal(size=8)
    found = pseudo_values(pd.Series(x), pd.Series(y))
    for at in range(8):
        rest = [i for i in range(8) if i != at]
        assert found[at] == pytest.approx(8 * by_squares(x, y) - 7 * by_squares(x[rest], y[rest]))
    assert rank_correlation(pd.Series([1.0, 1.0, 1.0]), pd.Series([1.0, 2.0, 3.0])) == 0


def contrasts(seeds=FRESH[:5]):
    """The penalty takes about 0.2 off the violation and 0.05 off the error."""
    rows = []
    for at, seed in enumerate(seeds):
        rows.append(trial(seed, violation=0.8 + 0.01 * at, error=0.14, contrast=0.0, prefix_length=24))
        rows.append(trial(seed, violation=0.6 + 0.013 * at, error=0.09 + 0.001 * at, contrast=0.1, prefix_length=24))
    return rows


def test_claims_are_decided_by_what_was_put_in(verdicts):
    found = verdicts(plain() + contrasts() + [trial(seed, first_layer="learned", size=0.01) for seed in FRESH])
    assert {name: one.verdict for name, one in found.items()} == {
        "D1": "reproduced", "D2": "reproduced", "D3": "contradicted", "D4": "reproduced", "D5": "reproduced",
        "D6": "reproduced", "D7": "reproduced", "D8": "undecided", "D9": "undecided", "D10": "undecided",
    }  # fmt: skip
    assert found["D2"].roots == 6 and found["D4"].roots == 12
    assert found["D6"].estimate == pytest.approx(-0.2 + 0.003 * 2)
    assert found["D7"].parts == {"onehot lambda=0.1": pytest.approx(-0.05 + 0.001 * 2)}
    assert "preset=construction" in found["D8"].why and "preset=pruning" in found["D10"].why


def test_a_penalty_that_helps_nothing_contradicts_and_one_without_control_decides_nothing(verdicts):
    rows = contrasts()
    for row in rows:
        if json.loads(row["config"])["contrast"] > 0:
            row["report/ood_error"] += 0.1
    assert verdicts(rows)["D7"].verdict == "contradicted"
    wide = [row | {"config": json.dumps(json.loads(row["config"]) | {"width": 64})} for row in contrasts()]
    for row in wide:  # another net, whose errors are larger with the penalty and without
        row["trial"], row["report/ood_error"] = row["config"], row["report/ood_error"] + 9
    two = verdicts([*contrasts(), *wide])["D7"]
    assert two.parts == {
        name: pytest.approx(-0.05 + 0.001 * 2) for name in ("onehot lambda=0.1", "onehot w=64 lambda=0.1")
    }
    penalised = [row for row in contrasts() if json.loads(row["config"])["contrast"] > 0]
    assert "no seed has a run with contrast and one without" in verdicts(penalised)["D6"].why


def test_nets_that_are_not_equal_in_function_take_no_part_in_the_variation(verdicts):
    rows = plain()
    for row in rows[:5]:
        row["report/accuracy_28"] = 0.98
    decision = verdicts(rows)["D2"]
    assert decision.roots == 3 and "5 of 12 runs left out" in decision.why
    for row in rows[:11]:
        row["report/accuracy_28"] = 0.98
    assert verdicts(rows)["D2"].verdict == "undecided"


def test_few_runs_have_no_rank_correlation(verdicts):
    assert "too few for ranks" in verdicts(plain()[:9])["D4"].why


def test_only_the_chosen_config_of_an_arm_speaks(verdicts):
    tuning = [trial(seed, fresh=False, rate=rate) for seed in (0, 1) for rate in (0.001, 0.01, 0.1)]
    other = [trial(seed, rate=0.1, within=0.5) for seed in FRESH]
    assert verdicts([*plain(), *tuning, *other])["D1"].estimate == pytest.approx(0.995)
    assert "no tuning trials" in verdicts([*plain(), *other])["D1"].why
    for row in tuning:
        row["select/excess_loss"] = abs(json.loads(row["config"])["learning_rate"] - 0.1)
    edge = verdicts([*[trial(seed, rate=0.1) for seed in FRESH], *tuning])["D1"]
    assert edge.verdict == "undecided" and "space.learning_rate.high=1" in edge.why


def test_arms_are_named_by_what_tells_them_apart_and_not_by_a_contrast_that_is_searched(records):
    rows = [trial(0, fresh=False, contrast=value, prefix_length=24, sweep="t") for value in (0.01, 0.02)]
    rows += [trial(1, fresh=False, first_layer="learned"), trial(1, fresh=False, prefix_length=24, contrast=0.1)]
    table = summary(records(rows, t={"contrast": {"low": 0.001, "high": 1.0}}))
    assert sorted(table["arm"]) == [
        "learned prefix=0 lambda=0", "onehot prefix=24 lambda=0.1", "onehot prefix=24 lambda=tuned",
    ]  # fmt: skip


def test_the_summary_counts_and_averages_the_runs_of_an_arm(records):
    rows = plain()
    rows[0]["report/accuracy_28"] = 0.5
    (row,) = summary(records(rows)).to_dict("records")
    assert (row["runs"], row["equal runs"], row["least"]) == (12, 11, 0.5)
    assert row["closed right"] == pytest.approx((0.5 + 11 * 0.995) / 12, abs=1e-4)
    assert row["violation"] == pytest.approx(0.21) and row["to 200"] == pytest.approx(0.895)
    distances = [0.0 if (a - b) % 3 == 0 else 2 * 0.9**2 for a in range(1, 12) for b in range(1, a)]
    expected = np.mean(distances) / random_variation(POSITIONS)
    assert row["variation / random"] == pytest.approx(expected, abs=1e-4)


def test_masks_share_what_chance_lets_them_share(records):
    rows = [trial(seed, trains="mask") for seed in FRESH[:3]]
    for row, kept in zip(rows, ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]), strict=True):
        row["report/kept"] = kept
    (row,) = summary(records(rows)).to_dict("records")
    assert row["masks shared"] == pytest.approx((0.5 + 1 + 0.5) / 3, abs=1e-4)
    assert np.isnan(summary(records(plain()))["masks shared"]).all()


def test_figures_draw_their_numbers_and_say_what_they_lack(records):
    made = records(plain() + contrasts())
    for name, draw in READING.figures.items():
        assert draw(made).axes, name
    titles = [axes.get_title() for axes in READING.figures["attention"](made).axes]
    assert titles[:5] == ["seed 100", "seed 101", "seed 102", "seed 103", "random"]
    (axes,) = READING.figures["variation"](made).axes
    assert {float(line.get_ydata()[0]) for line in axes.lines if len(line.get_ydata()) == 2} == {1.0}


def test_nets_that_are_all_too_bad_have_no_attention_to_show(records):
    made = records(plain(within=0.9))
    for name in ("attention", "variation"):
        with pytest.raises(RecordsError, match="train longer"):
            READING.figures[name](made)


def test_records_without_an_ended_run_say_so(records):
    with pytest.raises(RecordsError, match="no trial has ended"):
        summary(records([row | {"status": "failed", "select/excess_loss": None} for row in plain()]))
