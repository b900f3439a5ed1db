"""The study of noisy labels against plain loops in torch, brute force over looks and crops, scipy, hand-made cases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import isnan
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from scipy.optimize import minimize_scalar

from trainables import benign
from trainables.benign import STUDY, Config, logits_of, weights_of
from trainables.common.benign import samples
from trainables.common.benign.config import timeline
from trainables.common.benign.measures import error, fitted_temperature, margins, training_measures
from trainables.common.benign.samples import (
    augmented,
    batch_rows,
    effective_rate,
    hashed_words,
    noisy_labels,
    one_rater,
    open_source,
    splits,
)
from trainables.common.data.sentences import Rated
from trainables.common.models.mlp import MLP, mlp_parameters
from trainables.common.models.resnet import ResNet
from trainables.common.timeline import place, total_steps
from trainables.study import Diverged, LocalRun, Span, alone
from trainables.walk import train, walk

TINY = STUDY.tiny
TEACHING = replace(TINY, repair="self_train_soft", rounds=2, student_fraction=0.5)


def trained(config, steps):
    """The state after so many steps of a config's timeline."""
    state = benign.start(benign.root(config), LocalRun())
    for part in place(timeline(config)):
        if part.start < steps:
            benign.advance(state, part, Span(part.start, min(part.stop, steps)), LocalRun())
    return state


# Labels, batches and inputs


@pytest.mark.parametrize("classes", [2, 10])
def test_noise_changes_as_many_labels_as_its_effective_rate_says(classes):
    clean = np.arange(200_000) % classes
    for kind, rate in (("flip", 0.3), ("symmetric", 0.4)):
        wrong = (noisy_labels(clean, classes, rate, kind, seed=3) != clean).mean()
        expected = rate if kind == "flip" else rate * (classes - 1) / classes
        assert effective_rate(rate, kind, classes) == pytest.approx(expected)
        assert abs(wrong - expected) < 4 * (expected * (1 - expected) / 200_000) ** 0.5
    symmetric = noisy_labels(clean, classes, 0.999, "symmetric", seed=0)
    assert np.bincount(symmetric, minlength=classes).min() > 0.97 * 200_000 / classes


def test_a_flip_goes_to_the_next_class_and_lower_rates_change_a_part_of_the_same_labels():
    clean = np.arange(3_000) % 3
    low, high = (noisy_labels(clean, 3, rate, "flip", seed=1) for rate in (0.1, 0.3))
    assert set(high - clean) == {0, 1, -2}
    assert ((low != clean) <= (high != clean)).all() and (low != clean).sum() < (high != clean).sum()


def test_an_epoch_takes_each_sample_once_and_the_next_in_another_order():
    epochs = [np.concatenate([batch_rows(20, 5, 0, step) for step in range(at, at + 4)]) for at in (0, 4)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs) and list(epochs[0]) != list(epochs[1])
    assert len({*batch_rows(23, 5, 0, 3), *batch_rows(23, 5, 0, 2)}) == 10


