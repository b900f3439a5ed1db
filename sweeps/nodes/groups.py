"""Worker groups and the nodes under them: how many workers a job gets, which node leaves, what dead groups leave.

Ray is imported where it is needed. What Ray has no public call for (nodes that are being drained, the creator of a
placement group) is asked of the same tables that Ray Train asks.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.nodes.joining import Slots
from trainables.study import AnyStudy, StagedStudy

LOOK_SECONDS = 1.0  # between two looks at Ray's table of nodes
REAP_SECONDS = 5.0  # between two looks for what dead groups left


def worker_counts(study: AnyStudy, roots: Iterable[Any], slots: Slots) -> list[int]:
    """The numbers of workers that may train all of these roots, between the least and the most that a job may have.

    Raises ValueError when there is none, with the reason of the largest.
    """
    if not isinstance(study, StagedStudy):
        return [1]
    roots, counts = list(roots), []
    refused: ValueError | None = None
    for workers in range(slots.workers, slots.least - 1, -1):
        try:
            for root in roots:
                study.check_workers(root, workers)
            counts.append(workers)
        except ValueError as error:
            refused = refused or error
    if refused is not None and not counts:
        raise refused
    return counts[::-1]


def workers_now(slots: Slots, counts: Sequence[int], there: int) -> int:
    """The most workers, of these counts, that every slot's job can have where `there` of them fit in all.

    The least where not even these fit: the job then waits for nodes.

    >>> workers_now(Slots(2, workers=4, min_workers=1), [1, 2, 4], there=5)
    2
    """
    return max((count for count in counts if count * slots.count <= there), default=counts[0])


def room(slots: Slots, may_come: int = 0, lost_before: int = 0) -> int:
    """How many workers fit on the nodes that are there and stay, or as many as may come while none was lost.

    An autoscaler brings what a job asks for: one that asked for no more than is there would never get more.
    `lost_before`: nodes that had gone when the sweep began, idle ones that an autoscaler gave back among them.
    """
    import ray

    leaving = leaving_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    there = sum(slots.workers_on(node["Resources"]) for node in nodes)
    return there if lost_nodes() > lost_before else max(there, may_come)


def lost_nodes() -> int:
    """How many nodes this Ray has lost so far, those that were told to leave included."""
    import ray

    leaving = leaving_nodes()
    return sum(not node["Alive"] or node["NodeID"] in leaving for node in ray.nodes())


def nodes_there() -> tuple[str, ...]:
    """Ids of the nodes of this Ray that are alive."""
    import ray

    return tuple(node["NodeID"] for node in ray.nodes() if node["Alive"])


def own_node() -> str:
    """The id of the node that this process runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def leaving_nodes() -> set[str]:
    """Ids of the nodes that are to go: being drained, as a cluster's manager does for a spot instance on notice."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())


@dataclass
class Notice:
    """Whether this process' node, or that where it was made, was told to leave; looks every LOOK_SECONDS at most."""

    node: str = field(default_factory=own_node)
    given: bool = False
    looked_at: float = float("-inf")

    def __call__(self) -> bool:
        if not self.given and time.monotonic() - self.looked_at > LOOK_SECONDS:
            self.looked_at = time.monotonic()
            self.given = not leaving_nodes().isdisjoint((self.node, own_node()))
        return self.given


class NodeDied(RuntimeError):
    """The raylet of this process is gone: Ray has the job done again elsewhere."""


@dataclass(frozen=True)
class Raylet:
    """The raylet of this node, which started this process. A process outlives it by seconds."""

    pid: int = field(default_factory=os.getppid)

    def must_live(self) -> None:
        """Raises NodeDied once the raylet has died: what this process wrote now would stand twice in the store."""
        if os.getppid() != self.pid:
            raise NodeDied(f"the raylet of {platform.node()} has died; this job goes on where Ray starts it again")


def reap() -> int:
    """Remove the placement groups whose creator, a dead job's controller, is gone; how many there were.

    Ray itself holds their CPUs and GPUs until this whole program ends, and the next group would wait for them for ever.
    """
    import ray
    from ray._raylet import PlacementGroupID
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    tables = ray._private.state.state._connect_and_get_accessor()
    own = bytes.fromhex(ray.get_runtime_context().get_job_id())
    table: Any = gcs_pb2.__dict__["PlacementGroupTableData"]  # a generated module, which names no classes
    groups = [table.FromString(raw) for raw in tables.get_placement_group_table()]
    left = [
        group
        for group in groups
        if group.creator_actor_dead  # which is also said of those that the driver, which is no actor, has made for Tune
        and not ray.ActorID(group.creator_actor_id).is_nil()
        and group.creator_job_id == own
        and group.state != table.REMOVED
    ]
    for group in left:
        remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
    return len(left)


def now_and_then(act: Callable[[], Any], seconds: float) -> Callable[[], None]:
    """A function that acts when it was not called for so long."""
    last = [time.monotonic()]

    def call() -> None:
        if time.monotonic() - last[0] >= seconds:
            act()
            last[0] = time.monotonic()

    return call
