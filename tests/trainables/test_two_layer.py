"""Closed forms against eager autograd, one network at a time; sharpness against dense Hessians and networks by hand."""

import itertools

import pytest
import torch

from trainables.common import two_layer, vmapped
from trainables.common.models.shallow import NETWORKS
from trainables.common.sam import sam_gradient
from trainables.common.two_layer import HEADS, LOSSES

LANES, SAMPLES, INPUTS, HIDDEN = 3, 6, 5, 7
SMOOTHING = torch.tensor(0.2, dtype=torch.float64)
GAIN = torch.tensor(1.5, dtype=torch.float64)
CASES = list(itertools.product(HEADS, LOSSES))


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def lanes(random, hidden=HIDDEN):
    weights = {"inner": random(LANES, INPUTS, hidden), "outer": random(LANES, hidden)}
    return weights, random(LANES, SAMPLES, INPUTS), random(LANES, SAMPLES).sign()


def one(weights, lane):
    return {name: value[lane].clone().requires_grad_() for name, value in weights.items()}


def mean_loss(network, loss, weights, inputs, labels):
    return LOSSES[loss].value(NETWORKS[network](weights, inputs, inputs, GAIN), labels, SMOOTHING).mean()


def eager_gradient(network, loss, weights, inputs, labels):
    values = list(weights.values())
    return dict(
        zip(weights, torch.autograd.grad(mean_loss(network, loss, weights, inputs, labels), values), strict=True)
    )


def eager_sam(network, loss, weights, inputs, labels, radius):
    gradient = eager_gradient(network, loss, weights, inputs, labels)
    length = torch.sqrt(sum((part**2).sum() for part in gradient.values()))
    ascended = {
        name: (value + radius * gradient[name] / length).detach().requires_grad_() for name, value in weights.items()
    }
    return eager_gradient(network, loss, ascended, inputs, labels)


def dense_hessian(network, loss, weights, inputs, labels):
    flat = torch.cat([value.detach().flatten() for value in weights.values()])

    def of_flat(flat):
        parts = flat.split([value.numel() for value in weights.values()])
        named = {n: part.view_as(v) for (n, v), part in zip(weights.items(), parts, strict=True)}
        return mean_loss(network, loss, named, inputs, labels)

    return torch.autograd.functional.hessian(of_flat, flat)


