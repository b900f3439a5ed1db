"""SAM on a residual net against loops written out with autograd, dense Hessians, closed forms and hand-made images."""

import copy
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainables import sam_net
from trainables.common.data.images import ImageSet, Labelled
from trainables.common.models.resnet import ResNet, forward_flops_per_image
from trainables.common.sam_net import pictures
from trainables.common.sam_net.arms import Config, timeline
from trainables.common.timeline import common_steps, place
from trainables.study import LocalRun, Span
from trainables.walk import train

SMALL = replace(
    sam_net.STUDY.tiny, learning_rate=0.1, radius=0.0, sam_start_step=0, weight_decay=0.01, decay_fraction=0.25
)


def stirred(config):
    """A state at step 0 whose weights are all away from zero, so that every gradient has all its parts."""
    state = sam_net.start(sam_net.root(config), LocalRun())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in state.weights.values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return state


def advanced(config, steps):
    state = stirred(config)
    for part in place(timeline(config)):
        if part.start < steps:
            sam_net.advance(state, part, Span(part.start, min(part.stop, steps)), LocalRun())
    return state


def by_hand(config, steps):
    """The same training with `loss.backward`, weights moved and moved back, and SGD with momentum spelled out."""
    state = stirred(config)
    model, velocity = copy.deepcopy(state.network).train(), {}
    for step in range(steps):
        rate = config.learning_rate
        if step >= config.stable_steps:
            rate *= 1 - (step - config.stable_steps) / config.decay_steps
        rows = state.batch_rows(step, LocalRun())
        total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
        groups = rows.split(config.group or config.batch_size)
        for group in groups:
            for name, slope in slopes_of(model, state, group, config.radius).items():
                total[name] += slope / len(groups)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                slope = total[name] + config.weight_decay * weight
                velocity[name] = slope if step == 0 else config.momentum * velocity[name] + slope
                weight -= rate * velocity[name]
    return dict(model.named_parameters())


def slopes_of(model, state, rows, radius):
    images, labels = state.pictures.train.images_NCHW[rows], state.pictures.train.labels_N[rows]

    def slopes():
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    first = slopes()
    if radius == 0:
        return first
    length = torch.cat([slope.flatten() for slope in first.values()]).norm()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += radius * first[name] / length
    second = slopes()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight -= radius * first[name] / length
    return second


@pytest.mark.parametrize("changes", [{}, {"radius": 0.1}, {"radius": 0.1, "group": 4}, {"norm": "group"}])
def test_training_is_the_loop_written_out(changes):
    config = replace(SMALL, **changes)
    steps = config.stable_steps + 3  # the rate falls in the last
    state, expected = advanced(config, steps), by_hand(config, steps)
    for name, weight in state.weights.items():
        torch.testing.assert_close(weight.detach(), expected[name].detach(), rtol=1e-4, atol=1e-5)


def test_a_group_of_the_whole_batch_is_plain_sam():
    whole, group = replace(SMALL, radius=0.1), replace(SMALL, radius=0.1, group=SMALL.batch_size)
    assert place(timeline(whole)) == place(timeline(group))


def test_a_zero_gradient_moves_nothing_and_makes_no_nan():
    """Black images of all classes at equal logits: the gradient is zero but for rounding."""
    config = replace(SMALL, radius=0.5, batch_size=10, weight_decay=0.0)
    state = sam_net.start(sam_net.root(config), LocalRun())
    part = pictures.Part(torch.zeros(10, 1, 8, 8), torch.arange(10))
    state.pictures = replace(state.pictures, train=part)
    state.batch_rows = lambda step, run: torch.arange(10)
    before = {name: weight.detach().clone() for name, weight in state.weights.items()}
    sam_net.advance(state, place(timeline(config))[0], Span(0, 3), LocalRun())
    for name, weight in state.weights.items():
        assert torch.isfinite(weight).all()
        assert name == "head.bias" or torch.equal(weight, before[name])


