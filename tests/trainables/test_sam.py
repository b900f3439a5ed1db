"""SAM gradients against closed forms on quadratics, autograd through the whole ascent, and loops over the groups."""

import pytest
import torch

from trainables.common.lanes import unit
from trainables.common.sam import ascent, gradient_through, m_sam_gradient, sam_gradient

DOUBLE = torch.float64


def bowl(seed=0, dimension=6):
    """A positive definite matrix, its loss per lane and its gradient."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=DOUBLE))[0]
    matrix = basis @ torch.diag(torch.linspace(0.5, 3.0, dimension, dtype=DOUBLE)) @ basis.T
    return matrix, lambda w: 0.5 * ((w["w"] @ matrix) * w["w"]).sum(1), lambda w: {"w": w["w"] @ matrix}


def start(lanes, dimension=6, seed=1):
    return {"w": torch.randn(lanes, dimension, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)}


@pytest.mark.parametrize("rate, radius", [(0.1, 0.05), (0.2, 0.2), (0.3, 1.0)])
def test_sam_on_a_quadratic_ends_on_the_top_eigenvector_at_the_closed_form_norm(rate, radius):
    """|x| -> rate radius lambda_1 / (2 - rate lambda_1), along the top eigenvector (arXiv:2211.05729, theorem 4.8)."""
    matrix, _, gradient = bowl()
    weights, radii = start(lanes=2), torch.full((2,), radius, dtype=DOUBLE)
    for _ in range(4000):
        weights = {"w": weights["w"] - rate * sam_gradient(gradient, weights, radii)["w"]}
    values, vectors = torch.linalg.eigh(matrix)
    top = float(values[-1])
    for lane in weights["w"]:
        assert float(lane.norm()) == pytest.approx(rate * radius * top / (2 - rate * top), rel=1e-9)
        assert abs(float(lane @ vectors[:, -1]) / float(lane.norm())) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("ascents", [1, 3])
def test_radius_zero_is_the_plain_gradient_bit_for_bit_beside_lanes_that_ascend(adaptive, ascents):
    _, _, gradient = bowl()
    weights = start(lanes=3)
    radii = torch.tensor([0.0, 0.3, 0.0], dtype=DOUBLE)
    got, plain = sam_gradient(gradient, weights, radii, adaptive, ascents)["w"], gradient(weights)["w"]
    assert torch.equal(got[[0, 2]], plain[[0, 2]]) and not torch.allclose(got[1], plain[1])


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_lane_without_a_gradient_stays_and_a_nan_lane_stays_alone(adaptive):
    weights, gradient = start(lanes=3), start(lanes=3, seed=2)
    gradient["w"][0], gradient["w"][1] = 0, float("nan")
    radii = torch.full((3,), 0.1, dtype=DOUBLE)
    moved = ascent(weights, gradient, radii, adaptive)["w"]
    alone = ascent({"w": weights["w"][2:]}, {"w": gradient["w"][2:]}, radii[2:], adaptive)["w"]
    assert torch.equal(moved[0], weights["w"][0])
    assert moved[1].isnan().all()
    assert torch.equal(moved[2:], alone)


def test_the_step_has_the_length_of_its_radius_over_all_tensors_together():
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 2, 2)}
    gradient = {"a": torch.ones(2, 3), "b": 2 * torch.ones(2, 2, 2)}
    moved = ascent(weights, gradient, torch.tensor([0.5, 2.0]))
    lengths = torch.sqrt(sum(value.flatten(1).square().sum(1) for value in moved.values()))
    assert torch.allclose(lengths, torch.tensor([0.5, 2.0]))


def test_the_adaptive_ascent_does_not_see_a_rescaling_of_the_weights():
    """ASAM (arXiv:2102.11600): with w -> A w and L unchanged, the ascended loss is unchanged too."""
    _, loss, gradient = bowl()
    weights, radii = start(lanes=1), torch.tensor([0.3], dtype=DOUBLE)
    scale = torch.tensor([0.1, 2.0, 5.0, 1.0, 0.5, 3.0], dtype=DOUBLE)
    plain = loss(ascent(weights, gradient(weights), radii, adaptive=True))
    scaled = {"w": weights["w"] * scale}
    scaled_gradient = {"w": gradient(weights)["w"] / scale}
    moved = {"w": ascent(scaled, scaled_gradient, radii, adaptive=True)["w"] / scale}
    assert torch.allclose(loss(moved), plain, rtol=1e-12)


def test_more_ascents_find_the_worst_point_of_the_sphere():
    """Against the maximum over a fine grid of directions in the plane."""
    matrix = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=DOUBLE)

    def gradient(w):
        return {"w": w["w"] @ matrix}

    def loss(point):
        return 0.5 * (point @ matrix * point).sum(1)

    weights, radius = {"w": torch.tensor([[0.02, -0.05]], dtype=DOUBLE)}, torch.tensor([0.3], dtype=DOUBLE)
    angle = torch.linspace(0, 2 * torch.pi, 100_000, dtype=DOUBLE)
    circle = weights["w"] + 0.3 * torch.stack([angle.cos(), angle.sin()], 1)
    worst = circle[loss(circle).argmax()]
    got = sam_gradient(gradient, weights, radius, ascents=40)["w"][0]
    here = torch.linalg.solve(matrix, got)
    along_top = abs(float(here @ worst) / float(here.norm() * worst.norm()))
    # A local maximum on the gradient's side of the sphere: as high as the best within the first-order term.
    assert float(loss(here[None])) >= float(loss(worst[None])) - 2 * 0.3 * float((weights["w"] @ matrix).norm())
    assert along_top > 0.97


def through_by_autograd(loss, weights, radius, ascents):
    """d/dw of the ascended loss with the whole way there in the graph."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    point = leaves
    for _ in range(ascents):
        slopes = torch.autograd.grad(loss(point).sum(), list(point.values()), create_graph=True)
        direction, _ = unit(dict(zip(leaves, slopes, strict=True)))
        point = {name: value + radius[:, None] * direction[name] for name, value in leaves.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(point).sum(), list(leaves.values())), strict=True))


