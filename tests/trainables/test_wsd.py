"""The WSD study against the author's configs and costs, cross-entropy by hand, and the same training done plainly."""

from __future__ import annotations

from dataclasses import fields, replace
from math import log
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from trainables import wsd, wsd_schedules
from trainables.common.data.batches import batch
from trainables.common.schedules import boundaries
from trainables.common.timeline import SHAPES, knobs_at, total_steps
from trainables.study import LocalRun
from trainables.walk import train

TINY = wsd.STUDY.tiny
AUTHOR = dict(warmup_steps=2_000, min_lr_ratio=0.1)


def ends(config):
    return [step for step in boundaries(wsd.timeline(config)) if step != 2_000]


def largest(method, budgets, **values):
    return wsd.family({**AUTHOR, "method": method, **values}, budgets)[-1]


BUDGETS = [12_500, 25_000, 50_000]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (largest("wsd_s", BUDGETS), [11_250, 12_500, 23_750, 26_250, 48_750, 53_750]),
        (largest("wsd_s", BUDGETS[:2]), [11_250, 12_500, 23_750, 26_250]),
        (largest("wsd_s", BUDGETS[:2], accounting="budget"), [11_250, 12_500, 22_500, 25_000]),
        (
            largest("wsd_s", BUDGETS[:2], accounting="budget", decay_fractions=(0.1, 0.14)),
            [11_250, 12_500, 21_500, 25_000],
        ),
        (
            largest("wsd_s", BUDGETS, decay_fractions=(0.1, 0.2, 0.3)),
            [11_250, 12_500, 21_250, 26_250, 41_250, 56_250],
        ),
        (largest("wsd", BUDGETS[:1]), [11_250, 12_500]),
        (largest("wsd", BUDGETS[:2]), [22_500, 25_000]),
        (largest("cyclic_cosine", BUDGETS[:2], rewarmup_steps=2_000), [12_500, 14_500, 25_000]),
        (largest("constant", BUDGETS), [50_000]),
        (largest("cosine", BUDGETS), [50_000]),
    ],
)
def test_the_authors_boundaries_come_out_exactly(config, expected):
    assert ends(config) == expected


def test_a_family_holds_one_config_per_budget_whose_earlier_budgets_are_on_its_way():
    for method in get_args(wsd_schedules.Method):
        configs = wsd.family({**AUTHOR, "method": method}, BUDGETS)
        assert [config.budget_steps for config in configs] == BUDGETS
        carries = method in ("wsd_s", "cyclic_cosine")
        assert [config.earlier_budgets for config in configs] == [
            tuple(BUDGETS[:index]) if carries else () for index in range(3)
        ]


def test_the_path_of_a_smaller_budget_is_the_beginning_of_the_larger_ones():
    for method in ("wsd_s", "cyclic_cosine"):
        small, large = wsd.family({"method": method, "warmup_steps": 4}, [40, 80])
        steps = total_steps(wsd.timeline(small))
        assert [knobs_at(wsd.timeline(small), t) for t in range(steps)] == [
            knobs_at(wsd.timeline(large), t) for t in range(steps)
        ]


def test_what_a_method_does_not_read_is_left_at_its_default_and_refused_otherwise():
    values = {"method": "cosine", "decay_fraction": 0.3, "decay_shape": "cosine", "min_lr_ratio": 0.2}
    (config,) = wsd.family(values, [400])
    assert (config.decay_fraction, config.decay_shape, config.min_lr_ratio) == (0.1, "linear", 0.2)
    with pytest.raises(ValueError, match=r"decay_fraction does nothing under method 'cosine', got 0.3; leave it at"):
        wsd.Config(method="cosine", decay_fraction=0.3)


@pytest.mark.parametrize("method", get_args(wsd_schedules.Method))
def test_every_schedule_field_is_read_by_the_methods_that_say_so_and_by_no_other(method):
    base = wsd.family({"method": method, "warmup_steps": 4}, [40, 80])[-1]
    changed = {
        "min_lr_ratio": 0.3,
        "decay_fraction": 0.2,
        "decay_shape": "cosine",
        "decay_basis": "period",
        "accounting": "budget",
        "rewarmup_steps": 3,
    }
    for name, value in changed.items():
        values = {"method": method, "warmup_steps": 4, name: value}
        moved = wsd.timeline(wsd.family(values, [40, 80])[-1]) != wsd.timeline(base)
        assert moved == (name in wsd_schedules.SCHEDULE_FIELDS[method]), name


