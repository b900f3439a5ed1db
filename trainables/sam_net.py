"""What does sharpness-aware minimization change in a convolutional net, at what cost? (arXiv:2211.05729, 2010.01412)

A residual net learns to tell images apart by SGD, by SAM from the first step, or by SAM from a later one: late SAM of
every radius leaves the same plain trunk. Rates are constant and then fall linearly, so that all budgets share a trunk
too. A SAM step takes two gradients: `gradient_evaluations` and `flops` count them, a step does not.
"""

# B images in a batch, N images, C channels, H height, W width, K classes

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from trainables.common.curvature import Hessian, hutchinson_trace, top_eigenvalues
from trainables.common.data.batches import equal_rows, worker_rows
from trainables.common.lanes import Lanes, inverse_length
from trainables.common.models.resnet import Norm, ResNet, forward_flops_per_image, running_statistics_held
from trainables.common.sam import ascent
from trainables.common.sam_net.arms import DEFAULTS, Config, describe, family, timeline
from trainables.common.sam_net.pictures import Part, Pictures, open_pictures
from trainables.common.streams import Streams
from trainables.common.timeline import Placed, Timeline
from trainables.common.training import TrainingState, bare
from trainables.study import Metric, Run, Span, StagedStudy, measured_on_grid

EIGENVALUE_TOLERANCE = 0.02  # relative; the residual is measured beside it
EVALUATED_IMAGES = 512  # at a time


@dataclass(frozen=True)
class Root:
    """Net, images and optimizer: all that rates, radii and starts of SAM have in common."""

    data: str = field(metadata={"key": False})  # where they lie; `data_sha` says what they are
    data_sha: str
    channels: int
    height: int  # after pooling
    image_width: int
    classes: int
    train_size: int
    select_size: int
    report_size: int | None
    pool: int
    width: int
    blocks: tuple[int, ...]
    norm: Norm
    batch_size: int
    momentum: float
    weight_decay: float
    curvature_samples: int
    curvature_probes: int
    curvature_every: int
    measure_every: int
    seed: int


def root(config: Config) -> Root:
    """Opens the images, for their checksum and sizes. Raises ValueError when they are missing or too few."""
    pictures = open_pictures(config.data, config.train_size, config.select_size, config.report_size, config.pool)
    copied = {item.name: getattr(config, item.name) for item in fields(Root) if item.name in DEFAULTS}
    channels, height, image_width = pictures.shape
    return Root(
        **copied,
        data_sha=pictures.sha,
        channels=channels,
        height=height,
        image_width=image_width,
        classes=pictures.classes,
    )


def check_workers(root: Root, workers: int) -> None:
    """Raise ValueError where so many workers cannot share the training of a root."""
    equal_rows(root, workers)
    if workers > 1 and root.norm == "batch":
        raise ValueError("norm=batch would keep other statistics on each worker; take norm=none or group")


