"""The study of SAM's bias against autograd, dense Hessians and what theory says of problems that it can solve."""

from dataclasses import replace

import pytest
import torch

from trainables import sam_bias
from trainables.common.timeline import place
from trainables.common.zero_loss import quadratic, tanh_net, toy4d
from trainables.sam_bias import STUDY, Root, problem_of, start
from trainables.sam_modes import MODES, Config, family
from trainables.study import LocalRun, Span, alone
from trainables.walk import train, walk

DOUBLE = torch.float64
PROBLEMS = {
    "toy4d": toy4d(3),
    "quadratic": quadratic(3, 5),
    "mlp_small": tanh_net(3, samples=6, inputs=3, hidden=4, held_out=5),
}


def shrunk(**changes):
    return replace(STUDY.tiny, **changes)


def last(config):
    return train(STUDY, config).rows[-1].metrics


@pytest.mark.parametrize("name", PROBLEMS)
def test_closed_gradients_are_autograds_for_any_picked_samples_in_any_lane(name):
    problem = PROBLEMS[name]
    shifts = torch.linspace(0, 0.3, 3, dtype=DOUBLE)[:, None]
    weights = problem.start + shifts
    picked = torch.tensor([[0, 1], [1, 1], [0, 0]])
    got = problem.gradient(weights, picked)
    for lane in range(3):
        x = weights[lane].clone().requires_grad_()
        loss = problem.residuals(x)[picked[lane]].square().mean()
        assert torch.allclose(got[lane], torch.autograd.grad(loss, x)[0], rtol=1e-12, atol=1e-14)


def test_the_toy_is_its_formula_with_its_curvature_on_the_manifold():
    x = torch.tensor([0.3, 0.6, 0.2, -0.5], dtype=DOUBLE)

    def loss(x):
        return PROBLEMS["toy4d"].residuals(x).square().mean()

    first, second = 0.3**2 + 6 * 0.6**2 + 8, 4 * 0.7**2 + 0.4**2 + 1
    assert float(loss(x)) == pytest.approx(first * 0.2**2 + second * 0.5**2, rel=1e-14)
    x[2:] = 0
    hessian = torch.func.hessian(loss)(x)
    assert torch.allclose(hessian, torch.diag(torch.tensor([0, 0, 2 * first, 2 * second], dtype=DOUBLE)))


def test_the_quadratic_has_its_eigenvalues_and_the_net_its_labels_and_sizes():
    hessian = torch.func.hessian(lambda x: PROBLEMS["quadratic"].residuals(x).square().mean())(torch.zeros(5).double())
    assert torch.allclose(torch.linalg.eigvalsh(hessian), torch.linspace(0.1, 1, 5, dtype=DOUBLE))
    net = PROBLEMS["mlp_small"]
    silent = torch.zeros_like(net.start)  # answers 0, so that residuals are minus the labels
    labels = [part(silent) for part in (net.residuals, net.select, net.report)]
    assert [len(part) for part in labels] == [6, 5, 5]
    assert all(set(part.abs().tolist()) == {1.0} for part in labels)
    outputs = [part(net.start) + label.neg() for part, label in zip((net.select, net.report), labels[1:], strict=True)]
    assert not torch.allclose(*outputs)  # select and report are other points


@pytest.mark.parametrize("problem", PROBLEMS)
def test_measured_curvature_is_that_of_the_dense_hessian_at_zero_loss(problem):
    config = shrunk(problem=problem, mode="gd", warm_steps=3, **SMALL[problem])
    root = STUDY.root(config)
    state = start(root, LocalRun())
    whole = problem_of(root)
    if problem == "mlp_small":  # a fitted net: labels that it answers
        outputs = whole.residuals(state.x[0]).detach()
        fitted = replace(whole, residuals=lambda x: whole.residuals(x) - outputs)
        state.problem = fitted
    elif problem == "toy4d":
        state.x[0, 2:] = 0
    else:
        state.x.zero_()
    measured = sam_bias.measure(state, LocalRun(), False)
    residuals = state.problem.residuals
    dense = torch.linalg.eigvalsh(torch.func.hessian(lambda x: residuals(x).square().mean())(state.x[0])).flip(0)
    positive = dense[dense > 1e-10 * dense[0]]
    assert measured["lambda_1"] == pytest.approx(float(dense[0]), rel=1e-9)
    assert measured["lambda_2"] == pytest.approx(float(dense[1]), rel=1e-9)
    assert measured["lambda_min"] == pytest.approx(float(positive[-1]), rel=1e-6)
    assert measured["trace"] == pytest.approx(float(dense.sum()), rel=1e-9)
    assert measured["hessian_lambda_1"] == pytest.approx(float(dense[0]), rel=1e-6)


SMALL = {
    "toy4d": {},
    "quadratic": {"dimension": 5},
    "mlp_small": {"samples": 6, "inputs": 3, "hidden": 4, "held_out": 5},
}


