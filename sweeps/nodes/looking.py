"""What a node says of itself. These functions travel to the nodes as they stand here, also to one without Anabranch or
with another version of it, so they need nothing beyond Python's own library.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "numpy", "anabranch")
ROOMS = ("trainables", "search_spaces", "sweeps", "analysis")
FROM_DRIVER, BYTES = "from-driver", 1 << 20


def look(results: str, name: str, secret: str, ray_folder: str, count_gpus: bool) -> dict[str, Any]:
    """All that one node tells: its software, what it makes of the results folder, and its room.

    `name` is the file that it writes beside the driver's, `secret` what stands in both.
    """
    read, written = try_folder(results, name, secret)
    return {
        "host": platform.node(),
        "versions": {"python": platform.python_version(), **{package: installed(package) for package in PACKAGES}},
        "code": code(),
        "read_error": read,
        "write_error": written,
        "file_system": file_system(results),
        "results_disk": room(results),
        "ray_disk": room(ray_folder),
        "shared_memory": room("/dev/shm") if os.path.isdir("/dev/shm") else None,
        "gpus_of_torch": gpus_of_torch() if count_gpus else None,
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def code() -> str:
    """sha256, in short, of the modules and YAML files that this process would import as Anabranch."""
    digest = hashlib.sha256()
    for room_name in ROOMS:
        spec = importlib.util.find_spec(room_name)
        if spec is None or not spec.submodule_search_locations:
            return f"no {room_name}"
        folder = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")]):
            digest.update(f"{room_name}/{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def try_folder(folder: str, name: str, secret: str) -> tuple[str | None, str | None]:
    """Read what the driver wrote into a folder, write beside it and rename that; the reason where either fails."""
    try:
        there = (Path(folder) / FROM_DRIVER).read_text()
        read = None if there == secret else f"{Path(folder) / FROM_DRIVER} holds something else"
    except OSError as error:
        read = f"{type(error).__name__}: {error}"
    try:
        writing = Path(folder) / f".writing-{name}"
        writing.write_text(secret)
        os.replace(writing, Path(folder) / name)
    except OSError as error:
        return read, f"{type(error).__name__}: {error}"
    return read, None


def write_whole_files(folder: str, name: str, count: int) -> list[tuple[str, float]]:
    """Files of BYTES bytes, named by their sha256 and renamed into place: (name, when it was there by this clock)."""
    written = []
    for number in range(count):
        payload = hashlib.sha256(f"{name}{number}".encode()).digest() * (BYTES // 32)
        file, writing = hashlib.sha256(payload).hexdigest(), Path(folder) / f".writing-{name}"
        writing.write_bytes(payload)
        os.replace(writing, Path(folder) / file)
        written.append((file, time.time()))
    return written


def room(path: str) -> dict[str, int]:
    """Bytes, free and in all, of the disk under a path that may not be there yet."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    usage = shutil.disk_usage(place)
    return {"free": usage.free, "total": usage.total}


def file_system(path: str) -> str:
    """The kind of file system that holds a path, such as ext4 or nfs4; empty where the system does not tell."""
    if not os.path.exists("/proc/mounts"):
        return ""
    here, best = os.path.realpath(path) + "/", ("", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        mount, kind = line.split()[1].replace("\\040", " "), line.split()[2]
        if here.startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def gpus_of_torch() -> str:
    """How many GPUs torch finds on this node, asked in a process of its own that Ray has hidden none from."""
    seen = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(asked, env=seen, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return said[-1] if said else f"exit status {done.returncode}"


class Probe:
    """These functions as an actor, so that a second question to a node does not wait for another process."""

    def look(self, *words: Any) -> dict[str, Any]:
        return look(*words)

    def clock(self) -> float:
        return time.time()

    def write_whole_files(self, *words: Any) -> list[tuple[str, float]]:
        return write_whole_files(*words)
