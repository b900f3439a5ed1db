"""The masked-word study against transformers' BertForMaskedLM, a plain training loop, counts and hand-made cases."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sweeps.engine.launch import Question, sweep
from sweeps.engine.states import export, find_trial
from trainables import masked_lm
from trainables.common.data import wordpiece
from trainables.common.data.masking import FRAME, masked_rows, masked_tokens, unigram_nats
from trainables.common.data.tokenization import train_tokenizer
from trainables.common.data.wordpiece import byte_tokenizer, masking_of, open_encoded, train_wordpiece
from trainables.common.models import encoder_folder
from trainables.common.models.encoder import INITIAL_STD, Encoder, EncoderShape
from trainables.common.timeline import common_steps, knobs_at, place
from trainables.masked_lm import Config
from trainables.study import LocalRun
from trainables.walk import train

TINY = masked_lm.STUDY.tiny
SHAPE = EncoderShape(vocabulary=90, width=24, layers=3, heads=4, ffn_width=40, context=12)
BYTES = masking_of(byte_tokenizer(), end=0)
UNKNOWN = byte_tokenizer().token_to_id("[UNK]")
WORDS = [
    *("river", "stone", "window", "garden", "silver", "morning", "candle"),
    *("forest", "letter", "winter", "painted", "quietly", "slowly"),
]


def bert(shape: EncoderShape):
    """transformers' own model of that shape."""
    transformers = pytest.importorskip("transformers")
    sizes = {name: value for name, value in shape.for_transformers().items() if name != "model_type"}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).eval()


def write_texts(folder: Path, count: int = 120) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        sentences = [" ".join(draw.choice(WORDS, 9)).capitalize() + f" {n}." for n in range(12)]
        (folder / f"{number:03}.txt").write_text("\n".join(sentences))


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Path:
    """A small corpus of our own in a data folder of its own."""
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "data"))
    masked_lm.opened.cache_clear()
    masked_lm.held_out.cache_clear()
    write_texts(tmp_path / "texts")
    yield tmp_path / "texts"
    masked_lm.opened.cache_clear()
    masked_lm.held_out.cache_clear()


# The encoder


