"""Joining a Ray, or starting one, what a sweep asks of it and what it offers. Ray is imported where it is needed.

A cluster with an autoscaler offers more than the nodes that are there: `Offer.kinds` are those that it may add.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from sweeps.engine.words import Refused, Resources
from sweeps.nodes.nearby import answers

HEAD = "node:__internal_head__"  # Ray's mark among the resources of the head
WAIT_SECONDS = 180.0  # for the nodes that a cluster file promises, while some are still starting


@dataclass
class Slots:
    """What the sweep asks of Ray: so many jobs at a time, of so many workers, each with so many CPUs and GPUs.

    One worker: jobs run in Tune's reused actors. Several: each job runs in a Train worker group of its own, `parallel`
    says how; `min_workers` are enough for a job where nodes were lost. Raises ValueError for a worker of a group with
    anything but one GPU or none, and for more workers at least than at most.
    """

    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    workers: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    min_workers: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.workers:
            raise ValueError(f"min_workers must lie in 1 .. workers = {self.workers}, got {self.least}")
        if self.workers > 1 and self.gpus not in (0, 1):
            raise ValueError(
                f"each of several workers has one GPU or none, got gpus={self.gpus:g}; raise workers instead"
            )

    @property
    def least(self) -> int:
        """The fewest workers that a job may have."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def trial(self) -> dict[str, float]:
        """What Tune reserves for a job. A worker group reserves for itself: its trial takes one byte of memory, and no
        CPU, so that trials can never fill a cluster before their workers have started."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.workers == 1 else {"memory": 1}

    def workers_on(self, node: Mapping[str, float]) -> int:
        """How many workers fit on a node."""
        asked = [(node.get(kind, 0.0), each) for kind, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each]
        return min(floor(there / each + 1e-9) for there, each in asked)


def slots_of(resources: Resources, count: int = 1) -> Slots:
    """A command's resources as slots. Raises Refused for what no worker group can have."""
    try:
        return Slots(
            count,
            gpus=resources.gpus,
            workers=resources.workers,
            parallel=resources.parallel,
            min_workers=resources.min_workers,
        )
    except ValueError as error:
        raise Refused(str(error)) from error


@dataclass(frozen=True)
class NodeKind:
    """A kind of node that an autoscaler may bring: `most` of it. No resources: nobody knows until one has joined."""

    name: str
    resources: Mapping[str, float]
    least: int
    most: int


@dataclass(frozen=True)
class Offer:
    """The nodes that are there (resources of each), and what the autoscaler may add: at most `most` workers in all."""

    nodes: tuple[Mapping[str, float], ...]
    kinds: tuple[NodeKind, ...] = ()
    most: int = 0

    @property
    def unknown(self) -> bool:
        """Whether nodes may join of which nobody knows the size."""
        return len(self.nodes) < 1 + self.most and any(not kind.resources for kind in self.kinds)

    def grown(self, slots: Slots) -> tuple[Mapping[str, float], ...]:
        """The head, and the workers that the autoscaler may bring for such jobs, the most useful first.

        GPU nodes are not started for jobs without GPUs, unless no other node could run these: so Ray's autoscaler does.
        """
        useful = [kind for kind in self.kinds if slots.workers_on(kind.resources)]
        if not slots.gpus:
            useful = [kind for kind in useful if not kind.resources.get("GPU")] or useful
        added: list[Mapping[str, float]] = []
        for kind in sorted(useful, key=lambda kind: -slots.workers_on(kind.resources)):
            added += [kind.resources] * min(kind.most, self.most - len(added))
        return (*(node for node in self.nodes if HEAD in node), *added)

    def workers(self, slots: Slots) -> int:
        """How many such workers fit on what is there, or on what may come where that is more."""
        return max(sum(map(slots.workers_on, nodes)) for nodes in (self.nodes, self.grown(slots)))

    @property
    def gpus(self) -> int:
        return self.workers(Slots(1, cpus=0, gpus=1))


