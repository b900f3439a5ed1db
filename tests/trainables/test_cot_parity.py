"""Rows against brute force and enumeration, attention against hand-made maps, training against torch and a solution."""

from dataclasses import replace
from itertools import combinations, pairwise, product
from math import log10

import pytest
import torch

from search_spaces import load, parse, resolve
from search_spaces.fields import field_types
from trainables import cot_parity
from trainables.common.cot_parity.construction import NOISE, constructed
from trainables.common.cot_parity.history import first_success, log_samples
from trainables.common.cot_parity.last import last_logits
from trainables.common.cot_parity.readings import attention, free_running_answers, mean_entropy, right
from trainables.common.cot_parity.rows import Samples, Task, permutation_keys, permuted, rows_of, secrets, unpacked
from trainables.common.sequence.network import Architecture, initial, logits
from trainables.common.sequence.training import gradients
from trainables.cot_parity import Config, Training
from trainables.pack import train_pack
from trainables.study import LocalRun
from trainables.walk import train

SMALL = Config(
    *(8, 1), held_out_rows=32, width=16, batch_size=32, budget_steps=400, learning_rate=1e-2, measured_per_doubling=2
)
DIRECT = {"chain_of_thought": False, "norm": False, "initialisation": "torch"}


def packed(*configs):
    stages = {}
    train_pack(cot_parity.STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    assert not any(stage.error for stage in stages.values()), [stage.error for stage in stages.values()]
    return [stages[lane] for lane in range(len(configs))]


def numbers_of(inputs_PBT, bits):
    """The inputs of each lane as whole numbers."""
    return (inputs_PBT[..., :bits] << torch.arange(bits)).sum(2).tolist()


@pytest.mark.parametrize("bits", [1, 2, 5, 9])
def test_the_keyed_permutation_takes_every_number_once(bits):
    keys = permutation_keys(range(4))
    for image in permuted(torch.arange(2**bits).expand(4, -1), keys, bits).tolist():
        assert sorted(image) == list(range(2**bits))
    large = permuted(torch.arange(5000).expand(4, -1), keys, 40)
    assert all(len(set(lane)) == 5000 for lane in large.tolist()) and len(set(large.flatten().tolist())) == 20_000


def test_every_parity_of_the_held_out_rows_is_as_balanced_as_chance_makes_it():
    bits, rows = 9, 128
    every = unpacked(permuted(torch.arange(rows).expand(40, -1), permutation_keys(range(40)), bits), bits)
    masks = unpacked(torch.arange(1, 2**bits)[None], bits)[0]
    shares = ((every @ masks.T) % 2).double().mean(1)
    deviation = 0.5 * ((1 - rows / 2**bits) / rows) ** 0.5  # drawn without replacement
    assert abs(shares.std().item() / deviation - 1) < 0.03 and (shares - 0.5).abs().max() < 5 * deviation


def test_no_held_out_row_is_trained_on_and_every_other_one_is():
    task = Task(8, 3, True, 32)
    samples = Samples(task, [0, 1], [0, 1])
    held_out = [numbers_of(samples.of(part).inputs, 8) for part in ("select", "report")]
    drawn = [numbers_of(samples.batch(torch.tensor(step), 256).inputs, 8) for step in range(1, 13)]
    for lane in range(2):
        select, report = (set(part[lane]) for part in held_out)
        trained = {number for batch in drawn for number in batch[lane]}
        assert len(select) == len(report) == 32 and not select & report
        assert trained == set(range(256)) - select - report


def test_a_pass_meets_each_row_of_a_finite_set_once_and_the_next_one_in_another_order():
    task = Task(8, 3, False, 32, train_size=96)
    samples = Samples(task, [5, 6], [5, 6])
    held_out = [number for part in ("select", "report") for number in numbers_of(samples.of(part).inputs, 8)[0]]
    passes = []
    for number in range(3):
        samples.begin_pass(number)
        steps = range(1 + 4 * number, 5 + 4 * number)
        passes.append([one for step in steps for one in numbers_of(samples.batch(torch.tensor(step), 24).inputs, 8)[0]])
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 96 for one in passes)
    assert passes[0] != passes[1] != passes[2] and not set(passes[0]) & set(held_out)


