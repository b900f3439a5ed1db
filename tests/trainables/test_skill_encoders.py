"""Encoders from folders that transformers writes, and the tokenizer of whole words, against what was put in."""

import pytest
import torch

from trainables.common.skills.encoders import encoder_source, load_encoder


def test_a_folder_gives_its_weights_and_random_fresh_ones(tmp_path):
    import transformers

    words = ["a fine film", "negative", "positive"]
    tiny = load_encoder(encoder_source("tiny"), 3, words)
    config = tiny.base.config
    config.architectures = ["BertForMaskedLM"]
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
