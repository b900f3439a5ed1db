"""`python -m sweeps.cluster [cluster.yaml]`: is the cluster file in order? Offline, before anything costs money.

Ray's own check passes a file without a name, with negative or swapped worker counts, without authentication, or whose
nodes share no results; `Cluster` is the schema of what Anabranch needs beyond it.
`python -m sweeps.cluster exports FILE` prints who may mount the head's results folder, for /etc/exports.
"""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlparse

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

PIN = re.compile(r"ray\S*==([\d.]+)")
TOKEN = "~/.ray/auth_token"
CONF = Path(__file__).parent / "conf" / "scale"


class Part(BaseModel):
    """A part of the file; keys that Ray knows and we do not read are Ray's to judge."""

    model_config = ConfigDict(extra="allow")


class NodeType(Part):
    resources: dict[str, StrictInt | float] = Field(default_factory=dict)
    node_config: dict[str, Any]
    min_workers: StrictInt = Field(default=0, ge=0)
    max_workers: StrictInt = Field(ge=0)

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers <= max_workers, got {self.min_workers} > {self.max_workers}")
        if any(amount < 0 for amount in self.resources.values()):
            raise ValueError(f"resources are counts of 0 or more, got {self.resources}")
        return self


class Cluster(Part):
    """What every cluster file must say: a name, the token on every node, one results folder, MLflow, our Ray."""

    cluster_name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    provider: dict[str, Any]
    file_mounts: dict[str, str]
    setup_commands: list[str]
    head_start_ray_commands: list[str]
    worker_start_ray_commands: list[str]

    @model_validator(mode="after")
    def in_order(self) -> Self:
        check_token(self.file_mounts, self.head_start_ray_commands, self.worker_start_ray_commands)
        check_head(self.head_start_ray_commands)
        check_results(self.setup_commands, self.worker_start_ray_commands)
        check_mlflow(self.setup_commands, self.head_start_ray_commands)
        check_pins(self.setup_commands)
        self.check_nodes()
        return self

    def check_nodes(self) -> None:
        """Are the provider's nodes in order? Each kind of provider has its own rules."""


class CloudCluster(Cluster):
    """Nodes of declared types, which come when jobs wait and go when they idle."""

    max_workers: StrictInt = Field(ge=0)
    idle_timeout_minutes: StrictInt | float = Field(gt=0)
    head_node_type: str
    available_node_types: dict[str, NodeType]

    def check_nodes(self) -> None:
        types = self.available_node_types
        if self.head_node_type not in types:
            raise ValueError(f"head_node_type is one of {', '.join(types)}, got {self.head_node_type}")
        least = sum(kind.min_workers for name, kind in types.items() if name != self.head_node_type)
        if least > self.max_workers:
            raise ValueError(f"the min_workers of all types fit max_workers, got {least} > {self.max_workers}")
        if not any(fits(self, scale)[0] for scale in scales()):
            raise ValueError(
                "one node type besides the head has CPU >= 1 or GPU >= 1 in resources and max_workers >= 1; got none"
            )
        images = {kind.node_config.get("ImageId") for kind in types.values()}
        if self.provider.get("type") == "aws" and not all(re.fullmatch("ami-[0-9a-f]+", str(one)) for one in images):
            raise ValueError(
                f"every node type has an ImageId such as ami-0123456789abcdef0, got {', '.join(map(str, images))}; put "
                "that of an Ubuntu 22.04 with an NVIDIA driver into provider.image: the comment there says how to find "
                "it (Ray's default is an Ubuntu 18.04, too old for torch)"
            )