def test_an_augmented_image_is_one_of_the_crops_of_the_padded_image_or_of_its_mirror():
    images = torch.randn(30, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for image, original in zip(augmented(images, (5, 7)).numpy(), padded, strict=True):
        crops = {
            (top, left, mirrored): original[:, top : top + 8, left : left + 8][..., :: -1 if mirrored else 1]
            for top in range(3) for left in range(3) for mirrored in (False, True)
        }  # fmt: skip
        found = [place for place, crop in crops.items() if np.array_equal(crop, image)]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 8
    assert torch.equal(augmented(images, (5, 7)), augmented(images, (5, 7)))
    assert not torch.equal(augmented(images, (5, 7)), augmented(images, (5, 8)))


def test_held_out_labels_are_as_noisy_as_those_of_training_and_test_labels_are_clean():
    source = open_source("digits", 224)
    train_N, held_N, test_N = splits(source, 700, 590, None, (0.5, "flip"), 0, torch.device("cpu"))
    for part in (train_N, held_N):
        assert float((part.given_N != part.clean_N).float().mean()) == pytest.approx(0.5, abs=0.07)
    assert torch.equal(test_N.given_N, test_N.clean_N) and len(test_N) == 500
    images = {row.numpy().tobytes() for row in train_N.read(np.arange(700), None)}
    assert not images & {row.numpy().tobytes() for row in held_N.read(np.arange(590), None)}
    again = splits(source, 100, 590, None, (0.5, "flip"), 0, torch.device("cpu"))[1]
    assert torch.equal(again.given_N, held_N.given_N)  # held-out samples do not depend on the training size
    with pytest.raises(ValueError, match=r"train_size \+ held_out must be at most the 1,297 samples there are"):
        splits(source, 700, 598, None, (0.0, None), 0, torch.device("cpu"))


# Measures


def test_the_fitted_temperature_is_where_scipy_finds_the_least_loss():
    generator = torch.Generator().manual_seed(1)
    for scale in (0.3, 5.0):
        labels = torch.randint(0, 4, (80,), generator=generator)
        logits = scale * (torch.randn(80, 4, generator=generator) + F.one_hot(labels, 4))
        doubt = 1 / 82
        targets = (1 - doubt) * F.one_hot(labels, 4).double() + doubt / 4

        def loss(log_t, logits=logits, targets=targets):
            return float(F.cross_entropy(logits.double() / np.exp(log_t), targets))

        found = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
        assert fitted_temperature(logits, labels) == pytest.approx(np.exp(found.x), rel=1e-4)


def test_measures_of_training_agree_with_counting_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [0.0, 1.0, 4.0], [1.0, 0.0, 0.5]])
    given, clean = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 2, 2])
    found = training_measures(logits, given, clean)
    assert (found["train/noisy_error"], found["train/clean_error"]) == (0.5, 0.5)
    assert found["train/wrong_labels"] == 0.5 and found["train/memorised"] == 0.5  # samples 1 and 2; 1 is given back
    assert margins(logits, given).tolist() == [1.0, 2.0, -3.0, -0.5]
    assert found["train/margin_mean"] == pytest.approx(-0.125)
    logs = np.log(np.exp(logits.numpy()).sum(1))
    assert found["train/noisy_loss"] == pytest.approx(np.mean(logs - [2.0, 3.0, 1.0, 0.5]))
    assert training_measures(logits, clean, clean)["train/memorised"] == 0.0


