"""Probe, controls and cut blocks against brute force, scores against transformers, accuracy against scikit-learn."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainables.common.skills import evaluation, perturbing, predictivity, settings, texts
from trainables.common.skills.encoders import encoder_source, load_encoder
from trainables.common.skills.perturbing import disturbance, top_neurons
from trainables.common.skills.predictivity import Probe, accuracies, active_counts, activity_of, class_groups, order_of
from trainables.common.skills.tuned import LOGIT_SCALE
from trainables.common.timeline import place
from trainables.skill_neurons import STUDY, Config, advance, measure, root, start
from trainables.study import LocalRun, Span
from trainables.walk import train

TINY = STUDY.tiny
RUN = LocalRun()


@cache
def state(**changes):
    return start(root(replace(TINY, **changes)), RUN)


@cache
def after_probe():
    """A tiny trial's state after prompt training and probe."""
    found = start(root(TINY), RUN)
    for part in place(STUDY.timeline(TINY))[:3]:
        advance(found, part, Span(part.start, part.stop), RUN)
    return found


def all_activations(tuned, rows, one_by_one=False):
    """Activations of each text alone, unpadded: [N] of [L, P + T, F]."""
    found = []
    for row in range(len(rows)):
        layers = []
        with torch.no_grad(), tuned.watching(lambda layer, values, layers=layers: layers.append(values[0].clone())):
            tuned(rows.batch([row]))
        found.append(torch.stack(layers))
    return found


def test_one_pass_gives_the_predictivity_that_all_activations_at_once_give():
    found = after_probe()
    tuned, source = found.tuned, found.source
    P = tuned.positions
    trained = all_activations(tuned, found.task.train)
    activity = activity_of(tuned, found.task.train, source.layers, source.neurons)
    baseline = torch.stack([one[:, :P] for one in trained]).mean(0)
    assert torch.allclose(activity.baseline, baseline, atol=1e-5)
    tokens = torch.cat([one.transpose(0, 1) for one in trained])  # [all positions of all texts, L, F]
    assert torch.allclose(activity.mean, tokens.mean(0), atol=1e-5)
    assert torch.allclose(activity.spread, tokens.std(0, correction=0), atol=1e-5)

    dev = torch.stack([one[:, :P] for one in all_activations(tuned, found.task.dev)])
    labels = found.task.dev.labels
    brute = ((dev > activity.baseline) == labels.view(-1, 1, 1, 1).bool()).float().mean(0)
    best = torch.maximum(brute, 1 - brute).amax(1)
    told = found.extra["predictivity"][0]
    # An activation within rounding of its baseline may fall on either side: one text in sixteen.
    assert torch.allclose(told, best, atol=1.01 / len(labels)) and (told - best).abs().mean() < 0.01


def test_accuracies_are_scikit_learns_balanced_accuracy():
    from sklearn.metrics import balanced_accuracy_score

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=generator)
    above = torch.randint(2, (60, 4), generator=generator).float()
    groups = class_groups(labels, 3)
    ours = accuracies(groups @ above, groups.sum(1))
    # One class against the others, which weigh the same whatever their sizes.
    weights = 1 / groups.sum(1)[labels]
    for one in range(3):
        for neuron in range(4):
            theirs = balanced_accuracy_score(labels == one, above[:, neuron], sample_weight=weights)
            assert ours[one, neuron] == pytest.approx(theirs)


def test_neurons_chosen_on_dev_are_judged_on_test_with_the_sign_and_position_that_dev_chose():
    dev = Probe(torch.tensor([[[[0.2, 0.6], [0.7, 0.5]]]]))  # S=1, L=1, P=2, F=2
    test = Probe(torch.tensor([[[[0.3, 0.4], [0.9, 0.9]]]]))
    assert torch.allclose(dev.predictivity, torch.tensor([[[0.8, 0.6]]]))
    assert torch.allclose(dev.elsewhere(test), torch.tensor([[[0.7, 0.4]]]))


