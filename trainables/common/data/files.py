"""Data on disk: folders written once, each with a manifest of its files' checksums, checked when opened.

All lie under `data_home()`; nothing in them is code. A corpus has per split a file of tokens and one of document
boundaries; its documents are split by their content.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

FORMAT = 1
SPLITS = ("train", "select", "report")
HELD_OUT_SHARE = 0.01  # of the documents, for each of select and report ...
HELD_OUT_DOCUMENTS = 128  # ... but so many at least, so that small corpora give paired intervals too ...
LARGEST_SHARE = 0.1  # ... and never more than this
FEWEST_DOCUMENTS = 10
Documents = dict[str, list[bytes]]


def data_home() -> Path:
    """Where corpora and tokenizers are kept: $ANABRANCH_DATA, or ~/.cache/anabranch."""
    return Path(os.environ.get("ANABRANCH_DATA") or Path.home() / ".cache" / "anabranch").expanduser().absolute()


def split_documents(documents: Iterable[bytes], name: str) -> Documents:
    """The documents of each split, by the hash of their content: exact copies once, in the order of their hashes.

    The lowest hashes are the report split, the highest the select split: 1 % of the documents each, at least 128, at
    most 10 %. The order that the documents come in does not matter. Byte 0 is taken out of them, as it marks their end.
    Raises ValueError below 10 distinct documents.
    """
    texts = (document.replace(b"\0", b"") for document in documents)
    by_hash = {hashlib.blake2b(text, digest_size=16).digest(): text for text in texts if text.strip()}
    ordered = [by_hash[digest] for digest in sorted(by_hash)]
    if len(ordered) < FEWEST_DOCUMENTS:
        raise ValueError(
            f"corpus {name!r} has {len(ordered)} distinct documents ({sum(map(len, ordered)):,} bytes); three splits "
            f"need at least {FEWEST_DOCUMENTS}; give more text"
        )
    held_out = max(ceil(HELD_OUT_SHARE * len(ordered)), HELD_OUT_DOCUMENTS)
    held_out = min(held_out, int(LARGEST_SHARE * len(ordered)))
    return {"train": ordered[held_out:-held_out], "select": ordered[-held_out:], "report": ordered[:held_out]}


def write_corpus(
    folder: Path,
    tokens: Mapping[str, Iterable[np.ndarray]],
    bytes_of: Mapping[str, int],
    *,
    vocabulary: int,
    about: Mapping[str, Any],
) -> None:
    """Write a corpus into an empty folder.

    `tokens` gives per split the documents as arrays, each with its end mark; `bytes_of` the bytes of text they stand
    for, one per end mark included. `about` (name, tokenizer, sources ...) is kept in the manifest.
    """
    dtype = token_dtype(vocabulary)
    splits = {}
    for split in SPLITS:
        boundaries = [0]
        with open(folder / f"{split}.bin", "wb") as file:
            for document in tokens[split]:
                file.write(document.astype(dtype).tobytes())
                boundaries.append(boundaries[-1] + len(document))
        (folder / f"{split}.documents.bin").write_bytes(np.asarray(boundaries, np.int64).tobytes())
        splits[split] = {"tokens": boundaries[-1], "documents": len(boundaries) - 1, "bytes": bytes_of[split]}
    write_manifest(folder, {"vocabulary": vocabulary, "dtype": dtype.name, "splits": splits}, about)


def write_manifest(folder: Path, content: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Close a folder that holds all its files. The manifest's sha is that of them and of `content`, not of `about`."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    whole = {"format": FORMAT, **content, "files": files}
    manifest = {**about, **whole, "sha": sha_of(whole)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def token_dtype(vocabulary: int) -> np.dtype:
    """The smallest unsigned integer that holds every token number.

    >>> token_dtype(256), token_dtype(4096)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.min_scalar_type(vocabulary - 1))


def built(name: str, build: Callable[[Path], None], room: str = "corpora", *, again: bool = False) -> Path:
    """The folder `room/name` of the data home; `build` fills it if it is not there, or if it is to be built again.

    Several processes may ask at once: one builds, the others wait. The folder appears under its name when complete; the
    one that was there stays until then.
    """
    shelf = data_home() / room
    folder = shelf / name
    if folder.is_dir() and not again:
        return folder
    shelf.mkdir(parents=True, exist_ok=True)
    with FileLock(shelf / f".{name}.lock"):
        if again or not folder.is_dir():
            for left_behind in shelf.glob(f".{name}.building-*"):
                shutil.rmtree(left_behind, ignore_errors=True)
            unfinished = shelf / f".{name}.building-{os.getpid()}"
            unfinished.mkdir()
            try:
                build(unfinished)
                if folder.is_dir():
                    shutil.rmtree(folder)
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_manifest(folder: Path, content_keys: Sequence[str] = ("vocabulary", "dtype", "splits")) -> dict[str, Any]:
    """The manifest of a folder once all its files are known to be what was written; ValueError otherwise.

    `content_keys` are those of the content that the manifest was written with; given here are a corpus's. A file is
    read in full when its size or time of change is not the one it was last checked with.
    """
    way_out = f"delete the folder {folder} and run the same command again to build it anew"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"{folder} was written in format {manifest['format']}, this is {FORMAT}; {way_out}")
        content = {key: manifest[key] for key in ("format", *content_keys, "files")}
        intact = sha_of(content) == manifest["sha"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        intact = False
    if not intact:
        raise ValueError(f"{folder / 'manifest.json'} is missing or damaged; {way_out}")
    for name, written in manifest["files"].items():
        path = folder / name
        found = checksum(path, folder / "checked.json") if path.is_file() else "no file"
        if found != written:
            raise ValueError(f"{path} is damaged: sha256 {found[:12]}, written as {written[:12]}; {way_out}")
    return manifest


def checksum(path: Path, remembered: Path) -> str:
    """sha256 of a file, read only if its size or time of change differ from those noted in the file `remembered`."""
    stat = path.stat()
    key, now = str(path.absolute()), [stat.st_size, stat.st_mtime_ns]
    noted = _noted(remembered)
    if noted.get(key, [None])[:2] == now:
        return noted[key][2]
    sha = sha256_of(path)
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{remembered.name}.", dir=remembered.parent)
        with os.fdopen(descriptor, "w") as file:
            json.dump({**_noted(remembered), key: [*now, sha]}, file)
        os.replace(fresh, remembered)
    except OSError:  # a read-only data folder is read in full each time
        pass
    return sha


def _noted(remembered: Path) -> dict[str, list[Any]]:
    """What can be made out of the file: per path its size, its time of change and its sha256."""
    try:
        found = json.loads(remembered.read_text())
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    kinds = [int, int, str]
    return {path: entry for path, entry in entries if isinstance(entry, list) and [*map(type, entry)] == kinds}


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha_of(content: Mapping[str, Any] | Sequence[Any]) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
