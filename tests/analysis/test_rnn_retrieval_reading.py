"""Readings of made tables against accuracies, gaps and excuses that were put into them."""

import json

import pytest

from analysis.claims import decide
from analysis.opening import open_records
from analysis.records import RecordsError
from analysis.rnn_retrieval_reading import CLAIMS, READING, summary
from analysis.rnn_retrieval_runs import arms, chosen
from tests.analysis.conftest import Sweep

FRESH = (100, 101, 102)
BITS = {"transformer": 50_000.0, "gru": 512.0, "gru_hybrid": 50_512.0}
RATES = (0.001, 0.01, 0.1)


def trial(model, accuracy, seed, *, fresh=True, rate=0.01, select=0.5, fall=0.001, **more):
    """A row of `trials`."""
    config = {"task": "recall", "length": 96, "values": 64, "questions": 24, "stacked": True, "gram": 3, "seed": seed}
    config |= {"graph": "binary", "body": "cot", "train_rows": None, "model": model, "size": "4k", "positions": "none"}
    config |= {"embedding": "learned", "learning_rate": rate, "budget_steps": 500}
    config |= {name: more.pop(name) for name in list(more) if name in config}
    required = 96 * 6.0 if config["length"] == 96 else 4.0
    return {
        "sweep": "s", "study": "rnn_retrieval", "trial": json.dumps(config), "key": "k", "root": "r",
        "phase": "confirm" if fresh else "tune", "status": "complete", "config": json.dumps(config), "scale": "laptop",
        "seed": seed, "budget_steps": 500, "budget_tokens": 500 * 32, "parameters": 7000, "tokens_per_step": 32,
        "device": "a cpu", "data_sha": "", "flops_nominal": 1e12,
        "select/accuracy": select, "report/accuracy": accuracy,
        "report/loss_fall": fall, "report/match": accuracy, "report/token_accuracy": accuracy, "chance": 1 / 64,
        "state_bits": BITS[model], "required_bits": required, "ceiling": 0.94 if model == "gru" else 1.0, **more,
    }  # fmt: skip


@pytest.fixture
def records(tmp_path):
    """Rows of `trials` as records, by way of a folder."""
    axes = {"learning_rate": {"low": RATES[0], "high": RATES[-1], "log": True, "points": 3}, "model": list(BITS)}
    spec = {
        "sweep": "s",
        "select": {"name": "select/accuracy", "goal": "max"},
        "report": {"name": "report/accuracy", "goal": "max"},
    }
    spec |= {"axes": axes, "conditions": ["length", "values", "body", "size"]}
    step, stage = {"sweep": "s", "trial": "", "step": 1}, {"sweep": "s", "stage": "", "executed_steps": 1}
    return lambda rows: open_records(Sweep(rows, [step], [stage], spec).write(tmp_path))


@pytest.fixture
def verdicts(records):
    return lambda rows: {one.claim.id: one for one in decide(CLAIMS, records(rows), READING.statistics)}


def arm(model, accuracy, best_rate=0.01, **more):
    """Three fresh seeds of the chosen rate, with a little spread, and a tuning seed at each rate."""
    fresh = [trial(model, accuracy + 0.002 * (seed - 101), seed, rate=best_rate, **more) for seed in FRESH]
    tune = [
        trial(model, accuracy, 0, fresh=False, rate=rate, **{"select": 0.5 if rate == best_rate else 0.1} | more)
        for rate in RATES
    ]  # fmt: skip
    return fresh + tune


CONTROL = {"length": 2, "values": 4, "questions": 2}


def main(gru=0.02, control=0.99, fall=0.001):
    rows = [*arm("transformer", 0.99), *arm("gru_hybrid", 0.98), *arm("gru", gru, fall=fall)]
    return rows + [row for model in BITS for row in arm(model, control if model == "gru" else 0.99, **CONTROL)]


