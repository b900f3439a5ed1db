"""Byte-pair encodings: files of the Hugging Face `tokenizers` library, read and trained."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"  # what our own encodings put after a document
END_TOKENS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
TRAINING_BYTES = 20_000_000
ENCODED_AT_ONCE = 512


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a JSON file; ValueError when it is not there or not one."""
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {path}; there is 'bytes', or train one: "
            f"python -m trainables.common.data bpe CORPUS --vocabulary 4096"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is no tokenizer of the Hugging Face `tokenizers` library: {error}") from None


def end_token(tokenizer: Tokenizer) -> int:
    """Number of the token that ends a document; ValueError when the encoding has none of the usual ones."""
    for name in END_TOKENS:
        number = tokenizer.token_to_id(name)
        if number is not None:
            return number
    raise ValueError(f"the tokenizer has no token that ends a document; add one of {', '.join(END_TOKENS)} to it")


def encode(tokenizer: Tokenizer, documents: list[bytes], *, end: int) -> Iterator[np.ndarray]:
    """Each document as token numbers, the end token last."""
    for start in range(0, len(documents), ENCODED_AT_ONCE):
        texts = [document.decode("utf-8", "replace") for document in documents[start : start + ENCODED_AT_ONCE]]
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield np.asarray([*encoding.ids, end], np.int64)


def bytes_of_tokens(tokenizer: Tokenizer, *, end: int) -> np.ndarray | None:
    """Bytes of text behind each token number [V], the end token counted as one byte; None unless byte-level.

    A byte-level encoding (GPT-2's kind) writes each byte as one character, so a token's length is its bytes.
    """
    if (json.loads(tokenizer.to_str()).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for token, number in tokenizer.get_vocab(with_added_tokens=False).items():
        lengths[number] = len(token)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = len(added.content.encode())
    lengths[end] = 1
    return lengths


def train_tokenizer(documents: Iterable[bytes], vocabulary: int) -> Tokenizer:
    """A byte-level byte-pair encoding (arXiv:1508.07909) of `vocabulary` tokens, from the first 20 MB of documents."""
    if vocabulary < 257:
        raise ValueError(f"a byte-level encoding needs 256 bytes and an end token: vocabulary >= 257, got {vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(documents), trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise ValueError(
            f"the text has pairs for {tokenizer.get_vocab_size():,} tokens, not {vocabulary:,}; lower --vocabulary"
        )
    return tokenizer


def _first_bytes(documents: Iterable[bytes]) -> Iterator[str]:
    taken = 0
    for document in documents:
        if taken >= TRAINING_BYTES:
            return
        taken += len(document)
        yield document.decode("utf-8", "replace")
