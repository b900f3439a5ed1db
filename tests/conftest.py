"""What all tests share: one torch thread, so that results do not depend on the cores; the longest module goes first.

pytest-xdist runs modules side by side, each one's tests in order in one process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("MLFLOW_RUN_ID", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("ANABRANCH_RESULTS", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="anabranch-ray-", dir="/tmp")  # no test joins another one's Ray

import pytest
import torch

atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)
torch.set_num_threads(1)

LONGEST = "tests/test_readme.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
