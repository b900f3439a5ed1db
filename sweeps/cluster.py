"""`python -m sweeps.cluster [cluster.yaml]`: is the cluster file in order? Offline, before anything costs money.

Ray's own check passes a file without a name, with negative or swapped worker counts, or without authentication;
`Cluster` is the schema of what Anabranch needs beyond it.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

PIN = re.compile(r"ray\S*==([\d.]+)")


class Part(BaseModel):
    """A part of the file; keys that Ray knows and we do not read are Ray's to judge."""

    model_config = ConfigDict(extra="allow")


class NodeType(Part):
    resources: dict[str, StrictInt | float] = Field(default_factory=dict)
    node_config: dict[str, Any]
    min_workers: StrictInt = Field(default=0, ge=0)
    max_workers: StrictInt = Field(ge=0)

    @model_validator(mode="after")
    def in_order(self) -> NodeType:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers <= max_workers, got {self.min_workers} > {self.max_workers}")
        if any(amount < 0 for amount in self.resources.values()):
            raise ValueError(f"resources are counts of 0 or more, got {self.resources}")
        return self


class Cluster(Part):
    """What a cluster file must say: a name, bounded workers, a GPU somewhere, the token on every node, our Ray."""

    cluster_name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    max_workers: StrictInt = Field(ge=0)
    idle_timeout_minutes: StrictInt | float = Field(gt=0)
    provider: dict[str, Any]
    head_node_type: str
    available_node_types: dict[str, NodeType]
    file_mounts: dict[str, str]
    setup_commands: list[str]
    head_start_ray_commands: list[str]
    worker_start_ray_commands: list[str]

    @model_validator(mode="after")
    def in_order(self) -> Cluster:
        types = self.available_node_types
        if self.head_node_type not in types:
            raise ValueError(f"head_node_type is one of {', '.join(types)}, got {self.head_node_type}")
        workers = {name: kind for name, kind in types.items() if name != self.head_node_type}
        if not any(kind.resources.get("GPU") and kind.max_workers for kind in workers.values()):
            raise ValueError("one node type besides the head has GPU >= 1 in resources and max_workers >= 1; got none")
        least = sum(kind.min_workers for kind in workers.values())
        if least > self.max_workers:
            raise ValueError(f"the min_workers of all types fit max_workers, got {least} > {self.max_workers}")
        if "~/.ray/auth_token" not in self.file_mounts:
            raise ValueError(
                "file_mounts brings ~/.ray/auth_token to every node (made by: ray get-auth-token --generate)"
            )
        starts = [line for line in self.head_start_ray_commands + self.worker_start_ray_commands if "ray start" in line]
        if not starts or any("RAY_AUTH_MODE=token" not in line for line in starts):
            raise ValueError("every `ray start` has RAY_AUTH_MODE=token; without it whoever reaches the port runs code")
        if any("--head" in line and "--dashboard-host=127.0.0.1" not in line for line in starts):
            raise ValueError(
                "the head starts with --dashboard-host=127.0.0.1; reach it with: ray dashboard cluster.yaml"
            )
        ours, pins = version("ray"), [pin for line in self.setup_commands for pin in PIN.findall(line)]
        if any(pin != ours for pin in pins):
            raise ValueError(f"nodes run the Ray of this machine, {ours}, got {', '.join(pins)}")
        if not pins and not any("constraints.txt" in line for line in self.setup_commands):
            raise ValueError("setup_commands pin Ray: install with -c constraints.txt, or ray==VERSION")
        return self


def validate(path: Path) -> Cluster:
    """The file, checked by our schema and then by Ray; a ValueError names file, place and rule."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is a mapping of keys, got {type(content).__name__}")
    try:
        checked = Cluster.model_validate(content)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path}: " + "; ".join(found)) from error
    pinned = PIN.findall((Path(path).parent / "constraints.txt").read_text()) if beside(path) else []
    if pinned and pinned != [version("ray")]:
        raise ValueError(f"constraints.txt pins Ray {pinned[0]}, this machine runs {version('ray')}; run make setup")
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(content))
    except Exception as error:  # jsonschema's, click's and plain ones
        raise ValueError(f"{path}: Ray refuses it: {getattr(error, 'message', None) or error}") from error
    return checked


def beside(path: Path) -> bool:
    return (Path(path).parent / "constraints.txt").exists()


def main(words: list[str]) -> int:
    path = Path(words[0] if words else "cluster.yaml")
    try:
        cluster = validate(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    kinds = ", ".join(f"{name} (up to {kind.max_workers})" for name, kind in cluster.available_node_types.items())
    print(f"{path} is in order: {cluster.cluster_name} on {cluster.provider['type']}, {kinds}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