@pytest.mark.parametrize("network, loss", CASES)
@pytest.mark.parametrize("keep", [None, 0.99])
def test_a_step_on_one_sample_is_that_of_eager_autograd(random, network, loss, keep):
    weights, inputs, labels = lanes(random)
    before = {name: value.clone() for name, value in weights.items()}
    rate, radius = torch.tensor([0.1, 0.02, 0.3]).double(), torch.tensor([0.0, 0.1, 0.5]).double()
    two_layer.descend_one_sample(
        HEADS[network],
        lambda output: LOSSES[loss].slope(output, labels[:, :1], SMOOTHING),
        weights, inputs[:, :1], rate, radius, None if keep is None else torch.full_like(rate, keep),
    )  # fmt: skip
    for lane in range(LANES):
        gradient = eager_sam(network, loss, one(before, lane), inputs[lane, :1], labels[lane, :1], radius[lane])
        for name, value in weights.items():
            expected = (keep or 1) * before[name][lane] - rate[lane] * gradient[name]
            assert (value[lane] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("network, loss", CASES)
def test_the_gradient_of_a_batch_is_that_of_eager_autograd_and_of_vmap(random, network, loss):
    weights, inputs, labels = lanes(random)
    radius = torch.tensor([0.0, 0.1, 0.5]).double()

    def closed(where):
        return two_layer.gradient(
            HEADS[network], lambda output: LOSSES[loss].slope(output, labels, SMOOTHING), where, inputs
        )

    def mapped(where):
        return vmapped.lane_gradients(lambda w, x, y: mean_loss(network, loss, w, x, y), where, inputs, labels)

    found = [sam_gradient(gradient, weights, radius) for gradient in (closed, mapped)]
    for lane in range(LANES):
        expected = eager_sam(network, loss, one(weights, lane), inputs[lane], labels[lane], radius[lane])
        for name, gradients in itertools.product(weights, found):
            assert (gradients[name][lane] - expected[name]).abs().max() < 1e-12


@pytest.mark.parametrize("network", ["batch_norm", "three_layer"])
def test_the_other_networks_step_under_vmap_as_under_eager_autograd(random, network):
    weights, inputs, labels = lanes(random)
    if network == "three_layer":
        weights["middle"] = random(LANES, HIDDEN, HIDDEN)
    radius = torch.full((LANES,), 0.1, dtype=torch.float64)
    found = sam_gradient(
        lambda where: vmapped.lane_gradients(lambda w, x, y: mean_loss(network, "mse", w, x, y), where, inputs, labels),
        weights, radius,
    )  # fmt: skip
    for lane in range(LANES):
        expected = eager_sam(network, "mse", one(weights, lane), inputs[lane], labels[lane], 0.1)
        assert all((found[name][lane] - expected[name]).abs().max() < 1e-12 for name in weights)


def test_sam_at_a_sample_without_gradient_stays_where_it_is(random):
    weights, inputs, _ = lanes(random)
    labels = two_layer.sense(HEADS["relu"], weights, inputs[:, :1]).output
    before = {name: value.clone() for name, value in weights.items()}
    ones = torch.ones(LANES, dtype=torch.float64)
    two_layer.descend_one_sample(
        HEADS["relu"], lambda output: 2 * (output - labels), weights, inputs[:, :1], ones, ones
    )
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("network, loss", CASES)
def test_the_trace_away_from_interpolation_is_the_dense_hessians(random, network, loss):
    weights, inputs, labels = lanes(random)
    seen = two_layer.sense(HEADS[network], weights, inputs)
    curvature = LOSSES[loss].curvature(seen.output, labels, SMOOTHING)
    trace, _ = two_layer.gram_sharpness(two_layer.gram(inputs, seen), curvature)
    trace = trace + two_layer.bend_trace(
        HEADS[network], lambda output: LOSSES[loss].slope(output, labels, SMOOTHING), weights, inputs
    )
    mapped = vmapped.hessian_traces(lambda w, x, y: mean_loss(network, loss, w, x, y), weights, inputs, labels)
    for lane in range(LANES):
        hessian = dense_hessian(network, loss, one(weights, lane), inputs[lane], labels[lane])
        assert trace[lane] == pytest.approx(float(hessian.trace()), abs=1e-10)
        assert mapped[lane] == pytest.approx(float(hessian.trace()), abs=1e-10)


@pytest.mark.parametrize("network", ["relu", "softplus", "layer_norm", "batch_norm"])
def test_at_interpolation_the_gram_matrix_has_the_hessians_trace_and_top_eigenvalue(random, network):
    weights, inputs, _ = lanes(random)
    labels = torch.stack(
        [NETWORKS[network](one(weights, lane), inputs[lane], inputs[lane], GAIN) for lane in range(LANES)]
    ).detach()
    products = vmapped.lane_grams(lambda w, x: NETWORKS[network](w, x, x, GAIN), weights, inputs)
    if network in HEADS:
        closed = two_layer.gram(inputs, two_layer.sense(HEADS[network], weights, inputs))
        assert torch.allclose(products, closed, rtol=1e-10)
    trace, top = two_layer.gram_sharpness(products, torch.full_like(labels, 2.0))
    for lane in range(LANES):
        eigenvalues = torch.linalg.eigvalsh(
            dense_hessian(network, "mse", one(weights, lane), inputs[lane], labels[lane])
        )
        assert trace[lane] == pytest.approx(float(eigenvalues.sum()), rel=1e-9)
        assert top[lane] == pytest.approx(float(eigenvalues[-1]), rel=1e-9)


def test_the_trace_of_a_batch_norm_is_the_dense_hessians(random):
    weights, inputs, labels = lanes(random)
    traces = vmapped.hessian_traces(lambda w, x, y: mean_loss("batch_norm", "mse", w, x, y), weights, inputs, labels)
    dense = dense_hessian("batch_norm", "mse", one(weights, 0), inputs[0], labels[0])
    assert traces[0] == pytest.approx(float(dense.trace()), rel=1e-9)


def cube(dimension):
    points = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dimension)), dtype=torch.float64)
    return torch.cat([points, torch.ones(len(points), 1)], 1), points[:, 0] * points[:, 1]