class OwnMachines(Cluster):
    """Machines that are there already, by address. Ray gives them all one node type, which no file may name."""

    def check_nodes(self) -> None:
        head, workers = self.provider.get("head_ip"), self.provider.get("worker_ips")
        if not isinstance(head, str) or not isinstance(workers, list) or not all(isinstance(ip, str) for ip in workers):
            raise ValueError(f"provider has head_ip and a list worker_ips, got {head!r} and {workers!r}")
        if len({head, *workers}) <= len(workers):
            raise ValueError(f"head_ip and worker_ips are different machines, got {', '.join([head, *workers])}")
        if any("--head" in line and "RAY_enable_autoscaler_v2=0" not in line for line in self.head_start_ray_commands):
            raise ValueError(
                "the head starts with RAY_enable_autoscaler_v2=0; the second autoscaler never starts own machines"
            )


def check_token(mounts: dict[str, str], *commands: list[str]) -> None:
    if TOKEN not in mounts:
        raise ValueError(f"file_mounts brings {TOKEN} to every node (made by: ray get-auth-token --generate)")
    for lines in commands:
        starts = [line for line in lines if "ray start" in line]
        if not starts or any("RAY_AUTH_MODE=token" not in line for line in starts):
            raise ValueError("every `ray start` has RAY_AUTH_MODE=token; without it whoever reaches the port runs code")


def check_head(head: list[str]) -> None:
    starts = [line for line in head if "ray start" in line]
    if any("--dashboard-host=127.0.0.1" not in line for line in starts):
        raise ValueError("the head starts with --dashboard-host=127.0.0.1; reach it with: ray dashboard cluster.yaml")
    if any("--head" not in line or "--autoscaling-config=" not in line for line in starts):
        raise ValueError(
            "the head starts with --head and --autoscaling-config=~/ray_bootstrap_config.yaml, or no worker ever comes"
        )


def check_results(setup: list[str], worker: list[str]) -> None:
    """One folder for all nodes: known to every shell, and in place before Ray starts on a worker."""
    folder = said("ANABRANCH_RESULTS", setup)
    if folder is None or not folder.startswith(("/", "~/")):
        raise ValueError(
            f"setup_commands set ANABRANCH_RESULTS to an absolute folder that all nodes share, got {folder}; object "
            "storage cannot serve, since a store commits by renaming files"
        )
    first = next(index for index, line in enumerate(worker) if "ray start" in line)
    checks = ("mountpoint -q", "findmnt")
    if not any(folder in line and any(word in line for word in checks) for line in worker[:first]):
        raise ValueError(
            f"worker_start_ray_commands has `mountpoint -q {folder}` before `ray start`: a worker without the shared "
            "folder would write its results where nobody reads them"
        )


def check_mlflow(setup: list[str], head: list[str]) -> None:
    address = said("MLFLOW_TRACKING_URI", setup)
    if address is None or urlparse(address).hostname not in ("127.0.0.1", "localhost"):
        raise ValueError(
            f"setup_commands set MLFLOW_TRACKING_URI to a server on the head's loopback, got {address}; MLflow asks "
            "nobody for a password"
        )
    started = [line for line in head if "sweeps.mlflow_server" in line or "mlflow server" in line]
    if not started:
        raise ValueError("head_start_ray_commands starts the MLflow server: python -m sweeps.mlflow_server")
    if any("mlflow server" in line and "--host 127.0.0.1" not in line for line in started):
        raise ValueError("the MLflow server has --host 127.0.0.1; reach it with: ray attach cluster.yaml -p 5000")


def check_pins(setup: list[str]) -> None:
    ours, pins = version("ray"), [pin for line in setup for pin in PIN.findall(line)]
    if any(pin != ours for pin in pins):
        raise ValueError(f"nodes run the Ray of this machine, {ours}, got {', '.join(pins)}")
    if not pins and not any("constraints.txt" in line for line in setup):
        raise ValueError("setup_commands pin Ray: install with -c constraints.txt, or ray==VERSION")


def said(variable: str, commands: list[str]) -> str | None:
    """
    >>> said("PLACE", ["echo 'export PLACE=~/here' > file"])
    '~/here'
    """
    found = [match for line in commands for match in re.findall(rf"{variable}=([^\s'\";]+)", line)]
    return found[-1] if found else None


