"""Pre-trained encoders from local folders, or the same architecture at random initialisation.

A name is a folder of Hugging Face (BERT or RoBERTa), "minilm" (its package's folder), "random:" and one of these
(config.json and tokenizer, fresh weights), or "tiny": a few thousand fresh weights and a tokenizer of whole words.
"""

# L layers, F neurons of a feed-forward block, D width

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trainables.common.data.pretrained import encoder_folder

FAMILIES = ("bert", "roberta")
TINY_POSITIONS = 96
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL |= {"mask_token": "[MASK]"}
READ = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
"""What configuration and tokenizer are read from, as far as it is there; "tokenizer.*.json" and the weights besides."""
SIZES = ("num_hidden_layers", "intermediate_size", "hidden_size", "max_position_embeddings")
UNUSED = "pooler."


@dataclass(frozen=True)
class Source:
    """Where an encoder comes from; `sha` is of the names and contents of all files that are read from the folder."""

    folder: Path | None  # None: the tiny one
    random: bool
    sha: str
    layers: int
    neurons: int  # per layer
    width: int
    positions: int  # most tokens of a text, its prompt with it
    masked: bool  # it has a head for masked tokens

    @property
    def parameters(self) -> int:
        """Weights of attention and feed-forward blocks, embeddings not counted."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.neurons)


@cache
def encoder_source(name: str) -> Source:
    """Checks the folder and fingerprints it. Raises ValueError, with the way out, where it is no such encoder."""
    if name in ("tiny", "random:tiny"):
        sizes = TINY["num_hidden_layers"], TINY["intermediate_size"], TINY["hidden_size"], TINY_POSITIONS
        return Source(None, True, hashlib.sha256(repr(TINY).encode()).hexdigest(), *sizes, masked=True)
    random = name.startswith("random:")
    folder = encoder_folder(name.removeprefix("random:"))
    needed = ["config.json", "tokenizer.json", *([] if random else ["model.safetensors"])]
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"encoder {name!r} needs {', '.join(missing)} in {folder}; save_pretrained of transformers writes them "
            "(the tokenizer must be a fast one)"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") not in FAMILIES:
        raise ValueError(f"an encoder must be {' or '.join(FAMILIES)}, got model_type {config.get('model_type')!r}")
    unsaid = [size for size in SIZES if not isinstance(config.get(size), int)]
    if unsaid:
        raise ValueError(
            f"config.json of encoder {name!r} must say {', '.join(unsaid)}, a whole number; save_pretrained of "
            f"transformers writes it ({folder})"
        )
    layers, neurons, width, positions = (config[size] for size in SIZES)
    if config["model_type"] == "roberta":  # it counts positions from behind its padding token
        positions -= config.get("pad_token_id", 1) + 1
    names = sorted({*needed, *READ, *(file.name for file in folder.glob("tokenizer.*.json"))})
    digest = hashlib.sha256()
    for file in (folder / one for one in names):
        if file.is_file():
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    masked = any(one.endswith("ForMaskedLM") for one in config.get("architectures") or ())
    return Source(folder, random, digest.hexdigest(), layers, neurons, width, positions, masked=masked)


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


def load_tokenizer(source: Source, texts: Sequence[str]) -> Any:
    """`texts` make the vocabulary of the tiny encoder, which has no folder."""
    if source.folder is None:
        return word_tokenizer(texts)
    kind = needs_transformers().AutoTokenizer
    return kind.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)


def load_encoder(
    source: Source, seed: int, texts: Sequence[str], device: torch.device | str = "cpu", *, headed: bool = True
) -> Encoder:
    """The encoder on a device, frozen, in evaluation mode. Fresh weights depend on the seed alone.

    `texts` make the vocabulary of the tiny encoder. Raises ValueError where the folder lacks weights of the encoder, or
    of its head for masked tokens where that is `headed`, used: fresh ones would pass as pre-trained.
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
            tokenizer, local = load_tokenizer(source, texts), {"local_files_only": True, "trust_remote_code": False}
            if source.folder is None:
                config = transformers.BertConfig(
                    vocab_size=len(tokenizer), max_position_embeddings=TINY_POSITIONS, **TINY
                )
                model = transformers.BertForMaskedLM(config)
            elif source.random:
                model = kind.from_config(transformers.AutoConfig.from_pretrained(source.folder, **local))
            else:
                model, told = kind.from_pretrained(
                    source.folder, use_safetensors=True, output_loading_info=True, **local
                )
                _refuse_fresh(source.folder, model, told["missing_keys"], headed)
    finally:
        quiet.set_verbosity(level)
        if bars:
            quiet.enable_progress_bar()
    model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    head = None
    if source.masked:
        head = model.cls if hasattr(model, "cls") else model.lm_head
    return Encoder(model.base_model, head, tokenizer)


def _refuse_fresh(folder: Path, model: Any, missing: Collection[str], headed: bool) -> None:
    """`missing`: names of weights that were not in the folder and are random therefore."""
    base = model.base_model
    own = set(base.state_dict()) if base is model else {f"{model.base_model_prefix}.{at}" for at in base.state_dict()}
    away = [name for name in missing if (name in own or headed) and UNUSED not in name]
    if away:
        shown = ", ".join(sorted(away)[:4]) + (", ..." if len(away) > 4 else "")
        raise ValueError(
            f"model.safetensors in {folder} lacks {len(away)} weights of the encoder, which would be random: {shown}; "
            "write the whole model by save_pretrained of transformers, whose names these are"
            + ("" if own & set(away) else ", or take readout=mean or first, which read no head")
            + f", or take random:{folder} if random ones are meant"
        )


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