class Training(TrainingState):
    """The net and its optimizer with the images; `extra` counts what was spent and how long SAM has worked."""

    def __init__(self, root: Root, run: Run):
        self.root = root
        self.pictures = pictures_of(root).to(run.device)
        model = run.wrap(model_of(root))
        self.network = bare(model)
        self.weights = dict(self.network.named_parameters())
        if any(isinstance(weight, DTensor) for weight in self.weights.values()):
            raise ValueError("sam_net keeps a whole copy of the net on each worker; take parallel=ddp")
        check_workers(root, run.workers)
        # The rate is set at every step.
        optimizer = torch.optim.SGD(
            self.weights.values(), lr=0.0, momentum=root.momentum, weight_decay=root.weight_decay
        )
        names = ("gradient_evaluations", "sam_active_steps", "sharpening_time")
        super().__init__(model, optimizer, {name: torch.zeros((), dtype=torch.float64) for name in names})
        self._order: tuple[int, Tensor] | None = None

    def batch_rows(self, step: int, run: Run) -> Tensor:
        """This worker's images of a step: every epoch takes all images in an order of its own, less a last rest."""
        root = self.root
        epoch, place = divmod(step, root.train_size // root.batch_size)
        if self._order is None or self._order[0] != epoch:
            words = Streams([root.seed], "order", run.device).words(epoch, root.train_size)
            self._order = epoch, words[0].argsort()
        batch = self._order[1][place * root.batch_size : (place + 1) * root.batch_size]
        return batch[worker_rows(root.batch_size, run.rank, run.workers)]


def pictures_of(root: Root) -> Pictures:
    pictures = open_pictures(root.data, root.train_size, root.select_size, root.report_size, root.pool)
    if pictures.sha != root.data_sha:
        raise ValueError(
            f"data {root.data!r} is {pictures.sha[:12]} here and {root.data_sha[:12]} where the sweep was planned; "
            "bring the same images to all machines"
        )
    return pictures


def model_of(root: Root) -> ResNet:
    """The root's net with its initial weights, which depend on the seed alone."""
    generator = torch.Generator().manual_seed(root.seed)
    return ResNet(root.channels, root.classes, root.width, root.blocks, root.norm, generator=generator)


def start(root: Root, run: Run) -> Training:
    return Training(root, run)


def advance(state: Training, placed: Placed, span: Span, run: Run) -> None:
    """SGD with momentum on the gradient or the SAM gradient; the batch of a step is a function of (seed, step)."""
    state.network.train()
    for step in range(span.start, span.stop):
        knobs = placed.at(step)
        slopes = step_gradient(state, step, knobs, run)
        for name, weight in state.weights.items():
            weight.grad = slopes[name][0]
        for group in state.optimizer.param_groups:
            group["lr"] = knobs["lr"]
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        sharp = "radius" in knobs
        state.extra["gradient_evaluations"] += 2 if sharp else 1
        state.extra["sam_active_steps"] += sharp
        state.extra["sharpening_time"] += knobs["lr"] * knobs["radius"] ** 2 if sharp else 0.0


def step_gradient(state: Training, step: int, knobs: Mapping[str, float], run: Run) -> Lanes:
    """What a step goes against, as one lane: the batch's gradient, or the mean of its groups' SAM gradients."""
    rows_B, root = state.batch_rows(step, run), state.root
    weights = {name: weight.detach()[None] for name, weight in state.weights.items()}
    if "radius" not in knobs:
        return _over_workers(gradient(state, weights, rows_B), run)
    radius, group = torch.full((1,), knobs["radius"], device=run.device), int(knobs["group"])
    if group == root.batch_size:  # one perturbation for all workers
        return _over_workers(sam_gradient(state, weights, rows_B, radius, run), run)
    if len(rows_B) % group:
        raise ValueError(f"each of {run.workers} workers has {len(rows_B)} images, which group={group} does not divide")
    parts = [sam_gradient(state, weights, rows, radius, None) for rows in rows_B.split(group)]
    return _over_workers({name: torch.stack([part[name] for part in parts]).mean(0) for name in weights}, run)


def sam_gradient(state: Training, weights: Lanes, rows: Tensor, radius: Tensor, run: Run | None) -> Lanes:
    """The gradient at the weights moved by `radius` along the gradient (arXiv:2010.01412, eq. 3); see `common.sam`.

    Weight decay has no part in the way there, and batch norms keep the statistics of the weights themselves. Given a
    run, all its workers move the same way.
    """
    uphill = gradient(state, weights, rows)
    there = ascent(weights, uphill if run is None else _over_workers(uphill, run), radius)
    with running_statistics_held(state.network):
        return gradient(state, there, rows)


def gradient(state: Training, weights: Lanes, rows: Tensor) -> Lanes:
    """Of the mean loss over these training images."""
    leaves = {name: value[0].requires_grad_() for name, value in weights.items()}
    images_BCHW, labels_B = state.pictures.train.rows(rows)
    loss = F.cross_entropy(functional_call(state.network, leaves, (images_BCHW,)), labels_B)
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    return {name: slope[None] for name, slope in zip(leaves, slopes, strict=True)}


def _over_workers(slopes: Lanes, run: Run) -> Lanes:
    """The mean over workers, each of which has equally many images."""
    if run.workers > 1:
        for slope in slopes.values():
            torch.distributed.all_reduce(slope)
            slope /= run.workers
    return slopes


def measure(state: Training, run: Run, full: bool) -> Mapping[str, float]:
    """Losses (nats) and errors, evaluated; what was spent so far; in full the report and the loss' curvature too.

    train/* and curvatures are of the same few training images, the latter in float32: the top eigenvalue of the
    Hessian by Lanczos with its residual |H v - lambda v|, the trace by Hutchinson's probes with its standard error.
    """
    network, root = state.network, state.root
    network.eval()
    few = torch.arange(root.curvature_samples, device=run.device)
    images_BCHW, labels_B = state.pictures.train.rows(few)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(network, dict(weights), (images_BCHW,)), labels_B)

    leaves = {name: weight.detach().requires_grad_() for name, weight in state.weights.items()}
    slopes = torch.autograd.grad(loss(leaves), list(leaves.values()))
    spent = {name: float(value) for name, value in state.extra.items()}
    step_flops = units(root)["flops"]
    metrics = {
        **spent,
        "flops": spent["gradient_evaluations"] * step_flops,
        "gradient_norm": float(inverse_length({str(at): slope[None] for at, slope in enumerate(slopes)})[1]),
        **_judged("train", network, Part(images_BCHW, labels_B)),
        **_judged("select", network, state.pictures.select),
    }
    if not full:
        return metrics
    hessian = Hessian(loss, {name: weight.detach() for name, weight in state.weights.items()})
    top = top_eigenvalues(hessian, tolerance=EIGENVALUE_TOLERANCE)
    trace = hutchinson_trace(hessian, root.curvature_probes)
    return {
        **metrics,
        **_judged("report", network, state.pictures.report),
        "report/top_eigenvalue": float(top.values[0]),
        "report/top_eigenvalue_residual": float(top.residuals[0]),
        "report/trace": trace.value,
        "report/trace_standard_error": trace.standard_error,
    }


