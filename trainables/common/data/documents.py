"""Documents out of the standard library of this Python, and out of a user's own files."""

import json
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainables.common.data.files import sha_of

TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl")
FEW_DOCUMENTS = 100  # below that, documents are cut into pieces
PIECE_BYTES = (4 * 1024, 64 * 1024)


def standard_library() -> tuple[str, list[Path]]:
    """A name for the standard library of this interpreter, and its .py files.

    The name holds the version and a hash of the files' names and sizes: two builds of one version may differ.
    Installed packages and the build's own paths (_sysconfigdata) do not belong to it.
    """
    top = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, inside, names in os.walk(top):
        inside[:] = sorted(name for name in inside if name not in ("site-packages", "dist-packages", "__pycache__"))
        files += [
            Path(folder, name)
            for name in sorted(names)
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    if not files:
        raise ValueError(
            f"{sys.executable} has no standard library as .py files at {top}; give the path of a text folder"
        )
    listing = sha_of([[file.relative_to(top).as_posix(), file.stat().st_size] for file in files])
    return f"pycode-{platform.python_version()}-{listing[:8]}", files


def text_files(path: Path) -> list[Path]:
    """The file itself, or all text files below a folder in the order of their names; ValueError when there are none."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.suffix in TEXT_SUFFIXES]
    if not files:
        raise ValueError(f"{path} holds no text; what is read are files that end in {', '.join(TEXT_SUFFIXES)}")
    return files


def documents_of(files: Iterable[Path]) -> Iterator[bytes]:
    """One document per file, per line of a .jsonl file (its field "text"). Text is UTF-8; what is not, is replaced."""
    for file in files:
        if file.suffix != ".jsonl":
            yield as_utf8(file.read_bytes())
            continue
        with open(file, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text_of(line, file, number)


def _text_of(line: str, file: Path, number: int) -> bytes:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{file}:{number} must be an object with a string "text", got {line.strip()[:60]!r}')
    return text.encode("utf-8", "replace")


def as_utf8(content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode()


def pieces(documents: list[bytes]) -> list[bytes]:
    """The documents themselves, or, if they are few, pieces of them that end at line ends.

    A book in one file is one document, and cannot be split three ways. A piece has a thousandth of the bytes, but at
    least 4 KiB and at most 64 KiB.
    """
    if len(documents) >= FEW_DOCUMENTS:
        return documents
    smallest, largest = PIECE_BYTES
    size = min(max(sum(map(len, documents)) // 1000, smallest), largest)
    return [piece for document in documents for piece in cut(document.splitlines(keepends=True), size)]


def cut(parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Neighbouring parts joined until they have `size` bytes; a part far longer is cut.

    >>> list(cut([b"a", b"bc", b"d", b"efghij"], 3))
    [b'abc', b'def', b'ghij']
    """
    pending = b""
    for part in parts:
        pending += part
        while len(pending) >= 2 * size:
            yield pending[:size]
            pending = pending[size:]
        if len(pending) >= size:
            yield pending
            pending = b""
    if pending:
        yield pending
