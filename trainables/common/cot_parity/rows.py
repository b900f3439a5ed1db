"""Rows of the task in the author's layout, and which of them are trained on and which are held out (arXiv:2410.05459).

A row is N uniform bits, then what is supervised: the parity of K secret bits, or with a chain of thought the parities
of the first 0, 1, ..., K of them. The first of a chain is always 0. The tokens are 0 and 1; nothing stands between.

Up to MAPPED_BITS bits an input is the image of a number below 2^N under a keyed permutation of these numbers. Numbers
0 .. E-1 are select rows, E .. 2E-1 report rows, all others train: nothing is held out and trained on, and a finite
training set has no row twice. Wider inputs are drawn freely: among 2^41 and more, rows do not meet twice.
"""

# P lanes, B rows, N input bits, K secret bits, S supervised tokens, T = N + S - 1 positions

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from trainables.common.lanes import Lanes
from trainables.common.streams import Streams

MAPPED_BITS = 40  # below 2^41 a random double tells all numbers apart
ROUNDS = 6  # of the permutation
Part = Literal["select", "report", "train"]


class Rows(NamedTuple):
    """What a net reads, [P, B, T], and what it should say at the last S positions, [P, B, S]."""

    inputs: torch.Tensor
    supervised: torch.Tensor


@dataclass(frozen=True)
class Task:
    """The sizes of a problem. train_size: rows of a finite training set; None: new ones at every step."""

    input_bits: int
    secret_bits: int
    chain_of_thought: bool
    held_out_rows: int  # E: of select and of report rows each
    train_size: int | None = None

    @property
    def supervised(self) -> int:
        """S: tokens with a loss."""
        return self.secret_bits + 1 if self.chain_of_thought else 1

    @property
    def positions(self) -> int:
        """T: tokens that a net reads; it never reads the answer."""
        return self.input_bits + self.supervised - 1

    @property
    def mapped(self) -> bool:
        return self.input_bits <= MAPPED_BITS

    @property
    def training_rows(self) -> int:
        """Inputs that may be trained on."""
        return self.train_size or 2**self.input_bits - 2 * self.held_out_rows


def secrets(task: Task, seeds: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Positions of the secret bits in increasing order, [P, K]: a uniform subset without the last bit, unless K = N.

    >>> secrets(Task(3, 2, True, 1), [5]).tolist(), secrets(Task(3, 3, True, 1), [5]).tolist()
    ([[0, 1]], [[0, 1, 2]])
    """
    allowed = task.input_bits - (task.secret_bits < task.input_bits)
    order = Streams(seeds, "secret", device).words(0, allowed).argsort(1)
    return order[:, : task.secret_bits].sort(1).values


def permutation_keys(seeds: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Random numbers that key each lane's permutation, [P, 2 * ROUNDS]."""
    return Streams(seeds, "permutation", device).words(0, 2 * ROUNDS)


def permuted(numbers_PB: torch.Tensor, keys_P: torch.Tensor, bits: int) -> torch.Tensor:
    """A keyed permutation of the numbers below 2^bits: rounds of an odd multiple, a shift by xor and a sum.

    >>> permuted(torch.arange(8)[None], permutation_keys([1]), 3).sort().values.tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7]]
    """
    mask = 2**bits - 1
    for keys in keys_P.split(2, 1):
        numbers_PB = (numbers_PB * (keys[:, :1] | 1) + keys[:, 1:]) & mask
        numbers_PB = numbers_PB ^ (numbers_PB >> (bits + 1) // 2)
    return numbers_PB


def unpacked(words_PB: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers as their bits, the lowest first, [P, B, N]."""
    return (words_PB[..., None] >> torch.arange(bits, device=words_PB.device)) & 1


def rows_of(task: Task, bits_PBN: torch.Tensor, secret_PK: torch.Tensor) -> Rows:
    """Inputs and supervised tokens of these bits.

    >>> rows = rows_of(Task(3, 2, True, 1), torch.tensor([[[1, 1, 0]]]), torch.tensor([[0, 1]]))
    >>> rows.inputs.tolist(), rows.supervised.tolist()
    ([[[1, 1, 0, 0, 1]]], [[[0, 1, 0]]])
    """
    secret_PBK = bits_PBN.gather(2, secret_PK[:, None].expand(-1, bits_PBN.shape[1], -1))
    parities = secret_PBK.cumsum(2) & 1
    chain = torch.cat([torch.zeros_like(parities[..., :1]), parities], 2)
    supervised = chain if task.chain_of_thought else parities[..., -1:]
    return Rows(torch.cat([bits_PBN, supervised[..., :-1]], 2), supervised)


class Samples:
    """Each lane's rows. `lanes` and `kept` are for packs from which lanes are dropped."""

    def __init__(
        self, task: Task, seeds: Sequence[int], secret_seeds: Sequence[int], device: torch.device | str = "cpu"
    ):
        self.task, self.device = task, torch.device(device)
        self.streams = Streams(seeds, "data", device)
        self.held_out = {part: Streams(seeds, part, device) for part in ("select", "report")}
        self.passes = Streams(seeds, "passes", device)
        self.lanes: Lanes = {"secret": secrets(task, secret_seeds, device), "keys": permutation_keys(seeds, device)}
        if task.train_size is not None:
            self.lanes["order"] = torch.zeros(len(seeds), task.train_size, dtype=torch.int64, device=device)

    def kept(self, positions: torch.Tensor) -> None:
        """Keep the streams of these positions; `lanes` have been cut already."""
        self.streams, self.passes = self.streams.kept(positions), self.passes.kept(positions)
        self.held_out = {part: streams.kept(positions) for part, streams in self.held_out.items()}

    def of(self, part: Part) -> Rows:
        """All held-out rows of a part."""
        task = self.task
        if not task.mapped:
            bits = self.held_out[part].bits(0, task.held_out_rows, task.input_bits)
            return rows_of(task, bits, self.lanes["secret"])
        first = 0 if part == "select" else task.held_out_rows
        numbers = torch.arange(first, first + task.held_out_rows, device=self.device)
        return self.numbered(numbers.expand(len(self.lanes["keys"]), -1))

    def numbered(self, numbers_PB: torch.Tensor) -> Rows:
        words = permuted(numbers_PB, self.lanes["keys"], self.task.input_bits)
        return rows_of(self.task, unpacked(words, self.task.input_bits), self.lanes["secret"])

    def begin_pass(self, number: int) -> None:
        """Put the finite training set into the order of pass `number`, counted from 0."""
        self.lanes["order"].copy_(self.passes.words(number, self.task.training_rows).argsort(1))

    def batch(self, step: torch.Tensor, size: int) -> Rows:
        """The training rows of a step, counted from 1; of a finite set, the next ones in the order of the pass."""
        task = self.task
        if task.train_size is not None:
            places = (step - 1) * size % task.train_size + torch.arange(size, device=self.device)
            chosen = self.lanes["order"].index_select(1, places)
        elif not task.mapped:
            return rows_of(task, self.streams.bits(step, size, task.input_bits), self.lanes["secret"])
        else:
            chosen = (self.streams.uniform(step, size, dtype=torch.float64) * task.training_rows).long()
        return self.numbered(chosen + 2 * task.held_out_rows)
