"""Entropies of small models made here against their attention in plain Python, and against uniform heads."""

import json
import os
import sys
from math import log

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainables import attention_entropy
from trainables.attention_entropy import FORMS, SPANS, STATISTICS, entropies, spans_of, with_answer, with_chain
from trainables.common.real_models import load_model, mean_interval, read_rows

transformers = pytest.importorskip("transformers")

ROWS = [
    {"question": "How many are 3 and 4?", "chain": "3 and 4 are 7, so 7.", "answer": "7"},
    {"question": "What is twice 6?", "chain": "6 and 6 are 12.", "answer": "12"},
    {"question": "Is 5 odd?", "chain": "5 is 4 and 1, and 4 is even. yes", "answer": "yes"},
]


def word_tokenizer():
    """One token per word or sign, of the words of the rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    splitter = pre_tokenizers.Whitespace()
    texts = [text for row in ROWS for text in [*row.values(), "The answer is"]]
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = splitter
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def saved(folder, uniform=False, positions=64, **changes):
    """A random GPT-2 of two layers and three heads; `uniform`: its queries are 0."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_positions": positions, "initializer_range": 0.5} | changes
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(tokenizer), **config))
    if uniform:
        for block in model.transformer.h:
            block.attn.c_attn.weight.data[:, : config["n_embd"]] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return file


def test_spans_hold_the_tokens_that_lie_there():
    text = with_chain(ROWS[0])
    begins = (0, 4, 9, 13, 15, 19, 20, 22, 24, 28, 30, 34, 35, 37, 40, 41)
    words = ("How", "many", "are", "3", "and", "4", "?", "3", "and", "4", "are", "7", ",", "so", "7", ".")
    offsets = [(begin, begin + len(word)) for begin, word in zip(begins, words, strict=True)]
    assert [text.text[begin:end] for begin, end in offsets] == list(words)
    found = {name: inside.nonzero().flatten().add(1).tolist() for name, inside in spans_of(text, offsets).items()}
    assert found == {"after": list(range(7, 16)), "answer": [14], "whole": list(range(1, 16))}


def test_forms_are_the_chain_or_the_answer_alone():
    assert with_answer(ROWS[1]).text == "What is twice 6? The answer is 12."
    assert with_chain(ROWS[1]).text == "What is twice 6? 6 and 6 are 12."
    for form in FORMS.values():
        text = form(ROWS[1])
        assert text.text[slice(*text.answer)] == "12" and text.text[: text.question_end] == ROWS[1]["question"]
    assert with_chain({"question": "q", "chain": "no such word", "answer": "42"}).answer is None
    within = with_chain({"question": "q", "chain": "There are 2, out of 12 apples", "answer": "2"})
    assert within.answer == (12, 13) and within.text[11:14] == " 2,"


@pytest.mark.parametrize("form", FORMS)
def test_entropies_are_those_of_the_models_attention_in_plain_python(random_model, form):
    model, tokenizer = load_model(random_model, attention="eager")
    text = FORMS[form](ROWS[0])
    found = entropies(model, tokenizer, text)
    assert found.shape == (len(SPANS), len(STATISTICS), 2, 3)
    words = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text.text)]
    after = len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(ROWS[0]["question"]))
    answer = len(words) - 1 - words[::-1].index("7")
    tokens = tokenizer(text.text, return_tensors="pt")
    attention = model(**tokens, output_attentions=True).attentions
    for layer in range(2):
        for head in range(3):
            rows = attention[layer][0, head].tolist()
            entropy = {
                t: -sum(share * log(share) for share in rows[t] if share > 0) / log(t + 1) for t in range(1, len(words))
            }
            for span, inside in (("after", range(after, len(words))), ("answer", [answer]), ("whole", entropy)):
                values = [entropy[t] for t in inside]
                expected = [min(values), sum(values) / len(values)]
                np.testing.assert_allclose(found[SPANS.index(span), :, layer, head], expected, atol=1e-5)


