"""Wishart draws against explicit inputs, dual descent against torch's SGD on the weights, errors against samples."""

from dataclasses import replace
from itertools import pairwise
from math import exp, log, sqrt

import pytest
import torch
from scipy import integrate, optimize, stats

from trainables import benign_linear
from trainables.benign_linear import Config, Pack, measured_steps
from trainables.common.benign.linear_data import Problem, draw, effective_rate, triangular
from trainables.common.benign.linear_measures import clean_error, expected_loss, fitted_scale
from trainables.common.streams import Streams
from trainables.pack import train_pack
from trainables.study import LocalRun

CPU = torch.device("cpu")
SMALL = Config(samples=40, ratio=2.0, budget_steps=400, held_out=200, measurements=8)


def ended(*configs):
    stages = {}
    train_pack(benign_linear.STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    assert [stage.error for stage in stages.values()] == [None] * len(configs)
    return [stages[lane] for lane in range(len(configs))]


def last(stage):
    return stage.rows[-1].metrics


def plain(seeds, dimension, noise_rate=0.0):
    return [Problem(seed, dimension, 6.0, noise_rate, "flip") for seed in seeds]


@pytest.mark.parametrize("dimension", [4, 6, 9, 40])
def test_gram_matrices_without_the_signal_are_those_of_explicit_gaussian_inputs(dimension):
    """6 samples in 3 to 39 dimensions without signal: their mean, and the law of each of their eigenvalues."""
    lower = triangular(plain(range(3000), dimension), 6)
    ours = lower @ lower.mT
    inputs = Streams(range(3000, 6000), "explicit").normal(0, 6, dimension - 1, dtype=torch.float64)
    theirs = inputs @ inputs.mT
    expected = (dimension - 1) * torch.eye(6, dtype=torch.float64)
    assert (ours.mean(0) - expected).abs().max() < 5 * sqrt(2 * (dimension - 1) / 3000)
    mine, explicit = torch.linalg.eigvalsh(ours), torch.linalg.eigvalsh(theirs)
    for place in range(max(0, 6 - (dimension - 1)), 6):
        assert stats.ks_2samp(mine[:, place].numpy(), explicit[:, place].numpy()).pvalue > 1e-3
    assert mine[:, : max(0, 6 - (dimension - 1))].abs().max() < 1e-9 if dimension - 1 < 6 else mine.min() > 0


def test_held_out_inputs_see_the_training_inputs_as_fresh_gaussian_inputs_do():
    """Given X, the inner products X g are N(0, X X^T): whitened by that they are standard normal."""
    train, held = draw(plain(range(40), 30), 8, 500)
    rest_PNN = train.gram_PNm - train.signal_Pm[:, :, None] * train.signal_Pm[:, None, :]
    rest_PNM = held.gram_PNm - train.signal_Pm[:, :, None] * held.signal_Pm[:, None, :]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(rest_PNN), rest_PNM, upper=False)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 1e-3
    assert (white @ white.mT / 500 - torch.eye(8)).abs().mean() < 0.06
    noise = torch.cat([train.signal_Pm - 6 * train.clean_Pm, held.signal_Pm - 6 * held.clean_Pm], 1)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_a_lane_draws_what_it_draws_alone_and_more_noise_keeps_the_labels_that_were_wrong():
    problems = [*plain((3, 4), 20, 0.1), *plain((3, 4), 500, 0.3)]
    both, alone = draw(problems, 10, 6), draw(problems[3:], 10, 6)
    for packed, single in zip(both, alone, strict=True):
        for name in ("signal_Pm", "clean_Pm", "given_Pm", "gram_PNm"):
            assert torch.allclose(getattr(packed, name)[3:], getattr(single, name), rtol=1e-12)
    wrong = both[0].given_Pm != both[0].clean_Pm
    assert wrong.sum(1).tolist() == [1, 1, 3, 3] and not (wrong[:2] & ~wrong[2:]).any()
    assert torch.equal(both[0].clean_Pm[:2], both[0].clean_Pm[2:])


