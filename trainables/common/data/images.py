"""Labelled images as bytes: digits (with scikit-learn), Fashion-MNIST (fetched), CIFAR-10 and CIFAR-100 (a folder).

`open_images("digits")` needs no download, `open_images("fashion_mnist")` one command before it, and
`open_images("/data/cifar-10-batches-py")` reads the files of CIFAR's authors, in their "python" or "binary" version.
"""

# N images, C channels, H height, W width

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from trainables.common.data.cifar import read_cifar
from trainables.common.data.files import data_home, read_manifest, write_manifest
from trainables.common.data.packages import Source, build_from, contents

IMAGE_SETS = {
    "digits": "1,797 handwritten digits of 8x8, with scikit-learn; nothing to download",
    "fashion_mnist": "70,000 pieces of clothing of 28x28, 31 MB; python -m trainables.common.data fashion_mnist",
}
DIGITS_HELD_OUT = 500
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CONTENT = ("kind", "classes")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images and the number of the class of each."""

    images: np.ndarray  # [N, C, H, W] uint8, 0 to 255
    labels: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """What `open_images` gives. Two sets with the same `sha` are the same images in the same order."""

    name: str
    sha: str
    classes: tuple[str, ...]  # their names; label k is classes[k]
    train: Labelled
    test: Labelled


def open_images(name: str | Path) -> ImageSet:
    """A set of images by its name, or CIFAR by the path of its folder.

    Raises ValueError for an unknown name, a set that is not fetched yet (with the command), and damaged files.
    """
    if name == "digits":
        return _digits()
    if name == "fashion_mnist":
        return _fashion()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(f"no images {str(name)!r}: there are {', '.join(IMAGE_SETS)}, and no folder has this path")
    name, classes, train, test = read_cifar(folder)
    parts = Labelled(*train), Labelled(*test)
    return ImageSet(name, _sha(*parts), classes, *parts)


def _digits() -> ImageSet:
    """The 8x8 digits, their 17 grey values spread over 0 to 255; the 500 with the lowest hashes are the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images_NCHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images_NCHW]
    order = sorted(range(len(hashes)), key=lambda row: hashes[row])
    train, test = (
        Labelled(images_NCHW[rows], labels[rows]) for rows in (order[DIGITS_HELD_OUT:], order[:DIGITS_HELD_OUT])
    )
    return ImageSet("digits", _sha(train, test), tuple(map(str, range(10))), train, test)


def _sha(*parts: Labelled) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(repr(part.images.shape).encode())
        sha.update(np.ascontiguousarray(part.images).data)
        sha.update(part.labels.tobytes())
    return sha.hexdigest()


# Fashion-MNIST: four files in the format of MNIST, inside a package of Debian.


def read_idx(file: Path) -> np.ndarray:
    """An array of bytes in the IDX format, gzipped or not; ValueError when the file is not one.

    Two zero bytes, the type (8: unsigned byte), the number of axes, the length of each axis as four bytes with the
    highest first, then the values.
    """
    content = contents(file)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{file} must be an IDX file of bytes, which starts 00 00 08; it starts {content[:4].hex(' ')}"
        )
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=min(axes, (len(content) - 4) // 4), offset=4).tolist()
    start = 4 + 4 * axes
    if len(shape) != axes or len(content) - start != np.prod(shape):
        raise ValueError(f"{file} must have {shape} bytes after its {start}-byte head, got {len(content) - start:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_fashion(root: Path) -> tuple[Labelled, Labelled]:
    """Train and test of the unpacked package: ten classes of equal size, 28x28."""
    folder = root / "usr" / "share" / "datasets" / "fashion-mnist"
    found = []
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images_NHW = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
        sizes = np.bincount(labels)
        if images_NHW.shape != (count, 28, 28) or sizes.tolist() != [count // 10] * 10:
            raise ValueError(
                f"{part} of Fashion-MNIST must be {count} images of 28x28, {count // 10} of each of 10 classes; got "
                f"{images_NHW.shape} and {sizes.tolist()}"
            )
        found.append(Labelled(images_NHW[:, None], labels))
    return found[0], found[1]


FASHION = Source(
    *("fashion_mnist", "apt", "dataset-fashion-mnist", 30.9, "MIT (Expat)", "70,000 grey images of 10 classes"),
    read=read_fashion,
)


def build_fashion(console: Console, *, again: bool = False) -> Path:
    """Fetch Fashion-MNIST into the data home; its folder."""

    def write(folder: Path, parts: tuple[Labelled, Labelled], source: dict[str, Any]) -> None:
        for name, part in zip(("train", "test"), parts, strict=True):
            np.save(folder / f"{name}.images.npy", part.images, allow_pickle=False)
            np.save(folder / f"{name}.labels.npy", part.labels, allow_pickle=False)
        content = {"kind": "images", "classes": list(FASHION_CLASSES)}
        write_manifest(folder, content, {"name": "fashion_mnist", "sources": [source]})

    return build_from(FASHION, "fashion_mnist", "images", write, console, again=again)


def _fashion() -> ImageSet:
    folder = data_home() / "images" / "fashion_mnist"
    if not folder.is_dir():
        raise ValueError(
            "images 'fashion_mnist' are not fetched yet; run: python -m trainables.common.data fashion_mnist"
        )
    manifest = read_manifest(folder, CONTENT)
    train, test = (
        # Copy on write: processes share the pages, and what one of them changes reaches neither them nor the file.
        Labelled(*(np.load(folder / f"{part}.{what}.npy", mmap_mode="c") for what in ("images", "labels")))
        for part in ("train", "test")
    )
    return ImageSet("fashion_mnist", manifest["sha"], tuple(manifest["classes"]), train, test)