def test_heads_without_queries_have_entropy_one_everywhere(tmp_path):
    model, tokenizer = load_model(saved(tmp_path, uniform=True), attention="eager")
    for row in ROWS:
        np.testing.assert_allclose(entropies(model, tokenizer, with_chain(row)), 1, atol=1e-5)


def test_the_command_compares_forms_and_models_and_writes_every_head(random_model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    other, out = saved(tmp_path / "flat", uniform=True), tmp_path / "deep" / "heads.parquet"
    arguments = [random_model, data, "--form", "chain", "answer", "--against", other, "--out", out]
    assert attention_entropy.main([str(one) for one in arguments]) == 0
    table = pq.read_table(out).to_pandas()
    arms = ["random chain", "random answer", "flat chain", "flat answer"]
    assert list(table["arm"].unique()) == arms and len(table) == 4 * 3 * 3 * 2 * 3
    printed = capsys.readouterr().out
    by_row = {
        arm: table[(table["arm"] == arm) & (table["span"] == "after")].groupby("row")["minimum"].mean() for arm in arms
    }
    for one, other_arm in ((0, 1), (0, 2), (2, 3)):
        mean, low, high = mean_interval((by_row[arms[one]] - by_row[arms[other_arm]]).to_numpy())
        line = next(line for line in printed.splitlines() if f"{arms[one]} - {arms[other_arm]}" in line)
        assert f"{mean:.4f}" in line and f"[{low:.4f}, {high:.4f}]" in line


def test_an_answer_that_the_chain_lacks_is_a_nan_in_its_span_alone(random_model):
    model, tokenizer = load_model(random_model, attention="eager")
    found = entropies(model, tokenizer, with_chain({**ROWS[0], "answer": "12"}))
    assert np.isnan(found[SPANS.index("answer")]).all() and np.isfinite(found[SPANS.index("after")]).all()


def test_csv_is_written_and_parquet_is_read(random_model, tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet", attention_entropy.FIELDS) == ROWS
    arguments = [random_model, tmp_path / "rows.parquet", "--limit", "2", "--out", tmp_path / "heads.csv"]
    assert attention_entropy.main([str(one) for one in arguments]) == 0
    assert len((tmp_path / "heads.csv").read_text().splitlines()) == 1 + 2 * 3 * 2 * 3


def test_an_interval_of_the_mean_is_students():
    from scipy import stats

    values = np.array([0.3, 0.1, 0.7, 0.4])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_interval(values), (values.mean(), *expected))
    assert mean_interval(np.array([2.0])) == (2.0, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a", "chain": "b"}', r"rows.jsonl:2 must have .*'answer' is None"),
        ('{"question": "a", "chain": "b", "answer": 7}', "'answer' is 7"),
        ('["a"]', "'question' is None"),
        ("a, b", r"rows.jsonl:2 is no JSON"),
    ],
)
def test_rows_that_lack_a_field_are_refused_with_their_place(tmp_path, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + line)
    with pytest.raises(ValueError, match=message):
        read_rows(file, attention_entropy.FIELDS)


def test_without_transformers_the_way_to_get_it_is_said(random_model, data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    assert attention_entropy.main([str(random_model), str(data)]) == 1
    assert 'pip install "anabranch[models]"' in capsys.readouterr().err


def test_what_cannot_be_measured_is_said_in_one_line(random_model, data, tmp_path, capsys):
    def refused(*arguments):
        assert attention_entropy.main([str(one) for one in arguments]) == 1
        return capsys.readouterr().err

    assert "must be a local folder with a model's config.json" in refused("gpt2", data)
    assert "must be a file that ends in .jsonl or .parquet" in refused(random_model, tmp_path / "none.txt")
    assert "is given twice" in refused(random_model, data, "--against", random_model)
    assert "2 to 8 tokens for this model, got 16" in refused(saved(tmp_path / "short", positions=8), data)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((random_model / "config.json").read_text())
    word_tokenizer().save_pretrained(tmp_path)
    assert "no causal model with safetensors" in refused(tmp_path, data)