@torch.no_grad()
def _judged(split: str, network: torch.nn.Module, part: Part) -> dict[str, float]:
    """Mean loss and error."""
    logits_NK = torch.cat([network(images_BCHW) for images_BCHW in part.images_NCHW.split(EVALUATED_IMAGES)])
    wrong = (logits_NK.argmax(1) != part.labels_N).double().mean()
    return {f"{split}/loss": float(F.cross_entropy(logits_NK, part.labels_N)), f"{split}/error": float(wrong)}


def measured_at(root: Root, timeline: Timeline) -> dict[int, bool]:
    """As `measured_on_grid`, but in full, which is dear, only every `curvature_every` steps and at the end."""
    points = dict.fromkeys(measured_on_grid(root, timeline), False)
    end = max(points)
    points |= dict.fromkeys([*range(root.curvature_every, end, root.curvature_every), end], True)
    return dict(sorted(points.items()))


def units(root: Root) -> dict[str, float]:
    """Images and training FLOPs of an SGD step, and parameters; a SAM step takes twice the FLOPs."""
    shape = root.channels, root.classes, root.width, root.blocks
    flops = 3 * root.batch_size * forward_flops_per_image(*shape, root.height, root.image_width)
    parameters = sum(weight.numel() for weight in model_of(root).parameters())
    return {"tokens": root.batch_size, "flops": flops, "parameters": parameters}


def files(root: Root) -> dict[str, bytes]:
    """The sizes of the architecture."""
    names = ("channels", "classes", "width", "blocks", "norm")
    sizes = {name: value for name, value in asdict(root).items() if name in names}
    return {"architecture.json": json.dumps({"class": "ResNet", **sizes}).encode()}


STUDY: StagedStudy = StagedStudy(
    "sam_net",
    paper="2211.05729",
    version=1,
    config=Config,
    root=root,
    timeline=timeline,
    start=start,
    advance=advance,
    measure=measure,
    check_workers=check_workers,
    measured_at=measured_at,
    tiny=Config(
        train_size=128,
        select_size=256,
        report_size=64,
        width=4,
        blocks=(1, 1),
        batch_size=16,
        budget_steps=24,
        learning_rate=0.5,
        radius=0.05,
        sam_start_step=6,
        curvature_samples=16,
        curvature_probes=2,
        measure_every=7,
        curvature_every=12,
    ),
    conditions=(
        *("budget_steps", "sam_start_step", "data", "train_size", "select_size", "report_size", "pool", "width"),
        *("blocks", "norm", "batch_size", "curvature_samples", "curvature_probes", "curvature_every"),
    ),
    select=Metric("select/error", "min"),
    report=Metric("report/error", "min"),
    units=units,
    step_cost=lambda knobs: 2.0 if "radius" in knobs else 1.0,
    family=family,
    describe=describe,
    files=files,
)
