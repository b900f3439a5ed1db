"""What all tests share: one torch thread, so that results do not depend on the machine's cores; which run side by side.

pytest-xdist runs modules side by side, one after another in each process. Only one process at a time has a Ray of its
own, and what takes longest comes first.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("MLFLOW_RUN_ID", None)

import pytest
import torch

torch.set_num_threads(1)

STARTS_RAY = ("tests/sweeps/test_search.py", "tests/trainables/test_ray_train.py")
LONGEST = (*STARTS_RAY, "tests/test_readme.py", "tests/test_contract.py")


def group_of(item: pytest.Item) -> str:
    """Tests of one group share a process: those that start Ray, those marked so, else those of one module."""
    if item.nodeid.startswith(STARTS_RAY):
        return "ray"
    marked = item.get_closest_marker("xdist_group")
    return marked.args[0] if marked else item.nodeid.split("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
