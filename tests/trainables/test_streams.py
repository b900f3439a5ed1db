"""Streams against splitmix64 in plain Python integers, and their numbers against the distributions they claim."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from trainables.common.streams import Streams

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def finalised(word):
    """splitmix64's finaliser (Steele, Lea and Flood 2014), in unsigned Python integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % WORD
    return word ^ (word >> 31)


def plain_words(seed, purpose, counter, count):
    """What a lane's stream is documented to be: one splitmix64 sequence, started by key and counter."""
    key = int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "big")
    start = finalised((key + finalised((counter * GOLDEN + 1) % WORD)) % WORD)
    return [finalised((start + place * GOLDEN) % WORD) for place in range(1, count + 1)]


def unsigned(words):
    return [int(word) % WORD for word in words.flatten()]


def test_the_finaliser_here_gives_splitmix64s_published_first_outputs_for_seed_0():
    assert [finalised(place * GOLDEN % WORD) for place in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("seed", [0, 7, -3, 2**40, 2**80])
@pytest.mark.parametrize("counter", [0, 1, 12_345, 2**40])
def test_words_are_splitmix64s(seed, counter):
    got = Streams([seed, seed + 1], "noise").words(counter, 3, 5)
    assert unsigned(got[0]) == plain_words(seed, "noise", counter, 15)
    assert unsigned(got[1]) == plain_words(seed + 1, "noise", counter, 15)


def test_a_counter_in_a_tensor_draws_the_same():
    streams = Streams([1, 2], "noise")
    assert torch.equal(streams.words(9, 4), streams.words(torch.tensor(9), 4))


@pytest.mark.parametrize("draw", ["uniform", "normal", "signs", "bits", "integers"])
def test_a_lane_draws_alone_what_it_draws_in_a_pack_and_after_lanes_were_dropped(draw):
    def drawn(streams):
        extra = (10,) if draw == "integers" else ()
        return getattr(streams, draw)(4, *extra, 3, 7)

    pack = Streams(range(5), "data")
    for lane in range(5):
        assert torch.equal(drawn(pack)[lane], drawn(Streams([lane], "data"))[0])
    assert torch.equal(drawn(pack.kept(torch.tensor([4, 1]))), drawn(pack)[[4, 1]])


def test_seeds_purposes_and_counters_give_different_numbers():
    words = [*Streams(range(50), "a").words(0, 20).flatten().tolist(), *Streams([0], "b").words(0, 20)[0].tolist()]
    words += [word for counter in range(1, 50) for word in Streams([0], "a").words(counter, 20)[0].tolist()]
    assert len(set(words)) == len(words)


def test_numbers_are_functions_of_the_words():
    streams = Streams([5], "noise")
    words = unsigned(streams.words(2, 8))
    assert streams.uniform(2, 8)[0].tolist() == [(word >> 40) / 2**24 for word in words]
    assert streams.uniform(2, 8, dtype=torch.float64)[0].tolist() == [(word >> 11) / 2**53 for word in words]
    assert streams.integers(2, 10, 8)[0].tolist() == [(word >> 32) * 10 >> 32 for word in words]
    bits = [word >> place & 1 for word in words[:2] for place in range(64)]
    assert streams.bits(2, 100)[0].tolist() == bits[:100]
    assert streams.signs(2, 100)[0].tolist() == [2 * bit - 1 for bit in bits[:100]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal_by_lane_by_counter_and_together(dtype):
    """Kolmogorov-Smirnov at fixed seeds; a p value below 1e-3 has chance 1e-3."""
    streams = Streams(range(40), "init")
    by_lane = streams.normal(0, 1000, dtype=dtype).double().numpy()
    by_counter = np.concatenate([streams.normal(step, 1, dtype=dtype).double().numpy() for step in range(500)], 1)
    for numbers in (by_lane, by_counter):
        assert stats.kstest(numbers.flatten(), "norm").pvalue > 1e-3
        p_values = [stats.kstest(lane, "norm").pvalue for lane in numbers]
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert np.isfinite(by_lane).all() and by_lane.dtype == np.float64


def test_uniforms_integers_and_bits_are_even():
    streams = Streams(range(20), "data")
    assert stats.kstest(streams.uniform(3, 2000).flatten().numpy(), "uniform").pvalue > 1e-3
    below = streams.integers(3, 7, 2000)
    assert set(below.flatten().tolist()) == set(range(7))
    assert stats.chisquare(np.bincount(below.flatten().numpy())).pvalue > 1e-3
    places = streams.bits(3, 50, 64).flatten(0, 1).sum(0).numpy()  # each bit of the words over 1000 words
    assert stats.chisquare(np.stack([places, 1000 - places]), axis=0).pvalue.min() > 1e-3 / 64
    assert int(streams.integers(0, 1, 100).max()) == 0 and int(streams.integers(0, 2**31, 100).min()) >= 0


def test_lanes_and_neighbouring_counters_are_uncorrelated():
    """Of 780 pairs of lanes none beyond 5 standard errors; successive steps of a lane likewise."""
    lanes = Streams(range(40), "noise").normal(0, 4000, dtype=torch.float64)
    far = (torch.corrcoef(lanes) - torch.eye(40, dtype=torch.float64)).abs().max()
    assert float(far) < 5 / np.sqrt(4000)
    steps = torch.cat([Streams([3], "noise").normal(step, 200, dtype=torch.float64) for step in range(40)])
    assert float((torch.corrcoef(steps) - torch.eye(40, dtype=torch.float64)).abs().max()) < 5 / np.sqrt(200)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Streams([1], "noise").normal(0, 10)
    assert torch.equal(torch.get_rng_state(), before)