def test_a_choice_among_many_useless_neurons_looks_good_on_dev_and_is_chance_on_test():
    generator = torch.Generator().manual_seed(1)
    counts = [torch.randint(20, 31, (2, 1, 8, 500), generator=generator).float() for _ in range(2)]
    dev, test = (Probe(accuracies(one, torch.tensor([50.0, 50.0]))) for one in counts)
    chosen = predictivity.top_mean(dev.predictivity, dev.predictivity, 20)
    assert chosen > 0.58
    assert abs(predictivity.top_mean(dev.elsewhere(test), dev.predictivity, 20) - 0.5) < 0.03


def test_shuffled_labels_go_through_the_same_choice():
    """The null of 2 shuffles, from counts that are made anew for each."""
    found = after_probe()
    generator = torch.Generator().manual_seed(TINY.seed)
    parts = [found.task.dev, found.task.report]
    dealt = [[one.labels[torch.randperm(len(one), generator=generator)] for _ in range(TINY.shuffles)] for one in parts]
    baseline = activity_of(found.tuned, found.task.train, found.source.layers, found.source.neurons).baseline
    top = []
    for dev_labels, test_labels in zip(*dealt, strict=True):
        probes = []
        for part, labels in zip(parts, (dev_labels, test_labels), strict=True):
            groups = class_groups(labels, 2)
            probes.append(Probe(accuracies(active_counts(found.tuned, part, groups, baseline), groups.sum(1))))
        order = probes[0].predictivity
        top.append([predictivity.top_mean(order, order, TINY.top)])
        top[-1].append(predictivity.top_mean(probes[0].elsewhere(probes[1]), order, TINY.top))
    told = dict(zip(predictivity.TOLD, found.extra["told"].tolist(), strict=True))
    means = torch.tensor(top).mean(0)
    assert told["null_top_dev"] == pytest.approx(float(means[0])) and told["null_top_test"] == pytest.approx(
        float(means[1])
    )


def test_several_questions_share_the_places():
    places = order_of(torch.tensor([[[0.9, 0.5, 0.6, 0.55]], [[0.5, 0.9, 0.55, 0.6]]]))
    assert set(places[0, :2].tolist()) == {0, 1} and sorted(places[0].tolist()) == [0, 1, 2, 3]


def test_no_text_is_in_two_parts_and_the_parts_do_not_depend_on_the_seed():
    one, other = state().task, state(seed=5).task
    rows = [[tuple(row) for row in part.tokens] for part in (one.train, one.dev, one.select, one.report)]
    found = texts.sentences_of("templates")
    # Tokens of whole words keep texts apart but for capitals.
    assert len({text.lower() for text in found.train.texts}) == len(found.train.texts)
    for at, part in enumerate(rows):
        for later in rows[at + 1 :]:
            assert not set(part) & set(later)
    assert one.train.tokens == other.train.tokens and one.dev.tokens == other.dev.tokens
    assert [int(part.labels.sum()) for part in (one.train, one.dev)] == [8, 8]


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match=r"rarest class.*make them smaller"):
        root(replace(TINY, train_size=100_000))


def test_scores_are_transformers_own():
    found = state()
    batch = found.task.dev.batch([0, 1, 2])
    base = found.tuned.encoder.base
    with torch.no_grad(), found.tuned.unprompted():
        hidden = base(input_ids=batch.tokens, attention_mask=batch.present).last_hidden_state
        mean = (hidden * batch.present[..., None]).sum(1) / batch.present.sum(1)[:, None]
        words = []
        for word in ("negative", "positive"):
            ids = torch.tensor([found.tuned.encoder.tokenizer(word)["input_ids"]])
            words.append(base(input_ids=ids).last_hidden_state.mean(1)[0])
        wanted = LOGIT_SCALE * F.cosine_similarity(mean[:, None], torch.stack(words)[None], dim=-1)
        assert torch.allclose(found.tuned(batch), wanted, atol=1e-4)


