"""Text corpora from the command line: what there is, the download of "english", and tokenizers of one's own."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainables.common.data.corpora import CORPORA, Corpus, documents_in, open_corpus
from trainables.common.data.files import data_home, sha256_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainables.common.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="corpora and tokenizers, and where they are kept")
    commands.add_parser("pycode", help=CORPORA["pycode"])
    english = commands.add_parser("english", help="download and build the corpus 'english' (about 120 MB)")
    english.add_argument("--without", nargs="+", default=[], metavar="SOURCE", help="leave sources out")
    english.add_argument("--again", action="store_true", help="build it anew if it is there already")
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
    """The corpora that have a name, then what is kept in the data folder."""
    named = Table("corpus", "what it is", title="corpora by name (any text or token file or folder by its path)")
    for name, what in CORPORA.items():
        named.add_row(name, what)
    console.print(named)
    kept = Table("folder", "tokens", "vocabulary", "sha", title=f"kept in {data_home()}")
    kept.columns[0].overflow = "fold"
    for manifest_file in sorted(data_home().glob("corpora/[!.]*/manifest.json")):
        try:
            manifest = json.loads(manifest_file.read_text())
            tokens = sum(split["tokens"] for split in manifest["splits"].values())
            cells = (f"{tokens:,}", f"{manifest['vocabulary']:,}", manifest["sha"][:12])
        except (ValueError, KeyError):
            cells = ("damaged", "", "")
        kept.add_row(manifest_file.parent.name, *cells)
    for tokenizer in sorted(data_home().glob("tokenizers/*.json")):
        kept.add_row(f"tokenizers/{tokenizer.name}", "", "", sha256_of(tokenizer)[:12])
    console.print(kept)


def make_english(console: Console, without: Sequence[str], again: bool) -> None:
    from trainables.common.data.english import build_english

    folder = data_home() / "corpora" / "english"
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        console.print(f"'english' is there already: {folder}; --again builds it anew")
    else:
        build_english(console, without)
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
