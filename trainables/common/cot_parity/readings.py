"""What a net knows of held-out rows, and where its attention goes (arXiv:2410.05459)."""

# P lanes, B rows, T positions, N input bits, K secret bits, S supervised tokens, V vocabulary, H heads

from typing import NamedTuple

import torch

from trainables.common.cot_parity.last import last_logits
from trainables.common.cot_parity.rows import Rows, Task
from trainables.common.lanes import Lanes
from trainables.common.sequence.entropy import normalised_entropy
from trainables.common.sequence.network import Architecture, Decoder, logits

EVALUATED_AT_ONCE = 512  # rows of each lane: what an evaluation needs beside the weights stays small
ATTENTION_ROWS = 256  # that entropies and masses are means over, at most


class Right(NamedTuple):
    """Rows of each lane, [P], in which every supervised token, or the answer, is predicted rightly."""

    exact: torch.Tensor
    answer: torch.Tensor


def right(logits_PBSV: torch.Tensor, supervised_PBS: torch.Tensor) -> Right:
    """Counts of rows whose likeliest tokens are the supervised ones, each predicted from the true tokens before it."""
    hits = logits_PBSV.argmax(-1) == supervised_PBS
    return Right(hits.all(2).sum(1), hits[..., -1].sum(1))


def shares_right(net: Architecture, weights: Lanes, task: Task, rows: Rows) -> Right:
    """The same as shares of held-out rows, [P]."""
    exact = answer = torch.zeros(len(rows.inputs), dtype=torch.float64, device=rows.inputs.device)
    for first in range(0, task.held_out_rows, EVALUATED_AT_ONCE):
        part = slice(first, first + EVALUATED_AT_ONCE)
        said = last_logits(net, weights, rows.inputs[:, part], task.supervised)
        found = right(said, rows.supervised[:, part])
        exact, answer = exact + found.exact, answer + found.answer
    return Right(exact / task.held_out_rows, answer / task.held_out_rows)


def free_running_answers(net: Architecture, weights: Lanes, task: Task, rows: Rows) -> torch.Tensor:
    """Share of rows of each lane whose answer is right after a chain that the net wrote itself, greedily, [P]."""
    decoder = Decoder(net, weights)
    token_PB = decoder.read(rows.inputs[..., : task.input_bits]).argmax(-1)
    for _ in range(task.supervised - 1):
        token_PB = decoder.read(token_PB[..., None]).argmax(-1)
    return (token_PB == rows.supervised[..., -1]).double().mean(1)


class Attention(NamedTuple):
    """Readings of every head of a layer, each [P, H]."""

    least_entropy: torch.Tensor  # the smallest of a row's normalised entropies, as the author reads it
    mean_entropy: torch.Tensor  # the mean of a row's
    secret_mass: torch.Tensor


def secret_mass(map_PBHTT: torch.Tensor, secret_PK: torch.Tensor, task: Task) -> torch.Tensor:
    """Mean attention that falls on the secret where it is needed, [P, H]: 1 when all of it does.

    With a chain of thought the query that writes the parity of j secret bits needs the j-th, j = 1 .. K; without one
    the query that writes the answer needs all of them.
    """
    wanted = secret_PK.view(len(secret_PK), 1, 1, -1)
    if not task.chain_of_thought:
        last = map_PBHTT[..., task.input_bits - 1, :]
        return last.gather(3, wanted.expand(*last.shape[:3], -1)).sum(3).mean(1)
    steps = map_PBHTT[..., task.input_bits : task.input_bits + task.secret_bits, :]
    return steps.gather(4, wanted[..., None].expand(*steps.shape[:4], 1)).mean((1, 3, 4))


def attention(map_PBHTT: torch.Tensor, secret_PK: torch.Tensor, task: Task) -> Attention:
    entropy_PBHT = normalised_entropy(map_PBHTT)
    return Attention(entropy_PBHT.amin(3).mean(1), entropy_PBHT.mean((1, 3)), secret_mass(map_PBHTT, secret_PK, task))


def attentions(net: Architecture, weights: Lanes, task: Task, rows: Rows, secret_PK: torch.Tensor) -> Attention:
    """The readings of all layers, each [P, L, H], over the first rows."""
    maps: list[torch.Tensor] = []
    logits(net, weights, rows.inputs[:, :ATTENTION_ROWS], maps)
    found = [attention(map_PBHTT, secret_PK, task) for map_PBHTT in maps]
    return Attention(*(torch.stack(part, 1) for part in zip(*found, strict=True)))


def mean_entropy(maps: list[torch.Tensor]) -> torch.Tensor:
    """Mean normalised entropy of each lane over layers, heads and rows, [P], with a gradient.

    The floor keeps what a query may not see, and what underflowed, out of the gradient: p ln p has none at 0.
    """
    return torch.stack([normalised_entropy(one.clamp_min(1e-12)).mean((1, 2, 3)) for one in maps]).mean(0)