def test_the_mlp_is_its_formula_and_counts_its_weights():
    model = MLP(6, 3, width=5, depth=2, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(4, 2, 3)
    hidden = inputs.flatten(1).numpy()
    for layer in model.layers:
        hidden = hidden @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if layer is not model.layers[-1]:
            hidden = np.maximum(hidden, 0)
    assert model(inputs).detach().numpy() == pytest.approx(hidden, abs=1e-6)
    assert sum(parameter.numel() for parameter in model.parameters()) == mlp_parameters((2, 3), 3, 5, 2)
    wide = MLP(400, 3, width=300, generator=torch.Generator().manual_seed(0)).layers[0].weight
    assert float(wide.detach().var()) == pytest.approx(2 / 400, rel=0.02)


# Training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_is_a_plain_loop_of_torch(optimizer):
    config = replace(TINY, optimizer=optimizer, weight_decay=0.1, learning_rate=0.02)
    state = trained(config, 30)
    fresh = benign.start(benign.root(config), LocalRun())
    model, part = fresh.model, fresh.train
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() < 2]
    if optimizer == "adamw":
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
        stepper = torch.optim.AdamW(groups, lr=0.02)
    else:
        stepper = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    inputs = part.read(np.arange(len(part)), None)
    for step in range(30):
        rows = torch.from_numpy(batch_rows(len(part), 50, 0, step))
        stepper.zero_grad()
        F.nll_loss(F.log_softmax(model(inputs[rows]), 1), part.given_N[rows]).backward()
        stepper.step()
    for (name, ours), (_, theirs) in zip(weights_of(state.model), weights_of(model), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name


def test_early_stopping_brings_back_the_weights_of_the_best_look_and_measures_know_them_before():
    config = replace(TINY, learning_rate=0.03, budget_steps=60)
    looks = {}
    for step in range(5, 61, 5):
        state = trained(config, step)
        wrong = logits_of(state, state.held).argmax(1) != state.held.given_N
        looks[step] = (int(wrong.sum()), {name: value.clone() for name, value in weights_of(state.model)})
    best = min(looks, key=lambda step: (looks[step][0], step))
    assert best < 60  # else nothing would be brought back
    stopped = trained(replace(config, repair="early_stop"), 61)
    assert all(torch.equal(value, looks[best][1][name]) for name, value in weights_of(stopped.model))
    last = train(STUDY, config).rows[-1].metrics
    after = train(STUDY, replace(config, repair="early_stop")).rows[-1].metrics
    assert last["select/best_step"] == best and last["select/least_error"] == looks[best][0] / 300
    for kind in ("error", "loss", "scaled_loss"):
        assert last[f"report/early_{kind}"] == after[f"report/{kind}"]
        assert last[f"report/excess_{kind}"] == pytest.approx(last[f"report/{kind}"] - after[f"report/{kind}"])
    assert after["report/excess_error"] == after["select/excess"] == 0
    assert last["select/boundary"] == pytest.approx(abs(last["select/error"] - last["select/least_error"] - 0.02))


@pytest.mark.parametrize("repair", ["self_train_hard", "self_train_soft"])
def test_a_student_starts_anew_on_its_teachers_labels(repair):
    config = replace(TINY, repair=repair, teacher_step=20)
    teacher, student = trained(config, 20), trained(config, 21)
    logits = logits_of(teacher, teacher.train)
    wanted = torch.softmax(logits, 1) if repair.endswith("soft") else F.one_hot(logits.argmax(1), 10).float()
    assert torch.equal(student.extra["targets"], wanted) and not student.optimizer.state
    first = dict(weights_of(trained(config, 0).model))
    weights = dict(weights_of(student.model))
    assert not any(torch.equal(weights[name], first[name]) for name in weights if name.endswith("weight"))
    rows = batch_rows(200, 50, 0, 21)
    loss = F.cross_entropy(student.model(student.train.read(rows, None)), wanted[torch.from_numpy(rows)])
    loss.backward()
    expected = {name: -0.01 * p.grad.sign() for name, p in student.model.named_parameters()}  # Adam's first step
    stepped = dict(weights_of(trained(config, 22).model))
    for name, moved in expected.items():
        large = student.model.get_parameter(name).grad.abs() > 1e-4
        assert torch.allclose((stepped[name] - weights[name])[large], moved[large], rtol=1e-2, atol=1e-5), name


@pytest.mark.parametrize(
    "config", [TEACHING, replace(TEACHING, model="resnet", width=2, blocks=(1,), budget_steps=8, monitor_every=2)]
)
def test_a_timeline_may_be_cut_anywhere(config):
    """Around every special step: labels, best weights and batch statistics go with the state."""
    root, branch = alone(STUDY, config, keep=True)
    whole = train(STUDY, config, keep=True)
    steps = total_steps(timeline(config))
    specials = [part.start for part in place(timeline(config)) if "lr" not in dict(part.segment.knobs)]
    assert len(specials) == 4
    tensors = None
    for start, stop in zip([0, *(s + 1 for s in specials)], [*(s + 1 for s in specials), steps], strict=True):
        points = tuple(point for point in branch.points if start < point.step <= stop)
        stages = []
        piece = replace(branch, start=start, stop=stop, points=points, keep=True)
        walk(STUDY, root, [piece], LocalRun(), commit=stages.append, tensors=tensors)
        assert stages[0].status == "complete", stages[0].error
        tensors = stages[0].tensors
    assert all(torch.equal(tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_each_repair_is_written_as_its_timeline():
    def steps(**values):
        return [(part.steps, *sorted(dict(part.knobs))) for part in timeline(replace(TINY, **values))]

    assert steps() == [(40, "lr")]
    assert steps(repair="early_stop", decay_fraction=0.25) == [(30, "lr"), (10, "lr"), (1, "restore")]
    assert steps(repair="self_train_hard") == [(40, "lr"), (1, "restore"), (1, "relabel"), (20, "lr")]
    assert steps(repair="self_train_soft", rounds=2) == [
        *((40, "lr"), (1, "restore"), (1, "relabel"), (20, "lr"), (1, "restore"), (1, "relabel"), (20, "lr"))
    ]
    assert steps(repair="self_train_soft", teacher_step=9) == [(9, "lr"), (1, "relabel"), (20, "lr")]


# Where samples come from


def test_natural_noise_is_one_raters_label_and_clean_the_sign_of_the_mean(monkeypatch):
    ratings = [[3, 2, -1], [-2, -3, 1], [1, 0, 0], [0, 0, 1], [-4, -1, 0]] * 20
    texts = [f"sentence {at} is it" for at in range(100)]
    means = np.array([np.mean(one) for one in ratings])
    rated = Rated("movie", "sha", texts, means, ratings, ["report" if at % 4 == 0 else "train" for at in range(100)])
    monkeypatch.setattr("trainables.common.data.sentences.rated", lambda name: rated)
    source = samples.rated_sentences()
    clear = [at for at in range(100) if abs(means[at]) >= 0.5]
    pool = [at for at in clear if at % 4]
    assert source.train.clean_N.tolist() == [int(means[at] > 0) for at in pool] and source.classes == 2
    assert len(source.test.clean_N) == len(clear) - len(pool)
    shares = np.mean([source.train.seen(seed) for seed in range(400)], axis=0)
    for at, share in zip(pool, shares, strict=True):
        decided = [value for value in ratings[at] if value]
        assert share == pytest.approx(np.mean([value > 0 for value in decided]), abs=0.1)
    assert one_rater([[0, -1]], 5).tolist() == [0]


def test_hashed_words_count_words_by_their_hash():
    row = hashed_words(["The cat, the CAT's hat", ""])
    counts = Counter(crc32(word.encode()) % samples.FEATURES for word in ("the", "cat", "the", "cat's", "hat"))
    expected = np.zeros(samples.FEATURES)
    expected[list(counts)] = list(counts.values())
    assert row[0].numpy() == pytest.approx(expected * (samples.FEATURES / (expected**2).sum()) ** 0.5, rel=1e-6)
    assert not row[1].any()


@pytest.fixture
def folder(tmp_path):
    """Two classes of flat images, told apart by their colour, as ImageNet lies on a disk."""
    for split, count in (("train", 12), ("val", 4)):
        for label, colour in enumerate([(250, 10, 10), (10, 10, 250)]):
            (tmp_path / split / f"class{label}").mkdir(parents=True)
            for at in range(count):
                Image.new("RGB", (20, 14 + at), colour).save(tmp_path / split / f"class{label}" / f"{at}.png")
    return str(tmp_path)


def test_a_resnet_trains_on_a_folder_of_images_as_at_scale_paper(folder):
    config = Config(
        *(folder, None), held_out=8, test_size=None, image_size=8, model="resnet", width=4, blocks=(1, 1), norm="batch",
        optimizer="sgd", learning_rate=0.05, batch_size=8, augment=True, budget_steps=12, decay_fraction=0.3,
        monitor_every=4, measure_every=6, repair="early_stop",
    )  # fmt: skip
    source = open_source(folder, 8)
    assert source.lazy and source.classes == 2 and source.shape == (3, 8, 8)
    red = (250 / 255 - 0.485) / 0.229
    assert source.train.read(np.array([0]), None)[0, 0].numpy() == pytest.approx(np.full((8, 8), red), abs=1e-5)
    rows = train(STUDY, config).rows
    assert rows[-1].step == 13 and rows[-1].metrics["report/error"] == 0.0
    assert STUDY.units(benign.root(config))["parameters"] > 0
    with pytest.raises(ValueError, match="images decoded from a folder take repair=none or early_stop"):
        benign.root(replace(config, repair="self_train_hard"))
    sizes = {STUDY.root_key(benign.root(replace(config, image_size=size))) for size in (8, 16)}
    assert len(sizes) == 2


def test_the_checksum_of_the_samples_is_in_the_root_and_checked(folder):
    config = Config(folder, train_size=8, batch_size=8, held_out=4, test_size=4, image_size=8)
    root = benign.root(config)
    assert root.data_sha != benign.root(TINY).data_sha
    with pytest.raises(ValueError, match="where the sweep was planned; use the same files on all machines"):
        benign.start(replace(root, data_sha="0" * 64), LocalRun())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(train_size=1_000), r"train_size \+ held_out must be at most the 1,297 samples there are, got 1,300"),
        (dict(train_size=None, held_out=1_297), r"train_size \+ held_out must be at most"),
        (dict(test_size=501), "test_size must be at most the 500 samples there are"),
        (dict(train_size=None, held_out=1_280), "batch_size must be at most the 17 training samples, got 50"),
    ],
)
def test_more_samples_than_there_are_are_refused_before_anything_starts(values, words):
    with pytest.raises(ValueError, match=words):
        benign.root(replace(TINY, **values))


