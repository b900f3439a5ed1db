"""CIFAR-10 and CIFAR-100 out of the files that their authors publish, pickled ("python" version) or binary.

A pickle may ask for any function to be called; here it gets lists, names and stand-ins for arrays of bytes, and all
else is refused. Nothing of numpy itself is within its reach, as a dtype with a forged state reads any memory.
"""

# N images

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32
PIXELS = 3 * SIDE**2  # bytes per image: all red ones, all green ones, all blue ones
Arrays = tuple[np.ndarray, np.ndarray]  # images [N, 3, 32, 32] uint8, labels [N] int64


@dataclass(frozen=True)
class Pickled:
    """A form whose files are pickled dicts with b"data" and lists."""

    train: tuple[str, ...]
    test: str
    names: str  # the file with the names of the classes, ...
    names_key: str  # ... under this key
    classes: int
    labels_key: str

    def read(self, file: Path) -> Arrays:
        batch = unpickled(file, ("data", self.labels_key))
        data, labels = batch["data"], batch[self.labels_key]
        if not isinstance(labels, list) or not all(isinstance(label, int) and abs(label) < 2**63 for label in labels):
            raise ValueError(f"{file} must have a list of numbers as {self.labels_key!r}; unpack its archive anew")
        if not isinstance(data, np.ndarray) or data.shape != (len(labels), PIXELS):
            found = getattr(data, "shape", type(data).__name__)
            raise ValueError(f"{file} must have {PIXELS} bytes for each of {len(labels)} labels, got {found}")
        return data.reshape(-1, 3, SIDE, SIDE), np.array(labels, np.int64)

    def read_names(self, file: Path) -> tuple[str, ...]:
        names = unpickled(file, (self.names_key,))[self.names_key]
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
            raise ValueError(f"{file} must have a list of names as {self.names_key!r}; unpack its archive anew")
        return tuple(name.decode(errors="replace") for name in names)


@dataclass(frozen=True)
class Binary:
    """A form whose files are rows of label bytes, of which the last counts, and an image."""

    train: tuple[str, ...]
    test: str
    names: str  # the file with the names of the classes
    classes: int
    label_bytes: int

    def read(self, file: Path) -> Arrays:
        content = np.fromfile(file, np.uint8)
        row = self.label_bytes + PIXELS
        if len(content) % row:
            raise ValueError(f"{file} must hold whole rows of {row} bytes, got {len(content):,} bytes; unpack it anew")
        rows = content.reshape(-1, row)
        labels = rows[:, self.label_bytes - 1].astype(np.int64)
        return rows[:, self.label_bytes :].reshape(-1, 3, SIDE, SIDE), labels

    def read_names(self, file: Path) -> tuple[str, ...]:
        return tuple(file.read_text().split())


_FIVE = tuple(f"data_batch_{part}" for part in range(1, 6))
FORMS: tuple[Pickled | Binary, ...] = (
    Pickled(_FIVE, "test_batch", "batches.meta", "label_names", 10, "labels"),
    Binary(tuple(f"{name}.bin" for name in _FIVE), "test_batch.bin", "batches.meta.txt", 10, label_bytes=1),
    Pickled(("train",), "test", "meta", "fine_label_names", 100, "fine_labels"),
    Binary(("train.bin",), "test.bin", "fine_label_names.txt", 100, label_bytes=2),
)


def read_cifar(folder: Path) -> tuple[str, tuple[str, ...], Arrays, Arrays]:
    """Name, classes, train and test of a folder; ValueError when it holds none of the four forms whole."""
    form = next((form for form in FORMS if (folder / form.train[0]).is_file()), None)
    if form is None:
        raise ValueError(
            f"{folder} holds no CIFAR; what is read are the files of CIFAR-10 or CIFAR-100 in the 'python' or 'binary' "
            f"version ({', '.join(form.train[0] for form in FORMS)} ...); give the folder that they lie in"
        )
    missing = [name for name in (*form.train, form.test, form.names) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; unpack the archive of CIFAR anew")
    batches = [form.read(folder / name) for name in form.train]
    train = (np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches]))
    test = form.read(folder / form.test)
    rows = [len(labels) for _, labels in batches]
    if len(set(rows)) > 1 or rows[0] == 0 or len(train[1]) != 5 * len(test[1]):
        raise ValueError(
            f"{folder} is not whole: CIFAR has five times as many images to train as to test, in files of equal size; "
            f"got {rows} and {len(test[1])}; unpack its archive anew"
        )
    for part, (_, labels) in (("train", train), ("test", test)):
        if not 0 <= labels.min() <= labels.max() < form.classes:
            raise ValueError(f"{folder}: labels of {part} must be below {form.classes}, got up to {labels.max()}")
    names = form.read_names(folder / form.names)
    if len(names) != form.classes:
        raise ValueError(f"{folder / form.names} must name {form.classes} classes, got {len(names)}")
    return f"cifar{form.classes}", names, train, test


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


class _UnsignedBytes:
    """In place of the dtype uint8; the state that pickles give a dtype is not looked at."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """In place of an array, empty until its state comes."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, content = state
        if not isinstance(dtype, _UnsignedBytes) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of other than bytes")
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C").copy()


_NDARRAY = object()  # stands for the class np.ndarray


def _dtype(code: Any, *_: Any) -> _UnsignedBytes:
    if code not in ("u1", b"u1", "uint8", b"uint8"):
        raise pickle.UnpicklingError(f"an array of {code!r}, where only bytes (u1) are read")
    return _UnsignedBytes()


def _array(kind: Any, *_: Any) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError(f"an array that is a {kind!r}")
    return _Array()


# All that a pickle of numbers, names and arrays may name; nothing else is looked up, so nothing else can run.
REACHABLE: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return REACHABLE[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def unpickled(file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The values of `keys` in a pickled dict, without running what the file may ask for; arrays are of uint8."""
    refused = (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError),
        *(MemoryError, OverflowError),
    )
    try:
        with open(file, "rb") as opened:
            found = _ArraysOnly(opened, encoding="bytes").load()
        values = {key: found[key.encode()] for key in keys}
    except refused as error:
        raise ValueError(
            f"{file} must be a pickled dict with {', '.join(keys)} of arrays and lists, as CIFAR's authors wrote it; "
            f"refused: {error!r}; unpack the archive anew, or use the binary version"
        ) from error
    return {key: value.values if isinstance(value, _Array) else value for key, value in values.items()}
