"""Studies under Ray: a stock Tune trainable, a Ray Train trainer with several workers, and the two `Run`s behind them.

`tune_trainable(STUDY)` goes into a stock `tune.Tuner`; `torch_trainer(STUDY, config, workers=2)` trains one config on
several workers. The sweep engine runs its jobs through `in_this_process` or, with several GPUs per trial, through
`worker_group`.
"""

import contextlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import inf, isfinite
from typing import Any, Literal

import ray
import torch
import torch.distributed
from ray import tune
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train import report as train_report
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainables.common.process import reset_process
from trainables.study import AnyStudy, Diverged, FusedStudy
from trainables.walk import train

Parallel = Literal["ddp", "fsdp"]
Send = Callable[[dict[str, Any]], None]


def given_device() -> torch.device:
    """The GPU that Ray gave to this process, or its CPU; outside Ray the first GPU there is."""
    given = ray.get_gpu_ids() if ray.is_initialized() else torch.cuda.is_available()
    return torch.device("cuda" if given and torch.cuda.is_available() else "cpu")


@dataclass
class InProcessRun:
    """The run of a job in one Ray Tune actor, on the GPU that the actor was given or on its CPU.

    It touches no `ray.train` function: in Train's local mode inside a Tune trial most of them raise (Ray 2.60).
    """

    device: torch.device = field(default_factory=given_device)
    rank: int = 0
    workers: int = 1
    send: Send = lambda row: None
    stop: Callable[[], bool] = lambda: False

    def report(self, **row: Any) -> None:
        self.send(row)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def should_stop(self) -> bool:
        return self.stop()

    def slowest(self, seconds: float) -> float:
        return seconds


def in_this_process(loop: Callable[[], Any]) -> Any:
    """Run `loop` under a TorchTrainer in Train's local mode: no worker processes, no placement group."""
    trainer: Any = TorchTrainer(lambda: loop(), scaling_config=ScalingConfig(num_workers=0))
    return trainer.fit().return_value


class Parted(BaseException):
    """The workers of a group no longer do the same; the group must end.

    A BaseException, so that nobody takes it for a failure of one branch and lets the workers go on, each its own way.
    """


@dataclass
class WorkerGroupRun:
    """The run of one worker of a Ray Train worker group, one device each.

    parallel: "ddp" keeps the whole model on every worker, "fsdp" shards it by the blocks in `model.blocks`.
    stop: asked before every stretch of training; one worker's yes stops all. patience_seconds: how long a worker waits
    for the others where all have to meet.
    """

    parallel: Parallel = "ddp"
    send: Send = lambda row: None
    stop: Callable[[], bool] = lambda: False
    patience_seconds: float = 600.0
    device: torch.device = field(init=False)
    rank: int = field(init=False)
    workers: int = field(init=False)

    def __post_init__(self) -> None:
        self.device = get_device()
        self.rank, self.workers = get_context().get_world_rank(), get_context().get_world_size()
        # Apart from the gradients' group: what is said here never meets half a backward pass of another worker.
        self._talk = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=self.patience_seconds))

    def report(self, **row: Any) -> None:
        self.send(row)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        if self.parallel == "fsdp" and self.workers > 1:
            return sharded(model.to(self.device), self.workers)
        return prepare_model(model)

    def should_stop(self) -> bool:
        return any(self._all_say("stop?", self.stop()))

    def slowest(self, seconds: float) -> float:
        return max(self._all_say("seconds", seconds))

    def meet(self, doing: str, error: Exception | None) -> None:
        """Wait for all workers at the end of `doing`. Raises Parted when only some of them raised."""
        failed = self._all_say(doing, error is not None)
        if any(failed) and not all(failed):
            ranks = [rank for rank, raised in enumerate(failed) if raised]
            raise Parted(
                f"of {self.workers} workers only {ranks} raised in {doing}; see their own traceback"
            ) from error

    def _all_say(self, doing: str, word: float) -> list[float]:
        """The word of every worker. Raises Parted when one of them does something else, or does not come."""
        own = torch.tensor([zlib.crc32(doing.encode()), word], dtype=torch.float64)
        said = [torch.empty_like(own) for _ in range(self.workers)]
        try:
            torch.distributed.all_gather(said, own, group=self._talk)
        except RuntimeError as lost:
            raise Parted(f"worker {self.rank} of {self.workers} lost the others in {doing}: {lost}") from lost
        if any(other[0] != own[0] for other in said):
            raise Parted(f"worker {self.rank} of {self.workers} is at {doing}, and another one is not")
        return [float(other[1]) for other in said]