def jobs_at_once(slots: Slots, offer: Offer) -> int:
    """Jobs that run side by side on the nodes there, or on all that may come where those are more; at least one."""
    return max(1, offer.workers(slots) // slots.workers)


def check_cluster(slots: Slots, offer: Offer) -> None:
    """Raise Refused when one job could never start, on what is there or what the autoscaler may bring."""
    fit = offer.workers(slots)
    if fit >= slots.least or offer.unknown:
        return
    each = _sizes(slots.cpus, slots.gpus)
    nodes = Counter(_sizes(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in offer.nodes)
    there = ", ".join(f"{count} x {size}" for size, count in sorted(nodes.items()))
    may_come = ", ".join(f"up to {kind.most} {kind.name}" for kind in offer.kinds)
    raise Refused(
        f"a job needs {slots.workers} x {each}, each on one node, and there is room for {fit} "
        f"(nodes: {there}{'; its autoscaler may add ' + may_come if may_come else ''}); "
        "take a smaller scale, set resources.workers and resources.gpus, or add nodes"
    )


def _sizes(cpus: float, gpus: float) -> str:
    return f"({cpus:g} CPU, {gpus:g} GPU)"


def join(address: str | None, slots: Slots) -> None:
    """Connect this process to a running Ray (`address`), or start one of its own with the CPUs of all slots.

    Raises Refused when no Ray answers at the address.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # results live in the store
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C asks the jobs to end after a commit
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # our display stands in for Tune's
    import ray

    if ray.is_initialized():
        return
    quiet: Any = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is None:
        cpus = max(1, round(slots.count * slots.workers * slots.cpus))
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    way = "is it up (ray status), and has this machine its token (~/.ray/auth_token)? cluster=local starts a Ray here"
    if ":" in address and not answers(address):  # Ray itself would try for minutes
        raise Refused(f"nobody answers at {address}, where a Ray was to be; {way}")
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refused(f"cannot join the Ray at {address}: {reason}; {way}") from error


def offered() -> Offer:
    """What the Ray that this process has joined offers; the autoscaler's part where it runs on this machine."""
    import ray

    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    config = autoscaling(ray.get_runtime_context().gcs_address)
    return Offer(nodes) if config is None else Offer(nodes, *kinds(config))


def dashboard() -> str | None:
    """Where the dashboard of the joined Ray listens."""
    import ray

    url = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url
    return str(url) if url else None


def idle_gpus() -> int:
    """GPUs of the joined Ray that nobody has asked for."""
    import ray

    return int(ray.available_resources().get("GPU", 0))


def autoscaling(gcs_address: str) -> dict[str, Any] | None:
    """The cluster file that the autoscaler of this Ray follows, from its process on this machine (the head)."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        said = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        file = said.get("--autoscaling-config")
        if file and "monitor.py" in " ".join(words) and said.get("--gcs-address") == gcs_address:
            path = Path(file).expanduser()
            return dict(yaml.safe_load(path.read_text())) if path.is_file() else None
    return None


def kinds(config: Mapping[str, Any]) -> tuple[tuple[NodeKind, ...], int]:
    """The node kinds of a cluster file beside its head, and how many workers it allows in all.

    Of provider local head and workers are one kind, and its resources are known to Ray alone.
    """
    types: Mapping[str, Any] = config.get("available_node_types") or {}
    local = (config.get("provider") or {}).get("type") == "local"
    most = int(config.get("max_workers") or 0)
    found = tuple(
        NodeKind(
            name, kind.get("resources") or {}, int(kind.get("min_workers") or 0), int(kind.get("max_workers", most))
        )
        for name, kind in types.items()
        if local or name != config.get("head_node_type")
    )
    return tuple(kind for kind in found if kind.most), most


def await_nodes(say: Callable[[str], None], *, seconds: float = WAIT_SECONDS) -> None:
    """Wait for the nodes that the cluster file promises (min_workers), while a cluster has just been started."""
    offer = offered()
    wanted = 1 + min(offer.most, sum(kind.least for kind in offer.kinds))
    if len(offer.nodes) >= wanted:
        return
    say(f"waiting for the cluster's nodes: {len(offer.nodes)} of {wanted} are there (at most {seconds:.0f} s)")
    end = time.monotonic() + seconds
    while len(offer.nodes) < wanted and time.monotonic() < end:
        time.sleep(1)
        offer = offered()
    if len(offer.nodes) < wanted:
        say(f"going on with {len(offer.nodes)} of {wanted} nodes; the others may still join")
