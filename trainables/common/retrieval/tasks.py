"""What every retrieval task gives: rows of tokens, what of them is predicted, and what its answers demand of a memory.

P lanes, B rows, T positions, F features.
"""

from typing import NamedTuple, Protocol

import torch

from trainables.common.streams import Streams


class Rows(NamedTuple):
    """Rows of a task, padded at the right to its length. A token at position t is predicted from those before t."""

    tokens_PBT: torch.Tensor  # int64
    counted_PBT: torch.Tensor  # bool: predicted by the model, so that it enters the loss and the match
    answer_PB: torch.Tensor  # int64: the right answer's token, for the accuracy by generation


class Retriever(Protocol):
    """Answers the search calls that a model writes into its text."""

    def __call__(self, text_PBT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For texts without padding: which rows end with a call, and the token that answers it; both [P, B]."""
        ...


class Task(Protocol):
    """A task of one size. All sizes and ids are those of every row."""

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> int:
        """Tokens that may be predicted: ids below it. Inputs may have more where they are given as features."""
        ...

    @property
    def length(self) -> int:
        """Positions of a row, padding included."""
        ...

    @property
    def prompt(self) -> int:
        """Positions that are given before generation starts: the same in all rows, and none of them padding."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """Tokens the first of which is a generation's answer, and ends it; empty: its first token is."""
        ...

    @property
    def features(self) -> int | None:
        """Width of the vectors that `inputs` makes of tokens; None: models read the tokens themselves."""
        ...

    @property
    def required_bits(self) -> float:
        """Information about the prompt that must be carried past it to answer whatever is asked."""
        ...

    @property
    def chance(self) -> float:
        """Accuracy of the best guess that has not read the prompt."""
        ...

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        """`count` rows of every lane, a function of its seed and the counter."""
        ...

    def inputs(self, tokens_PBT: torch.Tensor) -> torch.Tensor:
        """What a model reads of tokens: the tokens, or their features [P, B, T, F]."""
        ...

    def retriever(self) -> Retriever | None:
        """What answers search calls while a model generates; None: the task has none."""
        ...
