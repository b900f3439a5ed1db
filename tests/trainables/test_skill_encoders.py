"""Encoders from folders that transformers writes, and the tokenizer of whole words, against what was put in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainables.common.skills.encoders import encoder_source, load_encoder


def test_a_folder_gives_its_weights_and_random_fresh_ones(tmp_path):
    import transformers

    words = ["a fine film", "negative", "positive"]
    tiny = load_encoder(encoder_source("tiny"), 3, words)
    config = tiny.base.config
    config.architectures = ["BertForMaskedLM"]
    torch.manual_seed(7)  # another than those of the fresh ones below
    model = transformers.BertForMaskedLM(config)
    folder = tmp_path / "own"
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        encoder_source(str(folder))
    tiny.tokenizer.save_pretrained(folder)
    sources = {name: encoder_source(name) for name in (f"{folder}/.", f"random:{folder}")}
    loaded = load_encoder(sources[f"{folder}/."], 0, [])
    assert torch.equal(loaded.embeddings, model.get_input_embeddings().weight) and loaded.head is not None
    fresh = [load_encoder(sources[f"random:{folder}"], seed, []).embeddings for seed in (0, 0, 1)]
    assert torch.equal(fresh[0], fresh[1]) and not torch.equal(fresh[0], fresh[2])
    assert not torch.equal(fresh[0], loaded.embeddings)
    assert len({source.sha for source in sources.values()}) == 2 and loaded.tokenizer("fine")["input_ids"][1] > 4


def test_the_tokenizers_words_are_those_of_the_texts():
    tokenizer = load_encoder(encoder_source("tiny"), 0, ["A fine film, truly."]).tokenizer
    assert tokenizer.tokenize("a fine TRULY dull film") == ["a", "fine", "truly", "[UNK]", "film"]


@pytest.fixture
def folder(tmp_path):
    """A whole encoder with a head for masked tokens, as transformers writes it."""
    import transformers

    tiny = load_encoder(encoder_source("tiny"), 3, ["a fine film", "negative", "positive"])
    config = tiny.base.config
    config.architectures = ["BertForMaskedLM"]
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "own")
    tiny.tokenizer.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def rewrite(folder, change):
    """Put other weights into the folder; `change` gives a name's new one, or None to leave it out."""
    weights = {change(name): value for name, value in load_file(folder / "model.safetensors").items()}
    kept = {name: value for name, value in weights.items() if name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "headed", "words"),
    [
        (lambda name: None if "layer.1.output.dense.weight" in name else name, False, r"lacks 1 .*layer\.1\.output"),
        (lambda name: name.replace("layer.", "block."), False, r"layer\.0.*random:"),
        (lambda name: None if "transform" in name else name, True, "readout=mean"),
        (lambda name: None if "transform" in name else name, False, None),
    ],
)
def test_weights_that_would_be_random_in_silence_are_refused(folder, change, headed, words):
    rewrite(folder, change)
    source = encoder_source(str(folder))
    if words is None:
        assert load_encoder(source, 0, [], headed=headed).base is not None
    else:
        with pytest.raises(ValueError, match=words):
            load_encoder(source, 0, [], headed=headed)


def test_a_pooler_may_be_missing_as_it_is_not_used(folder):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config.architectures = ["BertModel"]
    transformers.BertModel(config).save_pretrained(folder)
    rewrite(folder, lambda name: None if "pooler" in name else name)
    assert load_encoder(encoder_source(str(folder)), 0, []).head is None


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt"])
def test_every_file_that_the_tokenizer_reads_is_in_the_fingerprint(folder, file):
    before = encoder_source(str(folder)).sha
    found = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**found, "mask_token": "[SEP]"}))
    assert encoder_source(f"{folder}/.").sha != before


def test_no_file_is_read_that_is_not_in_the_fingerprint(folder, monkeypatch):
    """What transformers opens in the folder, beside weights and tokenizer that Rust opens."""
    import builtins

    from trainables.common.skills.encoders import READ

    seen, real = set(), builtins.open

    def watched(file, *args, **kwargs):
        if str(file).startswith(str(folder)):
            seen.add(str(file).rpartition("/")[2])
        return real(file, *args, **kwargs)

    source = encoder_source(str(folder))
    monkeypatch.setattr(builtins, "open", watched)
    load_encoder(source, 0, [])
    assert "tokenizer_config.json" in seen and seen <= {*READ, "model.safetensors"}


def test_a_config_without_its_sizes_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json.*must say intermediate_size"):
        encoder_source(str(folder))


def test_roberta_counts_positions_from_behind_its_padding(folder):
    assert encoder_source(str(folder)).positions == 96
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "roberta", "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    assert encoder_source(f"{folder}/.").positions == 94
