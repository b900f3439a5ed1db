"""Which Ray a command would join, and whether a cluster was brought up from here: told by files alone, within a moment.

No Ray is imported, no cloud is asked. What `ray up` leaves behind says that it ran, not that its cluster still stands;
of own machines (provider local) Ray writes down which of them it has started and not stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # words bring torch, which takes seconds to import
    from sweeps.engine.words import Words

CLUSTER_FILES = ("cluster.yaml", "cluster.local.yaml")
ANSWER_SECONDS = 2.0


def ray_folder() -> Path:
    """Where Ray keeps what belongs to this machine, by Ray's own rule."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def running_ray(say: Callable[[str], None] = lambda text: None) -> str | None:
    """The address of the Ray that a command on this machine joins; None when there is none.

    A Ray that ended without a word leaves its address behind: one at which nobody answers is said and passed over.
    """
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    file = ray_folder() / "ray_current_cluster"
    address = file.read_text().strip() if file.is_file() else ""
    if not address:
        return None
    if answers(address):
        return address
    say(f"a Ray was started here, but nobody answers at {address} any more; `ray stop` takes note of that")
    return None


def answers(address: str) -> bool:
    """Whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def ray_address(words: Words, say: Callable[[str], None] = lambda text: None) -> str | None:
    """Where the words of a command lead: the address of a Ray, or None for this machine alone."""
    if words.executor == "local" or words.cluster == "local":
        return None
    return running_ray(say) if words.cluster == "auto" else words.cluster


@dataclass(frozen=True)
class Seen:
    """A cluster file whose cluster may be up. `running` are the machines that Ray has written down as started."""

    file: str
    name: str
    since: datetime
    running: tuple[str, ...] = ()

    def line(self, script: str, arguments: Sequence[str]) -> str:
        """What is known, and the words that run this command there."""
        when = f"{self.since:%Y-%m-%d at %H:%M}"
        known = f"`ray up {self.file}` ran here on {when}; whether its cluster {self.name} is still up is not known"
        if self.running:
            known = f"a cluster is up: {self.name} of {self.file}, started on {', '.join(self.running)}"
        return f"{known}; to run this there: {submit(self.file, script, arguments)}"


def submit(file: str, script: str, arguments: Sequence[str]) -> str:
    """The command that runs a script on a cluster's head. Two shells read its words, this one and the head's.

    >>> submit("cluster.yaml", "sweeps/wsd_budget.py", ["scale=gpu", "proposals=6"])
    'ray submit cluster.yaml sweeps/wsd_budget.py scale=gpu proposals=6'
    """
    return shlex.join(["ray", "submit", file, script, *map(shlex.quote, arguments)])


def seen_cluster(folder: Path = Path(".")) -> Seen | None:
    """The cluster of a cluster file in `folder`, if there are signs that it is up."""
    for name in CLUSTER_FILES:
        file = folder / name
        if file.is_file():
            config = _yaml(file)
            seen = _seen(name, config) if isinstance(config, dict) else None
            if seen is not None:
                return seen
    return None


def _seen(file: str, config: dict[str, Any]) -> Seen | None:
    provider, cluster = config.get("provider"), str(config.get("cluster_name"))
    if not isinstance(provider, dict):
        return None
    if provider.get("type") == "local":
        state = ray_folder() / f"cluster-{cluster}.state"
        nodes = _json(state)
        running = sorted(ip for ip, node in nodes.items() if isinstance(node, dict) and node.get("state") == "running")
        return Seen(file, cluster, _changed(state), tuple(running)) if provider.get("head_ip") in running else None
    same = ("type", "region", "project_id", "location")
    for cache in Path(tempfile.gettempdir()).glob("ray-config-*"):
        known = _json(cache).get("config")
        if isinstance(known, dict) and known.get("cluster_name") == cluster:
            there = known.get("provider") or {}
            if all(there.get(key) == provider.get(key) for key in same):
                return Seen(file, cluster, _changed(cache))
    return None


def _yaml(file: Path) -> Any:
    """What stands in a cluster file; nothing while somebody is editing it. `sweeps.doctor` says what is wrong there."""
    try:
        return yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _json(file: Path) -> dict[str, Any]:
    """A file that Ray wrote for us; nothing where it is somebody else's, or no JSON."""
    try:
        content = json.loads(file.read_text()) if file.stat().st_uid == os.getuid() else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _changed(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime)
