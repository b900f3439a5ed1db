"""How does sharpness-aware minimization minimize sharpness, and which sharpness? (arXiv:2211.05729)

On a manifold of zero loss three notions of sharpness differ in the limit of a small radius: the worst direction sees
lambda_1 / 2, the ascent direction half the smallest nonzero eigenvalue, an average direction Tr / (2 D). SAM replaces
the worst direction by the gradient's and cuts the derivative through it. Here each mode starts from one interpolating
state, reached by gradient descent (the trunk), and runs for a time counted in 1 / (learning rate * radius^2).
"""

# D weights, N samples

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch

from trainables.common.captured import Captured
from trainables.common.curvature import Hessian, gram_spectrum, jacobian, top_eigenvalues
from trainables.common.lanes import Lanes, unit
from trainables.common.sam import gradient_through, m_sam_gradient, moved, sam_gradient
from trainables.common.streams import Streams
from trainables.common.timeline import Placed, Timeline, total_steps
from trainables.common.zero_loss import Problem, Residuals, quadratic, tanh_net, toy4d
from trainables.sam_modes import DTYPES, PROBLEM_FIELDS, SIZES, Config, ProblemName, describe, family, timeline
from trainables.study import Metric, Run, Span, StagedStudy, Tensors, measured_on_grid


@dataclass(frozen=True)
class Root:
    """The problem and its interpolating start: all that modes, radii and rates have in common."""

    problem: ProblemName
    dimension: int
    samples: int
    inputs: int
    hidden: int
    held_out: int
    precision: str
    measure_every: int
    seed: int


def root(config: Config) -> Root:
    return Root(**{item.name: getattr(config, item.name) for item in fields(Root)})


def problem_of(root: Root, device: torch.device | str = "cpu") -> Problem:
    dtype = DTYPES[root.precision]
    match root.problem:
        case "toy4d":
            return toy4d(root.seed, device, dtype)
        case "quadratic":
            return quadratic(root.seed, root.dimension, device, dtype)
    sizes = {name: getattr(root, name) for name in PROBLEM_FIELDS["mlp_small"]}
    return tanh_net(root.seed, **sizes, device=device, dtype=dtype)


@dataclass
class Descent:
    """Weights x [1, D], where the trunk left them, and the time since.

    `step` is the absolute step as a tensor, which a captured step can count; the walk says it anew for every span.
    """

    root: Root
    problem: Problem
    x: torch.Tensor
    trunk_end: torch.Tensor
    time: torch.Tensor  # sum of learning rate * radius^2 so far
    step: torch.Tensor
    loops: dict[tuple[tuple[str, float], ...], Captured] = field(default_factory=dict)  # by knobs

    def tensors(self) -> Tensors:
        return {"x": self.x, "trunk_end": self.trunk_end, "time": self.time}

    def load_tensors(self, tensors: Tensors) -> None:
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def loss(self, weights: Lanes) -> torch.Tensor:
        """Of one lane, shape [1]."""
        return self.problem.residuals(weights["x"][0]).square().mean().view(1)


def start(root: Root, run: Run) -> Descent:
    problem = problem_of(root, run.device)
    x = problem.start[None].clone()
    time = torch.zeros(1, device=run.device, dtype=torch.float64)
    return Descent(root, problem, x, x.clone(), time, torch.zeros((), dtype=torch.int64, device=run.device))


def advance(state: Descent, placed: Placed, span: Span, run: Run) -> None:
    """x <- x - lr g with the segment's gradient; what a step draws is a function of (seed, step)."""
    knobs = placed.at(span.start)  # all are constant
    key = tuple(sorted(knobs.items()))
    if key not in state.loops:
        # A graph holds no autograd tape, so that steps through the direction are launched one by one.
        device = "cpu" if knobs.get("through") else run.device
        state.loops[key] = Captured(step_of(state, knobs), device)
    state.step.fill_(span.start)
    state.loops[key](span.stop - span.start)


def step_of(state: Descent, knobs: Mapping[str, float]) -> Callable[[], None]:
    """One step under constant knobs, in place."""
    if "kick" in knobs:
        return lambda: kick(state, knobs["kick"])
    rate, radius = knobs["lr"], knobs.get("radius", 0.0)
    gradient = gradient_of(state, knobs, torch.full((1,), radius, device=state.x.device, dtype=state.x.dtype))

    def step() -> None:
        state.x.sub_(rate * gradient({"x": state.x})["x"])
        state.time.add_(rate * radius**2)
        state.step.add_(1)

    return step


def kick(state: Descent, length: float) -> None:
    """A random step, by which the trunk ends."""
    noise = Streams([state.root.seed], "kick", state.x.device).normal(0, state.x.shape[1], dtype=state.x.dtype)
    state.x.add_(length * unit({"x": noise})[0]["x"])
    state.trunk_end.copy_(state.x)
    state.step.add_(1)