def network_by_hand(directions, thresholds, outputs, active):
    """Units relu(c (w . x - threshold)), each of which gives its output alone where w . x - threshold = active."""
    dimension = directions.shape[1]
    height = (dimension + 1) ** 0.25  # active units and outer weights in balance: a = |v| |x|
    inner = torch.cat([directions, -thresholds[:, None]], 1).T * height / active
    return {"inner": inner[None], "outer": (outputs * height / (dimension + 1) ** 0.5)[None]}


def sharp(head, weights, inputs):
    seen = two_layer.sense(HEADS[head], weights, inputs[None])
    return float(two_layer.gram_sharpness(two_layer.gram(inputs[None], seen), torch.full_like(seen.output, 2.0))[0])


def test_a_memorising_and_a_generalising_network_are_equally_flat():
    """Theorem 4.1 of arXiv:2307.11007: both interpolate with trace 4 sqrt(d + 1), and no network has less."""
    dimension, samples = 10, 20
    inputs, labels = cube(dimension)
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:samples]
    points, values = inputs[chosen], labels[chosen]
    memory = network_by_hand(
        points[:, :-1], torch.full((samples,), dimension - 1.0, dtype=torch.float64), values, active=1
    )
    corners = torch.zeros(4, dimension, dtype=torch.float64)
    corners[:, :2] = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]])
    rule = network_by_hand(
        corners, torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 1, -1, -1]).double(), active=1
    )
    for weights in (memory, rule):
        output = two_layer.sense(HEADS["relu"], weights, points[None]).output[0]
        assert torch.allclose(output, values)
        assert sharp("relu", weights, points) == pytest.approx(4 * (dimension + 1) ** 0.5)
    right = [
        float((two_layer.sense(HEADS["relu"], w, inputs[None]).output[0] * labels > 0.5).double().mean())
        for w in (memory, rule)
    ]
    assert right == [samples / 2**dimension, 1.0]


def test_a_layer_norm_that_memorises_is_as_flat_as_one_can_be():
    """Theorem 5.1: one unit per point has trace 2, and |grad f|^2 >= 1 for every network with a layer norm."""
    dimension, samples = 10, 20
    inputs, labels = cube(dimension)
    points, values = inputs[7 :: len(inputs) // samples][:samples], labels[7 :: len(inputs) // samples][:samples]
    weights = {
        "inner": torch.cat([points[:, :-1], torch.full((samples, 1), 1.0 - dimension).double()], 1).T[None],
        "outer": values[None],
    }
    assert torch.allclose(two_layer.sense(HEADS["layer_norm"], weights, points[None]).output[0], values)
    assert sharp("layer_norm", weights, points) == pytest.approx(2.0)
    right = (two_layer.sense(HEADS["layer_norm"], weights, inputs[None]).output[0] * labels > 0).double().mean()
    assert right == samples / 2**dimension


def test_a_lane_of_nans_leaves_the_others_as_they_are(random):
    weights, inputs, labels = lanes(random)
    healthy = {name: value.clone() for name, value in weights.items()}
    weights["inner"][1, 0, 0] = float("nan")
    rate = torch.full((LANES,), 0.1, dtype=torch.float64)
    for lanes_of in (weights, healthy):
        two_layer.descend_one_sample(
            HEADS["relu"], lambda output: 2 * (output - labels[:, :1]), lanes_of, inputs[:, :1], rate, rate
        )
    for name in weights:
        assert torch.equal(weights[name][[0, 2]], healthy[name][[0, 2]])
    seen = two_layer.sense(HEADS["relu"], weights, inputs)
    trace, top = two_layer.gram_sharpness(two_layer.gram(inputs, seen), torch.full_like(labels, 2.0))
    assert trace.isnan().tolist() == top.isnan().tolist() == [False, True, False]
