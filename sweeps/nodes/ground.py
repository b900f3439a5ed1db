"""The ground that a sweep stands on: its own packages, this machine or a cluster, and what may be said of them."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import analysis
import search_spaces
import trainables
from sweeps.engine.words import Refused, Words, default_slots
from sweeps.nodes.gathering import gather, here
from sweeps.nodes.health import before_a_sweep
from sweeps.nodes.joining import Offer, await_nodes, check_cluster, idle_gpus, jobs_at_once, join, offered, slots_of
from sweeps.nodes.nearby import ray_address, running_ray, seen_cluster

ANSWER_SECONDS = 90.0  # for every node, side by side: a node's first process starts within seconds, under load later


def own_rooms() -> None:
    """Raise Refused when one of our package names resolves to somebody else's folder."""
    ours = Path(__file__).resolve().parents[2]
    for package in (trainables, search_spaces, analysis):
        found = Path(str(package.__file__)).resolve().parents[1]
        if found != ours:
            raise Refused(
                f"the name {package.__name__!r} means {found} here, not Anabranch's {ours}; "
                "run in Anabranch's own virtual environment, or take that folder off PYTHONPATH"
            )


@dataclass(frozen=True)
class Ground:
    """Where a sweep runs. address: of the Ray that it joins; None for this machine, where it may start its own.

    slots: jobs at a time; offer: what the Ray that was joined has.
    """

    slots: int
    idle_gpus: int = 0
    address: str | None = None
    offer: Offer | None = None

    def check(self, words: Words, results: Path) -> None:
        """Raise Refused where one job could never start, or where nodes do not share code and results."""
        wanted = words.resources.gpus * words.resources.workers
        if self.offer is not None:
            check_cluster(slots_of(words.resources), self.offer)
            if len(self.offer.nodes) > 1:
                driver = here(results)
                nodes = gather(results, seconds=ANSWER_SECONDS)
                before_a_sweep(nodes, driver, str(results.resolve()), gpus=words.resources.gpus > 0)
        elif wanted and torch.cuda.device_count() < wanted:
            raise Refused(
                f"scale={words.scale} needs {wanted:g} GPUs per trial, this machine has {torch.cuda.device_count()}; "
                "take scale=laptop, or run it on a cluster (cluster.yaml)"
            )


def find_ground(words: Words, say: Callable[[str], None]) -> Ground:
    """This machine, or the Ray that the command's words lead to, which this process joins.

    Jobs at a time are counted on what the cluster has or may bring. Raises Refused when no Ray answers.
    """
    address = ray_address(words, say)
    if address is None:
        gpus = torch.cuda.device_count()
        return Ground(1 if words.executor == "local" else default_slots(words, gpus), gpus)
    slots = slots_of(words.resources)
    join(address, slots)
    if not words.plan_only:
        await_nodes(say)
    offer = offered()
    return Ground(words.slots or jobs_at_once(slots, offer), idle_gpus(), address, offer)


def cluster_elsewhere(words: Words, arguments: Sequence[str]) -> str | None:
    """The line for a machine whose cluster seems to be up while the command is about to run here alone."""
    if words.executor == "local" or words.cluster != "auto" or running_ray() is not None:
        return None
    seen = seen_cluster()
    return None if seen is None else seen.line(os.path.relpath(sys.argv[0]), arguments)
