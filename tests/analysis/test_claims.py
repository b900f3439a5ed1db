"""Verdicts against the known truth of the synthetic sweeps, and against every rule that forbids a verdict."""

from dataclasses import replace
from math import comb

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.claims import Claim, Observation, decide, decisions_table, rule
from analysis.stats import claim_p, holm
from analysis.wsd_claims import CLAIMS, STATISTICS
from tests.analysis.conftest import OFFSETS, Maker, hill

BY_ID = {claim.id: claim for claim in CLAIMS}


def verdicts(records, *ids: str) -> dict[str, str]:
    return {d.claim.id: d.verdict for d in decide([BY_ID[i] for i in ids], records)}


def test_the_main_comparison_is_decided_as_the_truth_is(make_records):
    decisions = {d.claim.id: d for d in decide(CLAIMS, make_records(tuning=(0, 1, 2), noise=1e-3))}
    expected = {"E1": "reproduced", "E2a": "reproduced", "E2b": "reproduced", "E2d": "reproduced"}
    assert {i: decisions[i].verdict for i in expected} == expected
    truth = OFFSETS["wsd_s"] - OFFSETS["cyclic_cosine"]
    assert decisions["E2a"].estimate == pytest.approx(truth, abs=4e-3)
    assert decisions["E2c"].verdict == "contradicted"  # WSD-S is 0.018 below cosine, the margin is 0.01
    assert {decisions[i].verdict for i in ("E3a", "E3b", "E4a", "E4b")} == {"undecided"}
    assert "preset=fractions" in decisions["E3a"].why


def test_fractions_and_shapes(make_records):
    records = make_records(
        methods=("wsd",), fractions=(0.025, 0.1, 0.2, 0.4), shapes=("linear", "one_minus_sqrt"), tuning=(0, 1, 2, 3),
        noise=2e-4,
    )  # fmt: skip
    assert verdicts(records, "E3a", "E3b", "E4a", "E4b") == {
        "E3a": "reproduced", "E3b": "contradicted", "E4a": "reproduced", "E4b": "reproduced",
    }  # fmt: skip


def test_peaks(make_records):
    records = make_records(methods=("wsd",), tuning=(0, 1, 2, 3), noise=2e-4)
    found = {d.claim.id: d for d in decide([BY_ID[i] for i in ("E5a", "E5b", "E5c")], records)}
    assert {d.verdict for d in found.values()} == {"reproduced"}
    assert found["E5c"].estimate == pytest.approx(-0.5, abs=0.01)  # the true optimum falls as budget ** -0.5
    assert hill(8e-3) > hill(5e-4)


def test_bounds_show_one_side_and_lost_trials_none():
    claim = Claim("X", "", "", "s", "less", 1.0, "any")
    below, above = (pd.DataFrame({"a": np.array([0.0, 0.1, 0.05, 0.02]) + shift}) for shift in (0, 3))
    bound = frozenset("a")
    seen = [Observation(below, lower_bounds=bound), Observation(above, lower_bounds=bound),
            Observation(below, upper_bounds=bound), Observation(above, upper_bounds=bound),
            Observation(below, unfit="two trials diverged")]  # fmt: skip
    rulings = [rule([claim], [one])[0] for one in seen]
    assert [one.verdict for one in rulings] == ["undecided", "contradicted", "reproduced", "undecided", "undecided"]
    assert "only a bound is known of a" in rulings[0].why and rulings[4].why == "two trials diverged"


def test_rates_are_tested_exactly():
    claim = Claim("X", "", "", "s", "greater", 0.5, "any")
    for ones, zeros in ((3, 0), (5, 0), (0, 5), (6, 2)):
        (ruling,) = rule([claim], [Observation(pd.DataFrame({"a": [1.0] * ones + [0.0] * zeros}), binary=True)])
        upper, n = (max(ones, zeros), ones + zeros)
        assert ruling.p_value == pytest.approx(sum(comb(n, k) for k in range(upper, n + 1)) / 2**n)


def test_equality_is_reproduced_when_it_holds(maker: Maker):
    made = maker.sweep(noise=5e-4)
    for row in made.trials:
        if row["config.method"] == "wsd_s":
            row["report/loss"] -= OFFSETS["wsd_s"]
    assert verdicts(maker.open(made), "E2c") == {"E2c": "reproduced"}


def test_a_wrong_claim_is_contradicted(make_records):
    claim = replace(BY_ID["E2a"], direction="greater")
    (decision,) = decide([claim], make_records(noise=1e-3))
    assert decision.verdict == "contradicted"


def test_two_roots_decide_nothing(make_records):
    (decision,) = decide([BY_ID["E2a"]], make_records(fresh=(100, 101)))
    assert (decision.verdict, decision.roots, decision.interval, decision.p_value) == ("undecided", 2, None, None)
    assert "2 of the 3 fresh seeds" in decision.why