def scales() -> dict[str, dict[str, Any]]:
    """What one job of each scale takes: `gpus` for each of its `workers`."""
    return {file.stem: yaml.safe_load(file.read_text())["resources"] for file in sorted(CONF.glob("*.yaml"))}


def fits(cluster: CloudCluster, scale: str) -> tuple[int, str]:
    """How many jobs of a scale run at a time once the cluster has grown, as a sweep counts them; a sentence on it."""
    from sweeps.nodes.joining import NodeKind, Offer, Slots  # torch takes seconds to import

    wanted = scales()[scale]
    slots = Slots(1, gpus=wanted["gpus"], workers=wanted["workers"])
    workers = [(name, kind) for name, kind in cluster.available_node_types.items() if name != cluster.head_node_type]
    kinds = [NodeKind(name, kind.resources, kind.min_workers, kind.max_workers) for name, kind in workers]
    jobs = Offer((), tuple(kinds), cluster.max_workers).workers(slots) // slots.workers
    each = f"{slots.gpus:g} GPU" if slots.gpus else f"{slots.cpus:g} CPU"
    need = f"{slots.workers} workers of {each}" if slots.workers > 1 else each
    if not jobs:
        return 0, f"scale={scale}: no, a job needs {need}; raise max_workers, also of a node type that has them"
    whole = any(kind.most and slots.workers_on(kind.resources) >= slots.workers for kind in kinds)
    catch = "" if whole else "; no node has all workers of a job, so they talk over the network"
    return jobs, f"scale={scale}: up to {jobs} at a time, of {need} each{catch}"


def validate(path: Path) -> Cluster:
    """The file, checked by our schema and then by Ray; a ValueError names file, place and rule."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is a mapping of keys, got {type(content).__name__}")
    provider = content.get("provider")
    own = isinstance(provider, dict) and provider.get("type") == "local"
    try:
        checked = (OwnMachines if own else CloudCluster).model_validate(content)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path}: " + "; ".join(found)) from error
    pinned = PIN.findall((Path(path).parent / "constraints.txt").read_text()) if beside(path) else []
    if pinned and pinned != [version("ray")]:
        raise ValueError(f"constraints.txt pins Ray {pinned[0]}, this machine runs {version('ray')}; run make setup")
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with redirect_stdout(io.StringIO()):  # Ray warns of mounts of single files, which matter to Docker alone
            validate_config(prepare_config(content))
    except Exception as error:  # jsonschema's, click's and plain ones
        raise ValueError(f"{path}: Ray refuses it: {getattr(error, 'message', None) or error}") from error
    return checked


def beside(path: Path) -> bool:
    return (Path(path).parent / "constraints.txt").exists()


def exports(path: Path) -> str:
    """A line of /etc/exports: the workers alone may mount the results folder, as the user who owns it."""
    content = yaml.safe_load(path.read_text())
    folder = said("ANABRANCH_RESULTS", content["setup_commands"]) or "~/anabranch/results"
    rights = f"rw,sync,no_subtree_check,all_squash,anonuid={os.getuid()},anongid={os.getgid()}"
    return " ".join([os.path.expanduser(folder), *(f"{ip}({rights})" for ip in content["provider"]["worker_ips"])])


def main(words: list[str]) -> int:
    if words[:1] == ["exports"]:
        print(exports(Path(words[1])))
        return 0
    path = Path(words[0] if words else "cluster.yaml")
    try:
        cluster = validate(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if isinstance(cluster, CloudCluster):
        print(f"{path} is in order: {cluster.cluster_name}, a head and at most {cluster.max_workers} workers")
        print("\n".join(f"  {fits(cluster, scale)[1]}" for scale in scales()))
    else:
        print(f"{path} is in order: {cluster.cluster_name}, a head and {len(cluster.provider['worker_ips'])} workers")
        print("  what these machines have is not in the file; once they are up: python -m sweeps.doctor")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
