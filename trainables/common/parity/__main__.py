"""`python -m trainables.common.parity DIMENSION NOISE_RATE [--weight W] [--seeds N]`: classical solvers, as JSON lines.

CPU seconds are those of this process with one thread; `peak_bytes` is its largest resident size, libraries included.
"""

import argparse
import json
import resource
from collections.abc import Sequence

import torch

from trainables.common.parity.baselines import baselines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trainables.common.parity", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("dimension", type=int, help="bits of the secret")
    parser.add_argument("noise_rate", type=float, help="chance that a label flips")
    parser.add_argument("--weight", type=int, help="ones in the secret, half of the bits by default")
    parser.add_argument("--samples", type=int, help="for the transform; by default 64 / (1 - 2 noise_rate)^2")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    weight = given.dimension // 2 if given.weight is None else given.weight
    for seed in range(given.seeds):
        found = baselines(given.dimension, given.noise_rate, weight, seed, given.samples)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
        print(json.dumps(found | {"peak_bytes": peak}))


if __name__ == "__main__":
    main()
