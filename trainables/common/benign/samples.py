"""Samples whose training labels are partly wrong: images with injected noise, or sentences as one rater saw them.

A seed draws its training and held-out samples, its noise and its raters. Held-out labels are as noisy as those of
training, since nobody has others; test labels are clean, and the test samples are the same for all seeds.
"""

# N samples, B of a batch, C channels, H height, W width, F features

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, get_args
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.common.data.batches import draws

NoiseKind = Literal["flip", "symmetric"]
RATED = "movie_rater"
FEATURES = 1024  # of a hashed bag of words
DECODERS = 8  # threads that decode a batch of a folder's images
STANDARD = 10_000  # training images that say what a channel's centre and spread are
CLEAR_RATING = 0.5  # sentences whose mean rating is nearer to 0 have no clean label
IMAGE_MEAN, IMAGE_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of natural images, by channel
Reader = Callable[[np.ndarray, tuple[int, int] | None], Tensor]


@dataclass(frozen=True, eq=False)
class Pool:
    """Samples of which some are taken. `read(rows, key)`: their inputs, float32; a key (seed, step) augments lazy ones.

    `seen(seed)`: labels that are noisy by nature, or None.
    """

    clean_N: np.ndarray
    read: Reader
    seen: Callable[[int], np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """Where samples come from. `shape` is that of an input; `lazy` inputs are decoded whenever they are needed."""

    sha: str
    shape: tuple[int, ...]
    classes: int
    train: Pool
    test: Pool
    lazy: bool = False


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one split, on a device. `read` as in Pool, of rows of this split."""

    given_N: Tensor
    clean_N: Tensor
    read: Callable[[np.ndarray, tuple[int, int] | None], Tensor]

    def __len__(self) -> int:
        return len(self.given_N)


@cache
def open_source(data: str, image_size: int) -> Source:
    """ "digits", "fashion_mnist", "movie_rater", a folder of CIFAR batches, or one of images in train/ and val/.

    Raises ValueError, with the command that brings it, where it is missing.
    """
    if data == RATED:
        return rated_sentences()
    if (Path(data).expanduser() / "train").is_dir():
        return image_folder(data, image_size)
    from trainables.common.data.images import open_images

    found = open_images(data)
    pixels = found.train.images[:STANDARD].astype(np.float64)
    centre, spread = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))

    def pool(images: np.ndarray, labels: np.ndarray) -> Pool:
        return Pool(labels, lambda rows, key: standardised(images[rows], centre, spread))

    train, test = (pool(part.images, part.labels) for part in (found.train, found.test))
    return Source(found.sha, tuple(found.train.images.shape[1:]), len(found.classes), train, test)


def standardised(images: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> Tensor:
    """Each channel less its centre over its spread, float32."""
    shift, scale = (part.astype(np.float32)[:, None, None] for part in (centre, spread))
    return torch.from_numpy((images.astype(np.float32) - shift) / scale)


def augmented(images_BCHW: Tensor, key: tuple[int, int]) -> Tensor:
    """Each image cut out at a random place after an eighth was added around it, and mirrored by a fair coin.

    Place and coin are functions of the key and the place in the batch.
    """
    count, channels, height, width = images_BCHW.shape
    room = max(1, height // 8)
    random = draws(3 * count, "augment", *key).reshape(3, count)
    top_B, left_B = (torch.from_numpy((part % np.uint64(2 * room + 1)).astype(np.int64)) for part in random[:2])
    mirrored_B = torch.from_numpy((random[2] & np.uint64(1)).astype(bool))
    rows_BH = top_B[:, None] + torch.arange(height)
    columns_BW = left_B[:, None] + torch.arange(width)
    columns_BW = torch.where(mirrored_B[:, None], columns_BW.flip(1), columns_BW).to(images_BCHW.device)
    batch, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    padded = F.pad(images_BCHW, (room, room, room, room))
    return padded[batch, channel, rows_BH.to(padded.device)[:, None, :, None], columns_BW[:, None, None, :]]


def image_folder(path: str, size: int) -> Source:
    """Images in train/<class>/ and val/<class>/, decoded when they are needed, `size` pixels high and wide."""
    from trainables.common.data.image_folders import open_image_folder

    folder = open_image_folder(path)
    centre, spread = (np.array(part) * 255 for part in (IMAGE_MEAN, IMAGE_SPREAD))

    def pool(split: Literal["train", "val"], labels: np.ndarray) -> Pool:
        def read(rows: np.ndarray, key: tuple[int, int] | None) -> Tensor:
            crop_seed = None if key is None else int(draws(1, "crops", *key)[0] >> np.uint64(1))
            images = folder.decode(split, rows.tolist(), size, crop_seed, threads=DECODERS)
            return standardised(images, centre, spread)

        return Pool(labels, read)

    train, test = pool("train", folder.train.labels), pool("val", folder.val.labels)
    return Source(folder.sha, (3, size, size), len(folder.classes), train, test, lazy=True)


def rated_sentences() -> Source:
    """Movie sentences as hashed bags of words; clean is the sign of their mean rating, seen that of one rater."""
    from trainables.common.data.sentences import rated

    found = rated("movie")
    clear_N = np.abs(found.means) >= CLEAR_RATING
    clean_N, tested_N = (found.means > 0).astype(np.int64), np.array(found.splits) == "report"

    def pool(places: np.ndarray) -> Pool:
        ratings = [found.ratings[at] for at in places]
        return Pool(
            clean_N[places],
            lambda rows, key: hashed_words([found.texts[at] for at in places[rows]]),
            lambda seed: one_rater(ratings, seed),
        )

    train, test = (pool(np.flatnonzero(clear_N & part_N)) for part_N in (~tested_N, tested_N))
    return Source(found.sha, (FEATURES,), 2, train, test)


def one_rater(ratings: Sequence[Sequence[float]], seed: int) -> np.ndarray:
    """Of each sentence the sign, 0 or 1, of one rating that is not zero, drawn by the seed."""
    picks = draws(len(ratings), "rater", seed)
    decided = [[value for value in one if value != 0] for one in ratings]
    return np.array(
        [int(one[int(pick % np.uint64(len(one)))] > 0) for one, pick in zip(decided, picks, strict=True)],
        dtype=np.int64,
    )


def hashed_words(texts: Sequence[str]) -> Tensor:
    """Counts of words by their hash, float32 [N, FEATURES], each row scaled to a mean square of one."""
    counts = np.zeros((len(texts), FEATURES), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"[a-z']+", text.lower()):
            counts[row, crc32(word.encode()) % FEATURES] += 1
    length = np.linalg.norm(counts, axis=1, keepdims=True)
    return torch.from_numpy(counts / np.where(length > 0, length, 1) * FEATURES**0.5)


def noisy_labels(clean_N: np.ndarray, classes: int, rate: float, kind: NoiseKind | None, seed: int) -> np.ndarray:
    """Labels of which a share `rate` is changed: by "flip" to the next class, by "symmetric" to any of all classes.

    Symmetric noise draws the old class too, so that it changes rate * (1 - 1 / classes) of them. Of one seed the labels
    that a lower rate changes are among those of a higher one.

    >>> noisy_labels(np.array([0, 1, 2]), 3, 1.0, "flip", seed=0).tolist()
    [1, 2, 0]
    """
    if kind is None or rate == 0:
        return clean_N.copy()
    if kind not in get_args(NoiseKind):
        raise ValueError(f"no noise_kind {kind!r}; there are {', '.join(get_args(NoiseKind))}")
    changed_N = draws(len(clean_N), "noise", seed) < np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
    if kind == "flip":
        others_N = (clean_N + 1) % classes
    else:
        others_N = (draws(len(clean_N), "class", seed) % np.uint64(classes)).astype(np.int64)
    return np.where(changed_N, others_N, clean_N)


def effective_rate(rate: float, kind: NoiseKind | None, classes: int) -> float:
    """The expected share of labels that noise makes wrong.

    >>> effective_rate(0.4, "symmetric", 10), effective_rate(0.4, "flip", 10)
    (0.36000000000000004, 0.4)
    """
    return 0.0 if kind is None else rate * (1 - 1 / classes) if kind == "symmetric" else rate


def check_sizes(
    source: Source, train_size: int | None, held_out: int, test_size: int | None, batch_size: int = 1
) -> None:
    """Raises ValueError where the source has too few samples, or fewer to train on than a batch."""
    total, tests = len(source.train.clean_N), len(source.test.clean_N)
    wanted = held_out + (1 if train_size is None else train_size)
    for name, count, there in (("train_size + held_out", wanted, total), ("test_size", test_size or 1, tests)):
        if count > there:
            raise ValueError(f"{name} must be at most the {there:,} samples there are, got {count:,}; lower it")
    left = total - held_out if train_size is None else train_size
    if batch_size > left:
        raise ValueError(f"batch_size must be at most the {left:,} training samples, got {batch_size:,}; lower it")


def splits(
    source: Source,
    train_size: int | None,
    held_out: int,
    test_size: int | None,
    noise: tuple[float, NoiseKind | None],
    seed: int,
    device: torch.device,
) -> tuple[Samples, Samples, Samples]:
    """Training, held-out and test samples of a seed. Raises ValueError where the source has too few.

    Inputs that are not lazy stand on the device; the rest is decoded when it is needed.
    """
    check_sizes(source, train_size, held_out, test_size)
    pool, total, tests = source.train, len(source.train.clean_N), len(source.test.clean_N)
    given_N = noisy_labels(pool.clean_N, source.classes, *noise, seed) if pool.seen is None else pool.seen(seed)
    order = draws(total, "rows", seed).argsort(kind="stable")
    end = None if train_size is None else held_out + train_size
    train, held = (taken(pool, given_N, rows, source.lazy, device) for rows in (order[held_out:end], order[:held_out]))
    tested = draws(tests, "test rows").argsort(kind="stable")[:test_size]
    return train, held, taken(source.test, source.test.clean_N, tested, source.lazy, device)


def taken(pool: Pool, given_N: np.ndarray, rows: np.ndarray, lazy: bool, device: torch.device) -> Samples:
    """The samples of these rows of a pool, with the labels that training is given."""
    given, clean = (torch.from_numpy(part[rows]).to(device) for part in (given_N, pool.clean_N))
    if lazy:
        return Samples(given, clean, lambda own, key: pool.read(rows[own], key).to(device))
    inputs = pool.read(rows, None).to(device)

    def read(own: np.ndarray, key: tuple[int, int] | None) -> Tensor:
        batch = inputs.index_select(0, torch.from_numpy(own).to(device))
        return batch if key is None else augmented(batch, key)

    return Samples(given, clean, read)


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The samples of a step: each epoch takes all in an order of its own, but for a rest smaller than a batch."""
    per_epoch = count // batch_size
    first = step % per_epoch * batch_size
    return epoch_order(count, seed, step // per_epoch)[first : first + batch_size]


@lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return draws(count, "order", seed, epoch).argsort(kind="stable")
