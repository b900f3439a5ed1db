"""Images in folders as ImageNet's are: train/<class>/*.JPEG and val/<class>/*.JPEG, decoded when they are asked for."""

# B images of a batch, S side in pixels

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from trainables.common.data.files import sha_of

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpeg", ".jpg", ".png")
CENTRE_SHARE = 224 / 256  # of the shorter side, when the centre is taken
AREAS = (0.08, 1.0)  # of the image, when a random part is taken ...
ASPECTS = (3 / 4, 4 / 3)  # ... and its width over its height
TRIES = 10


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """One split: where its images lie and the number of the class of each."""

    files: list[Path]
    labels: np.ndarray  # [files] int64

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """What `open_image_folder` gives. The `sha` is that of names and sizes: pixels are not read for it."""

    name: str
    sha: str
    classes: tuple[str, ...]  # names of the class folders, sorted; label k is classes[k]
    train: ImageFiles
    val: ImageFiles

    def decode(
        self,
        split: Literal["train", "val"],
        indices: Sequence[int],
        size: int,
        crop_seed: int | None = None,
        threads: int = 1,
    ) -> np.ndarray:
        """Images of a split as bytes [B, 3, S, S], S = `size`: the centre, or with a seed a random part.

        The part, and whether it is mirrored, is a function of (crop_seed, index): the same in any batch. Raises
        ValueError with the path of an image that cannot be read.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        files = {"train": self.train, "val": self.val}[split].files
        show = partial(_pixels, size=size, crop_seed=crop_seed)
        with ThreadPoolExecutor(threads) as pool:
            images = list(pool.map(show, [files[index] for index in indices], indices))
        return np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)


def open_image_folder(path: str | Path) -> ImageFolder:
    """List a folder of images; ValueError unless train and val have the same classes and each class some images."""
    folder = Path(path).expanduser()
    names = {split: _class_names(folder / split) for split in ("train", "val")}
    if names["train"] != names["val"]:
        odd = sorted(set(names["train"]) ^ set(names["val"]))
        raise ValueError(
            f"{folder}: train and val must have the same classes; only one of them has {', '.join(odd[:5])}"
        )
    if len(names["train"]) < 2:
        raise ValueError(f"{folder}/train must have two classes or more, got {len(names['train'])}")
    listing: list[list[str | int]] = []
    splits = {}
    for split, classes in names.items():
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(file for file in (folder / split / name).iterdir() if file.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{folder / split / name} holds no image that ends in {', '.join(SUFFIXES)}")
            files += found
            labels += [label] * len(found)
        listing += [[file.relative_to(folder).as_posix(), file.stat().st_size] for file in files]
        splits[split] = ImageFiles(files, np.array(labels, np.int64))
    return ImageFolder(folder.name, sha_of(listing), names["train"], splits["train"], splits["val"])


def _class_names(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise ValueError(f"{split} must be a folder with one folder of images per class, as in train/<class>/*.JPEG")
    names = tuple(sorted(entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not names:
        raise ValueError(
            f"{split} must have one folder of images per class; ImageNet's validation images come in one folder, sort "
            f"them into {split}/<class> first"
        )
    return names


def _pixels(file: Path, index: int, size: int, crop_seed: int | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no image that can be read: {error}; replace it or take it away") from error
    if crop_seed is None:
        part, mirrored = centre(image.width, image.height), False
    else:
        chance = np.random.default_rng((crop_seed, index))
        part, mirrored = random_part(image.width, image.height, chance), chance.random() < 0.5
    return _resized(image, part, size, mirrored)


def _resized(image: "Image", part: tuple[float, float, float, float], size: int, mirrored: bool) -> np.ndarray:
    from PIL import Image

    pixels_SS3 = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=part))
    return np.ascontiguousarray((pixels_SS3[:, ::-1] if mirrored else pixels_SS3).transpose(2, 0, 1))


def centre(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the middle square that is left when the shorter side is cut from 256 to 224 parts.

    >>> centre(512, 256)
    (144.0, 16.0, 368.0, 240.0)
    """
    side = min(width, height) * CENTRE_SHARE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_part(width: int, height: int, chance: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random part, as Inception is trained with (arXiv:1409.4842, section 6).

    Area uniform between 8 % and 100 % of the image, logarithm of the aspect uniform between 3/4 and 4/3; after ten that
    do not fit, the middle square.
    """
    for _ in range(TRIES):
        area = width * height * chance.uniform(*AREAS)
        aspect = math.exp(chance.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = chance.uniform(0, width - wide), chance.uniform(0, height - high)
            return left, top, left + wide, top + high
    side = float(min(width, height))
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