def sharded(model: torch.nn.Module, workers: int) -> torch.nn.Module:
    """The model with its parameters sharded over all workers (FSDP2), block by block.

    Raises ValueError for a model without `blocks`. The root is sharded again after each forward pass like the blocks:
    left whole after an evaluation, its parameters would not be the ones that the optimizer knows.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, torch.nn.ModuleList):
        raise ValueError(
            f"parallel='fsdp' shards the modules in model.blocks (an nn.ModuleList), which {type(model).__name__} "
            "lacks; take parallel='ddp' or name its layers so"
        )
    mesh = init_device_mesh(next(model.parameters()).device.type, (workers,))
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def together(study: AnyStudy, run: WorkerGroupRun) -> AnyStudy:
    """The study for a worker group: what it raises, it raises on all workers, and then a walk may go on.

    An error on some workers alone (out of memory, a bad disk) raises Parted. Without this the failed worker would go on
    with the next branch and average its gradients with those of the others' old one.
    """

    def met(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            given = [one for one in arguments if one is not run and not hasattr(one, "load_tensors")]
            result, error = None, None
            try:
                result = function(*arguments)
            except Exception as raised:
                error = raised
            run.meet(f"{function.__name__}({', '.join(map(repr, given))})", error)
            if error is not None:
                raise error
            return result

        return call

    if isinstance(study, FusedStudy):
        return study  # lanes are not split among workers
    return replace(study, start=met(study.start), advance=met(study.advance), measure=met(study.measure))


def worker_group(
    loop: Callable[[WorkerGroupRun], Any],
    *,
    workers: int,
    cpus: float = 1,
    use_gpu: bool = False,
    parallel: Parallel = "ddp",
    send: Send = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    run_config: RunConfig | None = None,
) -> TorchTrainer:
    """A trainer that runs `loop` on all workers, over NCCL on GPUs and gloo on CPUs; `fit().return_value` is rank 0's.

    cpus: CPUs of each worker, which computes with one thread on a CPU.
    """
    if workers < 1:
        raise ValueError(f"a worker group needs at least one worker, got {workers}")
    if parallel not in ("ddp", "fsdp"):
        raise ValueError(f"parallel is 'ddp' or 'fsdp', got {parallel!r}")

    def worker() -> Any:
        reset_process()
        return loop(WorkerGroupRun(parallel, send, stop))

    return TorchTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=_each(cpus, use_gpu)),
        run_config=run_config,
    )


def _each(cpus: float, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def torch_trainer(
    study: AnyStudy,
    config: Any,
    *,
    workers: int = 1,
    use_gpu: bool = False,
    cpus: float = 1,
    parallel: Parallel = "ddp",
    run_config: RunConfig | None = None,
) -> TorchTrainer:
    """A Ray Train trainer of one config on several workers, each with a CPU or a GPU; the batch is split among them.

    Every measurement is reported through `ray.train.report`; `fit().return_value` holds all of them. A diverged
    training ends with a row that says so; what the study raises, `fit` raises.
    """
    if not isinstance(config, study.config):
        raise TypeError(f"{study.name} needs a {study.config.__qualname__}, got {type(config).__name__}")
    if isinstance(study, FusedStudy) and workers > 1:
        raise ValueError(f"a lane of {study.name} trains on one worker, got workers={workers}; take workers=1")

    def loop(run: WorkerGroupRun) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        units = study.units(study.root(config))

        def send(row: dict[str, Any]) -> None:
            rows.append(result(study, units, row))
            train_report(rows[-1])

        run.send = send
        with contextlib.suppress(Diverged):
            train(together(study, run), config, run)
        return rows

    return worker_group(*(loop,), workers=workers, cpus=cpus, use_gpu=use_gpu, parallel=parallel, run_config=run_config)


def tune_trainable(study: AnyStudy, **fixed: Any) -> Callable[[dict[str, Any]], None]:
    """A stock Tune trainable: each trial trains one config of the study from step 0 and reports every measurement.

    Tune's values and `fixed` are fields of the study's config; the rest keep their defaults. Raises ValueError for
    other names. It trains on the GPU that Tune gave to the trial, or on one CPU thread. A result has `step`, the
    metrics by name, and where the study counts them `tokens` and `flops` so far. See `result` for diverged trials.
    """
    _check_fields(study, fixed)

    def trainable(values: dict[str, Any]) -> None:
        reset_process()
        config = config_of(study, values, fixed)
        units = study.units(study.root(config))
        run = InProcessRun(send=lambda row: tune.report(result(study, units, row)))
        with contextlib.suppress(Diverged):
            train(study, config, run)

    trainable.__name__ = study.name
    return trainable


def config_of(study: AnyStudy, values: Mapping[str, Any], fixed: Mapping[str, Any]) -> Any:
    """The config with these values, numpy's numbers as Python's. Raises ValueError for other names."""
    _check_fields(study, values)
    twice = sorted(values.keys() & fixed.keys())
    if twice:
        raise ValueError(f"{twice} are both fixed and searched; take them out of one of the two")
    return study.config(**{name: _plain(value) for name, value in {**fixed, **values}.items()})


def _check_fields(study: AnyStudy, values: Mapping[str, Any]) -> None:
    unknown = sorted(values.keys() - set(study.field_names))
    if unknown:
        raise ValueError(f"{study.name} has no field {unknown}; fields: {', '.join(study.field_names)}")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    return value.item() if hasattr(value, "item") else value


def result(study: AnyStudy, units: Mapping[str, float], row: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement as Ray is told it.

    `diverged` is set when a metric is not finite, and the metrics that trials are judged by then count as the worst
    there is: Tune's OptunaSearch leaves a trial that ends in NaN open for ever, and ASHA never stops it.
    """
    metrics = {name: value for name, value in row.items() if name not in ("lane", "key", "step", "full")}
    diverged = not all(isfinite(value) for value in metrics.values())
    for name, goal in (study.select, study.report):
        if not isfinite(metrics.get(name, 0.0)):
            metrics[name] = inf if goal == "min" else -inf
    spent = {name: units[name] * row["step"] for name in ("tokens", "flops") if name in units}
    return {"step": row["step"], **spent, "diverged": diverged, **metrics}
