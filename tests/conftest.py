"""What all tests share: one torch thread, so that results do not depend on the machine's cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("MLFLOW_RUN_ID", None)

import torch

torch.set_num_threads(1)
