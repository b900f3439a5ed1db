"""Solvers of parities against enumeration, dense matrices and autograd; noise rates against counts and formulas."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from trainables.common.parity import baselines, fused_mlp, gauss, networks, recovery, walsh
from trainables.common.parity.baselines import Instance
from trainables.common.parity.networks import Architecture
from trainables.common.parity.reduction import Reduction, dropped, xored
from trainables.common.parity.samples import (
    LABEL,
    agreements,
    inputs,
    labelled,
    labels,
    noise_after_xors,
    parity,
    pool,
    queries,
    secrets,
)
from trainables.common.streams import Streams

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def noisy(instance, count):
    """Samples in numpy, and their errors against the true secret."""
    words = torch.cat(list(instance.samples(count))).numpy()
    errors = (np.array([bin(int(word) & instance.secret).count("1") & 1 for word in words])) ^ (words >> LABEL)
    return words, errors


def test_parity_is_the_count_of_ones_modulo_two():
    words = Streams([3], "words").words(0, 200)[0] & (2**LABEL - 1)
    assert parity(words).tolist() == [bin(int(word)).count("1") % 2 for word in words]


@pytest.mark.parametrize("weight", [1, 5, 9])
def test_a_secret_has_exactly_as_many_ones_as_asked_and_differs_between_seeds(weight):
    found = secrets(range(20), 10, [weight] * 20, "cpu").tolist()
    assert all(bin(one).count("1") == weight for one in found) and len(set(found)) >= 5


def test_labels_are_parities_with_the_noise_rate_and_queries_are_balanced():
    instance = Instance(12, 0.2, 6, seed=1)
    words, errors = noisy(instance, 20_000)
    assert abs(errors.mean() - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    share = ((words[:, None] >> np.arange(12)) & 1).mean(0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / 20_000**0.5


def test_a_smaller_pool_is_the_start_of_a_larger_one_and_of_the_instance():
    secret, rate = secrets([4], 8, [4], "cpu"), torch.tensor([0.1], dtype=torch.float64)
    small, large = (pool(Streams([4], "samples"), secret, rate, 8, count)[0] for count in (100, 300))
    assert torch.equal(small, large[:100])
    assert torch.equal(large, torch.cat(list(Instance(8, 0.1, 4, seed=4).samples(300))))


def test_inputs_are_the_bits_and_a_one():
    word = 0b1011 | 1 << LABEL
    assert inputs(torch.tensor([word]), 4).tolist() == [[1, 1, 0, 1, 1]]


@pytest.mark.parametrize("bits", range(8))
def test_the_transform_is_the_dense_walsh_hadamard_matrix(bits):
    table = torch.randn(2**bits, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    dense = [[(-1.0) ** bin(i & j).count("1") for j in range(2**bits)] for i in range(2**bits)]
    wanted = torch.tensor(dense, dtype=torch.float64) @ table
    torch.testing.assert_close(walsh.transform(table.clone()), wanted)


def test_the_transform_of_pieces_is_its_own_inverse(monkeypatch):
    monkeypatch.setattr(walsh, "PIECE", 256)  # many pieces, in both directions
    table = torch.randint(-9, 9, (2**13,)).float()
    assert torch.equal(walsh.transform(walsh.transform(table.clone())), 2.0**13 * table)


@pytest.mark.parametrize("seed", range(5))
def test_walsh_finds_the_secret_that_agrees_most_often(seed):
    words, _ = noisy(Instance(7, 0.3, 3, seed=seed), 60)
    counts = agreements(words, np.arange(2**7), 7)
    best = walsh.likeliest([torch.from_numpy(part) for part in np.array_split(words, 3)], 7)
    assert counts[best] == counts.max()


def test_a_table_that_is_too_large_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match=r"34 bits takes 68,719,476,736 bytes.*xor or drop bits first"):
        walsh.likeliest([], 34)


@pytest.mark.parametrize("dimension", [1, 3, 9])
def test_elimination_solves_the_rows_it_pivots_on(dimension):
    """Against every secret tried on every row: consistent systems have their one solution found."""
    rng = np.random.default_rng(dimension)
    secret = int(rng.integers(2**dimension))
    query = rng.integers(2**dimension, size=(50, dimension + gauss.SPARE_ROWS))
    rows = query | (np.bitwise_count(query & secret).astype(np.int64) & 1) << LABEL
    solutions, whole = gauss.solve(rows, dimension)
    ranks = [len({sum_ for sum_ in spans(row)}) == 2**dimension for row in query]
    assert whole.tolist() == ranks and (solutions[whole] == secret).all()


def spans(row):
    """All xors of the numbers in a row."""
    found = {0}
    for number in row:
        found |= {one ^ int(number) for one in found}
    return found


def test_a_draw_succeeds_as_often_as_its_rows_are_free_of_noise():
    words, _ = noisy(Instance(8, 0.2, 4, seed=2), 2000)
    choices = np.random.default_rng(0).integers(2000, size=(4000, 8 + gauss.SPARE_ROWS))
    solutions, whole = gauss.solve(words[choices], 8)
    right = (solutions[whole] == Instance(8, 0.2, 4, seed=2).secret).mean()
    assert right == pytest.approx(0.8**8 + (1 - 0.8**8) / 2**8, abs=0.03)


@pytest.mark.parametrize("error", [0.0, 0.1, 0.25])
def test_the_secret_is_recovered_from_an_oracle_that_errs(error):
    instance = Instance(10, 0.4, 5, seed=7)
    wrong = Streams([1], "oracle")

    def oracle(asked):
        return (parity(asked & instance.secret) ^ (wrong.uniform(len(asked), len(asked))[0] < error)).bool()

    assert recovery.recover(oracle, Streams([2], "a"), 0, 10, instance.verification()) == instance.secret


def test_an_oracle_that_knows_nothing_gives_no_secret():
    instance, coins = Instance(10, 0.1, 5, seed=7), Streams([1], "coins")
    for counter in range(5):
        found = recovery.recover(
            lambda asked, at=counter: coins.bits(at, len(asked))[0].bool(),
            *(Streams([2], "a"), counter, 10, instance.verification()),
        )
        assert found is None


@pytest.mark.parametrize("noise_rate", [0.0, 0.3, 0.45])
def test_verification_takes_the_secret_and_nothing_else(noise_rate):
    instance = Instance(8, noise_rate, 4, seed=3)
    taken = [one for one in range(2**8) if recovery.verified(one, instance.verification(), 8)]
    assert taken == [instance.secret]


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_noise_after_xors_is_what_is_counted(rounds):
    """The formula against the chance of an odd number of errors among 2^rounds, and against reduced samples."""
    terms = 2**rounds
    odd = sum(
        torch.distributions.Binomial(terms, torch.tensor(0.1)).log_prob(torch.tensor(float(k))).exp().item()
        for k in range(1, terms + 1, 2)
    )
    assert noise_after_xors(0.1, rounds) == pytest.approx(odd, rel=1e-4)
    instance, reduction = Instance(16, 0.1, 8, seed=rounds), Reduction(16, xor_rounds=rounds, block_bits=4)
    words, _ = noisy(instance, 2**15)
    reduced = reduction.levels(words)[-1]
    assert len(reduced) > 2**15 / 2**rounds * 0.9 and (reduced & (2**LABEL - 1)).max() < 2**reduction.remaining
    errors = len(reduced) - int(agreements(reduced, np.array([instance.secret]), 16)[0])
    assert abs(errors / len(reduced) - odd) < 4 * 0.5 / len(reduced) ** 0.5


def test_dropping_keeps_the_samples_whose_highest_bits_are_zero():
    words, _ = noisy(Instance(8, 0.2, 4, seed=1), 500)
    assert dropped(words, 8, 2).tolist() == [int(word) for word in words if not (int(word) >> 6) & 3]
    assert dropped(words, 8, 0).tolist() == words.tolist()


def test_xored_pairs_use_each_sample_once():
    words, _ = noisy(Instance(8, 0.2, 4, seed=1), 501)
    pairs = {(int(a) ^ int(b)) for a in words for b in words}
    reduced = xored(words, 5, 3)
    odd_classes = sum(count % 2 for count in np.unique((words >> 5) & 7, return_counts=True)[1])
    assert len(reduced) == (501 - odd_classes) // 2 and set(map(int, reduced)) <= pairs


@pytest.mark.parametrize("reduction", [Reduction(14, 2, 2, 3), Reduction(14, 3), Reduction(14, 0, 1, 6)])
def test_the_whole_secret_follows_from_its_lowest_bits(reduction):
    instance = Instance(14, 0.1, 7, seed=5)
    words, _ = noisy(instance, 2**14)
    found = walsh.likeliest([torch.from_numpy(reduction.levels(words)[-1])], reduction.remaining)
    assert found == instance.secret & (2**reduction.remaining - 1)
    assert reduction.whole_secret(found, words) == instance.secret


def test_fewest_samples_are_found_by_bisection():
    assert [baselines.bisect(2, 9, lambda size, least=least: size >= least) for least in range(2, 11)] == [
        *range(2, 9), None, None,
    ]  # fmt: skip
    instance = Instance(8, 0.2, 4, seed=3)
    count = baselines.walsh_samples(instance)
    found = walsh.likeliest(instance.samples(count), 8)
    assert found == instance.secret and 8 <= count <= 200


def test_baselines_solve_what_they_time():
    found = baselines.baselines(10, 0.2, 5, seed=0)
    assert found["walsh_solved"] and found["gauss_solved"] and found["walsh_samples"] == 178
    assert baselines.baselines(24, 0.45, 12, seed=0, samples=10_000)["gauss_solved"] is None  # too many draws: not run


NETS = [
    Architecture(6, width=24),
    Architecture(6, width=24, network="norm_mlp"),
    Architecture(6, width=24, network="sparse_mlp"),
    Architecture(6, width=16, layers=2),
    Architecture(6, width=24, activation="cosine", output="cosine"),
    Architecture(6, width=24, loss="l1"),
]


def modules(net, flat):
    """The same net out of torch.nn's modules, with the parameters of a flat vector."""
    layers, named = [], net.named(flat)
    cosine = type("Cosine", (torch.nn.Module,), {"forward": lambda self, x: (torch.cos(x) + 1) / 2})
    for layer in range(1, net.layers + 1):
        weight = named[f"hidden{layer}"]
        layers.append(torch.nn.Linear(weight.shape[0] - 1, net.width))
        if net.network == "norm_mlp":
            layers.append(torch.nn.LayerNorm(net.width))
        layers.append(torch.nn.ReLU() if net.activation == "relu" else cosine())
    layers += [torch.nn.Linear(net.width, 1), torch.nn.Sigmoid() if net.output == "sigmoid" else cosine()]
    linears = [one for one in layers if isinstance(one, torch.nn.Linear)]
    weights = [named[f"hidden{layer}"] for layer in range(1, net.layers + 1)] + [named["readout"]]
    for linear, weight in zip(linears, weights, strict=True):
        linear.load_state_dict({"weight": weight[:-1].T.clone(), "bias": weight[-1].clone()})
    return torch.nn.Sequential(*layers)


