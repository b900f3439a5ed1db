"""Classical solvers on an instance that a network also gets: what they need in samples, seconds and memory."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from trainables.common.parity import gauss, walsh
from trainables.common.parity.recovery import verification_samples, verified
from trainables.common.parity.samples import CHUNK, Words, labelled, pool, secrets
from trainables.common.streams import Streams

SMALLEST_SIZE = 4  # half powers of two: 4 samples
MAX_GAUSS_DRAWS = 2**20


class Instance:
    """A secret and its endless samples: the same for a seed as in the study of networks. Batches of one lane."""

    def __init__(self, dimension: int, noise_rate: float, weight: int, seed: int, device: torch.device | str = "cpu"):
        self.dimension, self.noise_rate, self.seed, self.device = dimension, noise_rate, seed, torch.device(device)
        self.secret_P = secrets([seed], dimension, [weight], device)
        self.noise_rate_P = torch.tensor([noise_rate], dtype=torch.float64, device=device)
        self.stream = Streams([seed], "samples", device)

    @property
    def secret(self) -> int:
        return int(self.secret_P[0])

    def samples(self, count: int) -> Iterator[torch.Tensor]:
        """The first `count` samples in chunks."""
        for counter, start in enumerate(range(0, count, CHUNK)):
            words = self.stream.words(counter, min(CHUNK, count - start))
            yield labelled(words, self.secret_P, self.noise_rate_P, self.dimension)[0]

    def verification(self) -> Words:
        count = verification_samples(self.noise_rate)
        stream = Streams([self.seed], "verify", self.device)
        return pool(stream, self.secret_P, self.noise_rate_P, self.dimension, count)[0].cpu().numpy()


def sizes_to_try(noise_rate: float, dimension: int) -> tuple[int, int]:
    """Half powers of two between which maximum likelihood needs its samples: from 4 to (9 / (1 - 2 tau))^2 and n."""
    most = max(verification_samples(noise_rate), 4 * dimension)
    return SMALLEST_SIZE, int(np.ceil(2 * np.log2(most)))


def bisect(low: int, high: int, solved: Callable[[int], bool]) -> int | None:
    """The smallest size in [low, high) that is solved, if larger sizes are solved too; None if not even the largest.

    >>> bisect(0, 10, lambda size: size >= 7), bisect(0, 10, lambda size: False)
    (7, None)
    """
    end = high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if solved(middle) else (middle + 1, high)
    return None if low == end else low


def samples_of(size: int) -> int:
    """2^(size / 2), rounded.

    >>> samples_of(20), samples_of(21)
    (1024, 1448)
    """
    return round(2 ** (size / 2))


def walsh_samples(instance: Instance) -> int | None:
    """Fewest samples 2^(k/2) from which maximum likelihood finds the secret, by bisection over k."""
    low, high = sizes_to_try(instance.noise_rate, instance.dimension)
    verification = instance.verification()

    def solved(size: int) -> bool:
        found = walsh.likeliest(instance.samples(samples_of(size)), instance.dimension, instance.device)
        return verified(found, verification, instance.dimension)

    size = bisect(low, high + 1, solved)
    return None if size is None else samples_of(size)


def baselines(
    dimension: int, noise_rate: float, weight: int, seed: int, samples: int | None = None
) -> dict[str, object]:
    """What Walsh-Hadamard and plain pooled Gauss take for one instance: CPU seconds of this process, samples, bytes.

    samples: for the transform; by default 64 / (1 - 2 tau)^2, which hardly ever fails.
    """
    instance = Instance(dimension, noise_rate, weight, seed)
    count = samples or int(np.ceil(64 / (1 - 2 * noise_rate) ** 2))
    found: dict[str, object] = {"dimension": dimension, "noise_rate": noise_rate, "weight": weight, "seed": seed}
    began = time.process_time()
    right = walsh.likeliest(instance.samples(count), dimension) == instance.secret
    found |= {"walsh_solved": right, "walsh_samples": count, "walsh_cpu_seconds": time.process_time() - began}
    found["walsh_table_bytes"] = 4 * 2**dimension
    found["gauss_expected_draws"] = gauss.expected_draws(noise_rate, dimension)
    if gauss.expected_draws(noise_rate, dimension) * 4 > MAX_GAUSS_DRAWS:
        return found | {"gauss_solved": None}  # not run: it would take too long
    began = time.process_time()
    draws = pooled_gauss(instance)
    return found | {
        "gauss_solved": draws is not None,
        "gauss_draws": draws,
        "gauss_samples": gauss_pool(dimension) + verification_samples(noise_rate),
        "gauss_cpu_seconds": time.process_time() - began,
    }


def gauss_pool(dimension: int) -> int:
    return 64 * dimension


def pooled_gauss(instance: Instance, at_a_time: int = 256) -> int | None:
    """Draws from a pool of noisy samples until a solution is verified; None after MAX_GAUSS_DRAWS."""
    dimension, verification = instance.dimension, instance.verification()
    noisy = torch.cat(list(instance.samples(gauss_pool(dimension)))).cpu().numpy()
    stream = Streams([instance.seed], "draws")
    for counter in range(MAX_GAUSS_DRAWS // at_a_time):
        rows = dimension + gauss.SPARE_ROWS
        choices = stream.integers(counter, len(noisy), at_a_time, rows)[0].numpy()
        for candidate in gauss.candidates(noisy, choices, dimension):
            if verified(int(candidate), verification, dimension):
                return (counter + 1) * at_a_time
    return None
