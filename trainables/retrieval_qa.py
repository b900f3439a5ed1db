"""Does a language model answer better from long text when it may search it again? (arXiv:2402.18510)

`python -m trainables.retrieval_qa MODEL DATA`: questions over paragraphs, answered at once and with calls of a
regular-expression search over the same paragraphs, on the questions that the model answers right when it is given the
gold paragraphs alone. Decoding is greedy; nothing is trained.
"""

import argparse
import string
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from trainables.common.real_models import load_model, read_rows, table_file, write_table

FIELDS = {"question": str, "paragraphs": list, "answer": str}  # and, if it is known, gold: numbers of paragraphs
CALL, CALL_END, LINE_END = "<search>", "</search>", "\n"
ANSWER = "Answer:"
NOTHING = "nothing found"
LONGEST_PATTERN = 200
HOW_TO_ANSWER = f"Answer the question from the paragraphs. Write {ANSWER} and the answer, no more than a few words."
HOW_TO_SEARCH = (
    f"Before that you may search the paragraphs for a regular expression: {CALL}expression{CALL_END} is followed by "
    f"the paragraphs that match it."
)
Row = Mapping[str, Any]
Continue = Callable[[str, Sequence[str]], str]  # what a model writes after a text, up to and with one of these strings


@dataclass(frozen=True)
class Reply:
    """What came of one question."""

    answer: str
    searches: tuple[str, ...]  # the expressions, in order
    text: str  # all that the model wrote, and what it was shown


def prompt(row: Row, paragraphs: Sequence[str], searching: bool) -> str:
    """Instruction, paragraphs, question."""
    rules = f"{HOW_TO_ANSWER} {HOW_TO_SEARCH}" if searching else HOW_TO_ANSWER
    return "\n".join([rules, "", *paragraphs, "", f"Question: {row['question']}", ""])


def search(pattern: str, paragraphs: Sequence[str], most: int) -> list[str]:
    """The first `most` paragraphs in which a regular expression matches, whatever the case of its letters.

    The expression is RE2's, whose time is linear in the text: a model's expression can not hold up the evaluation.
    What is empty, too long or no expression matches nothing.

    >>> search("born in 18[0-9]+", ["Ada was born in 1815.", "Alan was born in 1912."], 2)
    ['Ada was born in 1815.']
    """
    if not pattern or len(pattern) > LONGEST_PATTERN:
        return []
    try:
        matches = pc.match_substring_regex(pa.array(paragraphs, pa.string()), pattern, ignore_case=True)
    except pa.ArrowInvalid:
        return []
    return [text for text, match in zip(paragraphs, matches.to_pylist(), strict=True) if match][:most]


def reply(row: Row, paragraphs: Sequence[str], continued: Continue, calls: int, matches: int) -> Reply:
    """One question, with at most `calls` searches in the loop; each shows at most `matches` paragraphs.

    When the calls are used up, or a line ends without one, the model is asked for the answer. A line that is an answer
    already is taken as such.
    """
    begin = prompt(row, paragraphs, calls > 0)
    written = last = ""  # all that stands after the prompt, and the model's own last line
    searches: list[str] = []
    while len(searches) < calls:
        line = continued(begin + written, (CALL_END, LINE_END))
        written += line
        if CALL not in line or not line.endswith(CALL_END):
            last = line.rstrip(LINE_END).rpartition(LINE_END)[2]
            break
        pattern = line[line.rindex(CALL) + len(CALL) : -len(CALL_END)].strip()
        found = search(pattern, paragraphs, matches)
        searches.append(pattern)
        written += "\n" + "\n".join(found or [NOTHING]) + "\n"
    if not last.strip().startswith(ANSWER):
        written = f"{written}{LINE_END if written and not written.endswith(LINE_END) else ''}{ANSWER}"
        last = ANSWER + continued(begin + written, (LINE_END,))
        written += last.removeprefix(ANSWER)
    return Reply(last.strip().removeprefix(ANSWER).strip(), tuple(searches), written)


def normalised(text: str) -> list[str]:
    """Words in small letters without punctuation and articles.

    >>> normalised("The Hague, Netherlands.")
    ['hague', 'netherlands']
    """
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def exact(answer: str, wanted: str) -> bool:
    return normalised(answer) == normalised(wanted)


def contains(answer: str, wanted: str) -> bool:
    """Whether the words that are wanted stand in the answer, one after the other."""
    return f" {' '.join(normalised(wanted))} " in f" {' '.join(normalised(answer))} "


SCORES: dict[str, Callable[[str, str], bool]] = {"exact": exact, "contains": contains}


def gold_paragraphs(row: Row) -> list[str]:
    """The paragraphs numbered (from 0) in `gold`, or, where the row has none, those that contain the answer.

    Raises ValueError where there is none, so that the question could never be answered.
    """
    paragraphs, named = row["paragraphs"], row.get("gold")
    if named is None:
        found = [text for text in paragraphs if contains(text, row["answer"])]
    elif isinstance(named, list) and all(type(place) is int and 0 <= place < len(paragraphs) for place in named):
        found = [paragraphs[place] for place in named]
    else:
        raise ValueError(f"gold must list numbers of paragraphs, 0 to {len(paragraphs) - 1}, got {named!r}")
    if not found:
        raise ValueError(f"no gold paragraph for {row['question']!r}: name it in gold, or leave the question out")
    return found