def test_batch_norms_see_each_batch_once_and_at_the_weights_themselves():
    config = replace(SMALL, norm="batch", radius=0.3)
    state = stirred(config)
    alone = copy.deepcopy(state.network).train()
    images, _ = state.pictures.train.rows(state.batch_rows(0, LocalRun()))
    with torch.no_grad():
        alone(images)
    sam_net.advance(state, place(timeline(config))[0], Span(0, 1), LocalRun())
    for ours, theirs in zip(state.network.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert int(state.network.stem_norm.num_batches_tracked) == 1


def test_what_was_spent_is_counted_in_gradients_flops_and_time():
    config = replace(SMALL, radius=0.1, sam_start_step=6)
    last = train(sam_net.STUDY, config).rows[-1].metrics
    steps, rest = config.budget_steps, config.budget_steps - 6
    assert last["sam_active_steps"] == rest and last["gradient_evaluations"] == steps + rest
    forward = forward_flops_per_image(1, 10, config.width, config.blocks, 8, 8)
    assert last["flops"] == (steps + rest) * config.batch_size * 3 * forward
    assert sam_net.units(sam_net.root(config))["flops"] == config.batch_size * 3 * forward
    rates = (config.stable_steps - 6) + (config.decay_steps + 1) / 2  # the fall's mean is half and half a step
    assert last["sharpening_time"] == pytest.approx(config.learning_rate * 0.1**2 * rates)


def test_curvature_is_that_of_the_dense_hessian():
    config = replace(SMALL, width=2, blocks=(1,), curvature_probes=200)
    state = stirred(config)
    state.network.eval()
    found = sam_net.measure(state, LocalRun(), True)
    images, labels = state.pictures.train.rows(torch.arange(config.curvature_samples))
    names, weights = zip(*state.network.named_parameters(), strict=True)

    def loss(flat):
        parts = flat.split([weight.numel() for weight in weights])
        given = {name: part.view_as(weight) for name, part, weight in zip(names, parts, weights, strict=True)}
        return F.cross_entropy(torch.func.functional_call(state.network, given, (images,)), labels)

    flat = torch.cat([weight.detach().flatten() for weight in weights])
    dense = torch.autograd.functional.hessian(loss, flat)
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert found["report/top_eigenvalue"] == pytest.approx(top, rel=0.02)
    assert found["report/top_eigenvalue_residual"] < 0.05 * top
    error = found["report/trace_standard_error"]
    assert 0 < error < abs(float(dense.trace())) and abs(found["report/trace"] - float(dense.trace())) < 4 * error
    slope = torch.autograd.functional.jacobian(loss, flat)
    assert found["gradient_norm"] == pytest.approx(float(slope.norm()), rel=1e-4)


def test_late_sam_of_all_radii_leaves_one_plain_trunk_and_budgets_share_theirs():
    plain, some, more = (replace(SMALL, budget_steps=40, radius=radius) for radius in (0.0, 0.1, 0.2))
    late, later = replace(some, sam_start_step=12), replace(more, sam_start_step=12)
    placed = {name: place(timeline(c)) for name, c in (("plain", plain), ("late", late), ("later", later))}
    assert common_steps(placed["late"], placed["later"]) == common_steps(placed["late"], placed["plain"]) == 12
    longer = place(timeline(replace(some, budget_steps=80)))
    assert common_steps(place(timeline(some)), longer) == some.stable_steps
    assert sam_net.root(late) == sam_net.root(plain)


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own():
    state = sam_net.start(sam_net.root(SMALL), LocalRun())
    count = SMALL.train_size // SMALL.batch_size
    epochs = [[state.batch_rows(step, LocalRun()) for step in range(at, at + count)] for at in (0, count)]
    assert all(sorted(torch.cat(epoch).tolist()) == list(range(SMALL.train_size)) for epoch in epochs)
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(state.batch_rows(1, LocalRun()), epochs[0][1])  # of (seed, step) alone


@pytest.mark.parametrize("changes", [{}, {"radius": 0.1}, {"radius": 0.1, "group": 4}])
def test_two_workers_train_as_one(monkeypatch, changes):
    """Two threads stand for workers; their sums meet at a barrier."""
    config = replace(SMALL, **changes)
    alone = advanced(config, 2)
    barrier, held, states = threading.Barrier(2, timeout=60), {}, [stirred(config), stirred(config)]

    def all_reduce(tensor):
        held[threading.current_thread().name] = tensor.clone()
        barrier.wait()
        total = held["0"] + held["1"]
        barrier.wait()
        tensor.copy_(total)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)

    def work(rank):
        run = SimpleNamespace(device=torch.device("cpu"), rank=rank, workers=2)
        sam_net.advance(states[rank], place(timeline(config))[0], Span(0, 2), run)

    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, weight in alone.weights.items():
        assert torch.equal(states[0].weights[name], states[1].weights[name])
        torch.testing.assert_close(states[0].weights[name], weight, rtol=1e-4, atol=1e-5)