def test_masked_scores_are_the_masked_models_logits_of_the_words():
    import transformers

    found = state(readout="mask")
    encoder = found.tuned.encoder
    model = transformers.BertForMaskedLM(encoder.base.config)
    model.bert.load_state_dict(encoder.base.state_dict())
    model.cls.load_state_dict(encoder.head.state_dict())
    model.eval()
    batch = found.task.dev.batch([0, 3])
    mask = torch.full((2, 1), encoder.tokenizer.mask_token_id)
    ids = torch.cat([mask, batch.tokens], 1)
    present = torch.cat([torch.ones(2, 1), batch.present], 1)
    words = [encoder.tokenizer.convert_tokens_to_ids(word) for word in ("negative", "positive")]
    with torch.no_grad(), found.tuned.unprompted():
        wanted = model(input_ids=ids, attention_mask=present).logits[:, 0, words]
        assert torch.allclose(found.tuned(batch), wanted, atol=1e-5)


def test_push_is_the_spread_of_what_noise_adds_to_a_layers_output():
    """Noise of one spread on the chosen neurons, through the output weights, against the closed form."""
    found = after_probe()
    arms = evaluation.Arms.of([1, 1.0, 0.25, 2, 0], found.extra, found.prunable.output_norm, 0)
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for layer, block in enumerate(found.tuned.encoder.blocks):
        noise = torch.randn(20_000, 32, generator=generator) * arms.spread_LF[layer] * arms.skill_LF[layer]
        sizes.append((noise @ block.output.dense.weight.T).square().sum(1).mean().sqrt())
    assert arms.push("skill") == pytest.approx(float(torch.stack(sizes).mean()), rel=0.02)


def test_cut_blocks_are_whole_ones_whose_other_neurons_are_at_their_mean():
    """The folded mean is of the removed neurons alone, so a cut encoder is one with these replaced by their mean."""
    found = after_probe()
    kept = top_neurons(order_of(found.extra["predictivity"]), 0.25)
    whole = evaluation.judged(found.tuned, found.task.select, None)
    replaced = disturbance("mean", ~kept, 1.0, found.extra["mean"], found.extra["spread"], 0)
    wanted = evaluation.judged(found.tuned, found.task.select, replaced)
    found.prunable.keep(kept, found.extra["mean"])
    assert found.tuned.encoder.blocks[0].intermediate.dense.weight.shape == (8, 16)
    assert evaluation.judged(found.tuned, found.task.select, None) == pytest.approx(wanted, abs=1e-5)
    found.prunable.keep(torch.ones_like(kept), found.extra["mean"])
    assert evaluation.judged(found.tuned, found.task.select, None) == whole != wanted


@pytest.mark.parametrize("tuning", ["prompt", "bitfit", "adapter"])
def test_training_changes_what_is_tuned_and_nothing_else(tuning):
    changes = {} if tuning == "prompt" else {"tuning": tuning, "backbone_steps": 3}
    config = replace(TINY, **changes)
    found = start(root(config), RUN)
    weights = {name: value.clone() for name, value in found.tuned.encoder.base.state_dict().items()}
    parts = {name: value.clone() for name, value in found.tensors().items()}
    placed = place(STUDY.timeline(config))
    part = placed[0] if tuning == "prompt" else placed[3]
    advance(found, part, Span(part.start, part.stop), RUN)
    moved = {name.split(".")[1] for name, value in found.tensors().items() if name in parts and "model" in name
             and not torch.equal(value, parts[name])}  # fmt: skip
    assert moved == {{"prompt": "prompt", "bitfit": "biases", "adapter": "adapters"}[tuning]}
    changed = {
        name for name, value in found.tuned.encoder.base.state_dict().items() if not torch.equal(value, weights[name])
    }
    assert all(name.endswith("bias") for name in changed) and bool(changed) == (tuning == "bitfit")


@pytest.mark.parametrize(
    "changes",
    [
        dict(action="prune", keep_fraction=0.25, retune_steps=2),
        dict(tuning="bitfit", backbone_steps=2),
        dict(tuning="adapter", backbone_steps=2),
    ],
)
def test_a_state_put_into_another_object_goes_on_as_if_nothing_had_happened(changes):
    config = replace(TINY, **changes)
    straight = start(root(config), RUN)
    *before, last = place(STUDY.timeline(config))
    for part in before:
        advance(straight, part, Span(part.start, part.stop), RUN)
    kept = {name: value.clone() for name, value in straight.tensors().items()}
    other = start(root(config), RUN)
    other.load_tensors(kept)
    rows = []
    for one in (straight, other):
        advance(one, last, Span(last.start, last.stop), RUN)
        told = measure(one, RUN, True)
        rows.append({name: value for name, value in told.items() if name != "report/cpu_speed_up"})
    assert rows[0] == rows[1]