@pytest.mark.parametrize("bits", [6, 45])
def test_rows_are_the_authors_layout(bits):
    for chain in (True, False):
        samples = Samples(Task(bits, 3, chain, 8), [3, 4], [3, 4])
        for rows in (samples.of("select"), samples.batch(torch.tensor(1), 8)):
            for lane, secret in enumerate(samples.lanes["secret"].tolist()):
                for tokens, said in zip(rows.inputs[lane].tolist(), rows.supervised[lane].tolist(), strict=True):
                    parities = [sum(tokens[place] for place in secret[:count]) % 2 for count in range(4)]
                    assert said == (parities if chain else parities[-1:])
                    assert tokens[bits:] == said[:-1] and len(tokens) == samples.task.positions


def test_wide_inputs_are_fair_bits_and_differ_between_parts_and_steps():
    samples = Samples(Task(64, 2, False, 500), [1], [1])
    parts = [samples.of("select"), samples.of("report"), *(samples.batch(torch.tensor(s), 500) for s in (1, 2))]
    rows = [tuple(row) for part in parts for row in part.inputs[0].tolist()]
    assert len(set(rows)) == 2000 and abs(sum(map(sum, rows)) / 128_000 - 0.5) < 5 * 0.5 / 128_000**0.5


def test_secrets_are_uniform_subsets_that_leave_out_the_last_bit():
    found = [tuple(secret) for secret in secrets(Task(5, 2, True, 1), range(3000)).tolist()]
    counts = {subset: found.count(subset) for subset in combinations(range(4), 2)}
    assert sum(counts.values()) == 3000 and all(
        abs(count - 500) < 5 * (500 * 5 / 6) ** 0.5 for count in counts.values()
    )
    assert secrets(Task(5, 5, True, 1), [0]).tolist() == [[0, 1, 2, 3, 4]]


def test_success_is_the_first_run_of_enough_perfect_evaluations():
    for pattern in product([0.5, 1.0], repeat=6):
        for confirmations in range(3):
            wanted = "1" * (confirmations + 1)
            place = "".join("1" if value == 1 else "0" for value in pattern).find(wanted)
            assert first_success(pattern, 1.0, confirmations) == (None if place < 0 else place)


def test_the_tuned_number_orders_any_success_before_any_censored_run():
    rows, budget = 64, 10_000
    successes = [log_samples(samples, budget, 1.0, rows) for samples in (64, 640, 9_000, budget)]
    censored = [log_samples(None, budget, hits / rows, rows) for hits in range(rows, -1, -1)]
    assert successes == sorted(set(successes)) and censored == sorted(set(censored))
    assert successes[-1] < censored[0] and censored[-1] == 5.0


def test_attention_is_read_exactly_from_hand_made_maps():
    task, secret = Task(4, 2, True, 1), torch.tensor([[1, 2]])
    positions = task.positions
    sharp = torch.eye(positions)
    sharp[4], sharp[5] = torch.eye(positions)[1], torch.eye(positions)[2]  # they write the parities of 1 and 2 bits
    even = torch.ones(positions, positions).tril() / torch.arange(1, positions + 1)[:, None]
    half = even.clone()
    half[3] = torch.tensor([0.5, 0.5, 0, 0, 0, 0])
    found = attention(torch.stack([sharp, even, half])[None, None], secret, task)
    torch.testing.assert_close(found.least_entropy[0], torch.tensor([0, 1, 0.5]))
    torch.testing.assert_close(found.mean_entropy[0], torch.tensor([0, 1, 0.9]))
    even_mass = (1 / 5 + 1 / 6) / 2
    torch.testing.assert_close(found.secret_mass[0], torch.tensor([1, even_mass, even_mass]))
    direct = attention(half[None, None, None, :4, :4], secret, Task(4, 2, False, 1))
    torch.testing.assert_close(direct.secret_mass, torch.tensor([[0.5]]))


def test_entropy_has_the_gradient_of_its_differences_and_is_finite_at_one_hot_attention():
    scores = torch.tensor([[0.0, 0, 0], [1.0, -0.5, 0], [0.3, 0.1, -2]], dtype=torch.float64)

    def entropy(scores):
        causal = scores.masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -torch.inf)
        return mean_entropy([causal.softmax(-1)[None, None, None]])[0]

    assert torch.autograd.gradcheck(entropy, scores.requires_grad_())
    (gradient,) = torch.autograd.grad(entropy(scores * 1e4), scores)
    assert gradient.isfinite().all()