def test_a_folder_may_be_named_from_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(folder).parent))
    assert open_source(f"~/{Path(folder).name}", 8).sha == open_source(folder, 8).sha


def test_batch_norm_takes_one_worker():
    root = benign.root(replace(TINY, model="resnet", width=2, blocks=(1,)))
    with pytest.raises(ValueError, match=r"norm=batch needs one worker.* got 2; take norm=group"):
        benign.start(root, LocalRun(workers=2))
    assert benign.start(replace(root, norm="group"), LocalRun(workers=2)).root.norm == "group"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(optimizer="adma"), "no optimizer 'adma'; there are sgd, adamw, or 'package.module:function'"),
        (dict(boundary_excess=float("nan")), "boundary_excess must be finite, got nan"),
        (dict(weight_decay=float("inf")), "weight_decay must be finite, got inf"),
        (dict(repair="self_train_hard", student_fraction=float("inf")), "student_fraction must be finite"),
        (dict(noise_rate=1.0), r"noise_rate must be in \[0, 1\), got 1.0"),
        (dict(noise_kind="swap"), "no noise_kind 'swap'; there are flip, symmetric"),
        (dict(repair="prayer"), "no repair 'prayer'"),
        (dict(budget_steps=0), "budget_steps must be at least 1"),
        (dict(learning_rate=0.0), "need learning_rate > 0"),
        (dict(decay_fraction=1.5), r"decay_fraction must be in \[0, 1\]"),
        (dict(rounds=2), "rounds does nothing under model=mlp, repair=none, optimizer=adamw, got 2; leave it at 1"),
        (dict(momentum=0.5), "momentum does nothing"),
        (dict(blocks=(1,)), "blocks does nothing"),
        (dict(repair="self_train_hard", teacher_step=2000), "teacher_step must be at most budget_steps"),
        (dict(train_size=10, batch_size=11), "batch_size must be at most train_size"),
        (dict(data="movie_rater", noise_rate=0.2), "data=movie_rater is noisy by itself"),
        (dict(model="resnet", norm="layer"), "no norm 'layer'"),
    ],
)
def test_a_config_refuses_what_it_cannot_honour(values, words):
    with pytest.raises(ValueError, match=words):
        Config(**values)


