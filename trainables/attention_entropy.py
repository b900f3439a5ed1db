"""How sparse is the attention of a trained language model, with and without a chain of thought? (arXiv:2410.05459)

`python -m trainables.attention_entropy MODEL DATA`: the normalised entropy (0 one position, 1 all alike) of each layer
and head over rows of a question, a chain that leads to the answer, and the answer. Forward passes only, one per row.
The minimum over more tokens is smaller whatever the text, and a chain is longer than an answer: read the paper's
measure, the minimum after the question, beside the mean, and beside the answer's tokens, which both forms share.
"""

# T tokens, L layers, H heads, M rows of data

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trainables.common.real_models import load_model, mean_interval, read_rows, table_file, write_table
from trainables.common.sequence.entropy import normalised_entropy

FIELDS = {"question": str, "chain": str, "answer": str}
SPANS = ("after", "answer", "whole")  # tokens after the question, those of the answer alone, and all but the first
STATISTICS = ("minimum", "mean")  # over the tokens of a span


class Text(NamedTuple):
    """A text, and where parts of it lie in characters."""

    text: str
    question_end: int
    answer: tuple[int, int] | None  # None: the answer does not stand in the text word by word


def with_chain(row: Mapping[str, str]) -> Text:
    """The question and the whole chain; the answer is the last place in the chain where it stands."""
    return _text(row["question"], row["chain"], row["answer"])


def with_answer(row: Mapping[str, str]) -> Text:
    """The question, and "The answer is ..."."""
    return _text(row["question"], f"The answer is {row['answer']}.", row["answer"])


FORMS: dict[str, Callable[[Mapping[str, str]], Text]] = {"chain": with_chain, "answer": with_answer}


def _text(question: str, rest: str, answer: str) -> Text:
    found = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", rest)]
    begin = len(question) + 1
    place = (begin + found[-1][0], begin + found[-1][1]) if found else None
    return Text(f"{question} {rest}", len(question), place)