def test_a_chain_of_its_own_is_what_reading_everything_anew_at_each_token_writes():
    config = replace(SMALL, secret_bits=3, held_out_rows=64, initialisation="torch", layers=2, heads=2)
    training = Training([config, replace(config, seed=1)], torch.device("cpu"))
    rows = training.samples.of("report")
    tokens = rows.inputs[..., :8]
    for _ in range(4):
        tokens = torch.cat([tokens, logits(config.net, training.weights, tokens)[:, :, -1:].argmax(-1)], 2)
    wanted = (tokens[..., -1] == rows.supervised[..., -1]).double().mean(1)
    assert torch.equal(free_running_answers(config.net, training.weights, config.task, rows), wanted)
    assert 0.2 < wanted.mean() < 0.8


@pytest.mark.parametrize(
    "options", [{}, {"mixers": ("attention",) * 2, "heads": 2, "embedding": "tied"}, {"norm": False}]
)
def test_logits_of_the_last_positions_are_those_of_all_with_their_gradients(options):
    net = Architecture(2, 9, width=8, **options)
    weights, inputs = initial(net, [0, 1]), torch.randint(0, 2, (2, 5, 9), generator=torch.Generator().manual_seed(0))
    whole = gradients(lambda w: logits(net, w, inputs)[:, :, -3:].square().sum((1, 2, 3)), weights)
    last = gradients(lambda w: last_logits(net, w, inputs, 3).square().sum((1, 2, 3)), weights)
    torch.testing.assert_close(whole, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ones", "width"), [(1, 5), (2, 16), (4, 16), (6, 64)])
def test_the_written_down_solution_is_right_on_every_input(ones, width):
    task = Task(8, ones, False, 1)
    net = replace(SMALL, secret_bits=ones, width=width, **DIRECT).net
    secret = secrets(task, range(3))
    rows = rows_of(task, unpacked(torch.arange(256).expand(3, -1), 8), secret)
    for noise, least in ((0.0, 2.99), (NOISE, 2.0)):
        said = logits(net, constructed(net, initial(net, range(3)), secret, noise), rows.inputs)[:, :, -1:]
        assert right(said, rows.supervised).exact.tolist() == [256] * 3
        margins = (said[..., 1] - said[..., 0]) * (2 * rows.supervised - 1)
        assert margins.min() > least


def test_the_solution_stays_when_it_is_trained_and_random_weights_do_not_find_it():
    config = replace(SMALL, secret_bits=3, start="constructed", stop_when_learned=False, budget_steps=60, **DIRECT)
    (kept,) = packed(replace(config, learning_rate=1e-3))
    (lost,) = packed(replace(config, learning_rate=1e-3, start="random"))
    assert kept.rows[-1].metrics["report/least_exact_match"] == 1 == kept.rows[-1].metrics["report/exact_match"]
    assert lost.rows[-1].metrics["report/exact_match"] < 0.9 and lost.rows[-1].metrics["report/censored"] == 1


def test_steps_are_those_of_torch_adamw_on_the_plain_loss():
    config = replace(SMALL, secret_bits=2, weight_decay=0.1, layers=2, heads=2, schedule="linear")
    training, twin = (Training([config], torch.device("cpu")) for _ in range(2))
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in twin.weights.items()}
    groups = [[p for p in parameters.values() if (p.ndim > 2) == matrix] for matrix in (True, False)]
    decays = ({"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0})
    theirs = torch.optim.AdamW(decays, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 1 - step / config.budget_steps)
    for step in range(1, 6):
        rows = twin.samples.batch(torch.tensor(step), config.batch_size)
        said = logits(config.net, parameters, rows.inputs)[:, :, -3:]
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(said.flatten(0, 2), rows.supervised.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        theirs.step()
        schedule.step()
    training.advance(5)
    for name, value in training.weights.items():
        torch.testing.assert_close(value, parameters[name].detach(), rtol=1e-3, atol=1e-5)


def test_one_bit_is_learned_and_its_samples_are_on_the_grid_and_confirmed():
    for stage in packed(*(replace(SMALL, seed=seed) for seed in range(2))):
        row, arrays = stage.rows[-1].metrics, stage.rows[-1].arrays
        exact, samples = arrays["report/exact_match_trace"], arrays["report/samples_trace"]
        at = samples.index(row["report/sample_complexity"])
        assert exact[at] == exact[at + 1] == row["report/free_running_accuracy"] == 1 - row["report/censored"] == 1
        assert not any(pair == (1, 1) for pair in pairwise(exact[: at + 1]))
        assert [value / 32 for value in samples] == SMALL.measured_steps[: len(samples)]
        assert (
            samples[-1] == row["samples"]
            and arrays["report/least_entropy_trace"][at] == row["report/entropy_at_success"]
        )


def test_a_run_that_is_not_confirmed_is_censored_and_has_no_samples():
    learned, unconfirmed = packed(*(replace(SMALL, success_at=0.3, budget_steps=24, confirmations=c) for c in (1, 50)))
    row = unconfirmed.rows[-1].metrics
    assert learned.rows[-1].metrics["report/censored"] == 0
    assert row["report/censored"] == 1 and row["samples"] == 24 * 32
    assert not {"report/sample_complexity", "report/entropy_at_success"} & set(row)
    assert row["select/log_samples"] > log10(24 * 32) >= learned.rows[-1].metrics["select/log_samples"]


def test_evaluations_are_a_geometric_grid_that_no_arm_changes():
    config = replace(SMALL, first_measured=4, measured_per_doubling=4, budget_steps=1000)
    steps = config.measured_steps
    assert steps[0] == 4 and steps[-1] == 1000 and 2048 // 64 in steps
    assert all(b / a < 1.36 for a, b in pairwise(steps))
    assert steps == replace(config, chain_of_thought=False, secret_bits=3, learning_rate=1.0).measured_steps


LANES = [
    {},
    {"train_size": 96, "batch_size": 24},
    {"chain_of_thought": False, "dropout": 0.1},
    {"secret_bits": 2, "entropy_bonus": 0.1},
]


@pytest.mark.parametrize("variant", LANES, ids=str)
def test_lanes_that_end_at_different_steps_are_what_they_are_alone(variant):
    base = replace(SMALL, **{"budget_steps": 32, "held_out_rows": 16} | variant)
    own = [(1e-2, 1.0), (3e-3, 1.0), (1e-3, 0.1)]
    lanes = [replace(base, seed=seed, learning_rate=rate, success_at=at) for seed, (rate, at) in enumerate(own)]
    stages = packed(*lanes)
    assert len({stage.rows[-1].step for stage in stages}) > 1
    for config, stage in zip(lanes, stages, strict=True):
        alone = train(cot_parity.STUDY, config)
        assert [row.step for row in alone.rows] == [row.step for row in stage.rows]
        for ours, theirs in zip(stage.rows, alone.rows, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-3, abs=1e-3)


def test_a_bonus_keeps_attention_spread_and_a_penalty_narrows_it():
    base = replace(SMALL, secret_bits=2, budget_steps=40, stop_when_learned=False)
    spread, none, narrow = (packed(replace(base, entropy_bonus=bonus))[0] for bonus in (3.0, 1e-9, -3.0))
    means = [stage.rows[-1].metrics["entropy_mean"] for stage in (spread, none, narrow)]
    assert means[0] > means[1] > means[2]


REFUSED = [
    ({"secret_bits": 9}, "secret_bits must be 1 to input_bits=8, got 9"),
    ({"held_out_rows": 65}, r"half of the 2\^8 inputs at most, got twice 65; lower"),
    ({"train_size": 100}, "multiple of batch_size=32 and at most 192"),
    ({"train_size": 224}, "at most 192"),
    ({"train_size": 64, "input_bits": 41}, "train_size needs input_bits <= 40, got 41; take new rows"),
    ({"start": "constructed"}, "start=constructed needs chain_of_thought=false"),
    ({"start": "constructed", "width": 4, **DIRECT}, "width >= 5"),
    ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ({"success_at": 0.0}, r"success_at in \(0, 1\]"),
    ({"budget_steps": 0}, "budget_steps must be at least 1, got 0"),
    ({"heads": 3}, "heads divide width"),
    ({"layers": 0}, "layers must be at least 1, got 0"),
    ({"clip_norm": 0.0}, "clip_norm must be above 0, got 0.0; null is off"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=str)
def test_what_cannot_be_honoured_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_every_value_of_the_space_is_one_that_a_config_honours():
    file = load("cot_parity")
    for scale in file.scales:
        for preset in file.presets_at(scale):
            resolved = resolve(file, scale, preset)
            conditions = cot_parity.STUDY.conditions
            space = parse(resolved.axes, fields=field_types(Config), conditions=conditions, cells=resolved.cells)
            for values in product(*space.enumerated.values()):
                rest = dict(zip(space.enumerated, values, strict=True)) | dict(space.pinned) | resolved.study
                assert Config(**rest).measured_steps
