"""Text corpora as numbers: three disjoint splits, each one long row of tokens with the boundaries of its documents.

`open_corpus("pycode")` is the standard library of this Python as bytes, `open_corpus("english", "bpe-4096.json")` a
corpus under a byte-pair encoding, `open_corpus("my/texts")` files of one's own.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trainables.common.data import documents as texts
from trainables.common.data.files import (
    SPLITS,
    Documents,
    built,
    data_home,
    read_manifest,
    sha256_of,
    sha_of,
    split_documents,
    write_corpus,
)
from trainables.common.data.token_files import TOKEN_SUFFIXES, read_token_file, split_tokens

CORPORA = {
    "pycode": "the standard library of this Python; nothing to download",
    "english": "about 110 MB of English prose and documentation; python -m trainables.common.data english",
}
BYTES = "bytes"


@dataclass(frozen=True, eq=False)
class Split:
    """One row of tokens, on disk."""

    name: str  # "train", "select" or "report"
    tokens: np.ndarray  # [tokens], mapped unsigned integers; each document is followed by its end mark
    boundaries: np.ndarray  # [documents + 1]: document d is tokens[boundaries[d] : boundaries[d + 1]]
    bytes_per_token: float | None  # mean over the split, an end mark counted as one byte; None: not known
    bytes_of_tokens: np.ndarray | None = None  # [vocabulary] bytes behind each token, where that is a fixed number

    @property
    def documents(self) -> int:
        return len(self.boundaries) - 1

    def text_bytes(self, tokens: np.ndarray) -> float | None:
        """Bytes of text behind some tokens: exact where each token has its bytes, else by the mean of the split."""
        if self.bytes_of_tokens is not None:
            return float(self.bytes_of_tokens[tokens].sum())
        return None if self.bytes_per_token is None else tokens.size * self.bytes_per_token


@dataclass(frozen=True, eq=False)
class Corpus:
    """What `open_corpus` gives. Two corpora with the same `sha` are the same numbers in the same splits."""

    name: str
    sha: str  # of all splits and the tokenizer
    tokenizer: str  # "bytes", or the path it was opened with
    vocabulary: int  # token numbers are below it
    train: Split
    select: Split
    report: Split
    tokenizer_file: Path | None = None  # the encoding itself, kept with the corpus
    sources: tuple[dict[str, Any], ...] = field(default=())  # what it was made from: name, version, sha256, licence

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.select, self.report


def open_corpus(
    name_or_path: str | Path, tokenizer: str = BYTES, *, context: int | None = None, sha: str | None = None
) -> Corpus:
    """Open a corpus by its name or path, and build it first where that needs no download.

    A path is a text file (.txt, .md, .py, .jsonl with "text"), a folder of them, or a token file (.npy, .bin) with a
    JSON file beside it. `tokenizer` is "bytes" or the path of a `tokenizers` JSON file. Documents are split by the hash
    of their content (a token file by position), so every encoding of a text has the same documents in each split.

    Raises ValueError for an unknown name, an empty or damaged corpus, one that is not built yet, one whose splits have
    no window of `context` + 1 tokens, or one whose `sha` is not the one given.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in TOKEN_SUFFIXES and path.is_file():
        corpus = _token_file(path, tokenizer)
    else:
        folder = _byte_folder(str(name_or_path), path)
        corpus = _read(folder if tokenizer == BYTES else _encoded(folder, Path(tokenizer)), tokenizer)
    if context is not None:
        _require_context(corpus, context)
    if sha is not None and corpus.sha != sha:
        raise ValueError(
            f"corpus {corpus.name!r} is not the same here (sha {corpus.sha[:12]}, wanted {sha[:12]}): another Python, "
            f"other sources or another tokenizer; copy {data_home() / 'corpora'} from where it was first used"
        )
    return corpus