def test_a_cut_trial_tells_what_is_left():
    rows = train(STUDY, replace(TINY, action="prune", keep_fraction=0.25, retune_steps=2)).rows
    assert [row.full for row in rows[-3:]] == [True, True, True]
    last = rows[-1].metrics
    source = encoder_source("tiny")
    encoder = load_encoder(source, 0, ["one"])
    of_blocks = [p.numel() for name, p in encoder.base.encoder.named_parameters() if "LayerNorm" not in name]
    gone = 2 * 24 * (16 + 1 + 16)  # two layers, 24 of 32 neurons each: weights in, bias, weights out
    assert last["report/parameters_kept"] == pytest.approx(1 - gone / sum(of_blocks))
    assert last["report/neurons_kept"] == 16 and last["report/cpu_speed_up"] > 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(kind="loud"), "there are noise"),
        (dict(learning_rate=0.0), "above 0"),
        (dict(fraction=0.7), r"in \[1e-09, 0.5\]"),
        (dict(kind="zero", size=2.0), "size does nothing"),
        (dict(action="probe", fraction=0.2), "fraction does nothing"),
        (dict(action="prune", tuning="bitfit"), "take tuning=prompt"),
        (dict(verbaliser="good"), "a word for each class"),
        (dict(budget_steps=0), "at least 1"),
    ],
)
def test_a_config_refuses_what_it_cannot_honour(values, words):
    with pytest.raises(ValueError, match=words):
        Config(**values)


def test_roots_refuse_what_task_and_encoder_do_not_give():
    for changes, words in (
        (dict(verbaliser="one,two,three"), "must name 2 words"),
        (dict(first_layer=2), "below the encoder's 2 layers"),
        (dict(top=33), "at most the 32 neurons"),
        (dict(prompt_length=60, max_tokens=37), "take 97 positions, but .* has 96"),
        (dict(prompt_length=60, max_tokens=36, readout="first"), "take 97 positions"),
        (dict(max_tokens=2), "special tokens"),
        (dict(verbaliser="positive,positive"), "differ in their first token"),
        (dict(readout="mask", verbaliser="horrible-word,positive"), "one known token"),
    ):
        with pytest.raises(ValueError, match=words):
            root(replace(TINY, **changes))
    assert root(replace(TINY, prompt_length=60, max_tokens=36, top=32)).top == 32


def test_halves_of_dev_need_two_texts_of_each_class(tmp_path, monkeypatch):
    task = tmp_path / "three.tsv"
    task.write_text("".join(f"{'abc'[at % 3]}\tthe text {at} of {at % 7}\n" for at in range(3000)))
    changes = dict(task=str(task), train_size=6, held_out_size=6, verbaliser="text,the,of")
    assert root(replace(TINY, **changes, dev_size=4)).dev_size == 4
    four = SimpleNamespace(classes=tuple("abcd"), train=SimpleNamespace(labels=np.arange(400) % 4))
    monkeypatch.setattr(texts, "sentences_of", lambda task: four)
    with pytest.raises(ValueError, match="dev_size must be above 4, two texts of each class"):
        texts.sizes_of("four", 8, 4, 8)


def test_all_perturbations_of_one_prompt_share_its_training():
    lines = [STUDY.timeline(replace(TINY, kind=kind)) for kind in ("noise_sigma", "zero")]
    assert lines[0][:3] == lines[1][:3] and lines[0][3] != lines[1][3]
    assert perturbing.KINDS[int(dict(lines[1][3].knobs)["kind"])] == "zero"
    assert settings.unread({"kind": "zero"}) >= {"size", "keep_fraction"}
    assert np.isfinite(STUDY.units(root(TINY))["flops"])