def spans_of(text: Text, offsets: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Which tokens 1 .. T - 1 lie in each span, given where each token begins and ends in the text."""
    begins, ends = torch.tensor(offsets)[1:].T
    first, last = text.answer or (len(text.text), 0)
    return {
        "after": ends > text.question_end,
        "answer": (begins < last) & (ends > first),
        "whole": torch.ones_like(ends, dtype=torch.bool),
    }


@torch.inference_mode()
def entropies(model: Any, tokenizer: Any, text: Text) -> np.ndarray:
    """Normalised entropy over each span's tokens, [spans, statistics, L, H]; NaN where a span holds no token.

    All earlier positions count as visible, so that a head with a sliding window cannot reach 1 beyond it.
    """
    tokens = tokenizer(text.text, return_tensors="pt", return_offsets_mapping=True)
    offsets = tokens.pop("offset_mapping")[0].tolist()
    longest = getattr(model.config, "max_position_embeddings", None) or len(offsets)
    if not 2 <= len(offsets) <= longest:
        raise ValueError(
            f"a text must have 2 to {longest} tokens for this model, got {len(offsets)}: {text.text[:60]!r}"
        )
    found = model(**tokens.to(model.device), output_attentions=True, use_cache=False).attentions
    if not found or found[0] is None:
        raise ValueError(f"{type(model).__name__} gives no attention away: it has none, or not as a matrix")
    entropy_LHT = torch.stack([normalised_entropy(layer[0].float()).cpu() for layer in found])
    values = np.full((len(SPANS), len(STATISTICS), *entropy_LHT.shape[:2]), np.nan, np.float32)
    for place, inside in enumerate(spans_of(text, offsets).values()):
        if inside.any():
            chosen = entropy_LHT[..., inside]
            values[place] = torch.stack([chosen.amin(-1), chosen.mean(-1)]).numpy()
    return values


def columns_of(arms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arms of [M, spans, statistics, L, H] as columns, a line per arm, row, span, layer and head."""
    parts: list[dict[str, np.ndarray]] = []
    for name, values in arms.items():
        places = np.indices(values[:, :, 0].shape).reshape(4, -1)
        part = {"arm": np.full(places.shape[1], name), "row": places[0], "span": np.array(SPANS)[places[1]]}
        part |= {"layer": places[2], "head": places[3]}
        parts.append(part | {what: values[:, :, number].ravel() for number, what in enumerate(STATISTICS)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def show(console: Console, arms: Mapping[str, np.ndarray], span: str, statistic: str) -> None:
    """A table of layers, with the heads' range, and one of means over all heads, with paired differences."""
    place, what = SPANS.index(span), STATISTICS.index(statistic)
    chosen = {name: values[:, place, what] for name, values in arms.items()}
    if any(np.isnan(values).all() for values in chosen.values()):
        raise ValueError(f"no row has tokens in the span {span!r}; choose another with --span")
    about = f"{statistic} normalised entropy over tokens: {span}"
    layers = Table("layer", *chosen, title=f"{about}; mean over rows: lowest head / mean / highest head")
    for layer in range(max(values.shape[1] for values in chosen.values())):
        cells = [_heads(values[:, layer]) if layer < values.shape[1] else "" for values in chosen.values()]
        layers.add_row(str(layer + 1), *cells)
    console.print(layers)
    overall = Table("arm, or difference", "rows", "mean over heads", "95 % interval", title=f"{about}; over rows")
    by_row = {name: values.mean((1, 2)) for name, values in chosen.items()}
    compared = list(by_row.items())
    compared += [(f"{one} - {other}", by_row[one] - by_row[other]) for one, other in combinations(by_row, 2)]
    for name, values in compared:
        finite = values[np.isfinite(values)]
        if len(finite):
            mean, low, high = mean_interval(finite)
            overall.add_row(name, str(len(finite)), f"{mean:.4f}", f"[{low:.4f}, {high:.4f}]")
    console.print(overall)


def _heads(values_MH: np.ndarray) -> str:
    heads = np.nanmean(values_MH, 0)
    return f"{heads.min():.3f} / {heads.mean():.3f} / {heads.max():.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainables.attention_entropy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="local folder of a causal model")
    parser.add_argument("data", help=".jsonl or .parquet with " + ", ".join(FIELDS))
    parser.add_argument("--form", nargs="+", choices=FORMS, default=["chain"], help="what follows the question")
    parser.add_argument("--against", nargs="+", default=[], metavar="MODEL", help="other models on the same rows")
    parser.add_argument("--span", choices=SPANS, default="after", help="tokens to show (all spans are written)")
    parser.add_argument("--statistic", choices=STATISTICS, default="minimum", help="over these tokens")
    parser.add_argument("--limit", type=int, help="so many rows at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.add_argument("--out", type=table_file, help=".parquet or .csv: a line per arm, row, span, layer and head")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        rows = read_rows(given.data, FIELDS, given.limit)
        arms: dict[str, np.ndarray] = {}
        folders = [given.model, *given.against]
        if twice := [folder for at, folder in enumerate(folders) if _whole(folder) in map(_whole, folders[:at])]:
            raise ValueError(f"{twice[0]} is given twice; compare it with another model, or with itself by --form")
        for folder in folders:
            model, tokenizer = load_model(folder, given.device, given.dtype, attention="eager")
            for form in given.form:
                texts = track([FORMS[form](row) for row in rows], f"{Path(folder).name} {form}", console=console)
                arms[_arm(folder, form, arms)] = np.stack([entropies(model, tokenizer, text) for text in texts])
            del model
        if given.out:
            write_table(columns_of(arms), given.out)
        show(console, arms, given.span, given.statistic)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _whole(folder: str) -> Path:
    return Path(folder).resolve()


def _arm(folder: str, form: str, taken: Mapping[str, Any]) -> str:
    """The model's name and the form; the whole path where the name is taken by another model."""
    name = f"{_whole(folder).name} {form}"
    return name if name not in taken else f"{_whole(folder)} {form}"


if __name__ == "__main__":
    sys.exit(main())