@pytest.mark.parametrize(("kind", "wrong"), [("flip", 0.3), ("symmetric", 0.15)])
def test_a_symmetric_draw_leaves_half_of_the_labels_right(kind, wrong):
    train, _ = draw([Problem(seed, 20, 6.0, 0.3, kind) for seed in range(400)], 50, 4)
    share = (train.given_Pm != train.clean_Pm).double().mean()
    assert abs(share - wrong) < 4 * sqrt(0.3 / (400 * 50))
    assert effective_rate(0.3, kind) == pytest.approx(wrong)
    assert Config(noise_rate=0.3, noise_kind=kind).wrong_rate == pytest.approx(wrong)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_dual_descends_as_torchs_sgd_on_the_weights(weight_decay):
    """The same inputs explicitly: the coordinate of the signal beside the triangular ones."""
    config = replace(SMALL, learning_rate=0.7, weight_decay=weight_decay)
    pack = Pack([config], CPU)
    problem = Problem(config.seed, config.dimension, 6.0, config.noise_rate, "flip")
    inputs = torch.cat([pack.train.signal_Pm[0][:, None], triangular([problem], config.samples)[0]], 1)
    assert torch.allclose(inputs @ inputs.T, pack.train.gram_PNm[0])
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    smoothness = float(torch.linalg.matrix_norm(inputs, 2)) ** 2 / (4 * config.samples)
    sgd = torch.optim.SGD([weights], config.learning_rate / smoothness, weight_decay=weight_decay * smoothness)
    for _ in range(60):
        sgd.zero_grad()
        logits, targets = inputs @ weights, (pack.train.given_Pm[0] + 1) / 2
        torch.nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()
        sgd.step()
    pack.advance(60)
    weights = weights.detach()
    assert torch.allclose(pack.outputs(pack.train)[0], inputs @ weights, rtol=1e-9)
    found = pack.measure()
    assert float(found["weight_norm"]) == pytest.approx(float(weights.norm()), rel=1e-9)
    assert float(found["report/error"]) == pytest.approx(
        stats.norm.cdf(-6 * float(weights[0]) / float(weights.norm())), rel=1e-9
    )


def test_errors_and_losses_in_closed_form_are_those_of_many_samples():
    mean, spread = torch.tensor([1.5, 0.2, -3.0]).double(), torch.tensor([1.0, 4.0, 2.0]).double()
    for at in range(3):
        m, s = float(mean[at]), float(spread[at])
        exact, _ = integrate.quad(
            lambda z, m=m, s=s: max(-z, 0) * stats.norm.pdf(z, m, s)
            + torch.nn.functional.softplus(torch.tensor(-abs(z)).double()).item() * stats.norm.pdf(z, m, s),
            m - 12 * s, m + 12 * s, points=[0, m], limit=200,
        )  # fmt: skip
        assert float(expected_loss(mean, spread)[at]) == pytest.approx(exact, rel=1e-6)
        drawn = Streams([at], "margins").normal(0, 200_000, dtype=torch.float64)[0] * s + m
        assert float(clean_error(mean, spread)[at]) == pytest.approx(float((drawn < 0).double().mean()), abs=0.005)


def test_the_held_out_error_is_the_clean_error_seen_through_the_noise():
    """Given labels: wrong_rate + (1 - 2 wrong_rate) * clean error in expectation."""
    stage = ended(replace(SMALL, held_out=40_000, noise_rate=0.3, noise_kind="symmetric"))[0]
    clean, seen = last(stage)["report/error"], last(stage)["select/error"]
    assert seen == pytest.approx(0.15 + 0.7 * clean, abs=4 * 0.5 / sqrt(20_000))


def test_the_temperature_is_the_one_that_a_scalar_search_finds():
    outputs = Streams([1, 2], "outputs").normal(0, 60, dtype=torch.float64) * 3
    labels = torch.where(Streams([1, 2], "labels").uniform(0, 60) < 0.3, -1.0, 1.0) * outputs.sign()
    doubt = 1 / 62

    def loss(log_scale, lane):
        margins = outputs[lane] * labels[lane] * exp(log_scale)
        softplus = torch.nn.functional.softplus
        return float(((1 - doubt) * softplus(-margins) + doubt * softplus(margins)).sum())

    for lane, scale in enumerate(fitted_scale(outputs, labels)):
        best = optimize.minimize_scalar(loss, (-2, 2), args=(lane,), tol=1e-10).x
        assert log(float(scale)) == pytest.approx(best, abs=1e-5)
    assert torch.isfinite(fitted_scale(outputs, outputs.sign())).all()


def test_without_noise_all_is_well_and_with_noise_few_dimensions_are_not():
    clean, near, wide = ended(
        *(
            replace(SMALL, samples=100, ratio=ratio, noise_rate=rate, budget_steps=1500)
            for ratio, rate in ((2.0, 0.0), (1.2, 0.2), (32.0, 0.2))
        )
    )
    assert last(clean)["report/error"] < 0.001 and "report/memorised_fraction" not in last(clean)
    for stage in (near, wide):
        row = last(stage)
        assert row["train/error"] == 0 and row["report/memorised_fraction"] == 1 and row["train/flipped"] == 20
        assert row["train/clean_error"] == pytest.approx(0.2)
    assert last(near)["report/error"] > 3 * last(wide)["report/error"] > 0


