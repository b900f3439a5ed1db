"""How does sharpness-aware minimization minimize sharpness, and which sharpness? (arXiv:2211.05729)

On a manifold of zero loss three notions of sharpness differ in the limit of a small radius: the worst direction sees
lambda_1 / 2, the ascent direction half the smallest nonzero eigenvalue, an average direction Tr / (2 D). SAM replaces
the worst direction by the gradient's and cuts the derivative through it. Here each mode starts from one interpolating
state, reached by gradient descent (the trunk), and runs for a time counted in 1 / (learning rate * radius^2).
"""

# D weights, N samples

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

import torch

from trainables.common.captured import Captured
from trainables.common.curvature import Hessian, gram_spectrum, jacobian, top_eigenvalues
from trainables.common.lanes import Lanes, unit
from trainables.common.sam import gradient_through, m_sam_gradient, moved, sam_gradient
from trainables.common.streams import Streams
from trainables.common.timeline import Placed, Timeline, segment, total_steps
from trainables.common.zero_loss import Problem, Residuals, quadratic, tanh_net, toy4d
from trainables.study import Metric, Run, Span, StagedStudy, Tensors, measured_on_grid

ProblemName = Literal["toy4d", "quadratic", "mlp_small"]
PROBLEM_FIELDS: dict[str, tuple[str, ...]] = {
    "toy4d": (),
    "quadratic": ("dimension",),
    "mlp_small": ("samples", "inputs", "hidden", "held_out"),
}
"""Which sizes each problem reads."""


class Mode(NamedTuple):
    """How a step finds its gradient; `reads` are the config fields that only some modes read."""

    reads: tuple[str, ...] = ("radius",)
    random: bool = False  # a random direction instead of an ascent
    through: bool = False  # the derivative goes through the direction


MODES: dict[str, Mode] = {
    "gd": Mode(reads=()),
    "full_sam": Mode(),  # ascent direction of the whole loss, held fixed
    "ascent_loss": Mode(through=True),  # gradient descent on the loss in the ascent direction
    "worst": Mode(("radius", "worst_ascents")),  # the worst direction on the sphere, held fixed
    "worst_loss": Mode(("radius", "worst_ascents"), through=True),
    "average": Mode(random=True),  # a fresh random direction each step
    "one_sam": Mode(),  # one random sample a step, perturbed by its own gradient
    "m_sam": Mode(("radius", "group", "groups")),  # several groups of samples a step, each perturbed by its own
}
SOME_READ = {name for mode in MODES.values() for name in mode.reads}
SIZES = {name for names in PROBLEM_FIELDS.values() for name in names}


@dataclass(frozen=True)
class Config:
    problem: ProblemName = "toy4d"
    mode: str = "full_sam"  # a name in MODES
    budget_steps: int = 5000  # steps after the trunk (see time_per_step), at least 1
    time_per_step: float | None = None  # learning_rate * radius^2 of a budget step; None: that of the config itself
    learning_rate: float = 0.01  # after the trunk, above 0
    radius: float = 0.2  # of the perturbation, above 0; gd has none
    group: int = 1  # m_sam: samples that share a perturbation; divides the samples
    groups: int | None = None  # m_sam: random groups a step; None: all
    worst_ascents: int = 4  # ascents on the sphere that find the worst direction, at least 2
    warm_steps: int = 400  # gradient descent before, to zero loss: the trunk
    warm_rate: float = 0.01  # its learning rate, above 0
    kick: float = 1e-2  # length of the random step that ends the trunk, above 0: at zero loss SAM has no direction
    dimension: int = 10  # quadratic: weights
    samples: int = 16  # mlp_small: training points, with random labels
    inputs: int = 8  # mlp_small: numbers per point
    hidden: int = 32  # mlp_small: tanh units
    held_out: int = 64  # mlp_small: points for select, and as many others for report
    precision: Literal["float64", "float32"] = "float64"
    measure_every: int = 250  # steps between light measurements
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("problem", get_args(ProblemName)), ("mode", MODES), ("precision", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(known)}")
        for name in ("learning_rate", "radius", "warm_rate", "kick", "time_per_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}; mode=gd trains without a radius")
        for name in ("budget_steps", "warm_steps", "group", "groups", "measure_every", *SIZES):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.worst_ascents < 2:
            raise ValueError(f"worst_ascents must be at least 2, got {self.worst_ascents}; one ascent is full_sam")
        for name in unread(self.problem, self.mode):
            if getattr(self, name) != DEFAULTS[name]:
                raise ValueError(
                    f"{name} does nothing under problem={self.problem}, mode={self.mode}, got {getattr(self, name)}; "
                    f"leave it at {DEFAULTS[name]}"
                )
        if self.mode == "m_sam" and (
            self.sample_count % self.group or self.group_count * self.group > self.sample_count
        ):
            raise ValueError(
                f"m_sam needs group to divide the {self.sample_count} samples and groups * group to be at most that, "
                f"got group {self.group} and groups {self.groups}"
            )

    @property
    def sample_count(self) -> int:
        return {"toy4d": 2, "quadratic": self.dimension, "mlp_small": self.samples}[self.problem]

    @property
    def group_count(self) -> int:
        return self.sample_count // self.group if self.groups is None else self.groups

    @property
    def sharpened_steps(self) -> int:
        """Steps after the trunk: as many as take the time of `budget_steps` steps at `time_per_step`.

        >>> Config(budget_steps=100, time_per_step=4e-4, radius=0.1, learning_rate=0.01).sharpened_steps
        400
        """
        if self.time_per_step is None or self.mode == "gd":
            return self.budget_steps
        return max(1, round(self.budget_steps * self.time_per_step / (self.learning_rate * self.radius**2)))

    @property
    def phase2_time(self) -> float:
        """Steps after the trunk times learning_rate * radius^2; 0 for gd."""
        return 0.0 if self.mode == "gd" else self.sharpened_steps * self.learning_rate * self.radius**2


