"""Labelled sentences: sentiment in four domains, glosses of WordNet, news, sentences made here, and one's own.

`open_sentences("movie")` gives three disjoint splits by the hash of each text, so a text is in the same split whatever
set it is in. `rated("movie")` gives the ratings of each person, of which the labels are the mean.
"""

# N texts

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainables.common.data.files import SPLITS, data_home, read_manifest, sha_of
from trainables.common.data.templates import templates

SENTIMENT = ("negative", "positive")
RATED = ("movie", "amazon", "nyt", "tweets")
CLEAR_RATING = 0.5  # of a scale from -4 to 4: a mean rating nearer to 0 gives no label
HELD_OUT_SHARE = 0.1  # of the texts, about, for each of select and report
CONTENT = ("kind",)
SENTENCE_SETS = {
    "movie, amazon, nyt, tweets": "sentiment rated by 15 people and more; python -m trainables.common.data sentences",
    "wordnet:<class>/<class>": "glosses of 45 classes such as noun.person; python -m trainables.common.data wordnet",
    "bbc:<topic>/<topic>": "titles and first paragraphs of news; python -m trainables.common.data bbc",
    "templates": "sentiment of sentences made by a small grammar; nothing to download",
}
Rows = Iterable[tuple[str, str]]  # text, class


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts and the number of the class of each."""

    texts: list[str]
    labels: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class SentenceSet:
    """What `open_sentences` gives. Two sets with the same `sha` are the same texts in the same splits."""

    name: str
    sha: str
    classes: tuple[str, ...]  # their names; label k is classes[k]
    train: Texts
    select: Texts
    report: Texts


@dataclass(frozen=True, eq=False)
class Rated:
    """Texts with what each person gave them, on a scale from -4 (negative) to 4 (positive)."""

    name: str
    sha: str
    texts: list[str]
    means: np.ndarray  # [N] float64, the mean of `ratings`
    ratings: list[list[int]]  # per text the people's, in no order that goes on from text to text
    splits: list[str]  # per text "train", "select" or "report", as in `open_sentences`


def open_sentences(name: str | Path) -> SentenceSet:
    """A set of labelled sentences by its name, or from a TSV file with lines label<TAB>text.

    Texts whose copies have different labels are left out, other copies counted once. Each split is in the order of its
    hashes, which knows nothing of the labels: its first n texts are a random sample.
    Raises ValueError for an unknown name or class, a set not fetched yet (with the command), or a class missing from a
    split.
    """
    name = str(name)
    source, _, wanted = name.partition(":")
    if name in RATED:
        found = rated(name)
        clear = [row for row, mean in enumerate(found.means) if abs(mean) >= CLEAR_RATING]
        return _split(name, SENTIMENT, ((found.texts[row], SENTIMENT[int(found.means[row] > 0)]) for row in clear))
    if name == "templates":
        return _split(name, SENTIMENT, templates())
    if source in ("wordnet", "bbc") and wanted:
        return _chosen(name, source, tuple(wanted.split("/")))
    file = Path(name).expanduser()
    if file.suffix == ".tsv" and file.is_file():
        rows = list(_lines_of_tsv(file))
        return _split(str(file), tuple(sorted({label for _, label in rows})), rows)
    raise ValueError(f"no sentences {name!r}: there are {', '.join(SENTENCE_SETS)}, and no .tsv file has this path")


def rated(name: str) -> Rated:
    """The texts of a rated set and every rating; for a label that one person gave, take one of them."""
    if name not in RATED:
        raise ValueError(f"only {', '.join(RATED)} have ratings, got {name!r}")
    folder, sha = _fetched(name, "sentences")
    rows = [(row, split) for split in SPLITS for row in _rows(folder, split)]
    return Rated(
        name,
        sha,
        [row["text"] for row, _ in rows],
        np.array([np.mean(row["ratings"]) for row, _ in rows]),
        [row["ratings"] for row, _ in rows],
        [split for _, split in rows],
    )


def _chosen(name: str, source: str, classes: tuple[str, ...]) -> SentenceSet:
    """Some of the classes of a set of many, numbered in the order they are named in."""
    folder, _ = _fetched(source, source)
    rows = [row for split in SPLITS for row in _rows(folder, split)]
    known = {row["class"] for row in rows}
    if len(set(classes)) != len(classes) or len(classes) < 2 or not known.issuperset(classes):
        raise ValueError(f"{name!r} must name two or more of {', '.join(sorted(known))}, with / between them")
    return _split(name, classes, ((row["text"], row["class"]) for row in rows if row["class"] in classes))


def class_counts(name: str) -> dict[str, tuple[int, int, int]]:
    """Texts per split of each class that a fetched set has; texts that are in several classes count in each."""
    folder, _ = _fetched(name, name)
    counts = [Counter(row["class"] for row in _rows(folder, split)) for split in SPLITS]
    return {label: (counts[0][label], counts[1][label], counts[2][label]) for label in sorted(set().union(*counts))}


def _fetched(name: str, command: str) -> tuple[Path, str]:
    """Folder and sha of what the command has written."""
    folder = data_home() / "sentences" / command / name
    if not folder.is_dir():
        raise ValueError(f"sentences {name!r} are not fetched yet; run: python -m trainables.common.data {command}")
    return folder, read_manifest(folder, CONTENT)["sha"]


def _rows(folder: Path, split: str) -> Iterator[dict]:
    with open(folder / f"{split}.jsonl", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _lines_of_tsv(file: Path) -> Iterator[tuple[str, str]]:
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            label, text = (part.strip() for part in line.partition("\t")[::2])
            if line.strip() and not (label and text):
                raise ValueError(f"{file}:{number} must read label<TAB>text, got {line.strip()[:60]!r}")
            if line.strip():
                yield text, label


def digest(text: str) -> str:
    """Hash of a text without regard to capitals and spaces, so that near copies are in one split."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).hexdigest()


