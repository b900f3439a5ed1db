"""What all tests share: one torch thread, so that results do not depend on the cores; the longest module goes first.

pytest-xdist runs modules side by side, each one's tests in order in one process.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("MLFLOW_RUN_ID", None)

import pytest
import torch

torch.set_num_threads(1)

LONGEST = "tests/test_readme.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
