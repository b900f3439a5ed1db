"""Encodings with the special tokens of BERT: WordPiece trained on a corpus, and bytes.

    python -m trainables.common.data.wordpiece english --vocabulary 8192

trains one on the first 20 MB of a corpus' train split and keeps it in the data folder. Trained again it may number
its tokens otherwise, so that the file, not the command, is what makes two machines agree. A folder for Hugging Face's
transformers takes its files from `tokenizer_files`.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainables.common.data.corpora import BYTES, Corpus, documents_in, open_corpus
from trainables.common.data.files import data_home, sha256_of, sha_of
from trainables.common.data.tokenization import END, TRAINING_BYTES, end_token, read_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TRAINED = "wordpiece-"  # "wordpiece-8192" names the one of 8192 tokens trained on the corpus it reads
ALPHABET = 256  # characters of their own; rarer ones are [UNK]


@dataclass(frozen=True, eq=False)
class Masking:
    """What masking needs to know of an encoding: its special token numbers and those that stand for text."""

    vocabulary: int  # special tokens included
    pad: int
    cls: int
    sep: int
    mask: int
    end: int  # what a corpus under this encoding puts after a document
    ordinary: np.ndarray  # the token numbers that are not special
    sha: str  # of the encoding's JSON
    json: str  # the encoding, as the `tokenizers` library writes it


def open_encoded(corpus: str, tokenizer: str) -> tuple[Corpus, Masking]:
    """A corpus under an encoding with [MASK], and that encoding: "bytes", "wordpiece-N", or a `tokenizers` JSON file.

    Raises ValueError when the encoding is not there, with the command that trains it, or lacks a special token.
    """
    if tokenizer == BYTES:
        opened = open_corpus(corpus)
        if opened.vocabulary != 256:
            raise ValueError(f"{corpus} holds tokens already and no [MASK]; give text, or a folder of text files")
        return opened, masking_of(byte_tokenizer(), end=0)
    path = Path(tokenizer)
    if tokenizer.startswith(TRAINED):
        size = tokenizer.removeprefix(TRAINED)
        path = trained_file(open_corpus(corpus).name, size)
        if not path.is_file():
            raise ValueError(
                f"no encoding {tokenizer!r} of corpus {corpus!r} at {path}; train it: "
                f"python -m trainables.common.data.wordpiece {corpus} --vocabulary {size}"
            )
    encoding = read_tokenizer(path)
    masking = masking_of(encoding, end_token(encoding))
    return open_corpus(corpus, str(path)), masking


def trained_file(corpus: str, vocabulary: int | str) -> Path:
    """Where the encoding of that size, trained on the corpus of that name, is kept."""
    return data_home() / "tokenizers" / f"{corpus}-wordpiece-{vocabulary}.json"


def masking_of(encoding: Tokenizer, end: int) -> Masking:
    """Raises ValueError for an encoding without BERT's special tokens."""
    known = encoding.get_vocab()
    missing = [name for name in SPECIAL if name not in known]
    if missing:
        raise ValueError(
            f"a masked language model needs an encoding with {', '.join(SPECIAL)}, this one lacks "
            f"{', '.join(missing)}; train one: python -m trainables.common.data.wordpiece CORPUS"
        )
    pad, unknown, cls, sep, mask = (known[name] for name in SPECIAL)
    return Masking(
        vocabulary=len(known),
        pad=pad,
        cls=cls,
        sep=sep,
        mask=mask,
        end=end,
        ordinary=np.setdiff1d(np.arange(len(known)), [pad, unknown, cls, sep, mask, end]),
        sha=sha_of([encoding.to_str()]),
        json=encoding.to_str(),
    )


def byte_tokenizer() -> Tokenizer:
    """Bytes as tokens 0 .. 255, then the special ones: byte-pair encoding without a pair.

    >>> byte_tokenizer().encode("Hi", add_special_tokens=False).ids
    [72, 105]
    """
    # The library writes bytes as characters: printable ones as themselves, the others in order from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = (byte for byte in range(256) if byte not in printable)
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE({character: byte for byte, character in characters.items()}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = _framed(tokenizer)
    return tokenizer


def train_wordpiece(documents: Iterable[bytes], vocabulary: int) -> Tokenizer:
    """WordPiece of `vocabulary` tokens on lower-cased words without accents, from the first 20 MB of documents."""
    fewest = 2 * ALPHABET + len(SPECIAL) + 1
    if vocabulary < fewest:
        raise ValueError(
            f"an encoding needs room for its alphabet: vocabulary >= {fewest}, got {vocabulary}; "
            f"tokenizer=bytes is smaller and needs no training"
        )
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL, END], limit_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(_first_bytes(documents), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise ValueError(
            f"the text has pieces for {tokenizer.get_vocab_size():,} tokens, not {vocabulary:,}; lower --vocabulary"
        )
    tokenizer.post_processor = _framed(tokenizer)
    return tokenizer


def _framed(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends)


def _first_bytes(documents: Iterable[bytes]) -> Iterator[str]:
    taken = 0
    for document in documents:
        if taken >= TRAINING_BYTES:
            return
        taken += len(document)
        yield document.decode("utf-8", "replace")


def tokenizer_files(masking: Masking, context: int) -> dict[str, bytes]:
    """tokenizer.json and the two small files by which Hugging Face's AutoTokenizer knows its special tokens."""
    named = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    about = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {
        "tokenizer.json": masking.json.encode(),
        "tokenizer_config.json": json.dumps(about, indent=1).encode(),
        "special_tokens_map.json": json.dumps(named, indent=1).encode(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    about = "train a WordPiece encoding on a corpus"
    parser = argparse.ArgumentParser(prog="python -m trainables.common.data.wordpiece", description=about)
    parser.add_argument("corpus", help="a name, or a path")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens, special ones included (default 8192)")
    given = parser.parse_args(arguments)
    try:
        corpus = open_corpus(given.corpus)
        if corpus.vocabulary != 256:
            raise ValueError(f"{given.corpus} holds tokens already; an encoding is trained on text")
        out = trained_file(corpus.name, given.vocabulary)
        if out.is_file():
            print(f"there already: {out}, sha256 {sha256_of(out)[:12]}; delete the file to train it anew")
            return 0
        documents = documents_in(corpus.train)
        tokenizer = train_wordpiece(documents, given.vocabulary)
        out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(out))
        encoded, _ = open_encoded(given.corpus, f"{TRAINED}{given.vocabulary}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for split in encoded.splits:
        print(f"{split.name}: {len(split.tokens):,} tokens, {split.bytes_per_token:.3f} bytes each")
    for document in islice(documents, 1):
        print("for example:", " ".join(tokenizer.encode(document[:200].decode("utf-8", "replace")).tokens))
    print(f"written: {out}, sha256 {sha256_of(out)[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
