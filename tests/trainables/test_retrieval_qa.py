"""Question answering with searches in the loop against hand-made dialogues, and a small model that has learnt them."""

import json
import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow.parquet as pq
import pytest
import torch

from trainables import retrieval_qa
from trainables.retrieval_qa import ANSWER, NOTHING, contains, exact, gold_paragraphs, prompt, reply, search

transformers = pytest.importorskip("transformers")

PARAGRAPHS = ["Ada was born in London.", "Alan was born in Maida Vale.", "Emmy was born in Erlangen."]
QUESTIONS = [
    {"question": "Where was Ada born?", "paragraphs": PARAGRAPHS, "answer": "London"},
    {"question": "Where was Alan born?", "paragraphs": PARAGRAPHS, "answer": "Maida Vale", "gold": [1]},
    {"question": "Where was Emmy born?", "paragraphs": PARAGRAPHS, "answer": "Erlangen"},
]


class Scripted:
    """Continues texts with lines of a script, and notes what it was given."""

    def __init__(self, *lines):
        self.lines, self.given = list(lines), []

    def __call__(self, text, stops):
        self.given.append((text, tuple(stops)))
        return self.lines.pop(0)


def test_a_search_is_answered_from_the_paragraphs_and_the_model_reads_on():
    model = Scripted("I look it up: <search>alan.*born</search>", "Answer: Maida Vale\n")
    said = reply(QUESTIONS[1], PARAGRAPHS, model, calls=3, matches=2)
    begin = prompt(QUESTIONS[1], PARAGRAPHS, searching=True)
    shown = "I look it up: <search>alan.*born</search>\nAlan was born in Maida Vale.\n"
    assert [text for text, _ in model.given] == [begin, begin + shown]
    assert (said.answer, said.searches) == ("Maida Vale", ("alan.*born",))
    assert said.text == shown + "Answer: Maida Vale\n"


def test_after_the_last_call_the_model_is_asked_for_its_answer():
    model = Scripted("<search>nobody</search>", "<search>born</search>", " Erlangen\n")
    said = reply(QUESTIONS[2], PARAGRAPHS, model, calls=2, matches=2)
    assert (said.answer, said.searches, model.lines) == ("Erlangen", ("nobody", "born"), [])
    assert f"<search>nobody</search>\n{NOTHING}\n<search>born</search>\n{PARAGRAPHS[0]}\n{PARAGRAPHS[1]}\n" in said.text
    assert PARAGRAPHS[2] not in said.text and model.given[-1][0].endswith(f"{PARAGRAPHS[1]}\n{ANSWER}")


def test_a_paragraph_that_looks_like_an_answer_is_not_taken_for_the_models():
    model = Scripted("<search>told</search>", " x\n")
    said = reply(QUESTIONS[0], [f"{ANSWER} y, as I was told"], model, calls=1, matches=1)
    assert said.answer == "x" and not model.lines


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (["Answer: London\n"], "London"),
        (["He thinks\n", " London\n"], "London"),
        (["He thinks, and thinks", " London"], "London"),
        (["\n", " London\n"], "London"),
        (["no call</search>", " London\n"], "London"),
        (["<search>half a call\n", "\n"], ""),
    ],
)
def test_what_is_no_call_leads_to_the_answer(lines, answer):
    model = Scripted(*lines)
    said = reply(QUESTIONS[0], PARAGRAPHS, model, calls=3, matches=1)
    assert (said.answer, said.searches, model.lines) == (answer, (), [])


def test_without_calls_searching_is_not_spoken_of_and_the_answer_is_asked_for_at_once():
    model = Scripted(" <search>Ada</search>\n")
    said = reply(QUESTIONS[0], PARAGRAPHS, model, calls=0, matches=1)
    ((text, stops),) = model.given
    assert "search" not in text and text.endswith(f"Question: Where was Ada born?\n{ANSWER}") and stops == ("\n",)
    assert said.searches == () and said.answer == "<search>Ada</search>"


@pytest.mark.parametrize("pattern", ["Ada", "ada", "A[dl]a", "^Emmy", "born in [EL]", "Vale.$", "x|London", "Berlin"])
def test_a_search_finds_the_paragraphs_that_pythons_expressions_find(pattern):
    expected = [text for text in PARAGRAPHS if re.search(pattern, text, re.IGNORECASE)]
    assert search(pattern, PARAGRAPHS, 3) == expected and search(pattern, PARAGRAPHS, 1) == expected[:1]


@pytest.mark.parametrize("pattern", ["", "(", "*", "[z-a]", r"(a)\1", "a" * 201])
def test_what_is_no_expression_finds_nothing(pattern):
    assert search(pattern, PARAGRAPHS, 3) == []


def test_an_expression_cannot_hold_up_the_evaluation():
    """A pattern whose backtracking takes 2^40 steps: minutes with Python's own engine, against the test's limit."""
    assert search("(a+)+$", ["a" * 40 + "b"], 1) == []


@pytest.mark.parametrize(
    ("answer", "wanted", "is_exact", "is_contained"),
    [
        ("The London.", "london", True, True),
        ("in London, I think", "London", False, True),
        ("Londonderry", "London", False, False),
        ("vale maida", "Maida Vale", False, False),
        ("", "London", False, False),
    ],
)
def test_scores_by_hand(answer, wanted, is_exact, is_contained):
    assert (exact(answer, wanted), contains(answer, wanted)) == (is_exact, is_contained)