def test_the_encoder_is_bert_for_masked_lm():
    model, other = Encoder(SHAPE, torch.Generator().manual_seed(0)), bert(SHAPE)
    for parameter in model.parameters():  # biases and norms off their zeros and ones
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in other.named_parameters()
    }
    other.load_state_dict(model.state_dict(), strict=False)
    other.tie_weights()
    tokens = torch.randint(0, 90, (5, 12), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    assert torch.allclose(logits, other(tokens).logits, atol=1e-5)
    at = torch.tensor([[0, 3], [1, 2], [11, 11], [5, 6], [0, 11]])
    picked = torch.stack([logits[row, at[row]] for row in range(5)])
    assert torch.allclose(model(tokens, at), picked, atol=1e-6)
    with pytest.raises(ValueError, match="at most context=12 tokens, got 13"):
        model(torch.zeros(1, 13, dtype=torch.long))


def test_sizes_and_flops_are_those_that_torch_counts():
    model, rows, masked = Encoder(SHAPE, torch.Generator().manual_seed(0)), 5, 2
    assert SHAPE.parameters == sum(parameter.numel() for parameter in model.parameters())
    tokens, at = torch.zeros(rows, 12, dtype=torch.long), torch.zeros(rows, masked, dtype=torch.long)
    # The counter has no rule for the CPU's flash attention; written out, attention is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, at)
    assert SHAPE.training_flops(rows * 12, rows * masked, rows) == 3 * counter.get_total_flops()
    assert EncoderShape.from_transformers(json.loads(json.dumps(SHAPE.for_transformers()))) == SHAPE


def test_first_weights_depend_on_the_seed_alone_and_have_berts_spread():
    def drawn(seed):
        return dict(Encoder(replace(SHAPE, vocabulary=2000), torch.Generator().manual_seed(seed)).named_parameters())

    torch.manual_seed(5)
    first = drawn(0)
    torch.manual_seed(6)
    assert all(torch.equal(value, first[name]) for name, value in drawn(0).items())
    assert not torch.equal(drawn(1)["cls.predictions.transform.dense.weight"], first[
        "cls.predictions.transform.dense.weight"
    ])  # fmt: skip
    assert float(first["bert.embeddings.word_embeddings.weight"].detach().std()) == pytest.approx(INITIAL_STD, rel=0.02)
    assert all(not value.any() for name, value in first.items() if name.endswith("bias"))


# Masking and encodings


def test_chosen_tokens_are_hidden_replaced_or_kept_in_berts_shares():
    text = np.random.default_rng(0).integers(1, 256, (400, 100))
    text[:, 7] = 0  # ends of documents
    inputs, at, targets = masked_rows(text, 0.15, BYTES, "test", 3)
    framed = np.concatenate([np.full((400, 1), BYTES.cls), text, np.full((400, 1), BYTES.sep)], 1)
    assert at.shape == targets.shape == (400, 15) and bool((at.diff(dim=1) > 0).all())
    assert np.array_equal(np.take_along_axis(framed, at.numpy(), 1), targets.numpy())
    chosen = np.zeros(framed.shape, bool)
    np.put_along_axis(chosen, at.numpy(), True, 1)
    assert np.array_equal(inputs.numpy()[~chosen], framed[~chosen])
    assert not chosen[:, [0, 8, -1]].any()  # neither the frame nor the end of a document
    put, was = inputs.numpy()[chosen], framed[chosen]
    hidden, kept = put == BYTES.mask, put == was
    assert hidden.mean() == pytest.approx(0.8, abs=0.02) and kept.mean() == pytest.approx(0.1, abs=0.015)
    assert set(put[~hidden & ~kept]) <= set(BYTES.ordinary) and len(set(put[~hidden & ~kept])) > 200
    counts = chosen[:, 1:-1].sum(0)[np.arange(100) != 7]  # every place equally often, within five sigma
    assert abs(counts - 400 * 15 / 99).max() < 5 * np.sqrt(60)


def test_masks_are_a_function_of_the_key_and_workers_share_a_batch():
    text = np.random.default_rng(0).integers(1, 256, (6, 20))
    first, again, other = (masked_rows(text, 0.3, BYTES, "test", key) for key in (1, 1, 2))
    assert torch.equal(first.inputs_BT, again.inputs_BT) and not torch.equal(first.at_BP, other.at_BP)
    root = masked_lm.root(TINY)
    whole = masked_lm.training_rows(root, 7, LocalRun())
    halves = [masked_lm.training_rows(root, 7, LocalRun(rank=rank, workers=2)) for rank in (0, 1)]
    for part in range(3):
        assert torch.equal(whole[part], torch.cat([half[part] for half in halves]))
    assert not torch.equal(whole.inputs_BT, masked_lm.training_rows(root, 8, LocalRun()).inputs_BT)


def test_a_row_has_at_least_one_masked_token_even_where_all_is_the_end_of_a_document():
    assert [masked_tokens(16, rate) for rate in (0.01, 0.15, 0.5)] == [1, 2, 8]
    rows = masked_rows(np.zeros((2, 4), np.uint8), 0.25, BYTES, "test")
    assert rows.targets_BP.tolist() == [[0], [0]]


def test_the_baseline_is_the_share_of_each_token():
    text = np.array([5, 5, 5, 9, 0, 9, 5, 0])
    nats = unigram_nats(text, BYTES)
    counts = Counter([5, 5, 5, 9, 9, 5])
    for token in (5, 9, 77):
        assert float(nats[token]) == pytest.approx(-log((counts[token] + 1) / (6 + BYTES.vocabulary)))
    assert float(torch.exp(-nats).sum()) == pytest.approx(1.0)


def test_the_baseline_leaves_out_unknown_words_which_are_not_masked():
    text = np.array([5, 5, UNKNOWN, UNKNOWN, UNKNOWN, 9])
    assert torch.equal(unigram_nats(text, BYTES), unigram_nats(np.array([5, 5, 9]), BYTES))


def test_the_byte_encoding_is_utf8_and_frames_a_text():
    tokenizer, text = byte_tokenizer(), "Größe \t of\n[x] 你"
    encoded = tokenizer.encode(text)
    assert encoded.ids == [BYTES.cls, *text.encode(), BYTES.sep]
    assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("a [MASK]").ids == [BYTES.cls, 97, 32, BYTES.mask, BYTES.sep]
    assert (BYTES.vocabulary, len(BYTES.ordinary)) == (261, 255)


def test_a_word_piece_encoding_is_trained_kept_and_found_by_its_name(texts, capsys):
    with pytest.raises(ValueError, match=r"train it: python -m trainables.common.data.wordpiece \S+ --vocabulary 600"):
        open_encoded(str(texts), "wordpiece-600")
    assert wordpiece.main([str(texts), "--vocabulary", "100"]) == 1 and "vocabulary >=" in capsys.readouterr().err
    assert wordpiece.main([str(texts), "--vocabulary", "99999"]) == 1 and "lower --vocab" in capsys.readouterr().err


def test_word_pieces_are_lower_case_words_between_special_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(wordpiece, "ALPHABET", 30)
    documents = [f"{a} {b} {c}".encode() for a in WORDS for b in WORDS for c in WORDS[:4]]
    tokenizer = train_wordpiece(documents, 90)
    assert tokenizer.encode("River Stone").tokens == ["[CLS]", "river", "stone", "[SEP]"]
    file = tmp_path / "own.json"
    tokenizer.save(str(file))
    corpus, masking = open_encoded(str(write(tmp_path / "corpus", documents)), str(file))
    assert corpus.vocabulary == masking.vocabulary == 90 and masking.end not in masking.ordinary
    assert set(np.unique(corpus.train.tokens)) <= {*masking.ordinary, masking.end}
    text = tokenizer.decode(corpus.train.tokens[corpus.train.boundaries[0] : corpus.train.boundaries[1]].tolist())
    assert text.encode() in documents


def write(folder: Path, documents: list[bytes]) -> Path:
    folder.mkdir()
    for number, document in enumerate(documents):
        (folder / f"{number}.txt").write_bytes(document)
    return folder


def test_an_encoding_without_a_mask_is_refused(tmp_path):
    file = tmp_path / "bpe.json"
    train_tokenizer([b"one two three"], 258).save(str(file))
    with pytest.raises(ValueError, match=r"\[PAD\], \[UNK\].*this one lacks .*\[MASK\].*train one"):
        open_encoded("pycode", str(file))


# Configs and timelines


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(method="cosine"), "no method 'cosine'; there are wsd, constant"),
        (dict(decay_shape="steep"), "no decay_shape 'steep'"),
        (dict(precision="fp16"), "no precision 'fp16'"),
        (dict(peak_lr=0.0), "peak_lr must be above 0, got 0.0"),
        (dict(min_lr_ratio=1.0), r"min_lr_ratio must be in \[0, 1\), got 1.0"),
        (dict(decay_fraction=0.0), r"decay_fraction must be in \(0, 1\], got 0.0"),
        (dict(decay_fraction=0.95), "lower decay_fraction or raise the budget"),
        (dict(mask_rate=1.0), r"mask_rate must be in \(0, 1\), got 1.0"),
        (dict(context=2), "context must be above 2"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(windows_per_document=0), "windows_per_document must be at least 1"),
        (dict(heads=3), "width must be a multiple of heads"),
        (dict(method="constant", decay_fraction=0.1), "decay_fraction does nothing under method=constant"),
        (dict(corpus="no-such-corpus"), "no corpus 'no-such-corpus'"),
        (dict(weight_decay=-0.1), "weight_decay must be at least 0, got -0.1"),
        (dict(weight_decay=float("nan")), "weight_decay must be at least 0, got nan"),
        (dict(peak_lr=float("inf")), "peak_lr must be finite, got inf"),
        (dict(beta1=1.0), r"beta1 must be in \[0, 1\), got 1.0"),
        (dict(beta2=-0.1), r"beta2 must be in \[0, 1\), got -0.1"),
        (dict(report_documents=10**6), "lower the number of documents"),
        (dict(select_tokens=1), "needs at least one window"),
        (dict(context=10**8), "lower the context or give more text"),
    ],
)
def test_what_no_training_can_honour_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        masked_lm.root(Config(**values))