def greedy(model: Any, tokenizer: Any, most_tokens: int) -> Continue:
    """The model's most likely continuation of a text, cut after the first stop string or after `most_tokens` tokens."""
    from transformers import GenerationConfig

    longest = getattr(model.config, "max_position_embeddings", None)
    ends, padding = model.generation_config.eos_token_id, tokenizer.pad_token_id
    # `generate` fills what it is not told from the model's own settings, which may sample or punish repetition: of
    # those only the end of a text is kept.
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0 if padding is None else padding)

    @torch.inference_mode()
    def continued(text: str, stops: Sequence[str]) -> str:
        tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(model.device)
        given = tokens["input_ids"].shape[1]
        if longest is not None and given + most_tokens > longest:
            raise ValueError(
                f"a text of {given} tokens and {most_tokens} more do not fit the model's {longest} positions; leave "
                f"out long questions, or lower --tokens, --calls or --matches"
            )
        settings = GenerationConfig(
            max_new_tokens=most_tokens,
            do_sample=False,
            stop_strings=list(stops),
            eos_token_id=ends,
            pad_token_id=0 if padding is None else padding,
        )
        written = model.generate(**tokens, generation_config=settings, tokenizer=tokenizer)
        new = tokenizer.decode(written[0, given:], skip_special_tokens=True)
        places = [new.find(stop) + len(stop) for stop in stops if stop in new]
        return new[: min(places)] if places else new

    return continued


def read_questions(file: str, limit: int | None) -> list[dict[str, Any]]:
    """Rows whose paragraphs are texts, and in which the gold ones are found."""
    rows = read_rows(file, FIELDS, limit)
    for row in rows:
        if not all(isinstance(text, str) for text in row["paragraphs"]):
            raise ValueError(f"paragraphs must be a list of texts; those of {row['question']!r} are not")
        if not normalised(row["answer"]):
            raise ValueError(
                f"the answer {row['answer']!r} of {row['question']!r} has no word that is compared; leave it out"
            )
        gold_paragraphs(row)
    return rows


def evaluate(rows: Iterable[Row], continued: Continue, calls: int, matches: int) -> dict[str, list[Any]]:
    """Columns, a line per question: replies with the gold paragraphs alone, without searching and with it."""
    lines = []
    for row in rows:
        every = row["paragraphs"]
        replies = {
            "gold": reply(row, gold_paragraphs(row), continued, 0, matches),
            "direct": reply(row, every, continued, 0, matches),
            "searching": reply(row, every, continued, calls, matches),
        }
        line: dict[str, Any] = {"question": row["question"], "wanted": row["answer"]}
        for arm, said in replies.items():
            line |= {f"{arm}_answer": said.answer, f"{arm}_text": said.text}
            line |= {f"{arm}_{score}": right(said.answer, row["answer"]) for score, right in SCORES.items()}
        lines.append(line | {"searches": list(replies["searching"].searches)})
    return {name: [line[name] for line in lines] for name in lines[0]}


def show(console: Console, columns: Mapping[str, list[Any]], score: str) -> None:
    """Accuracies with Wilson's intervals, of all questions and of those answered with the gold paragraphs."""
    answered = columns[f"gold_{score}"]
    table = Table("questions", "arm", "right", "accuracy", "95 % interval", title=f"score: {score}")
    kept = [place for place, right in enumerate(answered) if right]
    groups: dict[str, Sequence[int]] = {"all": range(len(answered)), "answered from gold": kept}
    for name, places in groups.items():
        for arm in ("gold", "direct", "searching"):
            right, asked = sum(columns[f"{arm}_{score}"][place] for place in places), len(places)
            if asked:
                ends = stats.binomtest(right, asked).proportion_ci(0.95, method="wilson")
                interval = f"[{ends.low:.3f}, {ends.high:.3f}]"
                table.add_row(name, arm, f"{right} of {asked}", f"{right / asked:.3f}", interval)
    console.print(table)
    if not kept:
        console.print("no question is answered from its gold paragraphs, so nothing can be said about searching")
        return
    with_search, without = (columns[f"{arm}_{score}"] for arm in ("searching", "direct"))
    only = sum(with_search[place] and not without[place] for place in kept)
    only_without = sum(without[place] and not with_search[place] for place in kept)
    p = stats.binomtest(only, only + only_without).pvalue if only + only_without else 1.0
    searched = sum(bool(columns["searches"][place]) for place in kept)
    console.print(
        f"of {len(kept)} answered from gold, {searched} were searched for; right only with searches: {only}, "
        f"only without: {only_without} (McNemar's exact test: p = {p:.3g})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainables.retrieval_qa", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="local folder of a causal model")
    parser.add_argument("data", help=".jsonl or .parquet with " + ", ".join(FIELDS) + " and, if known, gold")
    parser.add_argument("--calls", type=int, default=3, help="searches of a question at most (default 3)")
    parser.add_argument("--matches", type=int, default=2, help="paragraphs that a search shows at most (default 2)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are written at a time at most (default 64)")
    parser.add_argument("--score", choices=SCORES, default="exact", help="to show, and to tell what gold answers")
    parser.add_argument("--limit", type=int, help="so many questions at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.add_argument("--out", type=table_file, help=".parquet: a line per question, with all that was written")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        if min(given.calls, given.matches, given.tokens) < 1:
            raise ValueError("--calls, --matches and --tokens must be at least 1")
        if given.out and given.out.suffix != ".parquet":
            raise ValueError(f"the searches of a question are a list, which only .parquet holds, got {given.out}")
        rows = read_questions(given.data, given.limit)
        model, tokenizer = load_model(given.model, given.device, given.dtype)
        continued = greedy(model, tokenizer, given.tokens)
        columns = evaluate(track(rows, "questions", console=console), continued, given.calls, given.matches)
        if given.out:
            write_table(columns, given.out)
        show(console, columns, given.score)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
