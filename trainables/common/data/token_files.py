"""Files of token numbers that somebody else made: .npy, or .bin with raw unsigned integers."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainables.common.data.files import checksum, data_home, sha256_of, sha_of

TOKEN_SUFFIXES = (".npy", ".bin")
HELD_OUT_SHARE = 0.01
BLOCK_TOKENS = 8192  # a "document" of a file without end tokens
SIDECAR = '{"vocabulary": 50257, "dtype": "uint16", "end": 50256, "bytes_per_token": 4.3}'


def read_token_file(path: Path) -> tuple[np.ndarray, dict[str, Any], str]:
    """Tokens (mapped, not read), the numbers of the JSON file beside them, and a hash of both.

    The JSON file (`tokens.json` beside `tokens.bin`) says `vocabulary`, for .bin `dtype`, and if known `end` (the token
    that ends a document) and `bytes_per_token`. Raises ValueError when something is missing or does not fit.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ValueError(f"{path} needs {sidecar.name} beside it, such as {SIDECAR}")
    try:
        numbers = json.loads(sidecar.read_text())
        vocabulary = int(numbers["vocabulary"])
        dtype = np.dtype(numbers["dtype"]) if path.suffix == ".bin" else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sidecar} must read like {SIDECAR}: {type(error).__name__} {error}") from None
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    tokens = np.load(path, mmap_mode="r") if dtype is None else np.memmap(path, dtype, "r")
    if tokens.ndim != 1 or tokens.dtype.kind != "u":
        raise ValueError(f"{path} must hold one row of unsigned integers, got {tokens.dtype} of shape {tokens.shape}")
    tokens = np.asarray(tokens)
    sample = tokens[:: max(1, len(tokens) // 100_000)]
    if int(sample.max()) >= vocabulary:
        raise ValueError(f"{path} holds token {sample.max()}, but {sidecar.name} says vocabulary {vocabulary}")
    sha = sha_of([checksum(path, data_home() / "checked.json"), sha256_of(sidecar)])
    return tokens, numbers, sha


def split_tokens(tokens: np.ndarray, end: int | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per split its tokens and document boundaries: the last two hundredths of the file are select and report.

    The file is neither copied nor shuffled. With an end token the cuts fall between documents; without, blocks of 8192
    tokens (fewer in a short file) stand for documents.
    """
    length = len(tokens)
    cuts = [0, int(length * (1 - 2 * HELD_OUT_SHARE)), int(length * (1 - HELD_OUT_SHARE)), length]
    if end is not None:
        cuts = [0, *(min(cut + _until_end(tokens[cut:], end), length) for cut in cuts[1:3]), length]
    splits = {}
    for name, start, stop in zip(("train", "select", "report"), cuts[:-1], cuts[1:], strict=True):
        part = tokens[start:stop]
        if end is None:
            block = min(BLOCK_TOKENS, max(1, len(part) // 20))
            inner = np.arange(block, len(part), block)
        elif name == "train":  # its documents are never looked at one by one, and may be many
            inner = np.empty(0, np.int64)
        else:
            inner = np.flatnonzero(part == end) + 1
        boundaries = np.unique(np.concatenate(([0], inner, [len(part)]))).astype(np.int64)
        splits[name] = part, boundaries
    return splits


def _until_end(tokens: np.ndarray, end: int) -> int:
    """Tokens up to and including the next end token; all of them when there is none."""
    for start in range(0, len(tokens), 1 << 20):
        found = np.flatnonzero(tokens[start : start + (1 << 20)] == end)
        if len(found):
            return start + int(found[0]) + 1
    return len(tokens)