def nets_and_samples(net, lanes=3, batch=200):
    flat = networks.initial(net, Streams(range(lanes), "init"), 0)
    words = Streams(range(lanes), "data").words(0, batch)
    rates, secret = torch.full((lanes,), 0.2, dtype=torch.float64), torch.arange(1, lanes + 1)
    return flat, labelled(words, secret, rates, net.dimension)


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net.network} {net.layers} {net.activation} {net.loss}")
def test_gradients_and_predictions_are_those_of_torch_modules(net):
    flat, samples = nets_and_samples(net)
    found, predicted = networks.gradients(net, flat, samples), networks.predictions(net, flat, samples)
    for lane in range(len(flat)):
        module = modules(net, flat[lane])
        x, y = inputs(samples[lane], net.dimension)[:, :-1], labels(samples[lane]).float()
        output = module(x)[:, 0]
        loss = torch.nn.functional.l1_loss(output, y) if net.loss == "l1" else torch.nn.BCELoss()(output, y)
        loss.backward()
        wanted = []
        for one in module:
            if isinstance(one, torch.nn.Linear):
                wanted.append(torch.cat([one.weight.grad.T.flatten(), one.bias.grad]))
            elif isinstance(one, torch.nn.LayerNorm):
                wanted += [one.weight.grad, one.bias.grad]
        torch.testing.assert_close(found[lane], torch.cat(wanted), rtol=1e-4, atol=1e-7)
        assert torch.equal(predicted[lane], output > 0.5)