def test_claims_on_recall_are_decided_by_what_was_put_in(verdicts):
    found = verdicts(main())
    assert {name: found[name].verdict for name in ("R1", "R2", "R3")} == dict.fromkeys(("R1", "R2", "R3"), "reproduced")
    assert found["R1"].parts == {"recall n=96 v=64 q=24 gru": pytest.approx(0.02)}
    assert "0.02 where 0.94 is possible" in found["R1"].why
    assert sorted(found["R2"].parts) == [f"recall n=96 v=64 q=24 {model}" for model in ("gru_hybrid", "transformer")]
    assert found["R3"].parts == {"recall n=2 v=4 q=2 gru": pytest.approx(0.99)}
    assert {found[name].verdict for name in ("R4", "R5", "R6", "R7", "R8", "R9")} == {"undecided"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (main(fall=0.3), "still fell by 0.3 nats"),
        (main(control=0.7), "also fails on its control (0.70)"),
        (arm("gru", 0.02), "it has no control"),
    ],
)
def test_a_net_with_an_excuse_has_only_learned_more_slowly(verdicts, records, rows, words):
    found = verdicts(rows)["R1"]
    assert found.verdict == "undecided" and words in found.why and "learned more slowly" in found.why
    table = summary(records(rows))
    assert table.loc[table["accuracy"] < 0.1, "said"].tolist() == ["learned more slowly"]


def test_the_summary_says_what_a_failure_means_and_shows_its_bits(records):
    table = summary(records(main())).set_index(["problem", "net"])
    assert table.loc[("recall n=96 v=64 q=24", "gru"), "said"] == "bits are missing; far below what they allow"
    near = summary(records(main(gru=0.9)))
    assert set(near["said"]) == {"", "bits are missing"} and table.loc[:, "seeds"].tolist() == [3] * 6
    assert table.loc[("recall n=96 v=64 q=24", "gru"), ["state bits", "required"]].tolist() == [512, 576]


def test_a_failure_within_the_state_is_never_a_missing_bit(records):
    rows = [row | {"required_bits": 100.0} for row in arm("gru", 0.3, length=16)]
    table = summary(records([*rows, *arm("gru", 0.99, **CONTROL)]))
    assert table["said"].tolist() == ["learned more slowly", ""]


def test_high_accuracy_beyond_the_state_contradicts(verdicts):
    assert verdicts(main(gru=0.99))["R1"].verdict == "contradicted"
    low = [*arm("gru", 0.02), *arm("transformer", 0.5), *arm("gru", 0.99, **CONTROL)]
    assert verdicts(low)["R2"].verdict == "contradicted"


def test_a_rate_at_the_end_of_its_range_decides_nothing_unless_one_inside_is_as_good(verdicts):
    rows = [row for row in main() if json.loads(row["config"])["model"] != "gru" or row["required_bits"] < 10]
    edge = verdicts([*rows, *arm("gru", 0.02, best_rate=0.1)])["R1"]
    assert edge.verdict == "undecided" and "space.learning_rate.high=1" in edge.why
    equal = arm("gru", 0.02, best_rate=0.1, select=0.5)
    for row in equal:
        row["select/accuracy"] -= 0.01 * (json.loads(row["config"])["learning_rate"] < 0.1)
    assert verdicts([*rows, *equal])["R1"].verdict == "reproduced"


def test_only_the_chosen_rate_speaks(verdicts):
    other = [trial("gru", 0.99, seed, rate=0.001) for seed in FRESH]
    assert verdicts([*main(), *other])["R1"].estimate == pytest.approx(0.02)


def test_a_fall_with_length_is_paired_by_seed_within_a_kind_of_problem(verdicts):
    rows = []
    for model, accuracies in (("gru", (0.99, 0.7, 0.4)), ("transformer", (0.99, 0.985, 0.98))):
        for length, accuracy in zip((2, 8, 16), accuracies, strict=True):
            rows += arm(model, accuracy, length=length, values=4, questions=2)
    found = verdicts(rows)
    assert found["R4"].verdict == "reproduced" and found["R5"].verdict == "reproduced"
    assert found["R4"].parts == {"recall gru n=2 to 16": pytest.approx(0.59)}
    assert found["R5"].parts == {"recall transformer n=2 to 16": pytest.approx(0.01)}
    rows += arm("gru", 0.1, length=32, values=8, questions=2)  # other values: a kind of its own
    assert verdicts(rows)["R4"].parts == {"recall v=4 gru n=2 to 16": pytest.approx(0.59)}