@pytest.mark.parametrize("ascents", [0, 1, 2, 4])
def test_the_gradient_through_the_ascent_is_autograds(ascents):
    matrix, _, _ = bowl()

    def loss(w):
        return torch.cosh(w["a"] @ matrix[:3, :3]).sum(1) + (w["a"].sum(1) * w["b"][:, 0]) ** 2 + w["b"][:, 1] ** 3

    weights = {"a": start(2)["w"][:, :3], "b": start(2)["w"][:, 3:5]}
    radius = torch.tensor([0.2, 0.7], dtype=DOUBLE)
    wanted, got = through_by_autograd(loss, weights, radius, ascents), gradient_through(loss, weights, radius, ascents)
    for name in weights:
        assert torch.allclose(got[name], wanted[name], rtol=1e-10, atol=1e-12)


def test_through_and_stopped_agree_at_the_worst_direction_and_not_at_the_first():
    """At a maximum over the sphere the direction's own derivative drops out (Danskin)."""
    _, loss, gradient = bowl()
    weights, radius = start(1), torch.tensor([0.5], dtype=DOUBLE)
    far = [gradient_through(loss, weights, radius, k)["w"] - sam_gradient(gradient, weights, radius, ascents=k)["w"]
           for k in (1, 200)]  # fmt: skip
    assert float(far[1].norm()) < 1e-8 < 1e-3 < float(far[0].norm())


def test_through_at_a_zero_gradient_or_radius_is_plain():
    _, loss, gradient = bowl()
    weights = {"w": torch.stack([torch.zeros(6, dtype=DOUBLE), *start(1)["w"]])}
    got = gradient_through(loss, weights, torch.tensor([0.3, 0.0], dtype=DOUBLE))["w"]
    assert torch.allclose(got, gradient(weights)["w"], atol=1e-12)


def regression(seed=3, lanes=2, samples=8, dimension=5):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(lanes, samples, dimension, generator=generator, dtype=DOUBLE)
    targets = torch.randn(lanes, samples, generator=generator, dtype=DOUBLE)

    def gradient(weights, chosen):
        lane = torch.arange(len(chosen)) // (len(chosen) // lanes)
        x, y = inputs[lane[:, None], chosen], targets[lane[:, None], chosen]
        left = torch.einsum("qmd,qd->qm", x, weights["w"]) - y
        return {"w": 2 * torch.einsum("qm,qmd->qd", left, x) / chosen.shape[1]}

    return inputs, targets, gradient


def ascended_gradient(inputs, targets, weights, radius):
    """The SAM gradient of one regression by autograd."""
    at = weights.clone().requires_grad_()
    slope = torch.autograd.grad(((inputs @ at - targets) ** 2).mean(), at)[0]
    at = (weights + radius * slope / slope.norm()).requires_grad_()
    return torch.autograd.grad(((inputs @ at - targets) ** 2).mean(), at)[0]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_m_sam_is_the_mean_over_its_groups_taken_one_by_one(size):
    inputs, targets, gradient = regression()
    weights, radius = start(2, 5), torch.tensor([0.1, 0.4], dtype=DOUBLE)
    groups = torch.arange(8).view(1, 8 // size, size).expand(2, -1, -1)
    got = m_sam_gradient(gradient, weights, radius, groups)["w"]
    for lane in range(2):
        slopes = [
            ascended_gradient(inputs[lane, group], targets[lane, group], weights["w"][lane], radius[lane])
            for group in torch.arange(8).split(size)
        ]
        assert torch.allclose(got[lane], torch.stack(slopes).mean(0), rtol=1e-12)


def test_m_sam_of_all_samples_is_sam_and_of_radius_zero_the_plain_gradient():
    _, _, gradient = regression()
    weights, radius = start(2, 5), torch.tensor([0.1, 0.4], dtype=DOUBLE)
    everything = torch.arange(8).view(1, 1, 8).expand(2, -1, -1)

    def plain(where):
        return gradient(where, everything.flatten(0, 1))

    assert torch.equal(
        m_sam_gradient(gradient, weights, radius, everything)["w"], sam_gradient(plain, weights, radius)["w"]
    )
    pairs = torch.arange(8).view(1, 4, 2).expand(2, -1, -1)
    assert torch.allclose(m_sam_gradient(gradient, weights, 0 * radius, pairs)["w"], plain(weights)["w"], rtol=1e-12)