def test_the_gradient_and_its_alignment_are_measured_as_autograd_has_them():
    config = shrunk(problem="mlp_small", mode="gd", **SMALL["mlp_small"])
    state = start(STUDY.root(config), LocalRun())
    x = state.x[0].clone().requires_grad_()
    slope = torch.autograd.grad(state.problem.residuals(x).square().mean(), x)[0]
    rows = torch.autograd.functional.jacobian(state.problem.residuals, state.x[0])
    top = torch.linalg.eigh(2 / 6 * rows.T @ rows)[1][:, -1]
    measured = sam_bias.measure(state, LocalRun(), False)
    assert measured["gradient_norm"] == pytest.approx(float(slope.norm()), rel=1e-10)
    assert measured["alignment"] == pytest.approx(abs(float(slope @ top) / float(slope.norm())), rel=1e-8)
    silent = torch.autograd.functional.jacobian(state.problem.select, state.x[0])
    assert measured["select/sharpness"] == pytest.approx(2 * float(silent.square().sum()) / 5, rel=1e-10)


@pytest.mark.parametrize("mode", ["full_sam", "one_sam", "worst", "ascent_loss"])
def test_a_step_is_the_modes_formula(mode):
    """One step after the trunk by autograd: gradient at the perturbed weights, or of the perturbed loss."""
    config = shrunk(problem="mlp_small", mode=mode, learning_rate=0.05, budget_steps=1, **SMALL["mlp_small"])
    root = STUDY.root(config)
    state = start(root, LocalRun())
    trunk, kick, phase = place(STUDY.timeline(config))
    for placed in (trunk, kick):
        STUDY.advance(state, placed, Span(placed.start, placed.stop), LocalRun())
    before, residuals = state.x[0].clone(), state.problem.residuals
    STUDY.advance(state, phase, Span(phase.start, phase.stop), LocalRun())
    step = (before - state.x[0]) / 0.05

    def ascended(x, picked, ascents, through):
        point = x
        for _ in range(ascents):
            slope = torch.autograd.grad(residuals(point)[picked].square().mean(), point, create_graph=through)[0]
            point = x + 0.2 * slope / slope.norm()
            if not through:
                point = point.detach().requires_grad_()
        return residuals(point)[picked].square().mean(), point

    candidates = [[sample] for sample in range(6)] if mode == "one_sam" else [list(range(6))]
    wanted = []
    for picked in candidates:
        x = before.clone().requires_grad_()
        loss, point = ascended(x, picked, 4 if mode == "worst" else 1, mode == "ascent_loss")
        wanted.append(torch.autograd.grad(loss, x if mode == "ascent_loss" else point)[0])
    assert sum(torch.allclose(step, one, rtol=1e-7, atol=1e-9) for one in wanted) == 1


def test_the_random_directions_of_average_have_the_radius_and_change_with_the_step():
    config = shrunk(problem="quadratic", mode="average", dimension=5, warm_steps=1, budget_steps=3)
    state = start(STUDY.root(config), LocalRun())
    matrix = torch.func.hessian(lambda x: state.problem.residuals(x).square().mean())(state.x[0])
    phase = place(STUDY.timeline(config))[-1]
    directions = []
    for step in range(phase.start, phase.stop):
        before = state.x[0].clone()
        STUDY.advance(state, phase, Span(step, step + 1), LocalRun())
        directions.append(torch.linalg.solve(matrix, (before - state.x[0]) / 0.01) - before)
    assert all(float(direction.norm()) == pytest.approx(0.2, rel=1e-9) for direction in directions)
    assert not torch.allclose(directions[0], directions[1])


def test_on_a_quadratic_sam_settles_at_the_closed_form_norm():
    config = Config(
        problem="quadratic", dimension=6, learning_rate=0.2, radius=0.1, budget_steps=3000, measure_every=3000
    )
    end = last(config)
    assert end["norm"] == pytest.approx(0.2 * 0.1 * 1.0 / (2 - 0.2 * 1.0), rel=1e-9)
    assert end["alignment"] == pytest.approx(1, abs=1e-9) and end["lambda_1"] == pytest.approx(1, rel=1e-12)


def test_full_batch_sam_ends_where_the_top_eigenvalue_is_least_and_one_sam_where_the_trace_is():
    """The four-weight problem has its minima at (0, 0) and at (4/5, 1/7); 2 % as the study claims."""
    full = last(Config(mode="full_sam", budget_steps=2500, measure_every=2500))
    one = last(Config(mode="one_sam", budget_steps=1500, measure_every=1500))
    assert full["lambda_1"] == pytest.approx(16, rel=0.02) and abs(full["x1"]) < 0.1 and abs(full["x2"]) < 0.05
    assert one["trace"] == pytest.approx(746 / 35, rel=0.02) and one["lambda_1"] > 17
    assert full["alignment"] > 0.99


