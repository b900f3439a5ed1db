"""Causal language models and rows of text from local folders and files. Nothing is downloaded, nothing executed.

A model folder is what `save_pretrained` of Hugging Face's transformers writes: config, safetensors and a tokenizer.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from scipy import stats


def load_model(
    folder: str | Path, device: torch.device | str = "cpu", dtype: str = "auto", attention: str | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) of a local folder, in evaluation mode on the device.

    `dtype`: "auto" is that of the weights. `attention`: "eager" is the only one that gives attention away.
    Raises ValueError when the folder is none, or holds no causal model with safetensors and a fast tokenizer.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError('models of Hugging Face need transformers: pip install "anabranch[models]"') from None
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"{folder} must be a local folder with a model's config.json; download the model first")
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no causal model with safetensors and a tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{folder} needs a fast tokenizer (tokenizer.json), which says where tokens lie in the text")
    return model.to(device).eval(), tokenizer


def read_rows(path: str | Path, fields: Mapping[str, type], limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of a JSONL or parquet file that all have `fields` of these types; the first `limit` of them.

    Raises ValueError with the place of the first row that has not.
    """
    file = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if not file.is_file() or file.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{file} must be a file that ends in .jsonl or .parquet")
    rows: list[dict[str, Any]] = []
    for place, row in _lines(file) if file.suffix == ".jsonl" else _records(file):
        for name, kind in fields.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, kind) or not value:
                wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
                raise ValueError(f"{file}:{place} must have {wanted}, none of them empty; {name!r} is {value!r}")
        rows.append(row)
        if len(rows) == limit:
            break
    if not rows:
        raise ValueError(f"{file} holds no rows")
    return rows


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}:{number} is no JSON: {error}") from None


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    first = 1
    for batch in pq.ParquetFile(file).iter_batches():
        yield from enumerate(batch.to_pylist(), start=first)
        first += len(batch)


def table_file(name: str) -> Path:
    """The path of a table to write, as an argument of a command line."""
    if Path(name).suffix not in (".csv", ".parquet"):
        raise argparse.ArgumentTypeError(f"a table's file ends in .csv or .parquet, got {name!r}")
    return Path(name)


def write_table(columns: Mapping[str, Any], file: Path) -> None:
    """Columns of equal length as .csv or .parquet."""
    table = pa.table(dict(columns))
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        pa.csv.write_csv(table, file)
    else:
        pq.write_table(table, file)


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean, and both ends of Student's t interval of it: infinite below two values.

    >>> [round(value, 3) for value in mean_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -np.inf, np.inf
    reach = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - reach, mean + reach
