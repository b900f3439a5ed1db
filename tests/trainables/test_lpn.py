"""The study of parities against torch's optimizers, its lanes alone, and secrets that are known."""

from dataclasses import replace
from itertools import product
from math import log2

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import load, parse, resolve
from search_spaces.fields import field_types
from trainables import lpn
from trainables.common.parity import networks
from trainables.common.parity.baselines import samples_of
from trainables.common.parity.racing import Race
from trainables.common.parity.samples import inputs, labels
from trainables.lpn import Config
from trainables.pack import train_pack
from trainables.study import LocalRun
from trainables.walk import train

SMALL = Config(dimension=8, width=64, batch_size=256, budget_steps=400, measure_every=25, select_samples=1024)


def ended(*configs):
    stages = {}
    train_pack(lpn.STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    return [stages[lane] for lane in range(len(configs))]


def packed(*configs):
    stages = ended(*configs)
    assert not any(stage.error for stage in stages), [stage.error for stage in stages]
    return stages


def last(stage):
    return stage.rows[-1].metrics


def raced(config):
    """A race of one lane that has not begun."""
    problem, training = lpn.prepared([config], torch.device("cpu"))
    return Race(training, problem, [0], problem.counts if problem.table_PM is not None else None)


@pytest.mark.parametrize("noise_rate", [0.0, 0.1, 0.3])
def test_fresh_samples_give_the_secret_away(noise_rate):
    for stage in packed(*(replace(SMALL, noise_rate=noise_rate, seed=seed) for seed in range(3))):
        row = last(stage)
        assert row["report/solved"] == 1 and row["report/wrong_secret"] == 0
        assert row["report/samples_to_secret"] == row["samples"] == stage.rows[-1].step * SMALL.batch_size
        assert row["report/walsh_samples"] < row["samples"]


def test_a_pool_of_samples_gives_the_secret_away_and_costs_what_is_in_it():
    stage = packed(replace(SMALL, setting="moderate", samples=3000))[0]
    assert last(stage)["report/solved"] == 1 and last(stage)["report/samples_to_secret"] == 3000


def test_the_smallest_pool_is_solved_and_half_an_octave_less_is_not():
    sizes = {"smallest_size": 6, "largest_size": 22}
    config = replace(SMALL, setting="restricted", initialisations=3, budget_steps=100, **sizes)
    stage = packed(config)[0]
    found = last(stage)["report/samples_to_secret"]
    assert found in {samples_of(size) for size in range(6, 22)} and found >= last(stage)["report/walsh_samples"]
    tried = {row.metrics["samples"] for row in stage.rows}
    assert found in tried and len(tried) <= config.rounds == 5
    assert round(found * 2**-0.5) in {round(size) for size in tried} or found == samples_of(6)
    share = (2 * log2(found) - 6) / 16
    assert last(stage)["select/mean_error"] == pytest.approx(0.5 * round(share * 16) / 16)
    assert lpn.STUDY.steps(config) == 5 * 100 >= stage.rows[-1].step


def test_a_reduction_in_front_of_the_net_finds_the_whole_secret():
    reduced = {"dimension": 13, "dropped_bits": 1, "xor_rounds": 2, "block_bits": 2, "noise_rate": 0.05}
    for stage in packed(*(replace(SMALL, setting="moderate", samples=2**15, seed=s, **reduced) for s in range(2))):
        assert last(stage)["report/solved"] == 1 and last(stage)["report/samples_to_secret"] == 2**15


def test_a_secret_that_is_not_found_is_said_and_has_no_samples():
    stage = packed(replace(SMALL, learning_rate=1e-7, budget_steps=50))[0]
    row = last(stage)
    assert row["report/solved"] == 0 and row["report/wrong_secret"] == 0 and "report/samples_to_secret" not in row
    assert abs(row["select/error"] - 0.5) < 0.1 and abs(row["report/error"] - 0.5) < 0.1


def test_the_mean_error_is_over_the_whole_budget_with_zero_after_the_secret():
    stage = packed(SMALL)[0]
    errors = [row.metrics["select/error"] for row in stage.rows]
    assert len(errors) < SMALL.measurements == 16
    assert last(stage)["select/mean_error"] == pytest.approx(sum(errors) / 16)
    assert stage.rows[0].metrics["select/mean_error"] == pytest.approx(errors[0])


def test_the_error_on_noisy_labels_estimates_the_one_on_clean_labels():
    config = replace(SMALL, noise_rate=0.4, select_samples=2**17, budget_steps=60, measure_every=60)
    (stage,) = packed(config)
    spread = 0.5 / (2**17) ** 0.5 / 0.2 + 0.5 / 4096**0.5
    assert abs(last(stage)["select/error"] - last(stage)["report/error"]) < 4 * spread


VARIANTS = [
    {},
    {"setting": "moderate", "samples": 2000},
    {"setting": "moderate", "samples": 12000, "xor_rounds": 1, "block_bits": 2},
    {"setting": "restricted", "budget_steps": 50, "smallest_size": 8, "largest_size": 15, "initialisations": 2},
    {"network": "norm_mlp", "budget_steps": 50},
    {"network": "sparse_mlp", "keep_rate": 0.7},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_lanes_that_end_at_different_steps_are_what_they_are_alone(variant):
    base = replace(SMALL, **{"budget_steps": 150} | variant)
    noise = [0.0, 0.2, 0.1, 0.3]
    lanes = [
        replace(base, noise_rate=tau, seed=seed, learning_rate=0.01 - 0.002 * seed) for seed, tau in enumerate(noise)
    ]
    if base.samples:
        lanes = [replace(lane, samples=base.samples + 300 * lane.seed) for lane in lanes]
    for config, stage in zip(lanes, packed(*lanes), strict=True):
        alone = train(lpn.STUDY, config)
        assert [row.step for row in alone.rows] == [row.step for row in stage.rows]
        for ours, theirs in zip(stage.rows, alone.rows, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_steps_are_those_of_torch_with_its_coupled_weight_decay(optimizer):
    config = replace(SMALL, optimizer=optimizer, learning_rate=0.02, weight_decay=0.03)
    race, twin = raced(config), raced(config)
    parameter = torch.nn.Parameter(race.lanes["flat"][0, 0].clone())
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    theirs = kind([parameter], lr=0.02, weight_decay=0.03)
    for _ in range(5):
        twin.step_count.add_(1)
        samples = twin.batch()[0]
        theirs.zero_grad()
        networks.loss(config.net, parameter, inputs(samples, 8), labels(samples).float()).backward()
        theirs.step()
        race.step()
    torch.testing.assert_close(race.lanes["flat"][0, 0], parameter.detach(), rtol=1e-4, atol=1e-5)


def test_batches_of_a_pool_hold_its_samples_alone_and_with_replacement():
    race = raced(replace(SMALL, setting="moderate", samples=40))
    pool = set(race.problem.table_PM[0].tolist())
    drawn = [word for _ in range(4) for word in (race.step_count.add_(1), race.batch()[0].tolist())[1]]
    assert len(pool) <= 40 and set(drawn) == pool and len(drawn) == 4 * 256
    first, second = (raced(SMALL).batch() for _ in range(2))
    assert torch.equal(first, second)


def test_masked_weights_stay_at_zero():
    race = raced(replace(SMALL, network="sparse_mlp", weight_decay=0.01))
    for _ in range(3):
        race.step()
    assert (race.lanes["flat"][race.lanes["mask"] == 0] == 0).all() and (race.lanes["mask"] == 0).any()


def test_the_best_of_several_initialisations_counts_on_the_same_samples():
    one, three = packed(replace(SMALL, noise_rate=0.2))[0], packed(replace(SMALL, noise_rate=0.2, initialisations=3))[0]
    assert three.rows[0].metrics["select/error"] <= one.rows[0].metrics["select/error"]
    assert three.rows[0].metrics["samples"] == one.rows[0].metrics["samples"]


def test_a_lane_whose_weights_overflow_has_diverged():
    (stage,) = ended(replace(SMALL, learning_rate=1e39))
    assert stage.status == "diverged" and stage.rows[-1].step == SMALL.measure_every


def test_units_count_the_matmuls_that_training_needs():
    config = replace(SMALL, dimension=10, width=32)
    module = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    with FlopCounterMode(display=False) as counter:
        module(torch.ones(config.batch_size, 10)).sum().backward()
    units = lpn.STUDY.units(config)
    assert units["flops"] == counter.get_total_flops()
    assert units["parameters"] == sum(parameter.numel() for parameter in module.parameters())


REFUSED = [
    ({"noise_rate": 0.5}, r"noise_rate must be in \[0, 0.5\)"),
    ({"dimension": 41}, "dimension must be 2 to 40, got 41; reduce"),
    ({"secret_rate": None, "noise_rate": 0.05}, "1 to 8 ones, got 0"),
    ({"samples": 100}, "setting=moderate needs samples and no other"),
    ({"setting": "moderate"}, "setting=moderate needs samples"),
    ({"setting": "restricted", "smallest_size": 9, "largest_size": 9}, "smallest_size < largest_size"),
    ({"xor_rounds": 1}, "go together"),
    ({"dropped_bits": 7}, "must leave 2 bits"),
    ({"dropped_bits": 2}, "takes a pool"),
    ({"noise_rate": 0.498}, "take select_samples=1562500 or more"),
    ({"learning_rate": 0.0}, "learning_rate above 0"),
    ({"batch_size": 0}, "at least 1"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=str)
def test_what_cannot_be_honoured_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_a_reduction_that_leaves_too_little_says_so():
    config = replace(SMALL, setting="moderate", samples=2000, dropped_bits=1)
    (stage,) = ended(config)
    assert stage.status == "failed" and "raise samples, or reduce by fewer bits" in stage.error


def test_sparse_secrets_have_as_many_ones_as_the_noise_rate_says():
    assert replace(SMALL, dimension=26, noise_rate=0.2, secret_rate=None).weight == 5
    assert replace(SMALL, dimension=10, noise_rate=0.3, secret_rate=None).weight == 3
    assert replace(SMALL, dimension=26, noise_rate=0.498, secret_rate=None, select_samples=2**21).weight == 12


def test_every_value_of_the_space_is_one_that_a_config_honours():
    file = load("lpn")
    for scale in file.scales:
        for preset in file.presets_at(scale):
            resolved = resolve(file, scale, preset)
            space = parse(
                resolved.axes, fields=field_types(Config), conditions=lpn.STUDY.conditions, cells=resolved.cells
            )
            for values in product(*space.enumerated.values()):
                rest = dict(zip(space.enumerated, values, strict=True)) | dict(space.pinned) | resolved.study
                for point in space.grid():
                    assert Config(**rest, **point).rounds >= 1
