"""Pre-trained encoders from local folders, or the same architecture at random initialisation.

A name is a folder of Hugging Face (BERT or RoBERTa), "minilm" (its package's folder), "random:" and one of these
(config.json and tokenizer, fresh weights), or "tiny": a few thousand fresh weights and a tokenizer of whole words.
"""

# L layers, F neurons of a feed-forward block, D width

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trainables.common.data.pretrained import encoder_folder

FAMILIES = ("bert", "roberta")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL |= {"mask_token": "[MASK]"}


@dataclass(frozen=True)
class Source:
    """Where an encoder comes from; `sha` is of all files that are read from the folder."""

    folder: Path | None  # None: the tiny one
    random: bool
    sha: str
    layers: int
    neurons: int  # per layer
    width: int
    masked: bool  # it has a head for masked tokens

    @property
    def parameters(self) -> int:
        """Weights of attention and feed-forward blocks, embeddings not counted."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.neurons)


@cache
def encoder_source(name: str) -> Source:
    """Checks the folder and fingerprints it. Raises ValueError, with the way out, where it is no such encoder."""
    if name in ("tiny", "random:tiny"):
        sizes = TINY["num_hidden_layers"], TINY["intermediate_size"], TINY["hidden_size"]
        return Source(None, True, hashlib.sha256(repr(TINY).encode()).hexdigest(), *sizes, masked=True)
    random = name.startswith("random:")
    folder = encoder_folder(name.removeprefix("random:"))
    files = [folder / "config.json", folder / "tokenizer.json", *([] if random else [folder / "model.safetensors"])]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"encoder {name!r} needs {', '.join(missing)} in {folder}; save_pretrained of transformers writes them "
            "(the tokenizer must be a fast one)"
        )
    config = json.loads(files[0].read_text(encoding="utf-8"))
    if config.get("model_type") not in FAMILIES:
        raise ValueError(f"an encoder must be {' or '.join(FAMILIES)}, got model_type {config.get('model_type')!r}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    sizes = config["num_hidden_layers"], config["intermediate_size"], config["hidden_size"]
    masked = any(one.endswith("ForMaskedLM") for one in config.get("architectures") or ())
    return Source(folder, random, digest.hexdigest(), *sizes, masked=masked)


@dataclass
class Encoder:
    """A frozen encoder: `base` without head, the head for masked tokens where it has one, and its tokenizer."""

    base: Any
    head: torch.nn.Module | None
    tokenizer: Any

    @property
    def blocks(self) -> Sequence[Any]:
        """The L layers; a block's `intermediate` gives activations, its `output` what is added to the stream."""
        return self.base.encoder.layer

    @property
    def embeddings(self) -> torch.Tensor:
        """Of the tokens, [vocabulary, D]."""
        return self.base.get_input_embeddings().weight


def load_encoder(source: Source, seed: int, texts: Sequence[str], device: torch.device | str = "cpu") -> Encoder:
    """The encoder on a device, frozen, in evaluation mode. Fresh weights depend on the seed alone.

    `texts` make the vocabulary of the tiny encoder, which has no folder.
    """
    transformers = needs_transformers()
    quiet = transformers.utils.logging
    level, bars = quiet.get_verbosity(), quiet.is_progress_bar_enabled()
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    kind = transformers.AutoModelForMaskedLM if source.masked else transformers.AutoModel
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if source.folder is None:
                tokenizer = word_tokenizer(texts)
                config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **TINY)
                model = transformers.BertForMaskedLM(config)
            else:
                tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
                if source.random:
                    model = kind.from_config(transformers.AutoConfig.from_pretrained(source.folder))
                else:
                    model = kind.from_pretrained(
                        source.folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
                    )
    finally:
        quiet.set_verbosity(level)
        if bars:
            quiet.enable_progress_bar()
    model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    head = None
    if source.masked:
        head = model.cls if hasattr(model, "cls") else model.lm_head
    return Encoder(model.base_model, head, tokenizer)


def needs_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError('encoders of Hugging Face need transformers: pip install "anabranch[models]"') from None
    return transformers


def word_tokenizer(texts: Sequence[str]) -> Any:
    """A tokenizer of whole words, lower case, that knows the words of these texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    transformers = needs_transformers()
    splitter = pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())}
    vocabulary = {word: at for at, word in enumerate([*SPECIAL.values(), *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), splitter
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
