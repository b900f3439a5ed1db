"""Maximum likelihood decoding of a parity by one fast Walsh-Hadamard transform: n 2^n additions, 4 * 2^n bytes.

The table f(a) = sum of +1 (label 0) and -1 (label 1) over the samples with query a has the transform
F(s) = sum_a (-1)^<a,s> f(a) = agreements - disagreements of s, so its largest entry is the likeliest secret.
It is right with m samples once m (1 - 2 tau)^2 exceeds about 2 n ln 2, the square of the largest of 2^n normal errors.
"""

from collections.abc import Iterable

import torch

from trainables.common.parity.samples import labels, queries

BLOCK_BITS = 5  # of a dense Hadamard matmul; larger and smaller blocks take more CPU time
PIECE = 2**20  # entries transformed at a time, so that the copy they need stays in the cache
MEMORY_BYTES = 8 * 2**30


def hadamard(bits: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Sylvester's matrix: entry (i, j) is (-1)^<i,j>.

    >>> hadamard(1)
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    matrix = torch.ones(1, 1, device=device)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix


def transform(table: torch.Tensor) -> torch.Tensor:
    """The Walsh-Hadamard transform of a table of 2^n entries, in place: a Kronecker product of small matrices."""
    dimension = table.numel().bit_length() - 1
    for low in range(0, dimension, BLOCK_BITS):
        bits = min(BLOCK_BITS, dimension - low)
        matrix = hadamard(bits, table.device).to(table.dtype)
        if low == 0:
            for piece in table.view(-1, 2**bits).split(max(1, PIECE >> bits)):
                piece.copy_(piece @ matrix)
            continue
        for slab in table.view(-1, 2**bits, 2**low).split(max(1, PIECE >> (bits + low))):
            for piece in slab.split(max(1, PIECE >> bits), dim=2):
                piece.copy_(matrix @ piece)
    return table


def table_of(
    samples: Iterable[torch.Tensor],
    dimension: int,
    device: torch.device | str = "cpu",
    memory_bytes: int = MEMORY_BYTES,
) -> torch.Tensor:
    """The signed histogram over queries, float32, shape [2^n]; samples come in chunks, so that only it is large."""
    if 4 * 2**dimension > memory_bytes:
        raise ValueError(
            f"a Walsh-Hadamard table of {dimension} bits takes {4 * 2**dimension:,} bytes, more than {memory_bytes:,}; "
            "xor or drop bits first (trainables.common.parity.reduction), or give more memory_bytes"
        )
    table = torch.zeros(2**dimension, device=device)
    for chunk in samples:
        table.index_add_(0, queries(chunk, dimension), 1.0 - 2.0 * labels(chunk).float())
    return table


def likeliest(samples: Iterable[torch.Tensor], dimension: int, device: torch.device | str = "cpu") -> int:
    """The secret that agrees with the most samples; `samples` are chunks of packed samples.

    >>> likeliest([torch.tensor([1 << 62 | 1, 2, 1 << 62 | 3])], 2)
    1
    """
    return int(transform(table_of(samples, dimension, device)).argmax())