def _byte_folder(name: str, path: Path) -> Path:
    """The folder of the corpus as bytes, built if need be."""
    if name == "pycode":
        versioned, files = texts.standard_library()
        about = {"name": name, "sources": [{"name": versioned, "licence": "PSF-2.0"}]}
        return built(versioned, partial(_build_bytes, files=files, about=about))
    if name in CORPORA:
        folder = data_home() / "corpora" / name
        if not folder.is_dir():
            raise ValueError(f"corpus {name!r} is not built yet; run: python -m trainables.common.data {name}")
        return folder
    if not path.exists():
        raise ValueError(f"no corpus {name!r}: there are {', '.join(CORPORA)}, and no file or folder has this path")
    files = texts.text_files(path)
    stats = [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    about = {"name": path.stem, "sources": [{"name": str(path)}]}
    return built(f"{path.stem}-{sha_of(stats)[:12]}", partial(_build_bytes, files=files, about=about))


def _build_bytes(folder: Path, files: list[Path], about: dict[str, Any]) -> None:
    build_bytes(folder, split_documents(texts.pieces(list(texts.documents_of(files))), about["name"]), about)


def build_bytes(folder: Path, splits: Documents, about: dict[str, Any]) -> None:
    """Write documents as bytes, byte 0 after each."""
    tokens = {split: (np.frombuffer(text + b"\0", np.uint8) for text in splits[split]) for split in SPLITS}
    sizes = {split: sum(len(text) + 1 for text in splits[split]) for split in SPLITS}
    write_corpus(folder, tokens, sizes, vocabulary=256, about={"tokenizer_sha256": None, **about})


def _encoded(byte_folder: Path, tokenizer: Path) -> Path:
    """The folder of a corpus under a tokenizer, built from its bytes if need be."""
    from trainables.common.data import tokenization

    encoding = tokenization.read_tokenizer(tokenizer)
    of_bytes, tokenizer_sha = _read(byte_folder, BYTES), sha256_of(tokenizer)

    def build(folder: Path) -> None:
        end = tokenization.end_token(encoding)
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        tokens = {split.name: tokenization.encode(encoding, documents_in(split), end=end) for split in of_bytes.splits}
        manifest = read_manifest(byte_folder)
        write_corpus(
            folder,
            tokens,
            {split.name: len(split.tokens) for split in of_bytes.splits},
            vocabulary=encoding.get_vocab_size(),
            about={"name": of_bytes.name, "tokenizer_sha256": tokenizer_sha, "sources": manifest["sources"]},
        )

    return built(f"{of_bytes.name}-{of_bytes.sha[:8]}-{tokenizer.stem}-{tokenizer_sha[:8]}", build)


def documents_in(split: Split) -> list[bytes]:
    """The documents of a split of bytes, without their end marks."""
    whole, edges = split.tokens.tobytes(), split.boundaries.tolist()
    return [whole[start : stop - 1] for start, stop in pairwise(edges)]


def _read(folder: Path, tokenizer: str) -> Corpus:
    manifest = read_manifest(folder)
    per_token = None
    tokenizer_file = folder / "tokenizer.json" if "tokenizer.json" in manifest["files"] else None
    if tokenizer == BYTES:
        per_token = np.ones(256, np.int64)
    elif tokenizer_file is not None:
        from trainables.common.data import tokenization

        encoding = tokenization.read_tokenizer(tokenizer_file)
        per_token = tokenization.bytes_of_tokens(encoding, end=tokenization.end_token(encoding))
    splits = {}
    for name, counts in manifest["splits"].items():
        tokens = _mapped(folder / f"{name}.bin", np.dtype(manifest["dtype"]))
        boundaries = _mapped(folder / f"{name}.documents.bin", np.dtype(np.int64))
        splits[name] = Split(name, tokens, boundaries, counts["bytes"] / counts["tokens"], per_token)
    return Corpus(
        name=manifest["name"],
        sha=manifest["sha"],
        tokenizer=tokenizer,
        vocabulary=manifest["vocabulary"],
        train=splits["train"],
        select=splits["select"],
        report=splits["report"],
        tokenizer_file=tokenizer_file,
        sources=tuple(manifest["sources"]),
    )


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file as an array, read page by page where it is used; a plain array, as indexing a memmap is slower."""
    return np.asarray(np.memmap(path, dtype, "r"))


def _token_file(path: Path, tokenizer: str) -> Corpus:
    if tokenizer != BYTES:
        raise ValueError(f"{path} holds tokens already; it cannot be read with tokenizer={tokenizer}, leave that out")
    tokens, numbers, sha = read_token_file(path)
    splits = {
        name: Split(name, part, boundaries, numbers.get("bytes_per_token"))
        for name, (part, boundaries) in split_tokens(tokens, numbers.get("end")).items()
    }
    return Corpus(
        name=path.stem,
        sha=sha,
        tokenizer=BYTES,
        vocabulary=numbers["vocabulary"],
        train=splits["train"],
        select=splits["select"],
        report=splits["report"],
        sources=({"name": str(path)},),
    )


def _require_context(corpus: Corpus, context: int) -> None:
    for split in corpus.splits:
        if len(split.tokens) < context + 1:
            raise ValueError(
                f"the {split.name} split of corpus {corpus.name!r} has {len(split.tokens):,} tokens; a window needs "
                f"context + 1 = {context + 1:,}; lower the context or give more text"
            )