def test_tuning_seeds_do_not_decide_a_claim_on_fresh_ones(make_records):
    (decision,) = decide([BY_ID["E2a"]], make_records(tuning=(0, 1, 2, 3), fresh=()))
    assert decision.verdict == "undecided"
    assert "fresh seed" in decision.why


def test_an_optimum_at_the_edge_decides_nothing_and_says_how_to_widen(make_records):
    (decision,) = decide([BY_ID["E2d"]], make_records(peaks=(2.5e-4, 5e-4, 1e-3), noise=1e-3))
    assert decision.verdict == "undecided"
    assert "space.peak_lr=[0.00025,0.0005,0.001,0.002]" in decision.why


def test_declared_before_or_after(maker: Maker):
    made = maker.sweep()
    made.spec["claims"] = [BY_ID["E2a"].declared()]
    made.spec["looks"] = 3
    first, second = decide([BY_ID["E2a"], replace(BY_ID["E2a"], margin=0.1)], maker.open(made))
    assert (first.declared, second.declared, first.looks) == (True, False, 3)


def test_the_hash_covers_what_decides_and_nothing_else():
    claim = BY_ID["E3a"]
    assert claim.hash == replace(claim, command="another").hash
    for change in ({"margin": 0.1}, {"direction": "less"}, {"seeds": "fresh"}, {"condition": {}}, {"arguments": {}}):
        assert claim.hash != replace(claim, **change).hash
    assert len({claim.hash for claim in CLAIMS}) == len(CLAIMS)


def test_a_claim_of_equality_needs_a_margin():
    with pytest.raises(ValueError, match="margin above 0"):
        Claim("x", "x", "x", "s", "equal", 0.0, "any")


def fixed(values: dict[str, list[float]]):
    return lambda evidence: Observation(pd.DataFrame(values))


def test_correction_and_parts_against_their_definition(make_records):
    records = make_records(methods=("cosine",), budgets=(500,), tuning=(0,))
    data = {
        "a": {"x": [-1.0, -1.2, -0.9]},
        "b": {"x": [-0.2, -0.3, 0.1], "y": [-1.0, -1.1, -1.0]},
        "c": {"x": [3.0, 3.1, 2.0]},
    }
    claims = [Claim(name, "", "", name, "less", 0.0, "any") for name in data]
    decisions = decide(claims, records, {name: fixed(values) for name, values in data.items()})
    raw = [max(claim_p(v, "less", 0.0)[0] for v in values.values()) for values in data.values()]
    against = [
        min(1, len(values) * min(claim_p(v, "less", 0.0)[1] for v in values.values())) for values in data.values()
    ]
    assert [d.verdict for d in decisions] == ["reproduced", "undecided", "contradicted"]
    assert decisions[0].p_value == pytest.approx(holm(raw)[0])
    assert decisions[1].p_value == pytest.approx(holm(raw)[1])
    assert decisions[2].p_value == pytest.approx(holm(against)[2])
    assert (decisions[1].part, decisions[1].estimate) == ("x", pytest.approx(np.mean([-0.2, -0.3, 0.1])))


def test_false_verdicts_stay_rare_when_nothing_is_there():
    """Five claims with no effect: some verdict in at most about 5 % of studies on each side, 10 % in all."""
    claims = [Claim(str(i), "", "", str(i), "less", 0.0, "any") for i in range(5)]
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        seen = [Observation(pd.DataFrame({"x": generator.normal(size=4)})) for _ in claims]
        wrong += any(ruling.verdict != "undecided" for ruling in rule(claims, seen))
    assert 5 <= wrong <= 34  # expected 20; the chance of either end is below 0.1 %


def test_the_table_states_scale_regime_and_reasons(make_records):
    table = decisions_table(decide(CLAIMS, make_records()), "markdown")
    assert "140000 parameters, up to 1024000 tokens, 7.31 tokens per parameter" in table
    assert all(f"| {claim.id} |" in table for claim in CLAIMS)
    assert decide(CLAIMS, make_records(methods=("cosine",), budgets=(500,), name="lone"))[1].verdict == "undecided"


def test_every_claim_names_a_statistic_and_its_source():
    for claim in CLAIMS:
        assert claim.statistic in STATISTICS
        assert "arXiv:" in claim.source


def test_a_metric_of_another_study_does_not_hide_a_field_of_that_name(make_records):
    """Two studies in a folder: to the one the other's metric is a column of nulls, here called like a field."""
    records = make_records(tuning=(0, 1, 2), noise=1e-3)
    other = records.trials.slice(0, 1)
    for name, value in (("study", "other"), ("sweep", "other"), ("trial", "other")):
        other = other.set_column(other.column_names.index(name), name, pa.array([value]))
    other = other.append_column("method", pa.array([0.5]))
    both = replace(records, trials=pa.concat_tables([records.trials, other], promote_options="permissive"))
    assert verdicts(both.where(study="wsd"), "E1", "E2a") == verdicts(records, "E1", "E2a")