DTYPES = {"float64": torch.float64, "float32": torch.float32}
DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(Config) if item.default is not MISSING}


def unread(problem: str, mode: str) -> set[str]:
    """The fields that neither this problem nor this mode reads.

    >>> sorted(unread("quadratic", "gd"))
    ['group', 'groups', 'held_out', 'hidden', 'inputs', 'radius', 'samples', 'worst_ascents']
    """
    return (SIZES | SOME_READ) - set(PROBLEM_FIELDS[problem]) - set(MODES[mode].reads)


def family(values: Mapping[str, Any], budgets: Sequence[int]) -> list[Config]:
    """One config per budget; what the problem and the mode do not read is left at its default."""
    away = unread(values.get("problem", DEFAULTS["problem"]), values.get("mode", DEFAULTS["mode"]))
    kept = {name: value for name, value in values.items() if name not in away}
    return [Config(**{**kept, "budget_steps": budget}) for budget in budgets]


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


def timeline(config: Config) -> Timeline:
    """Gradient descent and the kick (the trunk), then the mode. Knobs are numbers, so that states fork:

    lr; radius (absent: plain gradient descent); ascents that find the direction (0: a random one); through (1: the
    derivative goes through the direction); group (samples that share a direction) and groups (of them a step); or
    kick alone: a random step of this length.
    """
    trunk = segment(config.warm_steps, lr=config.warm_rate), segment(1, kick=config.kick)
    mode, steps = MODES[config.mode], config.sharpened_steps
    if config.mode == "gd":
        return *trunk, segment(steps, lr=config.learning_rate)
    everything = {"group": config.sample_count, "groups": 1}
    picked = {"one_sam": {"group": 1, "groups": 1}, "m_sam": {"group": config.group, "groups": config.group_count}}
    ascents = 0 if mode.random else config.worst_ascents if "worst_ascents" in mode.reads else 1
    knobs = {"lr": config.learning_rate, "radius": config.radius, "ascents": ascents, "through": mode.through}
    return *trunk, segment(steps, **knobs, **picked.get(config.mode, everything))


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


SHORT = {"budget_steps": "B", "radius": "r", "learning_rate": "lr", "group": "m", "seed": "s"}


def describe(config: Config, varying: Sequence[str]) -> str:
    """Problem and mode, then what varies.

    >>> describe(Config(radius=0.1), ["mode", "radius", "budget_steps", "seed"])
    'toy4d full_sam r=0.1 B=5000 s=0'
    """
    away = unread(config.problem, config.mode) | {"problem", "mode"}
    named = [name for name in varying if name not in away]
    return " ".join(
        [config.problem, config.mode, *(f"{SHORT.get(name, name)}={getattr(config, name)}" for name in named)]
    )


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
