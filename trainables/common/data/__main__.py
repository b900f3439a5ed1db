"""Data from the command line: what there is, one command per source that is fetched, and tokenizers of one's own."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainables.common.data.corpora import CORPORA, Corpus, documents_in, open_corpus
from trainables.common.data.files import data_home, sha256_of
from trainables.common.data.images import IMAGE_SETS, build_fashion, open_images
from trainables.common.data.pretrained import ENCODERS, build_minilm, encoder_folder
from trainables.common.data.sentence_sources import SOURCES as SENTENCE_SOURCES
from trainables.common.data.sentence_sources import build_sentences, sets_of
from trainables.common.data.sentences import RATED, SENTENCE_SETS, class_counts, open_sentences, rated

FETCHED = {  # what each command brings
    "fashion_mnist": "60,000 + 10,000 images of clothing, 28x28 (31 MB)",
    "sentences": "movie, Amazon, NYT and tweet sentences with their ratings (3 MB)",
    "wordnet": "definitions of WordNet with the class of each (7 MB)",
    "bbc": "titles and first paragraphs of news with their topics (3 MB)",
    "minilm": "the encoder all-MiniLM-L6-v2 (83 MB)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainables.common.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all data by name, what is fetched already, and where it is kept")
    commands.add_parser("pycode", help=CORPORA["pycode"])
    english = commands.add_parser("english", help="download and build the corpus 'english' (about 120 MB)")
    english.add_argument("--without", nargs="+", default=[], metavar="SOURCE", help="leave sources out")
    english.add_argument("--again", action="store_true", help="build it anew if it is there already")
    for name, what in FETCHED.items():
        fetched = commands.add_parser(name, help=f"fetch {what}")
        fetched.add_argument("--again", action="store_true", help="fetch it anew if it is there already")
    bpe = commands.add_parser("bpe", help="train a byte-pair encoding on a corpus")
    bpe.add_argument("corpus", help="a name, or a path")
    bpe.add_argument("--vocabulary", type=int, default=4096, help="tokens, at least 257 (default 4096)")
    bpe.add_argument("--out", type=Path, help="the JSON file to write")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        match given.command:
            case "list":
                show_list(console)
            case "pycode":
                show(console, open_corpus("pycode"))
            case "english":
                make_english(console, given.without, given.again)
            case "bpe":
                make_tokenizer(console, given.corpus, given.vocabulary, given.out)
            case name:
                bring(console, name, given.again)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def show(console: Console, corpus: Corpus) -> None:
    """One table: the splits of a corpus."""
    table = Table("split", "tokens", "documents", "bytes per token", title=f"{corpus.name}, sha {corpus.sha[:12]}")
    for split in corpus.splits:
        per_token = "" if split.bytes_per_token is None else f"{split.bytes_per_token:.3f}"
        table.add_row(split.name, f"{len(split.tokens):,}", f"{split.documents:,}", per_token)
    console.print(table)


def show_list(console: Console) -> None:
    """What has a name, then what is kept in the data folder."""
    for kind, names, others in (
        ("corpus", CORPORA, "any text or token file or folder by its path"),
        ("images", IMAGE_SETS, "CIFAR-10 or CIFAR-100 by the path of its folder"),
        ("sentences", SENTENCE_SETS, "any .tsv file of label<TAB>text by its path"),
        ("encoder", ENCODERS, "any Hugging Face folder by its path"),
    ):
        table = Table(kind, "what it is", title=f"by name ({others})")
        for name, what in names.items():
            table.add_row(name, what)
        console.print(table)
    kept = Table("folder", "tokens", "vocabulary", "MB", "sha", title=f"kept in {data_home()}")
    kept.columns[0].overflow = "fold"
    for manifest_file in sorted(data_home().rglob("manifest.json")):
        folder = manifest_file.parent.relative_to(data_home())
        if not any(part.startswith(".") for part in folder.parts):
            kept.add_row(folder.as_posix(), *_kept(manifest_file))
    for tokenizer in sorted(data_home().glob("tokenizers/*.json")):
        kept.add_row(f"tokenizers/{tokenizer.name}", "", "", "", sha256_of(tokenizer)[:12])
    console.print(kept)


def _kept(manifest_file: Path) -> tuple[str, str, str, str]:
    """Tokens and vocabulary of a corpus, megabytes and sha of all that is kept."""
    try:
        manifest = json.loads(manifest_file.read_text())
        sizes = [(manifest_file.parent / name).stat().st_size for name in manifest["files"]]
        tokens = vocabulary = ""
        if "splits" in manifest:
            tokens = f"{sum(split['tokens'] for split in manifest['splits'].values()):,}"
            vocabulary = f"{manifest['vocabulary']:,}"
        return tokens, vocabulary, f"{sum(sizes) / 1e6:.1f}", manifest["sha"][:12]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged", "", "", ""


def bring(console: Console, name: str, again: bool) -> None:
    """Fetch a source unless it is there, then show what it holds, opened as a study would.

    Of several processes that fetch a source for the first time, one does; the others wait and take what it made.
    """
    kind = "images" if name in IMAGE_SETS else "models" if name in ENCODERS else "sentences"
    folder = data_home() / kind / name
    whole = all((folder / one).is_dir() for one in sets_of(name)) if name in SENTENCE_SOURCES else folder.is_dir()
    if whole and not again:
        console.print(f"{name!r} is there already: {folder}; --again fetches it anew", soft_wrap=True)
    else:
        anew = again or (folder.is_dir() and not whole)
        if name in SENTENCE_SOURCES:
            build_sentences(name, console, again=anew)
        else:
            {"fashion_mnist": build_fashion, "minilm": build_minilm}[name](console, again=anew)
    if kind == "images":
        show_images(console, name)
    elif kind == "models":
        path = encoder_folder(name)
        size = sum(file.stat().st_size for file in path.iterdir())
        console.print(f"{name}: {size / 1e6:.1f} MB in {path}", soft_wrap=True)
    else:
        show_sentences(console, name)


def show_images(console: Console, name: str) -> None:
    found = open_images(name)
    table = Table("split", "images", "channels, height, width", title=f"{name}, sha {found.sha[:12]}")
    for split, part in (("train", found.train), ("test", found.test)):
        table.add_row(split, f"{len(part):,}", " x ".join(map(str, part.images.shape[1:])))
    console.print(table)
    console.print("classes: " + ", ".join(found.classes))


def show_sentences(console: Console, command: str) -> None:
    """Texts per split, and, where there are no ratings, per class."""
    table = Table("sentences", "class", "train", "select", "report", title=f"fetched by {command!r}")
    for name in sets_of(command):
        if name in RATED:
            found = open_sentences(name)
            parts = (found.train, found.select, found.report)
            for number, label in enumerate(found.classes):
                table.add_row(name, label, *(f"{int((part.labels == number).sum()):,}" for part in parts))
            everything = rated(name)
            unclear = len(everything.texts) - sum(map(len, parts))
            console.print(f"{name}: {len(everything.texts):,} texts, {unclear:,} of them without a clear rating")
        else:
            counts = class_counts(name)
            for label, per_split in counts.items():
                table.add_row(name, label, *(f"{count:,}" for count in per_split))
    console.print(table)


def make_english(console: Console, without: Sequence[str], again: bool) -> None:
    from trainables.common.data.english import build_english

    folder = data_home() / "corpora" / "english"
    if folder.is_dir() and not again:
        console.print(f"'english' is there already: {folder}; --again builds it anew")
    else:
        build_english(console, without, again=again)
    corpus = open_corpus("english")
    show(console, corpus)
    console.print("from " + ", ".join(f"{source['name']} ({source['bytes']:,} bytes)" for source in corpus.sources))


def make_tokenizer(console: Console, name: str, vocabulary: int, out: Path | None) -> None:
    from trainables.common.data.tokenization import train_tokenizer

    corpus = open_corpus(name)
    if corpus.vocabulary != 256:
        raise ValueError(f"{name} holds tokens already; an encoding is trained on text")
    out = out or data_home() / "tokenizers" / f"{corpus.name}-{vocabulary}.json"
    tokenizer = train_tokenizer(documents_in(corpus.train), vocabulary)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out))
    show(console, open_corpus(name, str(out)))
    console.print(f"written: {out}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