def test_initial_parameters_have_the_range_of_torch_linear():
    net = Architecture(9, width=400)
    named = net.named(networks.initial(net, Streams([0], "init"), 0)[0])
    linear = torch.nn.Linear(9, 400)
    for part in (named["hidden1"], linear.weight):
        assert 0.98 / 3 < part.abs().max() <= 1 / 3 and abs(part.mean()) < 0.02
    assert named["readout"].abs().max() <= 1 / 20


def test_a_mask_keeps_its_share_of_weights_and_all_biases():
    net = Architecture(20, width=200, network="sparse_mlp")
    mask = net.named(networks.mask(net, Streams([0], "mask"), 0, torch.tensor([0.2]))[0])
    assert abs(mask["hidden1"][:-1].mean() - 0.2) < 0.02 and mask["hidden1"][-1].all() and mask["readout"][-1].all()


@pytest.mark.parametrize("bytes_at_a_time", [4 * 24, 4 * 24 * 70, 4 * 24 * 450])
def test_the_gradient_does_not_depend_on_how_it_is_cut(bytes_at_a_time, monkeypatch):
    """One sample, part of a batch, and some nets at a time, against all at once."""
    net = NETS[0]
    flat, samples = nets_and_samples(net, lanes=5)
    whole = networks.gradients(net, flat, samples)
    monkeypatch.setitem(fused_mlp.HIDDEN_BYTES, "cpu", bytes_at_a_time)
    torch.testing.assert_close(networks.gradients(net, flat, samples), whole, rtol=1e-5, atol=1e-8)


