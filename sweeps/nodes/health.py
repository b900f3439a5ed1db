"""What the facts about a cluster mean: findings, each with the way out. Pure; `gathering.py` gathers the facts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.engine.words import Refused
from sweeps.nodes.gathering import NodeFacts
from sweeps.nodes.joining import Offer, Slots, check_cluster, jobs_at_once

Level = Literal["ok", "warning", "fault"]

CLOCK_SECONDS = 2.0  # journals and ledgers of several nodes are put in order by their clocks
LATE_SECONDS = 1.0  # a driver that sees a committed stage later than this leaves slots idle
RAY_DISK_SHARE = 0.05  # Ray stops writing objects to a disk with less than this free
LOW_BYTES = 5e9
SHARED_MEMORY_BYTES = 1e9  # NCCL and Ray's object store live there
CODE_WAY = "bring the same code and packages to all nodes: ray up CLUSTER.yaml again, then restart those that differ"


@dataclass(frozen=True)
class Finding:
    """One line of a check-up: what was looked at, what was found, and the way out of it."""

    level: Level
    about: str
    found: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.found}" + (f"; {self.way_out}" if self.way_out else "")


def before_a_sweep(nodes: Sequence[NodeFacts], driver: NodeFacts, results: str, gpus: bool) -> None:
    """Raise Refused when a node does not answer, differs in software or does not share the results folder."""
    found = [*answering(nodes), *software(nodes, driver, gpus), *storage(nodes, results)]
    faults = [str(finding) for finding in found if finding.level == "fault"]
    if faults:
        more = f" (and {len(faults) - 4} more findings)" if len(faults) > 4 else ""
        raise Refused(" | ".join(faults[:4]) + more + "; all of it: python -m sweeps.doctor")


def answering(nodes: Sequence[NodeFacts]) -> list[Finding]:
    way = "look at its logs (ray logs), or take it out of the cluster"
    silent = [Finding("fault", "nodes", f"{node.name}: {node.silent}", way) for node in nodes if node.silent]
    return silent or [Finding("ok", "nodes", f"{_count(nodes)} answered: {', '.join(node.name for node in nodes)}")]


def missing(offer: Offer) -> list[Finding]:
    """What a cluster file promises or allows, and is not there yet to be looked at."""
    workers = len(offer.nodes) - 1
    least = min(offer.most, sum(kind.least for kind in offer.kinds))
    if workers < least:
        way = "wait, then look at: ray status; ray monitor CLUSTER.yaml"
        return [
            Finding("warning", "nodes", f"{workers} of {least} workers that the cluster file promises are there", way)
        ]
    if offer.kinds and workers < 1:
        may_come = ", ".join(f"up to {kind.most} {kind.name}" for kind in offer.kinds)
        text = f"the head alone is there; nobody has looked at the workers that may come ({may_come})"
        return [Finding("warning", "nodes", text, "run this again while a sweep trains: they come with its first jobs")]
    return []


def software(nodes: Sequence[NodeFacts], driver: NodeFacts, gpus: bool) -> list[Finding]:
    """Versions and code of every node against the driver's.

    torch's build (+cpu, +cu128) may differ between nodes, but on a node whose GPUs are wanted it knows them.
    """
    found = []
    for node in _spoke(nodes):
        different = [
            f"{package} {node.versions[package]} (driver: {ours})"
            for package, ours in driver.versions.items()
            if _release(node.versions[package]) != _release(ours)
        ]
        if node.code != driver.code:
            different.append(f"Anabranch's code {node.code} (driver: {driver.code})")
        if different:
            found.append(Finding("fault", "versions", f"{node.name} has {', '.join(different)}", CODE_WAY))
        if gpus and node.resources.get("GPU") and node.versions["torch"].endswith("+cpu"):
            text = f"{node.name} has GPUs and torch {node.versions['torch']}, which knows none"
            found.append(Finding("fault", "versions", text, "install the CUDA build there: pip install torch==VERSION"))
    if found:
        return found
    ours = ", ".join(f"{package} {_release(release)}" for package, release in driver.versions.items())
    return [Finding("ok", "versions", f"{ours}, code {driver.code} on {_count(_spoke(nodes))}")]


def storage(nodes: Sequence[NodeFacts], results: str) -> list[Finding]:
    """Every node reads what the driver wrote, and the driver what the node wrote, whole as soon as it is there."""
    way = "mount one shared folder at this path on all nodes, or name another: results=FOLDER or $ANABRANCH_RESULTS"
    found = []
    for node in _spoke(nodes):
        if node.read_error is not None:
            text = f"{node.name} does not see what the driver wrote to {results}: {node.read_error}"
            found.append(Finding("fault", "storage", text, way))
        elif node.write_error is not None:
            text = f"{node.name} cannot write to {results}: {node.write_error}"
            found.append(Finding("fault", "storage", text, way))
        elif node.unseen is not None:
            text = f"the driver does not see what {node.name} wrote to {results}: {node.unseen}"
            found.append(Finding("fault", "storage", text, way))
        elif node.files_late is not None and node.files_late > LATE_SECONDS:
            text = f"what {node.name} writes to {results} reaches the driver {node.files_late:.1f} s later"
            way_out = (
                "mount it with short attribute caches (NFS: actimeo=1), or start sweeps on the machine that holds it"
            )
            found.append(Finding("warning", "storage", text, way_out))
    kinds = ", ".join(sorted({node.file_system for node in _spoke(nodes) if node.file_system})) or "unknown"
    tried = ", renamed files arrive whole" if any(node.files_late is not None for node in nodes) else ""
    shared = "written and read by" if len(nodes) == 1 else "one folder, written and read by"
    return found or [Finding("ok", "storage", f"{results} ({kinds}): {shared} {_count(_spoke(nodes))}{tried}")]


def resources(slots: Slots, offer: Offer, scale: str) -> list[Finding]:
    """The GPUs and CPUs of one trial against what nodes have or may come to have."""
    each = f"{slots.workers} x {slots.gpus:g} GPUs" if slots.gpus else f"{slots.workers} x {slots.cpus:g} CPUs"
    try:
        check_cluster(slots, offer)
    except Refused as error:
        rule, _, way = str(error).rpartition("; ")
        return [Finding("fault", "resources", f"scale={scale}: {rule}", way)]
    count = jobs_at_once(slots, offer)
    grows = " once the autoscaler has added its nodes" if offer.kinds and count > 1 else ""
    if offer.unknown:
        grows = "; more when nodes of unknown size have joined"
    return [Finding("ok", "resources", f"scale={scale}: {each} per trial, {count} side by side{grows}")]


def seen_gpus(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """What torch finds against what Ray was told that a node has."""
    found, right = [], 0
    way = "check the driver (nvidia-smi) and torch's CUDA build there, or --num-gpus of ray start"
    for node in _spoke(nodes):
        if node.gpus_of_torch is not None:
            told = node.resources.get("GPU", 0.0)
            if node.gpus_of_torch == f"{told:g}":
                right += round(told)
            else:
                text = f"{node.name} offers {told:g} GPUs to Ray, torch there finds {node.gpus_of_torch}"
                found.append(Finding("fault", "GPUs", text, way))
    if right and not found:
        found.append(Finding("ok", "GPUs", f"torch finds all {right} that Ray offers"))
    return found


def clocks(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Every node's clock against the driver's, as well as the way there and back lets it be known."""
    off = [node for node in _spoke(nodes) if abs(node.clock_seconds) - node.clock_within > CLOCK_SECONDS]
    way = "let both follow one clock: timedatectl set-ntp true"
    found = [
        Finding("fault", "clocks", f"{node.name} is {node.clock_seconds:+.1f} s from the driver", way) for node in off
    ]
    most = max((abs(node.clock_seconds) for node in _spoke(nodes)), default=0.0)
    return found or [Finding("ok", "clocks", f"at most {most:.2f} s from the driver's")]


