"""The process state that a job starts from: what one job leaves behind in a reused worker never reaches the next."""

import random

import numpy as np
import torch


def reset_process(*, threads: int = 1, seed: int = 0, deterministic: bool = False) -> None:
    """Set everything global that can change a result: threads, default dtype, kernels' flags, generators, grad mode.

    Reused worker processes hand these on (measured with Ray 2.60: default dtype, thread count, deterministic flag,
    seeds). One CPU thread per job: threads of several jobs on the same cores wait for one another at every operation.
    """
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # setting it imports the compiler: seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
