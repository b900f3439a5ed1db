"""Images that a net trains on and is judged on: three disjoint parts, pooled, each channel standardised."""

# N images, C channels, H height, W width

from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.common.data.images import Labelled, open_images
from trainables.common.streams import Streams


@dataclass(frozen=True)
class Part:
    """Images float32 [N, C, H, W] and labels int64 [N]."""

    images_NCHW: Tensor
    labels_N: Tensor

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images_NCHW[rows], self.labels_N[rows]

    def to(self, device: torch.device) -> "Part":
        return Part(self.images_NCHW.to(device), self.labels_N.to(device))


@dataclass(frozen=True)
class Pictures:
    """train and select are of the set's training images, report of its test images; `sha` is of all three."""

    train: Part
    select: Part
    report: Part
    classes: int
    sha: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, after pooling."""
        channels, height, width = self.train.images_NCHW.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Pictures":
        train, select, report = (part.to(device) for part in (self.train, self.select, self.report))
        return Pictures(train, select, report, self.classes, self.sha)


@cache
def open_pictures(data: str, train_size: int, select_size: int, report_size: int | None, pool: int) -> Pictures:
    """The parts of an image set, always the same: which images they hold depends on the set alone.

    Of one random order of the training images the first `train_size` are trained on and the last `select_size` choose;
    of another of the test images the first `report_size` are the report (None: all). Each channel has mean 0 and
    standard deviation 1 over the training part. Raises ValueError where the set is missing or has too few images.
    """
    found = open_images(data)
    if train_size + select_size > len(found.train.labels):
        raise ValueError(
            f"{data} has {len(found.train.labels):,} training images, fewer than train_size + select_size = "
            f"{train_size:,} + {select_size:,}; lower one of them"
        )
    if report_size is not None and report_size > len(found.test.labels):
        raise ValueError(
            f"{data} has {len(found.test.labels):,} test images, fewer than report_size={report_size:,}; lower it, or "
            "say null for all"
        )
    height, width = found.train.images.shape[2:]
    if height % pool or width % pool:
        raise ValueError(f"pool must divide the images' {height} x {width} pixels, got {pool}; take 1 or 2")
    order, reports = (shuffled(len(part.labels), name) for name, part in (("train", found.train), ("test", found.test)))
    train = prepared(found.train, order[:train_size], pool)
    select = prepared(found.train, order[len(order) - select_size :], pool)
    report = prepared(found.test, reports[:report_size], pool)
    mean = train.images_NCHW.mean((0, 2, 3), keepdim=True)
    spread = train.images_NCHW.std((0, 2, 3), keepdim=True).clamp_min(1e-6)  # a channel may be of one colour
    train, select, report = (
        Part((part.images_NCHW - mean) / spread, part.labels_N) for part in (train, select, report)
    )
    content = repr((found.sha, train_size, select_size, report_size, pool))
    return Pictures(train, select, report, len(found.classes), sha256(content.encode()).hexdigest())


def shuffled(count: int, part: str) -> np.ndarray:
    """The numbers below `count` in an order that is a function of the name."""
    return Streams([0], f"pictures {part}").words(0, count)[0].argsort().numpy()


def prepared(labelled: Labelled, rows: np.ndarray, pool: int) -> Part:
    """These images in [0, 1], squares of `pool` pixels averaged."""
    images_NCHW = torch.from_numpy(labelled.images[rows]).float() / 255
    return Part(F.avg_pool2d(images_NCHW, pool), torch.from_numpy(labelled.labels[rows]))
