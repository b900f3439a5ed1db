"""The river valley in lanes against a scalar loop, autograd, a closed form, and each schedule against its timeline."""

from dataclasses import replace
from math import cos, exp, sin, sqrt

import pytest
import torch

from trainables import river_valley
from trainables.common.laned_schedules import Rates, last_fork, measured_steps, short, timeline
from trainables.common.streams import Streams
from trainables.common.timeline import SHAPES, knobs_at, place, total_steps
from trainables.pack import train_pack
from trainables.river_valley import ACROSS, STARTS, STUDY, Config, Walkers
from trainables.study import LocalRun

METHODS = [
    dict(method="wsd"),
    dict(method="wsd", decay_shape="inverse", warmup_steps=3),
    dict(method="wsd_s", earlier_budgets=(15, 24)),
    dict(method="wsd_s", earlier_budgets=(15, 24), accounting="budget"),
    dict(method="cosine", warmup_steps=5),
    dict(method="cyclic_cosine", earlier_budgets=(15, 24)),
    dict(method="constant"),
]
CPU = torch.device("cpu")


def packed(configs):
    stages = {}
    train_pack(STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    return [stages[lane] for lane in range(len(configs))]


def scalar_run(config):
    """(x, y) of each replica, by a loop over Python floats with the same noise."""
    ends, parts = [], timeline(config)
    for replica in range(config.replicas):
        x, y = STARTS[config.valley]
        for step in range(total_steps(parts)):
            noise = float(
                Streams([config.seed], "noise").normal(step, config.replicas, dtype=torch.float64)[0, replica]
            )
            if config.valley == "sine":
                r, r_x, r_y = y - config.bend * sin(x), -config.bend * cos(x), 1.0
            else:
                r, r_x, r_y = x * y - 1, y, x
            down_x = config.curvature * r * r_x - config.height * config.slope * exp(-config.slope * x)
            down_y = config.curvature * r * r_y + config.noise * sqrt(config.curvature) * noise
            lr = knobs_at(parts, step)["lr"]
            x, y = x - lr * down_x, y - lr * down_y
        ends.append((x, y))
    return ends


@pytest.mark.parametrize("valley", list(STARTS))
@pytest.mark.parametrize("schedule", METHODS[1:3], ids=str)
def test_a_lane_is_the_scalar_loop(valley, schedule):
    own = dict(valley="hyperbola", curvature=1.0) if valley == "hyperbola" else dict(bend=1.3)
    config = Config(budget_steps=40, replicas=2, measure_every=20, seed=5, peak_lr=4e-3, noise=0.7, **own, **schedule)
    pack = [replace(config, seed=9), config, replace(config, peak_lr=1e-3)]
    walkers = Walkers(pack, CPU)
    for _ in range(STUDY.steps(config)):
        walkers.step()
    for replica, (x, y) in enumerate(scalar_run(config)):
        assert float(walkers.x[1, replica]) == pytest.approx(x, rel=1e-12)
        assert float(walkers.y[1, replica]) == pytest.approx(y, rel=1e-12)


@pytest.mark.parametrize("valley", list(ACROSS))
def test_slopes_across_the_valley_are_autograds(valley):
    x, y = (torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_() for _ in range(2))
    r, r_x, r_y = ACROSS[valley](x, y, torch.tensor(0.8, dtype=torch.float64))
    wanted = torch.autograd.grad(r.sum(), (x, y))
    assert torch.allclose(r_x.detach(), wanted[0], atol=1e-15)
    assert torch.allclose(torch.as_tensor(r_y).detach() + 0 * wanted[1], wanted[1], atol=1e-15)


def test_the_hill_settles_where_the_closed_form_says():
    """On a straight, level floor y is an AR(1) process: E y^2 = lr^2 s^2 k / (1 - (1 - lr k)^2)."""
    base = Config(method="constant", budget_steps=600, bend=0.0, slope=0.0, replicas=4096, measure_every=600, noise=0.6)
    pack = [replace(base, peak_lr=lr, seed=lane) for lane, lr in enumerate((5e-4, 2e-3, 8e-3))]
    for config, stage in zip(pack, packed(pack), strict=True):
        lr, k = config.peak_lr, config.curvature
        wanted = lr * k * config.noise**2 / (2 * (2 - lr * k))
        got = stage.rows[-1].metrics
        error = wanted * sqrt(2 / 2048)  # a mean of 2048 squared normals
        assert got["hill"] == pytest.approx(wanted, abs=4.5 * error)
        assert got["report/hill"] == pytest.approx(wanted, abs=4.5 * error)
        assert got["hill"] != got["report/hill"]  # other replicas


@pytest.mark.parametrize("schedule", METHODS, ids=str)
def test_rates_are_those_of_the_timeline_at_every_step(schedule):
    config = Config(budget_steps=40, **schedule)
    pack = [config, replace(config, peak_lr=0.003), replace(config, seed=1)]
    rates = Rates(pack, CPU)
    for part in place(timeline(config)):
        for step in range(part.start, part.stop):
            assert float(rates.at(torch.tensor(step))[0]) == part.at(step)["lr"]
    for step in range(total_steps(timeline(config))):
        at = [knobs_at(timeline(one), step)["lr"] for one in pack]
        assert rates.at(torch.tensor(step)).tolist() == at
    assert rates.table_TU.shape[1] == 2  # the third lane shares the first one's column


def test_all_methods_of_equal_length_share_a_pack_and_change_nothing_in_each_other():
    pack = [Config(budget_steps=40, replicas=4, measure_every=15, seed=2, **one) for one in METHODS]
    pack = [config for config in pack if STUDY.steps(config) == 40]
    assert len({STUDY.shape(config) for config in pack}) == 1 and len(pack) >= 5
    for config, stage in zip(pack, packed(pack), strict=True):
        alone = packed([config])[0]
        assert [row.step for row in stage.rows] == measured_steps(config)
        for ours, theirs in zip(stage.rows, alone.rows, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-12)


def test_what_was_before_the_decay_is_what_a_constant_rate_has_there():
    wsd = Config(budget_steps=40, replicas=4, measure_every=40)
    fork = last_fork(wsd)
    assert fork == 36 and last_fork(replace(wsd, method="cosine")) is None
    trunk = Config(method="constant", budget_steps=fork, replicas=4, measure_every=40)
    before, there = packed([wsd])[0].rows[-1].metrics, packed([trunk])[0].rows[-1].metrics
    for name in ("report/loss", "report/hill", "report/river"):
        assert before[f"{name}_before_decay"] == pytest.approx(there[name], rel=1e-12)


def test_the_loss_is_hill_plus_river_and_noise_differs_between_the_halves():
    row = packed([Config(budget_steps=60, replicas=4, measure_every=60)])[0].rows[-1].metrics
    assert row["select/loss"] == pytest.approx(row["hill"] + row["river"])
    assert row["report/loss"] == pytest.approx(row["report/hill"] + row["report/river"])
    silent = packed([Config(budget_steps=60, replicas=4, measure_every=60, noise=0.0)])[0].rows[-1].metrics
    assert silent["select/loss"] == silent["report/loss"] and row["select/loss"] != row["report/loss"]


def test_a_family_carries_its_budgets_and_leaves_out_what_a_method_does_not_read():
    values = dict(method="wsd_s", decay_fraction=0.2, peak_lr=1e-3, seed=1)
    configs = STUDY.configs(values, [20, 40, 80])
    assert [config.earlier_budgets for config in configs] == [(), (20,), (20, 40)]
    assert [STUDY.steps(config) for config in configs] == [20, 44, 92]  # the WSD family's: 80 + 4 + 8
    cosines = STUDY.configs({**values, "method": "cosine"}, [20, 40])
    assert [config.earlier_budgets for config in cosines] == [(), ()] and cosines[0].decay_fraction == 0.1


def test_a_probe_is_short_whatever_the_method():
    for one in METHODS:
        config = short(
            Config(
                budget_steps=4000, **{**one, **({"earlier_budgets": (1000, 2000)} if "earlier_budgets" in one else {})}
            )
        )
        assert STUDY.steps(config) == 40


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(method="cosine", decay_fraction=0.2), "decay_fraction does nothing under method 'cosine'"),
        (dict(method="nadam"), "no method 'nadam'"),
        (dict(method="wsd_s", earlier_budgets=(3000,)), "budgets must increase"),
        (dict(decay_shape="steep"), f"there are {', '.join(SHAPES)}"),
        (dict(replicas=3), "even and >= 2; got 3"),
        (dict(curvature=0.0), "curvature > 0"),
        (dict(valley="hyperbola", bend=0.5), "bend does nothing in the hyperbola"),
        (dict(warmup_steps=1900), "warmup . decay <= budget"),
        (dict(method="wsd", decay_shape="inverse", min_lr_ratio=0.0), "min_lr_ratio above 0"),
    ],
)
def test_a_config_refuses_what_it_cannot_honour(values, words):
    with pytest.raises(ValueError, match=words):
        Config(**values)


def test_the_study_names_what_it_measures():
    assert STUDY.module == river_valley.__name__
    assert (
        STUDY.describe(Config(seed=3), ["budget_steps", "peak_lr", "noise", "seed"]) == "wsd lr=0.005 B=2000 noise=1 s3"
    )


def test_a_family_pays_for_a_shared_trunk_once():
    """WSD: the longest trunk and every decay; WSD-S: its one run; cosine: the sum of its runs."""
    budgets = (100, 200, 400)
    steps = {}
    for method in ("wsd", "wsd_s", "cosine"):
        configs = STUDY.configs({"method": method, "decay_fraction": 0.1, "accounting": "budget"}, budgets)
        steps[method] = STUDY.family_cost(configs)
    assert steps == {"wsd": 360 + 10 + 20 + 40, "wsd_s": 400, "cosine": 700}