def test_gold_paragraphs_are_those_named_or_those_with_the_answer():
    assert gold_paragraphs(QUESTIONS[0]) == [PARAGRAPHS[0]] and gold_paragraphs(QUESTIONS[1]) == [PARAGRAPHS[1]]
    assert gold_paragraphs(QUESTIONS[1] | {"gold": [2, 0]}) == [PARAGRAPHS[2], PARAGRAPHS[0]]
    with pytest.raises(ValueError, match="gold must list numbers of paragraphs, 0 to 2, got"):
        gold_paragraphs(QUESTIONS[1] | {"gold": [3]})
    with pytest.raises(ValueError, match="no gold paragraph for 'Where was Ada born"):
        gold_paragraphs(QUESTIONS[0] | {"answer": "Paris"})


def learnt_dialogues(folder):
    """A small GPT-2 that has learnt by heart to answer from gold, wrongly from all paragraphs, rightly by a search.

    It answers the last question wrongly even from gold.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pairs = []
    for row, name in zip(QUESTIONS, ("Ada", "Alan", "Emmy"), strict=True):
        from_gold = row["answer"] if name != "Emmy" else "Rome"
        gold = gold_paragraphs(row)
        pairs += [
            (prompt(row, gold, False) + ANSWER, f" {from_gold}\n"),
            (prompt(row, PARAGRAPHS, False) + ANSWER, " Rome\n"),
            (prompt(row, PARAGRAPHS, True), f"<search>{name}</search>"),
            (prompt(row, PARAGRAPHS, True) + f"<search>{name}</search>\n{gold[0]}\n", f"Answer: {row['answer']}\n"),
        ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([begin + rest for begin, rest in pairs], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(wrapped), n_positions=256, n_embd=48, n_layer=2, n_head=2)
    config.eos_token_id = config.bos_token_id = None
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    begins, rests = ([wrapped(text)["input_ids"] for text in side] for side in zip(*pairs, strict=True))
    length = max(len(begin) + len(rest) for begin, rest in zip(begins, rests, strict=True))
    inputs = torch.zeros(len(pairs), length, dtype=torch.int64)
    labels = torch.full_like(inputs, -100)
    for row, (begin, rest) in enumerate(zip(begins, rests, strict=True)):
        inputs[row, : len(begin) + len(rest)] = torch.tensor(begin + rest)
        labels[row, len(begin) : len(begin) + len(rest)] = torch.tensor(rest)
    for _ in range(150):
        loss = model(inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    assert loss < 0.05
    model.generation_config.repetition_penalty = 3.0  # a setting of the model's own, which must not rule
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)


def test_the_command_finds_what_a_model_of_known_answers_gains_by_searching(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    learnt_dialogues(tmp_path / "model")
    data, out = tmp_path / "questions.jsonl", tmp_path / "replies.parquet"
    data.write_text("\n".join(json.dumps(row) for row in QUESTIONS))
    arguments = [tmp_path / "model", data, "--calls", "1", "--tokens", "20", "--out", out]
    assert retrieval_qa.main([str(one) for one in arguments]) == 0
    replies = pq.read_table(out).to_pydict()
    assert replies["gold_answer"] == ["London", "Maida Vale", "Rome"] and replies["direct_answer"] == ["Rome"] * 3
    assert replies["searches"] == [["Ada"], ["Alan"], ["Emmy"]]
    assert replies["searching_answer"] == ["London", "Maida Vale", "Erlangen"]
    assert replies["searching_exact"] == [True] * 3 and replies["direct_exact"] == [False] * 3
    printed = capsys.readouterr().out
    table = [" ".join(re.findall(r"[\w.,\[\]]+", line)) for line in printed.splitlines()]
    # Wilson's interval of 2 in 2 by its formula: 1 / (1 + z^2 / 2) to 1; of 0 in 2 mirrored.
    low = 1 / (1 + 1.959964**2 / 2)
    assert f"answered from gold searching 2 of 2 1.000 [{low:.3f}, 1.000]" in table
    assert f"answered from gold direct 0 of 2 0.000 [0.000, {1 - low:.3f}]" in table
    assert "right only with searches: 2, only without: 0 (McNemar's exact test: p = 0.5)" in printed


def test_what_cannot_be_asked_is_said_in_one_line(tmp_path, capsys):
    data = tmp_path / "questions.jsonl"

    def refused(row, *more):
        data.write_text(json.dumps(row))
        assert retrieval_qa.main([str(tmp_path), str(data), *more]) == 1
        return capsys.readouterr().err

    assert "must have question (str), paragraphs (list), answer (str)" in refused({"question": "a", "answer": "b"})
    assert "must be a list of texts" in refused(QUESTIONS[0] | {"paragraphs": [["Ada", ["London"]]]})
    assert "has no word that is compared" in refused(QUESTIONS[0] | {"answer": "The"})
    assert "gold must list numbers of paragraphs" in refused(QUESTIONS[0] | {"gold": 1})
    assert "gold must list numbers of paragraphs" in refused(QUESTIONS[0] | {"gold": [True]})
    assert "no gold paragraph" in refused(QUESTIONS[0] | {"answer": "Paris"})
    assert "must be at least 1" in refused(QUESTIONS[0], "--calls", "0")
    assert "only .parquet holds" in refused(QUESTIONS[0], "--out", "replies.csv")
    assert "must be a local folder" in refused(QUESTIONS[0])