def disks(nodes: Sequence[NodeFacts], needed_bytes: float = 0.0) -> list[Finding]:
    """Room for the results (`needed_bytes` by the plan), for Ray's own files and in the shared memory of every node."""
    found = []
    for node in _spoke(nodes):
        results, own, shared = node.results_disk, node.ray_disk, node.shared_memory
        if results and results.free < max(needed_bytes, 1):
            text = f"{node.name}: {_gb(results.free)} free for the results, the plan needs {_gb(needed_bytes)}"
            found.append(Finding("fault", "disk", text, "free space there or choose results=FOLDER"))
        elif results and results.free - needed_bytes < LOW_BYTES:
            text = f"{node.name}: {_gb(results.free)} free for the results"
            found.append(Finding("warning", "disk", text, "free space there or choose results=FOLDER"))
        if own and own.free < RAY_DISK_SHARE * own.total:
            text = f"{node.name}: {own.free / own.total:.0%} free under Ray's folder; below 5 % Ray stops writing"
            found.append(
                Finding(
                    "fault", "disk", text, "free space there, or RAY_TMPDIR=FOLDER before every ray start and sweep"
                )
            )
        if shared and shared.total < SHARED_MEMORY_BYTES:
            text = f"{node.name}: /dev/shm holds {_gb(shared.total)}; several GPUs and Ray's objects need more"
            found.append(Finding("warning", "disk", text, "mount -o remount,size=8G /dev/shm (docker: --shm-size=8g)"))
    least = min((node.results_disk.free for node in nodes if node.results_disk), default=0)
    return found or [Finding("ok", "disk", f"at least {_gb(least)} free for results on {_count(_spoke(nodes))}")]


def worst(findings: Iterable[Finding]) -> Level:
    there = {finding.level for finding in findings}
    return "fault" if "fault" in there else "warning" if "warning" in there else "ok"


def tally(findings: Iterable[Finding]) -> str:
    """
    >>> tally([Finding("ok", "disk", ""), Finding("fault", "token", ""), Finding("fault", "clocks", "")])
    '1 ok, 2 faults'
    """
    levels = Counter(finding.level for finding in findings)
    ones: dict[Level, str] = {"ok": "ok", "warning": "warning", "fault": "fault"}
    many: dict[Level, str] = {"ok": "ok", "warning": "warnings", "fault": "faults"}
    return ", ".join(f"{count} {(many if count > 1 else ones)[key]}" for key in ones if (count := levels[key]))


def _spoke(nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    return [node for node in nodes if node.silent is None]


def _release(version: str) -> str:
    return version.partition("+")[0]


def _count(nodes: Sequence[NodeFacts]) -> str:
    return f"{len(nodes)} node" + ("s" if len(nodes) != 1 else "")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