def test_gradient_descent_stays_on_the_manifold_and_its_time_stands_still():
    stage = train(STUDY, Config(mode="gd", budget_steps=300, measure_every=100))
    assert stage.rows[-1].metrics["loss"] < 1e-6 and stage.rows[-1].metrics["phase2_time"] == 0
    assert stage.rows[-1].metrics["distance"] < 0.02  # it undoes the kick of 0.01


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_a_seed_fork_from_one_trunk_bit_for_bit(mode):
    """Trained on from the state that gradient descent left, against trained from the start."""
    config = family({**vars(STUDY.tiny), "mode": mode}, [STUDY.tiny.budget_steps])[0]
    gd = replace(STUDY.tiny, mode="gd")
    assert STUDY.root(config) == STUDY.root(gd)
    fork = config.warm_steps + 1
    assert place(STUDY.timeline(config))[:2] == place(STUDY.timeline(gd))[:2]
    root, branch = alone(STUDY, gd)
    stages = []
    walk(STUDY, root, [replace(branch, stop=fork, points=(), keep=True)], LocalRun(), commit=stages.append)
    _, own = alone(STUDY, config, keep=True)
    rest = replace(own, start=fork, points=tuple(point for point in own.points if point.step > fork))
    walk(STUDY, root, [rest], LocalRun(), commit=stages.append, tensors=stages[0].tensors)
    whole = train(STUDY, config, keep=True)
    assert whole.rows[-1] == stages[1].rows[-1]
    assert all(torch.equal(value, stages[1].tensors[name]) for name, value in whole.tensors.items())


def test_the_trunks_end_is_measured_and_distance_and_time_count_from_there():
    stage = train(STUDY, STUDY.tiny)
    rows = {row.step: row.metrics for row in stage.rows}
    fork = STUDY.tiny.warm_steps + 1
    assert rows[fork]["distance"] == 0 and rows[fork]["phase2_time"] == 0
    end = STUDY.tiny
    assert stage.rows[-1].metrics["phase2_time"] == pytest.approx(end.budget_steps * end.learning_rate * end.radius**2)
    assert stage.rows[-1].metrics["phase2_time"] == pytest.approx(end.phase2_time)


def test_runs_of_any_radius_and_rate_take_the_same_time():
    configs = [Config(time_per_step=4e-4, radius=r, learning_rate=lr) for r in (0.1, 0.2, 0.4) for lr in (0.005, 0.01)]
    assert {round(config.phase2_time, 9) for config in configs} == {2.0}
    assert [config.sharpened_steps for config in configs] == [40_000, 20_000, 10_000, 5_000, 2_500, 1_250]


def test_m_sam_of_all_samples_is_full_batch_sam_and_its_timeline_is_the_same():
    everything = shrunk(mode="m_sam", group=2)
    assert place(STUDY.timeline(everything)) == place(STUDY.timeline(shrunk(mode="full_sam")))
    single = shrunk(mode="m_sam", group=1, groups=1)
    assert place(STUDY.timeline(single)) == place(STUDY.timeline(shrunk(mode="one_sam")))


def test_a_trial_that_diverges_says_so_and_does_not_raise():
    stages = []
    root, branch = alone(STUDY, shrunk(mode="full_sam", learning_rate=1e3))
    walk(STUDY, root, [branch], LocalRun(), commit=stages.append)
    assert stages[0].status == "diverged"


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(mode="sam"), "no mode 'sam'; there are gd, full_sam"),
        (dict(problem="bowl"), "no problem 'bowl'"),
        (dict(radius=0.0), "radius must be above 0, got 0.0; mode=gd"),
        (dict(mode="gd", radius=0.3), "radius does nothing under problem=toy4d, mode=gd, got 0.3"),
        (dict(mode="full_sam", group=2), "group does nothing"),
        (dict(hidden=5), "hidden does nothing under problem=toy4d"),
        (dict(mode="m_sam", problem="mlp_small", group=3), "m_sam needs group to divide the 16 samples"),
        (dict(mode="m_sam", problem="mlp_small", group=8, groups=3), "groups \\* group to be at most that"),
        (dict(mode="worst", worst_ascents=1), "one ascent is full_sam"),
        (dict(budget_steps=0), "budget_steps must be at least 1"),
    ],
)
def test_a_config_refuses_what_it_cannot_honour(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**changes)


def test_a_family_leaves_out_what_a_mode_does_not_read():
    configs = family({"mode": "gd", "radius": 0.5, "group": 2, "hidden": 9, "seed": 4}, [10, 20])
    assert [config.budget_steps for config in configs] == [10, 20] and configs[0].seed == 4
    assert configs[0].radius == Config().radius


def test_the_root_knows_nothing_of_what_follows_the_trunk():
    assert set(vars(STUDY.root(STUDY.tiny))) == {item for item in Root.__dataclass_fields__}
    later = shrunk(mode="m_sam", radius=0.3, learning_rate=0.02, budget_steps=7, warm_steps=9, kick=0.1)
    assert STUDY.root(later) == STUDY.root(STUDY.tiny)
    assert not {"mode", "radius", "learning_rate", "group"} & set(vars(STUDY.root(STUDY.tiny)))


def test_float32_runs_too():
    assert last(shrunk(precision="float32"))["lambda_1"] == pytest.approx(last(STUDY.tiny)["lambda_1"], rel=1e-3)