def test_what_a_repair_does_not_read_is_left_at_its_default():
    (config,) = benign.family({"repair": "none", "rounds": 3, "teacher_step": 4, "width": 8}, [50])
    assert (config.rounds, config.teacher_step, config.width, config.budget_steps) == (1, None, 8, 50)
    assert benign.root(replace(TINY, noise_rate=0.0)) == benign.root(replace(TINY, noise_rate=0.0, noise_kind="flip"))


def test_a_missing_source_says_what_there_is():
    with pytest.raises(ValueError, match="no images 'nowhere'"):
        benign.root(replace(TINY, data="nowhere"))


def test_the_error_of_a_net_that_has_diverged_is_no_number():
    labels = torch.tensor([0, 1])
    for bad in (float("nan"), float("inf")):
        assert isnan(error(torch.tensor([[bad, 0.0], [0.0, 1.0]]), labels))
    assert error(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), labels) == 0.5


def test_every_training_that_a_special_step_follows_is_measured_at_its_end():
    def full(config):
        return [step for step, whole in STUDY.measured_at(benign.root(config), timeline(config)).items() if whole]

    assert full(TINY) == [5, 10, 20, 40]
    assert full(replace(TINY, repair="early_stop")) == [5, 10, 20, 40, 41]
    assert full(replace(TINY, repair="self_train_hard")) == [5, 10, 20, 40, 62]
    assert full(replace(TINY, repair="self_train_hard", rounds=2)) == [5, 10, 20, 40, 62, 84]
    assert full(replace(TINY, repair="self_train_hard", teacher_step=3, rounds=2)) == [3, 7, 28]


@pytest.mark.parametrize(("rounds", "teaches", "step"), [(1, 0, 3), (2, 1, 7)])
def test_a_teacher_that_diverges_ends_its_trial(monkeypatch, rounds, teaches, step):
    """Its labels would all be class 0, and its student would train on them to a finite end."""

    def spoiled(state, step, rate, run):
        plain(state, step, rate, run)
        if int(state.extra["taught"]) == teaches:
            with torch.no_grad():
                next(state.model.parameters()).fill_(torch.nan)

    plain = benign.train_step
    monkeypatch.setattr(benign, "train_step", spoiled)
    with pytest.raises(Diverged, match=f"at step {step} "):
        train(STUDY, replace(TINY, repair="self_train_hard", teacher_step=3, rounds=rounds))


def test_scale_paper_trains_whole_epochs_and_keeps_what_a_gpu_holds():
    space = yaml.safe_load((Path(__file__).parents[2] / "search_spaces" / "benign.yaml").read_text())
    paper = space["scales"]["paper"]
    fields = paper["study"]
    epoch = (1_281_167 - fields["held_out"]) // fields["batch_size"]
    assert paper["axes"]["budget_steps"] == [90 * epoch, 160 * epoch] and fields["monitor_every"] == epoch
    net = ResNet(3, 10, 64, fields["blocks"], "batch", generator=torch.Generator().manual_seed(0))
    weights, kept = {parameter.data_ptr() for parameter in net.parameters()}, dict[int, int]()

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    side = fields.get("image_size", 224)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_BK = net(torch.zeros(1, 3, side, side))
    assert len(logits_BK) == 1 and fields["batch_size"] * sum(kept.values()) < 16e9


def test_a_net_that_diverges_is_a_diverged_trial_and_no_error():
    with pytest.raises(Diverged, match="at step 5 "):
        train(STUDY, replace(STUDY.tiny, optimizer="sgd", momentum=0.0, learning_rate=1e38))