def gradient_of(state: Descent, knobs: Mapping[str, float], radii: torch.Tensor) -> Callable[[Lanes], Lanes]:
    """What the knobs say a step goes against, as a function of the weights."""
    problem, seed, device, dtype = state.problem, state.root.seed, state.x.device, state.x.dtype
    everything = torch.arange(problem.samples, device=device)[None]

    def picked(weights: Lanes, samples: torch.Tensor) -> Lanes:
        return {"x": problem.gradient(weights["x"], samples)}

    def whole(weights: Lanes) -> Lanes:
        return picked(weights, everything.expand(len(weights["x"]), -1))

    if "radius" not in knobs:
        return whole
    ascents, group, groups = (int(knobs[name]) for name in ("ascents", "group", "groups"))
    if group < problem.samples:
        order = Streams([seed], "samples", device)

        def grouped(weights: Lanes) -> Lanes:
            shuffled = order.words(state.step, problem.samples).argsort(1)
            return m_sam_gradient(picked, weights, radii, shuffled[:, : groups * group].view(1, groups, group))

        return grouped
    if ascents == 0:
        directions = Streams([seed], "direction", device)

        def anywhere(weights: Lanes) -> Lanes:
            direction, _ = unit({"x": directions.normal(state.step, state.x.shape[1], dtype=dtype)})
            return whole(moved(weights, direction, radii))

        return anywhere
    if knobs["through"]:
        return lambda weights: gradient_through(state.loss, weights, radii, ascents)
    return lambda weights: sam_gradient(whole, weights, radii, ascents=ascents)


def measure(state: Descent, run: Run, full: bool) -> Mapping[str, float]:
    """Loss and curvature at the state.

    lambda_i, trace and lambda_min (the smallest that is not zero) are of the Gauss-Newton matrix, the Hessian at zero
    loss; hessian_lambda_1 is of the Hessian itself, which differs where the loss is not zero. sharpness is that trace,
    (2 / N) sum_i |grad f(x_i)|^2, on points that are not trained on (without data: the same).
    """
    problem, x = state.problem, state.x[0].detach()
    left_N, jacobian_ND = problem.residuals(x), rows(problem.residuals, x)
    spectrum = gram_spectrum(jacobian_ND, problem.samples)
    gradient = 2 / problem.samples * left_N @ jacobian_ND
    length = float(gradient.norm())
    hessian = Hessian(lambda weights: problem.residuals(weights["x"]).square().mean(), {"x": x})
    values = spectrum.values[:5].tolist()

    def held_out_trace(points: Residuals) -> float:
        slopes = jacobian_ND if points is problem.residuals else rows(points, x)
        return 2 * float(slopes.square().sum()) / len(slopes)

    metrics = {
        "select/sharpness": held_out_trace(problem.select),
        "loss": float(left_N.square().mean()),
        "gradient_norm": length,
        **{f"lambda_{place}": value for place, value in enumerate(values, start=1)},
        "lambda_min": float(spectrum.smallest_positive),
        "trace": float(spectrum.trace),
        "top_share": values[0] / float(spectrum.trace),
        "hessian_lambda_1": float(top_eigenvalues(hessian, tolerance=1e-6).values[0]),
        "alignment": abs(float(gradient @ spectrum.top_vector)) / length if length > 0 else 0.0,
        "norm": float(x.norm()),
        "distance": float((x - state.trunk_end[0]).norm()),
        "phase2_time": float(state.time[0]),
    }
    if state.root.problem == "toy4d":
        metrics |= {"x1": float(x[0]), "x2": float(x[1])}
    return {**metrics, "report/sharpness": held_out_trace(problem.report)} if full else metrics


def rows(residuals: Residuals, x: torch.Tensor) -> torch.Tensor:
    """Their gradients, [N, D]."""
    return jacobian(lambda weights: residuals(weights["x"]), {"x": x})


def measured_at(root: Root, timeline: Timeline) -> dict[int, bool]:
    """On the grid, at the end, and where the trunk ends."""
    points = measured_on_grid(root, timeline)
    points.setdefault(total_steps(timeline[:2]), False)
    return dict(sorted(points.items()))


def units(root: Root) -> dict[str, float]:
    """Of a full-batch SAM step: its samples, and two gradients of 6 FLOPs per sample and weight."""
    sizes = {
        "toy4d": (2, 4),
        "quadratic": (root.dimension, root.dimension),
        "mlp_small": (root.samples, root.hidden * (root.inputs + 1)),
    }
    samples, parameters = sizes[root.problem]
    return {"tokens": samples, "flops": 12.0 * samples * parameters, "parameters": parameters}


STUDY: StagedStudy = StagedStudy(
    "sam_bias",
    paper="2211.05729",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    measured_at=measured_at,
    tiny=Config(budget_steps=60, warm_steps=40, measure_every=20),
    conditions=(
        "problem",
        "budget_steps",
        "time_per_step",
        *sorted(SIZES),
        "precision",
        "warm_steps",
        "warm_rate",
        "kick",
    ),
    select=Metric("select/sharpness", "min"),
    report=Metric("report/sharpness", "min"),
    units=units,
    family=family,
    describe=describe,
)
