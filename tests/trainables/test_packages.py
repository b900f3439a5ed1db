"""Packages made here, fetched by the real pip from a local folder, are compared with what was put into them."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from rich.console import Console

from trainables.common.data import packages
from trainables.common.data.files import built, checksum, read_manifest, write_manifest
from trainables.common.data.packages import FAILURES, Source, build_from, fetch, licences, unpacked

TEXTS = {"toy/data/one.txt": b"one\n", "toy/data/two.txt": b"two\n"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data home, and pip held to the folder `shelf`."""
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "data"))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(shelf), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path / "data"


def write_wheel(shelf: Path) -> str:
    """A wheel with TEXTS; its sha256."""
    file = shelf / "toy_texts-1.0-py3-none-any.whl"
    about = {
        "toy_texts-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-texts\nVersion: 1.0\n",
        "toy_texts-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_texts-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(file, "w") as wheel:
        for name, content in {**TEXTS, **about}.items():
            wheel.writestr(name, content)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_texts(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.glob("toy/data/*.txt"))}


def source(sha256: str | None, tool="pip") -> Source:
    return Source("toy", tool, "toy-texts==1.0", 0.1, "CC0-1.0", "two words", read_texts, sha256=sha256)


def write(folder, texts, record):
    for name, content in texts.items():
        (folder / Path(name).name).write_bytes(content)
    write_manifest(folder, {"kind": "toy"}, {"name": "toy", "sources": [record]})


def test_a_wheel_is_fetched_checked_read_and_kept(tmp_path, home, capsys):
    sha256 = write_wheel(tmp_path / "shelf")
    folder = build_from(source(sha256), "toy", "words", write, Console())
    assert folder == home / "words" / "toy"
    assert (folder / "one.txt").read_bytes() == b"one\n" and (folder / "two.txt").read_bytes() == b"two\n"
    (kept,) = read_manifest(folder, ("kind",))["sources"]
    assert kept == {"name": "toy", "package": "toy_texts-1.0-py3-none-any.whl", "sha256": sha256, "licence": "CC0-1.0"}
    assert "CC0-1.0" in capsys.readouterr().out
    assert not list((home / "downloads").iterdir())


def test_another_archive_under_the_name_is_refused_and_nothing_is_kept(tmp_path, home):
    write_wheel(tmp_path / "shelf")
    with pytest.raises(ValueError, match=r"toy could not be fetched: .* failed"):
        build_from(source("0" * 64), "toy", "words", write, Console(quiet=True))
    assert not (home / "words" / "toy").exists() and not list((home / "words").glob(".toy.building*"))


def test_a_tool_that_checks_nothing_is_checked_after_it(tmp_path, monkeypatch):
    write_wheel(tmp_path / "shelf")
    (file,) = (tmp_path / "shelf").iterdir()
    monkeypatch.setattr(packages, "_command", lambda source, folder: ["cp", str(file), "."])
    with pytest.raises(ValueError, match=r"not the archive it was: its sha256 should start 000000000000"):
        fetch(source("0" * 64), tmp_path / "here", lambda size: None)
    assert fetch(source(None), tmp_path / "here", lambda size: None).read_bytes() == file.read_bytes()


