"""Strings of brackets of bounded depth: k kinds, at most D open at once, drawn bracket by bracket.

At depth 0 a bracket opens, at depth D one closes; between, it opens at the source's rate. An opening bracket is of any
kind with equal chance, a closing one of the kind that was opened last. Opening brackets are the tokens 0 .. k - 1,
closing ones k .. 2 k - 1, and BOS, which begins every row, is 2 k.

The class of a position is all that a net that counts perfectly could know of its own bracket: token and depth after it.
"""

# P lanes, B rows, T brackets, D depths from 0, C classes, V vocabulary, F features

from dataclasses import dataclass
from math import log
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from trainables.common.streams import Streams

FirstLayer = Literal["onehot", "trigonometric"]


class Rows(NamedTuple):
    """Brackets in lanes and rows, each [P, B, T]."""

    tokens: torch.Tensor
    depths: torch.Tensor  # open brackets after this one
    openers: torch.Tensor  # position of the bracket that must close next after this one; 0 at depth 0
    needed: torch.Tensor  # its kind


@dataclass(frozen=True)
class Source:
    """A language of brackets."""

    kinds: int = 2  # k
    depth: int = 4  # D, most brackets open at once

    def __post_init__(self) -> None:
        if min(self.kinds, self.depth) < 1:
            raise ValueError(f"a source needs kinds and depth of at least 1, got {self.kinds} and {self.depth}")

    @property
    def vocabulary(self) -> int:
        return 2 * self.kinds + 1

    @property
    def classes(self) -> int:
        """(token, depth) that occur: each kind opens to depths 1 .. D and closes to 0 .. D - 1; and BOS."""
        return 2 * self.kinds * self.depth + 1

    def chances(self, rates_P: torch.Tensor, brackets: int) -> torch.Tensor:
        """Chance [P, T, D] that the next bracket opens, by the depth before it."""
        chances_PD = rates_P[:, None].expand(-1, self.depth + 1).clone()
        chances_PD[:, 0], chances_PD[:, -1] = 1.0, 0.0
        return chances_PD[:, None].expand(-1, brackets, -1)

    def closed_chances(self, rates_P: torch.Tensor, brackets: int) -> torch.Tensor:
        """The same for strings that end at depth 0, of the source's distribution given that they do.

        With Z_r(d) the chance of depth 0 after r more brackets, opening has chance p(d) Z_{r-1}(d + 1) / Z_r(d).
        """
        if brackets % 2:
            raise ValueError(f"a closed string has an even number of brackets, got {brackets}")
        p_PD = self.chances(rates_P.double(), 1)[:, 0]
        home_PD = torch.zeros_like(p_PD)
        home_PD[:, 0] = 1.0
        found = []
        for _ in range(brackets):
            opening, closing = p_PD * F.pad(home_PD[:, 1:], (0, 1)), (1 - p_PD) * F.pad(home_PD[:, :-1], (1, 0))
            home_PD = opening + closing
            found.append(opening / home_PD.clamp_min(1e-300))  # a depth that cannot come home is never met
        return torch.stack(found[::-1], 1).to(rates_P.dtype) if found else self.chances(rates_P, 0)

    def drawn(self, chances_PTD: torch.Tensor, streams: Streams, counter: int | torch.Tensor, rows: int) -> Rows:
        """Rows of each lane's own stream, one bracket per entry of `chances_PTD`."""
        brackets, device = chances_PTD.shape[1], streams.device
        moves_PBT, kinds_PBT = streams.uniform(counter, 2, rows, brackets).unbind(1)
        kinds_PBT = (kinds_PBT * self.kinds).long()
        depth_PB = torch.zeros(moves_PBT.shape[:2], dtype=torch.int64, device=device)
        stack_PBD = torch.zeros(*depth_PB.shape, self.depth + 1, dtype=torch.int64, device=device)
        found: list[torch.Tensor] = []
        for at in range(brackets):
            opens_PB = moves_PBT[:, :, at] < chances_PTD[:, at].gather(1, depth_PB)
            closed_PB = stack_PBD.gather(2, depth_PB[..., None])  # slot d holds the opener of depth d
            kind_PB = torch.where(opens_PB, kinds_PBT[:, :, at], kinds_PBT.gather(2, closed_PB)[..., 0])
            kinds_PBT[:, :, at] = kind_PB
            depth_PB = depth_PB + 2 * opens_PB - 1
            top_PB = stack_PBD.gather(2, depth_PB[..., None])[..., 0]
            top_PB = torch.where(opens_PB, at, top_PB)
            stack_PBD.scatter_(2, depth_PB[..., None], top_PB[..., None])
            found += [kind_PB + self.kinds * ~opens_PB, depth_PB, top_PB]
        tokens, depths, openers = (torch.stack(found[part::3], 2) for part in range(3))
        return Rows(tokens, depths, openers, kinds_PBT.gather(2, openers))

    def begun(self, tokens_PBT: torch.Tensor) -> torch.Tensor:
        """Rows with BOS before them, [P, B, 1 + T]."""
        return F.pad(tokens_PBT, (1, 0), value=2 * self.kinds)

    def classes_of(self, rows: Rows) -> torch.Tensor:
        """Class of each position of the begun rows, [P, B, 1 + T]; BOS is the last class."""
        opens = rows.tokens < self.kinds
        inside = torch.where(opens, rows.depths - 1, rows.depths)
        return F.pad(rows.tokens * self.depth + inside, (1, 0), value=self.classes - 1)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The classes of each bracket and of the one that closes it: (kind i to depth d, its closer to d - 1)."""
        openers = self.kinds * self.depth
        return [(place, openers + place) for place in range(openers)]

    def features(self, layer: FirstLayer, device: torch.device | str = "cpu") -> torch.Tensor:
        """What a first layer that knows no more than the class gives for each, [C, F] (arXiv:2312.01429).

        onehot: a unit vector of the class; trigonometric: one of the token, and sine and cosine of
        arctan(d / (D + 2 - d)), d the depth.
        """
        if layer == "onehot":
            return torch.eye(self.classes, device=device)
        place = torch.arange(self.classes - 1, device=device)
        tokens = torch.cat([place // self.depth, torch.tensor([2 * self.kinds], device=device)])
        depths = place % self.depth + (place < self.kinds * self.depth)
        depths = F.pad(depths, (0, 1)).float()
        angle = torch.atan(depths / (self.depth + 2 - depths))
        return torch.cat([F.one_hot(tokens, self.vocabulary).float(), angle.cos()[:, None], angle.sin()[:, None]], 1)

    def next_chances(self, rows: Rows, rate: float) -> torch.Tensor:
        """The source's own distribution of the next token after each position of the begun rows, [P, B, 1 + T, V]."""
        depths, needed = F.pad(rows.depths, (1, 0)), F.pad(rows.needed, (1, 0))
        opens = self.chances(torch.tensor([rate], device=depths.device), 1)[0, 0][depths]
        closing = F.one_hot(self.kinds + needed, self.vocabulary) * (1 - opens)[..., None]
        closing[..., : self.kinds] += (opens / self.kinds)[..., None]
        return closing

    def entropy(self, rate: float, brackets: int) -> float:
        """Nats per bracket over the first `brackets` of a row: what no prediction can be better than."""
        p_D = self.chances(torch.tensor([rate], dtype=torch.float64), 1)[0, 0]
        two = torch.special.entr(p_D) + torch.special.entr(1 - p_D) + p_D * log(self.kinds)
        now_D, total = F.one_hot(torch.tensor(0), self.depth + 1).double(), 0.0
        for _ in range(brackets):
            total += float(now_D @ two)
            now_D = F.pad((now_D * p_D)[:-1], (1, 0)) + F.pad((now_D * (1 - p_D))[1:], (0, 1))
        return total / brackets