def test_stopping_early_delivers_the_step_that_the_first_half_of_the_held_out_inputs_chose():
    """Against models that are trained for exactly as many steps as each measured one."""
    base = replace(SMALL, ratio=1.2, noise_rate=0.3, budget_steps=100, measurements=5)
    stopped, whole = last(ended(replace(base, repair="early_stop"))[0]), last(ended(base)[0])
    found = {}
    for steps in measured_steps(100, 5):
        pack = Pack([base], CPU)
        pack.advance(steps)
        found[steps] = {name: float(value) for name, value in pack.measure().items()}
    best = min(found, key=lambda steps: (found[steps]["stop/error"], steps))
    assert stopped["report/stop_step"] == whole["report/stop_step"] == best < 100
    assert stopped["report/error"] == pytest.approx(found[best]["report/error"])
    assert whole["report/early_error"] == stopped["report/error"]
    assert stopped["select/error"] == pytest.approx(found[best]["select/error"])
    assert whole["report/excess_error"] == pytest.approx(found[100]["report/error"] - found[best]["report/error"])
    assert stopped["report/excess_error"] == pytest.approx(whole["report/excess_error"])
    seen = (found[100]["select/error"] - found[best]["select/error"]) / (1 - 2 * 0.3)
    assert whole["select/excess"] == pytest.approx(seen)
    assert whole["select/boundary"] == pytest.approx(abs(seen - 0.02))
    for name in ("loss", "scaled_loss"):
        own = min(found, key=lambda steps: found[steps][f"stop/{name}"])
        assert whole[f"report/early_{name}"] == pytest.approx(found[own][f"report/{name}"])


def test_a_hard_student_is_a_model_trained_on_its_teachers_classes():
    config = replace(SMALL, repair="self_train_hard", teacher_step=7, rounds=2, budget_steps=50)
    (stage,) = ended(config)
    pack = Pack([replace(SMALL, budget_steps=50)], CPU)
    for steps in (7, 7):
        pack.begin()
        pack.advance(steps)
        pack.targets_P1N.copy_((pack.outputs(pack.train)[:, None] > 0).double())
    pack.begin()
    pack.advance(50)
    assert last(stage)["report/error"] == pytest.approx(float(pack.measure()["report/error"]))
    assert config.models == (7, 7, 50) and benign_linear.STUDY.steps(config) == 64 == stage.rows[-1].step
    assert [row.full for row in stage.rows].count(True) == 1


def test_a_student_of_soft_labels_becomes_its_teacher():
    """Both lie in the span of the inputs, and the soft loss is least where the outputs agree."""
    config = replace(SMALL, ratio=8.0, repair="self_train_soft", teacher_step=5, budget_steps=6000)
    teacher = last(ended(replace(SMALL, ratio=8.0, budget_steps=5))[0])
    student = last(ended(config)[0])
    for name in ("report/error", "report/loss", "weight_norm", "train/loss"):
        assert student[name] == pytest.approx(teacher[name], rel=1e-3, abs=1e-6)


def test_lanes_of_all_ratios_noises_and_repairs_are_what_they_are_alone():
    base = replace(SMALL, budget_steps=60)
    none = [replace(base, ratio=r, noise_rate=e, seed=s) for s, (r, e) in enumerate([(0.5, 0.1), (1.2, 0.4), (64, 0)])]
    stops = [replace(none[1], repair="early_stop", learning_rate=0.3), replace(none[0], weight_decay=0.1)]
    taught = [replace(base, repair=f"self_train_{kind}", seed=3) for kind in ("hard", "soft")]
    for lanes in ([*none, *stops], taught):
        for config, stage in zip(lanes, ended(*lanes), strict=True):
            (alone,) = ended(config)
            assert [row.step for row in stage.rows] == [row.step for row in alone.rows]
            for ours, theirs in zip(stage.rows, alone.rows, strict=True):
                assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-8, abs=1e-10)


def test_descent_beyond_twice_the_inverse_curvature_does_not_settle_and_below_it_does():
    """On soft targets the loss is smooth and convex: at a rate below 2 / L it falls at every step."""
    for rate, falls in ((1.9, True), (100.0, False)):
        pack = Pack([replace(SMALL, learning_rate=rate, noise_rate=0.4)], CPU)
        losses = []
        for _ in range(50):
            pack.advance(1)
            losses.append(float(pack.measure()["train/target_loss"]))
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(losses)) == falls


def test_steps_of_a_family_are_counted_once_where_a_path_passes_through_its_earlier_budgets():
    def cost(**fields):
        return benign_linear.STUDY.family_cost(benign_linear.family({"samples": 20, **fields}, [100, 300]))

    assert cost(repair="none", rounds=4) == cost(repair="early_stop") == 300
    assert cost(repair="self_train_hard", teacher_step=10) == 310
    assert cost(repair="self_train_hard", rounds=2) == 100 * 3 + 300 * 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"noise_rate": 0.5}, "lower noise_rate"),
        ({"noise_rate": -0.1}, "noise_rate must be at least 0"),
        ({"rounds": 2}, "rounds does nothing under repair=none"),
        ({"teacher_step": 5, "repair": "early_stop"}, "teacher_step does nothing"),
        ({"teacher_step": 5000, "repair": "self_train_hard"}, "from 1 to budget_steps=3000"),
        ({"repair": "widen"}, "no repair 'widen'; there are none, early_stop"),
        ({"held_out": 5}, "must be even"),
        ({"ratio": 0.01}, "raise the ratio"),
        ({"learning_rate": float("inf")}, "above 0 and finite"),
        ({"boundary_excess": float("nan")}, "boundary_excess must be finite, got nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite, got inf"),
        ({"signal_exponent": float("nan")}, "signal_exponent must be finite"),
    ],
)
def test_what_no_trial_can_honour_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Config(**values)