def test_the_setup_of_an_sdist_with_another_sha256_never_runs(tmp_path):
    ran = tmp_path / "ran"
    with tarfile.open(tmp_path / "shelf" / "toy_texts-1.0.tar.gz", "w:gz") as archive:
        for name, text in {
            "setup.py": f"open({str(ran)!r}, 'w').close()\n",
            "PKG-INFO": "Metadata-Version: 1.0\nName: toy-texts\nVersion: 1.0\n",
        }.items():
            member = tarfile.TarInfo(f"toy_texts-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(ValueError, match="failed"):
        fetch(source("0" * 64, "pip sdist"), tmp_path / "here", lambda size: None)
    assert not ran.exists()


def test_what_is_built_again_replaces_what_was_there_only_when_it_is_whole(home):
    def fill(text):
        return lambda folder: (folder / "text").write_text(text)

    def fails(folder):
        (folder / "text").write_text("half")
        raise ValueError("no network")

    folder = built("toy", fill("first"), "words")
    assert built("toy", fill("second"), "words") == folder and (folder / "text").read_text() == "first"
    with pytest.raises(ValueError, match="no network"):
        built("toy", fails, "words", again=True)
    assert (folder / "text").read_text() == "first"
    assert built("toy", fill("second"), "words", again=True) == folder
    assert [path.name for path in (home / "words").iterdir() if path.is_dir()] == ["toy"]
    assert (folder / "text").read_text() == "second"


@pytest.mark.parametrize("way", ["changed", "deleted", "kind", "no dict"])
def test_damage_is_refused(home, way):
    def fill(folder):
        (folder / "text").write_text("as it was")
        write_manifest(folder, {"kind": "toy"}, {})

    folder = built("toy", fill, "words")
    assert read_manifest(folder, ("kind",))["kind"] == "toy"
    if way == "changed":
        (folder / "text").write_text("as it is!")
    elif way == "deleted":
        (folder / "text").unlink()
    elif way == "no dict":
        (folder / "manifest.json").write_text("[]")
    else:
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"toy"', '"joy"'))
    with pytest.raises(ValueError, match=r"damaged.*delete the folder .*run the same command again"):
        read_manifest(folder, ("kind",))


@pytest.mark.parametrize("noted", ["[]", '{"PATH": 3}', '{"PATH": [4, 5]}', "null", '"no"'])
def test_a_damaged_note_of_checksums_is_written_anew(tmp_path, noted):
    file, remembered = tmp_path / "text", tmp_path / "checked.json"
    file.write_text("text")
    remembered.write_text(noted.replace("PATH", str(file)))
    for _ in range(2):
        assert checksum(file, remembered) == hashlib.sha256(b"text").hexdigest()
    assert str(file) in remembered.read_text()


def test_damaged_compression_is_a_failure_that_is_reported(tmp_path, home):
    def damaged(root):
        return zlib.decompress(b"no such bytes")

    write_wheel(tmp_path / "shelf")
    wheel = Source("toy", "pip", "toy-texts==1.0", 0.1, "CC0-1.0", "two words", damaged)
    with pytest.raises(ValueError, match=r"toy could not be fetched: .*decompress"):
        build_from(wheel, "toy", "words", write, Console(quiet=True))
    assert issubclass(EOFError, FAILURES)


def test_archives_of_each_kind_are_unpacked_to_the_same_files(tmp_path):
    write_wheel(tmp_path / "shelf")
    (wheel,) = (tmp_path / "shelf").iterdir()
    for kind in ("whl", "tgz", "deb"):
        if kind == "deb" and shutil.which("dpkg-deb") is None:
            continue
        root = tmp_path / kind
        (root / "package").mkdir(parents=True)
        if kind == "whl":
            shutil.copy(wheel, root)
        else:
            for name, content in TEXTS.items():
                file = root / "package" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            make_archive(root, kind)
        shutil.rmtree(root / "package")
        (archive,) = root.iterdir()
        assert read_texts(unpacked(archive)) == TEXTS


def make_archive(root: Path, kind: str) -> None:
    if kind == "tgz":
        with tarfile.open(root / "toy.tgz", "w:gz") as archive:
            archive.add(root / "package" / "toy", "toy")
        return
    control = root / "package" / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text("Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: no one\nDescription: toy\n")
    subprocess.run(["dpkg-deb", "-b", root / "package", root / "toy.deb"], check=True, capture_output=True)


def test_an_sdist_is_listed_as_one_whose_setup_runs(capsys):
    Console(width=200).print(licences([source(None, "pip sdist"), source(None)]))
    lines = [line for line in capsys.readouterr().out.splitlines() if "toy-texts==1.0" in line]
    assert ["runs its setup.py" in line for line in lines] == [True, False]