def tree(gru=(0.6, 0.8, 0.985), transformer=(0.7, 0.99, 0.99), hybrid=(0.6, 0.985, 0.99), lengths=(16, 32)):
    rows = []
    for model, accuracies in (("gru", gru), ("transformer", transformer), ("gru_hybrid", hybrid)):
        for body, accuracy in zip(("none", "cot", "retrieval"), accuracies, strict=True):
            for length in lengths:
                rows += arm(model, accuracy, task="istree", length=length, body=body, size="0.5M")
    return rows


def test_gaps_on_graphs_are_between_bodies_and_models_of_one_size_and_graph(verdicts):
    found = verdicts(tree())
    assert {found[name].verdict for name in ("R6", "R7", "R8", "R9")} == {"reproduced"}
    assert found["R6"].parts == {
        f"binary n={n} gru cot - gru none": pytest.approx(0.2) for n in (16, 32)
    }  # fmt: skip
    assert set(found["R7"].parts) == {f"binary n={n} gru cot - transformer cot" for n in (16, 32)}
    assert found["R8"].estimate == pytest.approx(-0.005) and found["R9"].estimate == pytest.approx(-0.005)
    assert verdicts(tree(gru=(0.6, 0.99, 0.9)))["R7"].verdict == "contradicted"
    assert "no recurrent net has run with body=retrieval" in verdicts(
        [row for row in tree() if json.loads(row["config"])["body"] != "retrieval"]
    )["R8"].why  # fmt: skip


def test_a_net_whose_fresh_trials_all_diverged_decides_nothing(verdicts):
    rows = main()
    for row in rows:
        config = json.loads(row["config"])
        if row["phase"] == "confirm" and (config["model"], config["length"]) == ("gru_hybrid", 96):
            row |= {"status": "diverged", "report/accuracy": None}
    found = verdicts(rows)
    assert found["R2"].verdict == "undecided" and "recall n=96 v=64 q=24 gru_hybrid" in found["R2"].why


def test_one_diverged_trial_of_a_net_decides_nothing_either(verdicts):
    lost = trial("gru_hybrid", 0.98, 103) | {"status": "diverged", "report/accuracy": None}
    found = verdicts([*main(), lost])  # beside three that ended
    assert found["R2"].verdict == "undecided" and "diverged or did not end" in found["R2"].why


def test_without_fresh_seeds_the_tuning_trials_of_the_chosen_rate_are_shown(records):
    rows = [row for row in main() if row["phase"] == "tune"]
    table = arms(chosen(records(rows)))
    assert table["seeds"].tolist() == [1] * 6 and set(table["rate"]) == {0.01}


def test_figures_draw_their_arms_and_say_what_they_lack(records):
    accuracy = READING.figures["accuracy"](records(main())).axes[0]
    assert [label.get_text().split("\n")[0] for label in accuracy.get_xticklabels()] == [
        "recall n=2 v=4 q=2", "recall n=96 v=64 q=24",
    ]  # fmt: skip
    assert (
        len(READING.figures["state"](records(main())).axes)
        == len(READING.figures["compute"](records(main())).axes)
        == 2
    )
    with pytest.raises(RecordsError, match="preset=lengths"):
        READING.figures["lengths"](records(main()))
    lengths = READING.figures["lengths"](records(tree())).axes
    assert [axes.get_title() for axes in lengths] == ["istree none", "istree cot", "istree retrieval"]


def test_records_without_an_ended_trial_say_so(records):
    rows = [row | {"status": "failed", "report/accuracy": None} for row in main()[:2]]
    with pytest.raises(RecordsError, match="no trial has ended"):
        summary(records(rows))