def test_budgets_share_the_trunk_and_constant_lies_on_it():
    short, long = (place(masked_lm.timeline(Config(budget_steps=budget))) for budget in (500, 1000))
    flat = place(masked_lm.timeline(Config(method="constant", budget_steps=1000)))
    assert (common_steps(short, long), common_steps(long, flat)) == (400, 800)
    rates = [knobs_at(masked_lm.timeline(Config(budget_steps=500)), step)["lr"] for step in (0, 99, 399, 400, 450, 499)]
    assert rates == pytest.approx([1e-5, 1e-3, 1e-3, 1e-3, 5e-4, 1e-5])
    branch = masked_lm.branch(Config(method="constant", budget_steps=1000), 800, 200, "linear")
    assert branch == Config(budget_steps=1000)
    with pytest.raises(ValueError, match=r"step 900 is not in the stable stretch of this trial; stable: 100\.\.800"):
        masked_lm.branch(Config(), 900, 10, "linear")


def test_a_family_leaves_what_a_constant_rate_does_not_read():
    values = {"method": "constant", "decay_fraction": 0.4, "decay_shape": "cosine"}
    assert masked_lm.family(values, [200, 400]) == [Config(method="constant", budget_steps=b) for b in (200, 400)]


# Training


def test_training_is_a_plain_loop_over_transformers_own_model():
    config = replace(TINY, budget_steps=12, decay_fraction=0.5, weight_decay=0.1)
    stage, root = train(masked_lm.STUDY, config, keep=True), masked_lm.root(config)
    model = bert(masked_lm.shape_of(root))
    first = Encoder(masked_lm.shape_of(root), torch.Generator().manual_seed(root.seed))
    model.load_state_dict(first.state_dict(), strict=False)
    model.tie_weights()
    matrices = [p for name, p in model.named_parameters() if p.dim() > 1 and "embeddings" not in name]
    others = [p for p in model.parameters() if not any(p is q for q in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)
    for step in range(12):
        rows = masked_lm.training_rows(root, step, LocalRun())
        labels = torch.full_like(rows.inputs_BT, -100).scatter(1, rows.at_BP, rows.targets_BP)
        for group in optimizer.param_groups:
            group["lr"] = config.peak_lr * min(1.0, (step + 1) / 4, 1 - (step - 6) / 6)
        optimizer.zero_grad()
        model(rows.inputs_BT, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
    for name, value in model.named_parameters():
        assert torch.allclose(stage.tensors["model." + name], value, atol=2e-5), name


def test_measurements_are_cross_entropies_and_shares_over_all_masked_tokens():
    stage, root = train(masked_lm.STUDY, TINY, keep=True), masked_lm.root(TINY)
    state = masked_lm.start(root, LocalRun())
    state.load_tensors(stage.tensors)
    metrics, arrays = stage.rows[-1].metrics, stage.rows[-1].arrays
    for split, rows in (("select", state.select), ("report", state.report)):
        with torch.no_grad():
            logits = state.model(rows.inputs_BT)
        nats, right = [], []
        for row in range(len(logits)):
            for at, target in zip(rows.at_BP[row], rows.targets_BP[row], strict=True):
                nats.append(-float(logits[row, at].double().log_softmax(0)[target]))
                right.append(int(logits[row, at].argmax()) == int(target))
        assert metrics[f"{split}/loss"] == pytest.approx(np.mean(nats), rel=1e-5)
        assert metrics[f"{split}/accuracy"] == pytest.approx(np.mean(right))
    documents = arrays["report/document_losses"]
    assert len(documents) == TINY.report_documents and np.mean(documents) == pytest.approx(metrics["report/loss"])
    common = Counter(state.corpus.train.tokens[state.corpus.train.tokens != 0].tolist()).most_common(1)[0][0]
    assert metrics["report/unigram_accuracy"] == float((state.report.targets_BP == common).double().mean())
    assert metrics["report/unigram_loss"] < log(state.masking.vocabulary)


def test_held_out_masks_do_not_depend_on_the_seed():
    states = [masked_lm.start(masked_lm.root(replace(TINY, seed=seed)), LocalRun()) for seed in (0, 1)]
    for split in ("select", "report"):
        one, other = (getattr(state, split) for state in states)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert states[0].select.inputs_BT.shape == (512 // (TINY.context - FRAME), TINY.context)


def test_the_root_knows_the_text_and_its_encoding(texts):
    values = {name: getattr(TINY, name) for name in ("width", "layers", "heads", "ffn_width", "context", "batch_size")}
    config = Config(**values, corpus=str(texts), select_tokens=256, report_documents=4, windows_per_document=1)
    key = masked_lm.STUDY.root_key(masked_lm.root(config))
    assert key != masked_lm.STUDY.root_key(masked_lm.root(replace(config, corpus="pycode")))
    file = texts.parent / "own.json"
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(file))
    assert key != masked_lm.STUDY.root_key(masked_lm.root(replace(config, tokenizer=str(file))))


# A folder for transformers


def test_kept_states_are_exported_by_name_and_read_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    results, console = tmp_path / "results", Console(file=io.StringIO())
    question = Question("masked_lm", masked_lm.STUDY, about="")
    words = ["scale=tiny", "preset=pretrain", "executor=local", "tracking=none", f"results={results}"]
    assert sweep(question, words, console) is not None
    logits = {}
    for budget in (20, 40):
        out = tmp_path / f"own-{budget}"
        export(results, f"mlm wsd B={budget} s0", out)
        assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
        model = transformers.AutoModelForMaskedLM.from_pretrained(out, local_files_only=True).eval()
        _, config, _ = find_trial(results, f"mlm wsd B={budget} s0")
        assert config.budget_steps == budget
        tensors = train(masked_lm.STUDY, config, keep=True).tensors
        own = Encoder(masked_lm.shape_of(masked_lm.root(config)), torch.Generator())
        own.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
        short = tokenizer("as [MASK].", return_tensors="pt")["input_ids"]
        assert short.tolist() == [[BYTES.cls, *b"as ", BYTES.mask, ord("."), BYTES.sep]]
        assert tokenizer.mask_token_id == BYTES.mask and tokenizer.pad_token_id == BYTES.pad
        with torch.no_grad():
            logits[budget] = model(short).logits
            assert torch.allclose(logits[budget], own(short), atol=1e-5)
    assert not torch.allclose(logits[20], logits[40])
    with pytest.raises(FileExistsError, match="is not empty"):
        export(results, "mlm wsd B=40 s0", tmp_path / "own-40")


def test_an_exported_encoder_gives_the_one_it_was_before_its_first_step(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    root = masked_lm.root(replace(TINY, seed=3))
    trained, out, other = tmp_path / "trained", tmp_path / "own-0", tmp_path / "other"
    trained.mkdir()
    for name, content in masked_lm.files(root).items():
        (trained / name).write_bytes(content)
    assert encoder_folder.main([str(trained), str(out)]) == 0 and "written" in capsys.readouterr().out
    assert encoder_folder.main([str(trained), str(other), "--seed", "4"]) == 0
    first = masked_lm.start(root, LocalRun()).tensors()
    found = dict(transformers.AutoModelForMaskedLM.from_pretrained(out, local_files_only=True).named_parameters())
    for name, value in first.items():
        if name.startswith("model."):
            assert torch.equal(found[name.removeprefix("model.")], value), name
    moved = dict(transformers.AutoModelForMaskedLM.from_pretrained(other, local_files_only=True).named_parameters())
    embedding = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(moved[embedding], found[embedding])
    assert encoder_folder.main([str(trained), str(out)]) == 1 and "is not empty" in capsys.readouterr().err
    assert encoder_folder.main([str(tmp_path), str(tmp_path / "x")]) == 1 and "export" in capsys.readouterr().err
