"""A Ray of one's own on this machine, of two raylets, and its processes by what they do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

# What the processes of a sweep call themselves. A Tune actor runs a job, or minds the worker group that does.
TITLES = {"worker": "ray::RayTrainWorker", "actor": "ray::ImplicitFunc", "controller": "ray::TrainController"}
START_ATTEMPTS = 6
RAYS_OWN = "AutoscalingCoordinator"  # one per Ray, whatever runs on it, from the first worker group on


@dataclass
class Raylets:
    """A running Ray: its head, to which this process is connected, and other nodes that may be killed."""

    cluster: Any
    cpus: int

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def processes(self, kind: str) -> list[psutil.Process]:
        """The processes of a kind that this Ray started, none of another Ray; of its raylets, those with a job on them
        that may be killed."""
        if kind == "raylet":
            others = self._raylets(self.cluster.worker_nodes)
            return [psutil.Process(pid) for pid in others if _titled(pid, (TITLES["actor"], TITLES["worker"]))]
        mine = self._raylets([*self.cluster.worker_nodes, self.cluster.head_node])
        return [process for pid in mine for process in _titled(pid, (TITLES[kind],))]

    def _raylets(self, nodes: Any) -> list[int]:
        kind = ray._private.ray_constants.PROCESS_TYPE_RAYLET
        return [one.process.pid for node in nodes for one in node.all_processes.get(kind, ())]

    def one_more(self) -> None:
        """A second raylet, where the last one was killed."""
        for node in list(self.cluster.worker_nodes):
            if not all(psutil.pid_exists(pid) and _lives(pid) for pid in self._raylets([node])):
                self.cluster.remove_node(node, allow_graceful=False)
        if not self.cluster.worker_nodes:
            add(self.cluster, num_cpus=self.cpus)

    def left_behind(self) -> dict[str, list[Any]]:
        """What of a sweep is still there once it has ended: placement groups, actors and their processes."""
        groups = [name for name, one in placement_group_table().items() if one["state"] != "REMOVED"]
        alive = [one for one in ray._private.state.actors().values() if one["State"] != "DEAD"]
        actors = [one["ActorClassName"] for one in alive if one["Name"] != RAYS_OWN]
        return {"groups": groups, "actors": actors, "processes": [p.pid for k in TITLES for p in self.processes(k)]}

    def clean_within(self, seconds: float, but: Mapping[str, list[Any]] | None = None) -> dict[str, list[Any]]:
        """The same `but` what was there before, once nothing is left or the time is up."""
        deadline = time.monotonic() + seconds
        while True:
            left = {kind: _without(found, (but or {}).get(kind, ())) for kind, found in self.left_behind().items()}
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def _without(found: Iterable[Any], before: Iterable[Any]) -> list[Any]:
    return list((Counter(found) - Counter(before)).elements())


def _titled(raylet: int, titles: tuple[str, ...]) -> list[psutil.Process]:
    """A raylet's processes that call themselves so; those that end meanwhile are left out."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(raylet).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(titles):
                    found.append(process)
    return found


def _lives(pid: int) -> bool:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextlib.contextmanager
def raylets(cpus: int = 2) -> Iterator[Raylets]:
    """Two raylets of so many CPUs and this process connected to the first; all is gone at the end.

    They live in a temporary folder of their own, so that no other program of this machine joins them.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: the sockets in it have long names
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "RAY_ADDRESS")}
    os.environ["RAY_TMPDIR"] = folder
    os.environ.pop("RAY_ADDRESS", None)
    try:
        with contextlib.ExitStack() as ends:
            cluster = _started(cpus)
            ends.callback(cluster.shutdown)
            os.environ["RAY_ADDRESS"] = cluster.address  # a trial's own processes find this Ray and no other
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            ends.callback(ray.shutdown)
            yield Raylets(cluster, cpus)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


def _started(cpus: int) -> Any:
    cluster = Cluster()
    try:
        # As every real cluster has one; without it Ray Train's cleaner of a dead controller asks in vain and stays.
        # Port None: the first free one from 8265 on, since another Ray here may have a dashboard too.
        add(cluster, num_cpus=cpus, include_dashboard=True, dashboard_port=None)
        add(cluster, num_cpus=cpus)
    except Exception:
        cluster.shutdown()
        raise
    return cluster


def add(cluster: Any, **node: Any) -> Any:
    """One more raylet, the head where there is none yet.

    On a busy machine it ends itself when its helpers have not come within 20 s: then once more, without its remains.
    """
    for attempts_left in reversed(range(START_ATTEMPTS)):
        before = set(cluster.list_all_nodes())
        try:
            return cluster.add_node(**node, **_ports())
        except Exception:
            for remains in set(cluster.list_all_nodes()) - before:
                cluster.remove_node(remains, allow_graceful=False)
            if not attempts_left:
                raise


def _ports() -> dict[str, int]:
    """Ports that are free now: told them, a raylet need not wait until its helpers have found some."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def kill(process: psutil.Process) -> None:
    """kill -9, as the kernel does when memory runs out."""
    process.send_signal(signal.SIGKILL)