def test_several_workers_refuse_what_they_would_not_share():
    run = SimpleNamespace(device=torch.device("cpu"), rank=0, workers=2, wrap=lambda model: model)
    with pytest.raises(ValueError, match="norm=batch would keep other statistics"):
        sam_net.start(sam_net.root(replace(SMALL, norm="batch")), run)
    config = replace(SMALL, radius=0.1, group=SMALL.batch_size // 2)
    run.workers = 4
    with pytest.raises(ValueError, match="which group=8 does not divide"):
        sam_net.advance(stirred(config), place(timeline(config))[0], Span(0, 1), run)


@pytest.fixture
def coloured(monkeypatch):
    """Twelve training and six test images of 4x6 pixels and two channels, known by their brightness."""

    def opened(shift):
        def labelled(count, first):
            bright = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None] * 4 + shift
            ramp = np.arange(24, dtype=np.uint8).reshape(1, 1, 4, 6)
            images = np.concatenate([bright + ramp, np.full((count, 1, 4, 6), 7, np.uint8)], 1)
            return Labelled(images, np.arange(count) % 3)

        return ImageSet("made", f"sha {shift}", ("a", "b", "c"), labelled(12, 0), labelled(6, 20))

    pictures.open_pictures.cache_clear()
    monkeypatch.setattr(pictures, "open_images", lambda name: opened(0 if name == "made" else 1))
    yield opened(0)
    pictures.open_pictures.cache_clear()


def test_the_parts_of_an_image_set_are_disjoint_pooled_and_standardised(coloured):
    found = pictures.open_pictures("made", 5, 4, None, 2)
    assert found.shape == (2, 2, 3) and found.classes == 3 and len(found.report.labels_N) == 6
    train = found.train.images_NCHW
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train[:, 0].std(), torch.tensor(1.0))
    assert (train[:, 1] == 0).all()  # one colour: nothing to divide by
    raw = torch.from_numpy(coloured.train.images[:, :1]).float() / 255
    pooled = raw.reshape(12, 1, 2, 2, 3, 2).mean((3, 5))
    same = pooled[:, 0].flatten(1)
    both = torch.cat([found.train.images_NCHW, found.select.images_NCHW])[:, 0].flatten(1)
    # Standardising is one line a v + b for all: the gaps between pixels, over the first image's, find the image.
    scale = (both[0, -1] - both[0, 0]) / (same[0, -1] - same[0, 0])
    places = ((both.mean(1) - both.mean(1)[0]) / scale / (4 / 255)).round().int()
    assert len(set(places.tolist())) == 9  # nine different images


def test_other_images_are_another_root_and_too_few_are_refused(coloured):
    config = Config(data="made", train_size=5, select_size=4, batch_size=5, curvature_samples=5)
    one, other = sam_net.root(config), sam_net.root(replace(config, data="shifted"))
    assert sam_net.STUDY.root_key(one) != sam_net.STUDY.root_key(other)
    assert sam_net.STUDY.root_key(one) == sam_net.STUDY.root_key(replace(one, data="elsewhere"))
    with pytest.raises(ValueError, match=r"12 training images, fewer than .* 9 \+ 4"):
        sam_net.root(replace(config, train_size=9))
    with pytest.raises(ValueError, match="6 test images, fewer than report_size=7"):
        sam_net.root(replace(config, report_size=7))
    with pytest.raises(ValueError, match="pool must divide"):
        sam_net.root(replace(config, pool=3))
    with pytest.raises(ValueError, match="bring the same images"):
        sam_net.start(replace(one, data="shifted"), LocalRun())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sam_start_step": 5}, "does nothing at radius=0"),
        ({"group": 4}, "does nothing at radius=0"),
        ({"radius": 0.1, "group": 5}, "group must divide"),
        ({"radius": 0.1, "sam_start_step": 23}, "must lie before the decay"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"radius": -0.1}, "at least 0"),
        ({"report_size": 0}, "report_size must be at least 1, got 0"),
        ({"report_size": -3}, "report_size must be at least 1, got -3"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"radius": float("nan")}, "radius must be finite, got nan"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite, got nan"),
        ({"batch_size": 1000}, "at most train_size"),
        ({"decay_fraction": 1.0}, "decay_fraction"),
        ({"curvature_probes": 1}, "at least 2"),
        ({"norm": "layer"}, "no norm"),
        ({"blocks": ()}, "at least one stage"),
    ],
)
def test_impossible_configs_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_a_family_at_radius_0_drops_what_only_sam_reads():
    values = {"radius": 0.0, "sam_start_step": 5, "group": 4, "batch_size": 16}
    assert [c.sam_start_step for c in sam_net.STUDY.configs(values, [20, 40])] == [0, 0]
    kept = sam_net.STUDY.configs(values | {"radius": 0.1}, [20, 40])
    assert [(c.sam_start_step, c.group) for c in kept] == [(5, 4), (5, 4)]


def test_the_initial_net_is_the_seeds_and_its_file_says_what_it_is():
    root = sam_net.root(SMALL)
    first, again = sam_net.model_of(root), sam_net.model_of(root)
    assert isinstance(first, ResNet)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert b'"class": "ResNet"' in sam_net.files(root)["architecture.json"]
