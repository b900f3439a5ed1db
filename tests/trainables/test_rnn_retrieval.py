"""The study of retrieval against torch's optimizer and closed forms: equal sizes, steps, bits, and who recalls."""

from dataclasses import replace
from itertools import product
from math import cos, pi
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import load, parse, resolve
from search_spaces.fields import field_types
from trainables import rnn_retrieval
from trainables.common.retrieval import generation
from trainables.common.retrieval.models import SIZES, Model, architecture, block_parameters, initial_weights
from trainables.common.retrieval.recall import Recall
from trainables.common.sequence.network import logits
from trainables.common.streams import Streams
from trainables.pack import train_pack
from trainables.rnn_retrieval import Config, Lessons
from trainables.study import LocalRun

MODELS = get_args(Model)
TINY = rnn_retrieval.STUDY.tiny
CPU = torch.device("cpu")


def packed(*configs):
    stages = {}
    train_pack(rnn_retrieval.STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    assert not any(stage.error for stage in stages.values()), [stage.error for stage in stages.values()]
    return [stages[lane] for lane in range(len(configs))]


def last(stage):
    return stage.rows[-1].metrics


@pytest.mark.parametrize("size", list(SIZES))
def test_models_of_a_size_have_equally_many_parameters_or_are_refused(size):
    found = {}
    for model in MODELS:
        try:
            found[model] = block_parameters(architecture(model, size, Recall(4, 4, 2), "rotary", "learned"))
        except ValueError as refusal:
            assert "take another model" in str(refusal) and model == "lstm" and size in ("1M", "2M")
    wanted = SIZES[size].parameters
    assert len(found) >= 6 and all(abs(count / wanted - 1) < 0.1 for count in found.values()), found
    if size in ("1k", "4k", "16k", "0.1M"):
        assert all(abs(count / wanted - 1) < 0.02 for count in found.values()), found


def test_the_widths_and_blocks_of_half_a_million_to_two_million_are_the_authors():
    """Hidden x layers of Transformer, recurrent net, and hybrid with its one layer of attention (arXiv:2402.18510)."""
    wanted = {
        "0.5M": [(64, 8), (64, 16), (64, 13)], "1M": [(64, 16), (128, 10), (128, 8)],
        "2M": [(128, 12), (128, 18), (128, 15)],
    }  # fmt: skip
    for size, sizes in wanted.items():
        nets = [
            architecture(model, size, Recall(4, 4), "rotary", "sinusoidal")
            for model in ("transformer", "ssm", "ssm_hybrid")
        ]
        assert [(net.width, len(net.mixers)) for net in nets] == sizes


@pytest.mark.parametrize("model", ["gru_hybrid", "lstm_hybrid", "ssm_hybrid"])
def test_a_hybrid_without_gain_is_its_block_of_attention_alone(model):
    task = Recall(5, 4, 2)
    net = architecture(model, "1k", task, "none", "learned")
    tokens = task.inputs(task.rows(Streams([0, 1], "test"), 0, 6).tokens_PBT)
    weights = initial_weights(net, [0, 1], torch.tensor([1e-9, 1.0]), "cpu")
    alone = {name.replace("block1.", "block0."): value for name, value in weights.items() if "block0." not in name}
    difference = (
        logits(net, weights, tokens) - logits(replace(net, mixers=("attention",)), alone, tokens)
    ).abs().amax((1, 2, 3))  # fmt: skip
    assert difference[0] < 1e-5 < 1e-3 < difference[1]


@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_training_is_that_of_torch_with_adamw_a_warm_cosine_and_clipping(model):
    config = replace(TINY, model=model, budget_steps=12, warmup_steps=5, weight_decay=0.3, clip=0.2, learning_rate=0.02)
    lessons = Lessons([replace(config, seed=7), config], CPU)
    own = {name: value[1:].clone().requires_grad_() for name, value in lessons.weights.items()}
    groups = [
        {"params": [w for w in own.values() if w.ndim > 2], "weight_decay": 0.3},
        {"params": [w for w in own.values() if w.ndim <= 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.02)
    for step in range(6):
        rows = lessons.task.rows(lessons.streams["train"].kept(torch.tensor([1])), step, config.batch_size)
        loss = generation.loss(lessons.net, own, generation.predictions(lessons.task, rows)).sum()
        reference.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(own.values()), 0.2)
        for group in reference.param_groups:
            group["lr"] = 0.02 * min(1, (step + 1) / 5) * 0.5 * (1 + cos(pi * step / 12))
        reference.step()
        lessons.step()
        assert lessons.lanes["loss"][1].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, value in own.items():
        torch.testing.assert_close(lessons.weights[name][1:], value.detach(), rtol=2e-3, atol=2e-4)


def test_a_transformer_recalls_three_pairs_and_a_gru_two():
    easy = replace(TINY, positions="none", batch_size=32, budget_steps=400, warmup_steps=20, measure_every=100)
    easy = replace(easy, learning_rate=0.02, report_batches=8)
    (pairs,) = packed(replace(easy, length=3, questions=3))
    (two,) = packed(replace(easy, length=2, model="gru"))
    for stage in (pairs, two):
        assert last(stage)["report/accuracy"] > 0.97 and last(stage)["report/match"] > 0.95
    assert last(pairs)["chance"] == 0.25 and last(pairs)["required_bits"] == 6


def test_a_net_whose_state_is_too_small_is_told_so_by_its_ceiling():
    row = rnn_retrieval.demanded(Config(model="gru", size="4k", length=96, values=64))
    assert (row["state_bits"], row["required_bits"]) == (16 * 32, 96 * 6)
    assert row["ceiling"] < 0.95
    cached = rnn_retrieval.demanded(Config(model="gru_hybrid", size="4k", length=96, values=64))
    assert cached["state_bits"] == 32 * (16 + 2 * 16 * 97) and cached["ceiling"] == 1


def test_the_loss_fall_is_that_since_three_quarters_of_the_budget():
    for every, at in ((10, 30), (7, 28), (40, None)):
        (stage,) = packed(replace(TINY, measure_every=every))
        losses = {row.step: row.metrics["select/loss"] for row in stage.rows}
        if at is None:
            assert "report/loss_fall" not in last(stage)
        else:
            assert last(stage)["report/loss_fall"] == pytest.approx(losses[at] - losses[40], abs=1e-9)


def test_a_fixed_training_set_is_one_for_all_seeds_and_fresh_rows_do_not_come_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path))

    def seen(train_rows):
        lessons = Lessons([replace(TINY, train_rows=train_rows, seed=seed) for seed in (0, 1)], torch.device("cpu"))
        batches = [lessons.source.rows(lessons.streams["train"], step, 16).tokens_PBT for step in range(6)]
        return [{tuple(row) for row in lane.tolist()} for lane in torch.cat(batches, 1)]

    first, second = seen(8)
    assert first == second and len(first) == 8
    assert seen(8) == [first, second] and len(list(tmp_path.rglob("*.parquet"))) == 1
    assert all(len(rows) > 80 for rows in seen(None))


