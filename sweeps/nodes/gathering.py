"""Facts about this machine or the nodes of a cluster, gathered by asking each of them; `health.py` judges.

Ray is imported where it is asked, so that this machine alone is looked at without it.
"""

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.nodes import looking
from sweeps.nodes.nearby import ray_folder

CLOCK_ROUNDS, WHOLE_FILES = 5, 8
SEEN_SECONDS = 5.0  # within which the driver must see what a node has written


@dataclass(frozen=True)
class Disk:
    free: int
    total: int


@dataclass(frozen=True)
class NodeFacts:
    """What is known of one node. `silent` says why it did not answer; then nothing else is known but its resources.

    `unseen` is what the driver missed of the node's files; `clock_seconds` the node's clock minus the driver's, known
    within `clock_within`; `files_late` the longest that a file took to reach the driver, None where it was not tried.
    """

    name: str
    resources: Mapping[str, float] = field(default_factory=dict)
    silent: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    read_error: str | None = None
    write_error: str | None = None
    unseen: str | None = None
    file_system: str = ""
    results_disk: Disk | None = None
    ray_disk: Disk | None = None
    shared_memory: Disk | None = None
    gpus_of_torch: str | None = None
    clock_seconds: float = 0.0
    clock_within: float = 0.0
    files_late: float | None = None


class CannotWrite(OSError):
    """This machine cannot write to the results folder."""

    way_out = "free space there or choose results=FOLDER"

    def __str__(self) -> str:
        return f"{self.args[0]}; {self.way_out}"


@contextmanager
def trial_folder(results: Path) -> Iterator[tuple[Path, str]]:
    """A folder of its own in the results, with the driver's secret in it; gone afterwards, and so are empty results.

    Raises CannotWrite where this machine cannot, and passes on whatever is raised by those who use it.
    """
    made: list[Path] = []
    folder, secret = results / f".nodes-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    try:
        try:
            made += [parent for parent in (results, *results.parents) if not parent.exists()]
            folder.mkdir(parents=True)
            (folder / looking.FROM_DRIVER).write_text(secret)
        except OSError as error:
            raise CannotWrite(f"cannot write to {results}: {error}") from error
        yield folder, secret
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def here(results: Path, *, resources: Mapping[str, float] | None = None) -> NodeFacts:
    """The same facts of this machine, without a Ray."""
    with trial_folder(results.resolve()) as (folder, secret):
        said = looking.look(str(folder), "here", secret, str(ray_folder()), False)
        return _facts("this machine", resources or {}, said, unseen=_unseen(folder / "here", secret))


def gather(results: Path, *, seconds: float, whole_files: bool = False, count_gpus: bool = False) -> list[NodeFacts]:
    """Ask every node of the Ray that this process has joined, side by side; one that says nothing within `seconds` is
    silent. `whole_files` tries besides whether renamed files arrive whole.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(looking)
    strategy = NodeAffinitySchedulingStrategy
    remote: Any = ray.remote(num_cpus=0)(looking.Probe)
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    probes = {name: remote.options(scheduling_strategy=strategy(name, soft=False)).remote() for name in nodes}
    try:
        with trial_folder(results.resolve()) as (folder, secret):
            asked = {}
            for name, probe in probes.items():
                gpus = count_gpus and nodes[name]["Resources"].get("GPU", 0) > 0
                asked[name] = probe.look.remote(str(folder), name, secret, str(ray_folder()), gpus)
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
            found = [_answer(nodes[name], probes[name], asked[name], folder, secret, whole_files) for name in nodes]
    finally:
        for probe in probes.values():
            ray.kill(probe)
    return sorted(found, key=lambda facts: facts.name)


def _name(node: Mapping[str, Any]) -> str:
    """A node as a person knows it, and as Ray does."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node {node['NodeID'][:6]})"


def _answer(node: Mapping[str, Any], probe: Any, asked: Any, folder: Path, secret: str, whole_files: bool) -> NodeFacts:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    name, resources = _name(node), node["Resources"]
    try:
        said = ray.get(asked, timeout=0.1)
        offset, within = _clock(probe)
        unseen = None if said["write_error"] else _unseen(folder / node["NodeID"], secret)
        late = None
        if whole_files and said["write_error"] is None and unseen is None:
            late, unseen = _files(probe, folder, node["NodeID"], offset)
    except GetTimeoutError:
        return NodeFacts(name, resources, silent="it did not answer in time")
    except RayError as error:
        return NodeFacts(name, resources, silent=f"{type(error).__name__}: {(str(error).splitlines() or [''])[-1]}")
    return _facts(name, resources, said, unseen=unseen, clock_seconds=offset, clock_within=within, files_late=late)


def _facts(name: str, resources: Mapping[str, float], said: Mapping[str, Any], **more: Any) -> NodeFacts:
    known = {key: value for key, value in said.items() if key != "host"}
    for key in ("results_disk", "ray_disk", "shared_memory"):
        known[key] = None if known[key] is None else Disk(**known[key])
    return NodeFacts(name, resources, **known, **more)


def _clock(probe: Any) -> tuple[float, float]:
    """The node's clock minus this one's, and half the quickest question's way: it is known no better."""
    import ray

    best = (0.0, float("inf"))
    for _ in range(CLOCK_ROUNDS):
        sent = time.time()
        there = ray.get(probe.clock.remote(), timeout=10)
        back = time.time()
        best = min(best, (there - (sent + back) / 2, (back - sent) / 2), key=lambda pair: pair[1])
    return best


def _unseen(file: Path, secret: str) -> str | None:
    """Why the driver does not see what a node wrote; None when it does, at once or a little later."""
    reason = ""
    for _ in range(int(SEEN_SECONDS / 0.1)):
        try:
            if file.read_text() == secret:
                return None
            reason = f"{file} holds something else"
        except OSError as error:
            reason = f"{type(error).__name__}: {error}"
        time.sleep(0.1)
    return reason


def _files(probe: Any, folder: Path, name: str, offset: float) -> tuple[float | None, str | None]:
    """Read a node's renamed files as soon as their names are here: how late the last was, or what was wrong."""
    import ray

    asked = probe.write_whole_files.remote(str(folder), name, WHOLE_FILES)
    seen: dict[str, float] = {}
    end, written = time.time() + 60, None
    while time.time() < end:
        if (wrong := _arrived(folder, seen)) is not None:
            return None, wrong
        if written is None and ray.wait([asked], timeout=0)[0]:
            written = ray.get(asked)
            end = min(end, time.time() + SEEN_SECONDS)
        if written is not None and all(file in seen for file, _ in written):
            return max(0.0, max(seen[file] - (when - offset) for file, when in written)), None
    return None, f"of {WHOLE_FILES} renamed files {len(seen)} were visible within {SEEN_SECONDS:.0f} s"


def _arrived(folder: Path, seen: dict[str, float]) -> str | None:
    """Note when each of a node's renamed files is here; what is wrong with one that is not whole, or cannot be read."""
    try:
        for file in os.listdir(folder):
            if len(file) == 64 and file not in seen:
                content = (folder / file).read_bytes()
                if hashlib.sha256(content).hexdigest() != file:
                    return f"{file} was visible under its name before it was whole ({len(content)} bytes)"
                seen[file] = time.time()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None
