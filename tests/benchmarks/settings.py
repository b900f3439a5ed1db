"""How much a benchmark does, what it hands back, and on which machine."""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy")


@dataclass(frozen=True)
class Settings:
    """`quick`: the smallest size at which every line runs, for a look that the code works; its times say nothing.

    repetitions: how often each arm runs, arms taking turns; medians count.
    """

    quick: bool = False
    repetitions: int = 3

    @property
    def rounds(self) -> int:
        return 1 if self.quick else self.repetitions


@dataclass(frozen=True)
class Measured:
    """`values`: numbers by name, those in WANTED among them. `details`: every repetition and what was run."""

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What a number depends on; no names of hosts or users."""
    packages = {name: installed(name) for name in PACKAGES}
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": cpu_model(), "cores": cores(), "system": system, "python": sys.version.split()[0], **packages}


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="anabranch-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