def test_select_and_report_see_different_rows():
    lessons = Lessons([TINY], CPU)
    both = [lessons.task.rows(lessons.streams[name], 0, 8).tokens_PBT for name in ("train", "select", "report")]
    assert not any(torch.equal(one, other) for one, other in ((both[0], both[1]), (both[0], both[2]), both[1:]))


@pytest.mark.parametrize("model", ["transformer", "gru_hybrid", "ssm"])
def test_flops_of_a_step_are_those_that_torch_counts_in_its_matrix_products(model):
    config = Config(model=model, length=12, values=8, size="4k", positions="none")
    lessons = Lessons([config], CPU)
    with FlopCounterMode(display=False) as counter:
        lessons.step()
    told = rnn_retrieval.units(config)["flops"]
    assert 0.6 * told < counter.get_total_flops() < 1.1 * told  # inputs need no gradient, and scans are not counted


def test_every_trial_of_every_preset_is_a_config():
    file, types = load("rnn_retrieval"), field_types(Config)
    for scale in file.scales:
        for preset in file.presets_at(scale):
            found = resolve(file, scale, preset)
            axes = parse(found.axes, fields=types, conditions=rnn_retrieval.STUDY.conditions, cells=found.cells)
            for values in product(*axes.enumerated.values()):
                chosen = dict(zip(axes.enumerated, values, strict=True))
                Config(**{**axes.pinned, **found.study_in({**axes.pinned, **chosen}), **chosen})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(model="lstm", size="1M"), "take another model"),
        (dict(recurrent_gain=0.5), "a transformer has no recurrent_gain"),
        (dict(train_rows=0), "train_rows must be at least 1, got 0; null"),
        (dict(warmup_steps=41), "warmup_steps in"),
        (dict(clip=0.0), "clip=null is off"),
        (dict(questions=5), "1 to 4 questions"),
    ],
)
def test_what_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **values)