def test_the_ablations():
    assert {knobs_at(wsd.timeline(wsd.Config(method="constant")), t)["lr"] for t in range(40, 1600)} == {3e-3}
    low = wsd.timeline(wsd.Config(method="low_constant"))
    assert {round(knobs_at(low, t)["lr"], 12) for t in range(40, 1600)} == {3e-4}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_ends_one_step_before_its_low_rate(shape):
    config = wsd.Config(decay_shape=shape, budget_steps=400, decay_fraction=0.25)
    last = [knobs_at(wsd.timeline(config), step)["lr"] for step in (299, 300, 399)]
    assert last[0] == last[1] == 3e-3 and 3e-4 < last[2] < 4.5e-4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(method="sgd"), "no method 'sgd'; there are wsd"),
        (dict(budget_steps=0), "budgets must increase from at least 1"),
        (
            dict(method="wsd_s", earlier_budgets=(800, 400)),
            r"budgets must increase .*got \(800, 400, 1600\); sort them",
        ),
        (dict(method="wsd_s", earlier_budgets=(1600,)), "budgets must increase"),
        (dict(peak_lr=0.0), "peak_lr must be above 0, got 0.0"),
        (dict(peak_lr=float("nan")), "peak_lr must be above 0"),
        (dict(peak_lr=float("inf")), "finite|peak_lr"),
        (dict(min_lr_ratio=1.0), r"min_lr_ratio must be in \[0, 1\), got 1.0"),
        (dict(min_lr_ratio=0.0, decay_shape="inverse"), "both ends above 0"),
        (dict(min_lr_ratio=0.0, decay_shape="exponential"), "both ends above 0"),
        (dict(decay_shape="steep"), "no decay_shape 'steep'"),
        (
            dict(decay_fraction=0.99),
            r"warmup \+ decay <= budget, got 40 \+ 1584 > 1600; lower decay_fraction or raise the budget",
        ),
        (dict(decay_fraction=0.0), r"in \(0, 1\]"),
        (dict(decay_fraction=1.01), r"in \(0, 1\]"),
        (dict(warmup_steps=1600), "warmup"),
        (dict(warmup_steps=-1), "warmup|steps >= 0"),
        (dict(method="wsd_s", earlier_budgets=(400,), decay_fractions=(0.1,)), "one entry per budget"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (
            dict(method="wsd_s", earlier_budgets=(1500,), accounting="budget", decay_fraction=0.1),
            "fit between budgets 1500 and 1600",
        ),
        (dict(heads=3), "width|heads"),
        (dict(micro_batch_size=0), "micro_batch_size"),
        (dict(precision="fp8"), "precision"),
        (dict(clip_norm=0.0), "clip_norm"),
    ],
)
def test_what_no_training_can_honour_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        wsd.Config(**values)


# Training


def plainly(config):
    """The same training as a plain loop over torch, without timelines, spans, walks or states."""
    root = wsd.root(config)
    model = wsd.make_model(root)
    tokens = wsd.corpus_of(root.corpus, root.tokenizer).train.tokens
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name and "norm" not in name]
    others = [p for p in model.parameters() if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
    )
    decay = round(config.decay_fraction * config.budget_steps)
    for step in range(config.budget_steps):
        inputs, targets = batch(tokens, step, root.seed, root.batch_size, root.context, torch.device("cpu"))
        rate = config.peak_lr * min(1.0, (step + 1) / config.warmup_steps)
        done = step - (config.budget_steps - decay)
        if done > 0:
            rate = config.peak_lr * (1 - (1 - config.min_lr_ratio) * done / decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
    return model


def test_training_is_a_plain_loop_of_adamw():
    stage = train(wsd.STUDY, replace(TINY, decay_fraction=0.5), keep=True)
    plain = dict(plainly(replace(TINY, decay_fraction=0.5)).named_parameters())
    found = {name.removeprefix("model."): value for name, value in stage.tensors.items() if name.startswith("model.")}
    assert set(plain) <= set(found)
    for name, value in plain.items():
        assert torch.allclose(found[name], value, atol=2e-5), name  # fused against the default AdamW


def test_measurements_are_cross_entropies_per_token_on_disjoint_data():
    stage = train(wsd.STUDY, TINY, keep=True)
    root = wsd.root(TINY)
    state = wsd.start(root, LocalRun())
    state.load_tensors(stage.tensors)
    corpus = wsd.corpus_of(root.corpus, root.tokenizer)
    metrics = stage.rows[-1].metrics
    with torch.no_grad():
        for windows, name in ((state.select, "select/loss"), (state.report, "report/loss")):
            nats = -F.log_softmax(state.model(windows.inputs_NT), -1).gather(2, windows.targets_NT.long().unsqueeze(2))
            assert metrics[name] == pytest.approx(float(nats.double().mean()), rel=1e-5)
            if name == "report/loss":
                assert metrics["report/bits_per_byte"] == pytest.approx(
                    float(nats.sum()) / log(2) / windows.bytes, rel=1e-5
                )
    assert len(stage.rows[-1].arrays["report/document_losses"]) == TINY.report_documents
    assert 0.5 * log(corpus.vocabulary) < metrics["report/loss"] < log(corpus.vocabulary)  # it has learned something


def test_accumulated_micro_batches_are_the_whole_batch():
    whole = train(wsd.STUDY, TINY).rows[-1].metrics["select/loss"]
    parts = train(wsd.STUDY, replace(TINY, micro_batch_size=1)).rows[-1].metrics["select/loss"]
    assert parts == pytest.approx(whole, rel=1e-4) and parts != 0


def test_a_branch_off_a_trunk_is_the_wsd_config_with_that_decay():
    trunk = replace(TINY, method="constant", min_lr_ratio=0.1, decay_fraction=0.1)
    branch = wsd.branch(trunk, 30, 10, "cosine")
    assert ends(replace(branch, warmup_steps=0)) == [30, 40] and branch.decay_shape == "cosine"
    assert wsd.branch(replace(TINY, budget_steps=40), 7, 13, "linear").decay_steps == [13]
    with pytest.raises(ValueError, match="step 39 is not in a first stable stretch"):
        wsd.branch(TINY, 39, 5, "linear")


def test_every_field_says_its_unit_or_range_or_speaks_for_itself():
    assert {item.name for item in fields(wsd.Config)} >= {"budget_steps", "peak_lr", "decay_fraction", "min_lr_ratio"}
    assert wsd.describe(
        wsd.Config(peak_lr=3e-3, budget_steps=2000), ["peak_lr", "budget_steps", "decay_fraction", "seed"]
    ) == ("wsd lr=3e-3 B=2000 f=.1 s0")