def test_a_net_in_a_pack_has_the_bits_of_one_alone():
    net = Architecture(12, width=64)
    flat, samples = nets_and_samples(net, lanes=5, batch=256)
    together = networks.gradients(net, flat, samples)
    assert all(
        torch.equal(networks.gradients(net, flat[i : i + 1], samples[i : i + 1])[0], together[i]) for i in range(5)
    )


FUSED = """
import torch
from tests.trainables.test_parity import nets_and_samples
from trainables.common.parity import fused_mlp, networks
for dimension, width, batch in ((26, 200, 300), (5, 40, 77), (31, 128, 128)):
    net = networks.Architecture(dimension, width=width)
    flat, samples = nets_and_samples(net, lanes=2, batch=batch)
    named = net.named(flat)
    given = samples, named["hidden1"], named["readout"][..., 0], dimension
    assert fused_mlp.fusable(samples, dimension)
    torch.testing.assert_close(
        fused_mlp.fused_moments(*given, precision="ieee"), fused_mlp.moments(*given), rtol=1e-4, atol=1e-7
    )
print("equal")
"""


def test_the_fused_kernels_have_the_gradient_of_plain_torch():
    """By Triton's interpreter, which must be asked for before Triton is imported: in a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FUSED]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_a_query_of_a_sample_has_no_label():
    assert queries(torch.tensor([1 << LABEL | 5]), 3).tolist() == [5]
