"""A fixed set of a task's rows, written once as parquet files and read again by whoever asks for the same.

For training on so many rows and no more, as arXiv:2402.18510 does on a million. The folder is named by the hash of all
that decides its content; it appears when it is complete, and its files are checked when it is opened.
"""

# P lanes, B rows, M rows of the set, T positions

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock

from trainables.common.data.files import checksum, data_home, sha256_of, sha_of, token_dtype
from trainables.common.retrieval.tasks import Rows, Task
from trainables.common.streams import Streams

FORMAT = 1  # raised when rows of the same fields change
ROWS_AT_ONCE = 1024  # of one counter of the stream; few enough to stay in a processor's cache
SHARD_ROWS = 64 * ROWS_AT_ONCE


class FixedSet:
    """`size` rows of a task drawn with `seed`. Its `rows` are drawn from these with replacement, each lane by its seed.

    `folder`: where sets are kept, `tasks` in the data home if it is not given.
    """

    def __init__(
        self, task: Task, seed: int, size: int, folder: Path | None = None, device: torch.device | str = "cpu"
    ):
        if size < 1:
            raise ValueError(f"a fixed set needs at least one row, got size {size}")
        self.size = size
        self.path = _folder_of(task, seed, size, folder or data_home() / "tasks")
        tokens = np.empty((size, task.length), token_dtype(task.vocabulary))
        counted, answers = np.empty(tokens.shape, bool), np.empty(size, tokens.dtype)
        start = 0
        for shard in _checked(self.path):
            table = pq.read_table(shard, memory_map=True)
            part = slice(start, start + len(table))
            for name, whole in (("tokens", tokens), ("counted", counted)):
                flat = table[name].combine_chunks().flatten()
                whole[part] = flat.to_numpy(zero_copy_only=False).reshape(len(table), task.length)
            answers[part] = table["answer"].to_numpy()
            start += len(table)
        self.tokens_MT, self.counted_MT, self.answer_M = (
            torch.from_numpy(value).to(device) for value in (tokens, counted, answers)
        )

    def at(self, places_PB: torch.Tensor) -> Rows:
        """The rows at these places of the set."""
        return Rows(self.tokens_MT[places_PB].long(), self.counted_MT[places_PB], self.answer_M[places_PB].long())

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        return self.at(streams.integers(counter, self.size, count))


def _folder_of(task: Task, seed: int, size: int, home: Path) -> Path:
    """The set's folder; one process writes it where it is not there, and others wait."""
    about = {
        "format": FORMAT,
        "task": repr(task),  # a dataclass: its name and all fields
        "seed": seed,
        "size": size,
    }
    folder = home / f"{type(task).__name__.lower()}-{sha_of(about)[:16]}"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f".{folder.name}.lock"):
        if not folder.is_dir():
            unfinished = home / f".{folder.name}.writing"
            shutil.rmtree(unfinished, ignore_errors=True)  # left behind by a process that died
            unfinished.mkdir()
            _write(unfinished, task, seed, size, about)
            os.rename(unfinished, folder)
    return folder


def _write(folder: Path, task: Task, seed: int, size: int, about: dict[str, Any]) -> None:
    for number, start in enumerate(range(0, size, SHARD_ROWS)):
        rows = list(_drawn(task, seed, start, min(start + SHARD_ROWS, size)))
        tokens, counted, answers = (torch.cat(values).numpy() for values in zip(*rows, strict=True))
        dtype = token_dtype(task.vocabulary)
        columns = {
            "tokens": pa.FixedSizeListArray.from_arrays(tokens.astype(dtype).reshape(-1), task.length),
            "counted": pa.FixedSizeListArray.from_arrays(pa.array(counted.reshape(-1)), task.length),
            "answer": answers.astype(dtype),
        }
        pq.write_table(pa.table(columns), folder / f"{number:05}.parquet", compression="zstd")
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({**about, "files": files}, indent=1) + "\n")


def _drawn(task: Task, seed: int, start: int, stop: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tokens, what of them counts, and answers of the rows from `start` to `stop`; a larger set begins alike."""
    streams = Streams([seed], "fixed set")
    for first in range(start, stop, ROWS_AT_ONCE):
        rows = task.rows(streams, first // ROWS_AT_ONCE, min(ROWS_AT_ONCE, stop - first))
        yield rows.tokens_PBT[0], rows.counted_PBT[0], rows.answer_PB[0]


def _checked(folder: Path) -> list[Path]:
    """The shards in their order; ValueError where one is not what was written."""
    way_out = f"delete the folder {folder} and it is written anew"
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{folder / 'manifest.json'} is missing or damaged; {way_out}") from None
    for name, written in files.items():
        path = folder / name
        if not path.is_file() or checksum(path, folder / "checked.json") != written:
            raise ValueError(f"{path} is missing or damaged; {way_out}")
    return [folder / name for name in sorted(files)]