def split_of(text: str) -> str:
    """The split of a text: the lowest tenth of all hashes is report, the highest select.

    >>> split_of("A fine film."), split_of("a  fine FILM.")
    ('train', 'train')
    """
    place = int(digest(text), 16) / 16**32
    return "report" if place < HELD_OUT_SHARE else "select" if place >= 1 - HELD_OUT_SHARE else "train"


def distinct(rows: Rows) -> list[tuple[str, str]]:
    """Each text once, in the order of the hashes, without texts that have more than one class.

    >>> distinct([("good", "a"), ("Good", "a"), ("odd", "a"), ("odd", "b")])
    [('good', 'a')]
    """
    labels: dict[str, set[str]] = {}
    first: dict[str, str] = {}
    for text, label in rows:
        key = digest(text)
        labels.setdefault(key, set()).add(label)
        first.setdefault(key, text)
    return [(first[key], labels[key].pop()) for key in sorted(first) if len(labels[key]) == 1]


def _split(name: str, classes: tuple[str, ...], rows: Rows) -> SentenceSet:
    parts: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for text, label in distinct(rows):
        parts[split_of(text)].append((text, classes.index(label)))
    for split, held in parts.items():
        missing = [label for number, label in enumerate(classes) if all(number != other for _, other in held)]
        if missing or len(classes) < 2:
            raise ValueError(
                f"sentences {name!r} need two classes or more and some text of each in each split; the {split} split "
                f"({len(held)} texts) has none of {', '.join(missing) or 'a second class'}; give more text"
            )
    texts = {
        split: Texts([text for text, _ in held], np.array([label for _, label in held], np.int64))
        for split, held in parts.items()
    }
    sha = sha_of([list(classes), *([split, *map(list, held)] for split, held in parts.items())])
    return SentenceSet(name, sha, classes, texts["train"], texts["select"], texts["report"])
