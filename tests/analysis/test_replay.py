"""Replayed halving against a plain loop over brackets, and its costs against a count by hand."""

import numpy as np
import pytest

from analysis import RecordsError
from analysis.replay import Trunks, _picks, bracket_steps, replay, trunks
from tests.analysis.conftest import Maker


@pytest.fixture
def pool() -> Trunks:
    generator = np.random.default_rng(0)
    stable, decayed = generator.normal(size=(2, 12, 3))
    budgets, decays = np.array([500, 1000, 2000]), np.array([50, 100, 200])
    return Trunks(np.repeat([0, 1, 2], 4), ("",) * 12, budgets, decays, stable, decayed, ())


def test_picks_against_a_loop(pool: Trunks):
    generator = np.random.default_rng(1)
    chosen = np.array([generator.choice(12, 6, replace=False) for _ in range(300)])
    for score in (pool.stable, pool.decayed):
        expected = []
        for arms in chosen:
            alive = list(arms)
            for rung, keep in enumerate((3, 2)):
                alive = sorted(alive, key=lambda arm, r=rung: score[arm, r])[:keep]
            expected.append(min(alive, key=lambda arm: pool.decayed[arm, -1]))
        assert _picks(chosen, score, pool.decayed, (6, 3, 2)).tolist() == expected


def test_decayed_rungs_are_charged_for_their_decays(pool: Trunks):
    trunk = 6 * 450 + 3 * 450 + 2 * 900
    assert bracket_steps((6, 3, 2), pool, "stable") == trunk + 2 * 200
    assert bracket_steps((6, 3, 2), pool, "decayed") == trunk + 6 * 50 + 3 * 100 + 2 * 200


def test_stable_never_spends_more_and_keeps_at_least_as_many(make_records):
    found = replay(make_records(methods=("wsd",), tuning=(0, 1, 2), noise=5e-3), brackets=2000)
    stable, decayed, random = found.results
    assert stable.steps <= decayed.steps
    assert all(a >= b for a, b in zip(stable.keep, decayed.keep, strict=True))
    assert decayed.regret < random.regret
    assert found.difference == pytest.approx(stable.regret - decayed.regret)
    assert all(result.interval is not None for result in found.results)
    assert "rank correlation" in found.table("markdown")


def test_misleading_stable_loss_shows_as_regret(maker: Maker):
    """The hill grows with the peak: where high peaks win after the decay, the loss before it ranks them last."""
    made = maker.sweep(methods=("wsd",), peaks=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), tuning=(0, 1, 2), noise=1e-4)
    for row in made.measurements:
        if row["phase_of_schedule"] == "stable":
            row["select/loss"] += 300 * row["lr"]
    found = replay(maker.open(made), brackets=2000)
    stable, decayed, _ = found.results
    assert stable.regret > decayed.regret + 0.01
    assert found.agreement[0][1] < 0 < found.agreement[0][2]


def test_a_diverged_trunk_is_an_arm_that_loses(maker: Maker):
    made = maker.sweep(methods=("wsd",), tuning=(0, 1, 2), noise=1e-3)
    for row in made.trials:
        if row["config.peak_lr"] == 8e-3 and row["seed"] == 0 and row["budget_steps"] > 500:
            row |= {"status": "diverged", "select/loss": None, "report/loss": None}
    pool = trunks(maker.open(made))
    assert pool.decayed.shape == (15, 3)
    assert np.isinf(pool.decayed).sum() == 2
    assert np.isfinite(replay(maker.open(made), brackets=500).results[1].regret)


def test_a_trunk_that_lacks_a_budget_is_left_out_aloud(maker: Maker):
    made = maker.sweep(methods=("wsd",), tuning=(0, 1, 2))
    made.trials = [r for r in made.trials if not (r["config.peak_lr"] == 1e-3 and r["budget_steps"] == 2000)]
    found = replay(maker.open(made), brackets=100)
    assert found.trunks == 12
    assert any("3 trunks lack a budget" in note for note in found.notes)


def test_two_roots_have_no_interval_and_equal_seeds_agree(make_records):
    records = make_records(methods=("wsd",), tuning=(0, 1))
    found = replay(records, brackets=300, seed=4)
    assert found.difference_interval is None
    assert found == replay(records, brackets=300, seed=4)


def test_refusals(make_records):
    with pytest.raises(RecordsError, match="two budgets and three trunks"):
        replay(make_records(methods=("wsd",), budgets=(500,)))
    with pytest.raises(RecordsError, match="needs WSD trials"):
        replay(make_records(methods=("cosine",), name="b"))
