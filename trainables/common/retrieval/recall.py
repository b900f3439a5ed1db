"""Tasks that ask for single things of a text of random values (arXiv:2402.18510): recall, index, counting, c-grams.

A text of n positions is followed by questions, each with its answer; only answers are predicted. Values are drawn
uniformly and independently, so what a model must keep of the text is known in bits.
"""

# P lanes, B rows, T positions, Q questions, F features

from dataclasses import dataclass
from math import comb, lgamma, log, log2

import torch
import torch.nn.functional as F

from trainables.common.retrieval.tasks import Retriever, Rows
from trainables.common.streams import Streams


@dataclass(frozen=True)
class Questions:
    """What the four tasks have in common. `size`: things in the text; `values`: what each of them may be."""

    size: int
    values: int
    questions: int = 1  # of each row, all different

    def __post_init__(self) -> None:
        if self.size < 1 or self.values < 2 or not 1 <= self.questions <= self.most_questions:
            raise ValueError(
                f"{self.name} needs size >= 1, values >= 2 and 1 to {self.most_questions} questions, got "
                f"{self.size}, {self.values} and {self.questions}"
            )

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @property
    def most_questions(self) -> int:
        return self.size

    @property
    def text(self) -> int:
        """Positions of the text before the first question."""
        return self.size

    @property
    def asked(self) -> int:
        """Positions of a question."""
        return 1

    @property
    def prompt(self) -> int:
        return self.text + self.asked

    @property
    def length(self) -> int:
        return self.text + self.questions * (self.asked + 1)

    @property
    def labels(self) -> tuple[int, ...]:
        return ()

    @property
    def features(self) -> int | None:
        return None

    @property
    def required_bits(self) -> float:
        return self.size * log2(self.values)

    @property
    def chance(self) -> float:
        return 1 / self.values

    def inputs(self, tokens_PBT: torch.Tensor) -> torch.Tensor:
        return tokens_PBT

    def retriever(self) -> Retriever | None:
        return None

    def of(self, text_PBT: torch.Tensor, questions_PBQT: torch.Tensor, answers_PBQ: torch.Tensor) -> Rows:
        """Rows of a text and its questions with their answers."""
        body = torch.cat([questions_PBQT, answers_PBQ[..., None]], 3).flatten(2)
        tokens = torch.cat([text_PBT, body], 2)
        counted = torch.zeros_like(tokens, dtype=torch.bool)
        counted[:, :, self.prompt :: self.asked + 1] = True
        return Rows(tokens, counted, answers_PBQ[:, :, 0])

    def ceiling(self, bits: float) -> float:
        """Highest accuracy that a memory of so many bits allows, over all questions; 1 where nothing is known."""
        return 1.0


def shuffled(streams: Streams, counter: int | torch.Tensor, rows: int, count: int) -> torch.Tensor:
    """A random order of 0 .. count - 1 for each row, [P, rows, count]."""
    return streams.uniform(counter, rows, count, dtype=torch.float64).argsort(2)


def most_accurate(bits: float, values: int) -> float:
    """Highest chance to name one of `values` equal possibilities from `bits` of information about it (Fano).

    The error e solves log2(values) - h(e) - e log2(values - 1) = bits, with h the entropy of a coin.

    >>> round(most_accurate(0, 4), 6), most_accurate(2, 4)
    (0.25, 1.0)
    """
    low, high = 0.0, 1 - 1 / values  # the information falls over this range
    if bits >= log2(values):
        return 1.0
    for _ in range(60):
        error = (low + high) / 2
        coin = -error * log2(error) - (1 - error) * log2(1 - error)
        low, high = (error, high) if log2(values) - coin - error * log2(values - 1) > bits else (low, error)
    return 1 - high


@dataclass(frozen=True)
class Recall(Questions):
    """Associative recall: pairs of a key and its value, each key once, in random order; a question is a key.

    All `size` keys occur, so that what must be kept is the value of each: size * log2(values) bits. A pair takes one
    position (stacked: models read the sum of two embeddings) or two. Ids: values, then keys as they are asked, then,
    where stacked, pairs; these are read as features and never predicted.
    """

    stacked: bool = True

    @property
    def vocabulary(self) -> int:
        return self.values if self.stacked else self.values + self.size

    @property
    def text(self) -> int:
        return self.size if self.stacked else 2 * self.size

    @property
    def features(self) -> int | None:
        return self.values + self.size if self.stacked else None

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        value_of_key = streams.integers(3 * counter, self.values, count, self.size)
        keys = shuffled(streams, 3 * counter + 1, count, self.size)
        values = value_of_key.gather(2, keys)
        asked = shuffled(streams, 3 * counter + 2, count, self.size)[:, :, : self.questions]
        if self.stacked:
            text = self.values + self.size + keys * self.values + values
        else:
            text = torch.stack([self.values + keys, values], 3).flatten(2)
        return self.of(text, self.values + asked[..., None], value_of_key.gather(2, asked))

    def inputs(self, tokens_PBT: torch.Tensor) -> torch.Tensor:
        """Stacked: one-hot vectors of values and of keys, of pairs the sum of both."""
        if not self.stacked:
            return tokens_PBT
        pairs = tokens_PBT - self.values - self.size
        paired = pairs >= 0
        first = (pairs % self.values).where(paired, tokens_PBT)[..., None]
        second = self.values + (pairs.clamp_min(0) // self.values)[..., None]
        one_hot = torch.zeros(*tokens_PBT.shape, self.values + self.size, device=tokens_PBT.device)
        return one_hot.scatter_(3, first, 1.0).scatter_add_(3, second, paired[..., None].float())

    def ceiling(self, bits: float) -> float:
        return most_accurate(bits / self.size, self.values)


@dataclass(frozen=True)
class Index(Questions):
    """The value at a position of the text. Ids: values, then positions."""

    @property
    def vocabulary(self) -> int:
        return self.values + self.size

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        text = streams.integers(2 * counter, self.values, count, self.size)
        asked = shuffled(streams, 2 * counter + 1, count, self.size)[:, :, : self.questions]
        return self.of(text, self.values + asked[..., None], text.gather(2, asked))

    def ceiling(self, bits: float) -> float:
        return most_accurate(bits / self.size, self.values)


@dataclass(frozen=True)
class Counting(Questions):
    """How often a value occurs in the text. Ids: values, the same as they are asked, then counts 0 .. size."""

    @property
    def most_questions(self) -> int:
        return self.values

    @property
    def vocabulary(self) -> int:
        return 2 * self.values + self.size + 1

    def _chances(self) -> list[float]:
        """Chance of each count of one value: binomial."""
        p, n = 1 / self.values, self.size
        return [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]

    @property
    def required_bits(self) -> float:
        """Entropy of all counts: n log2 V - log2 n! + V E[log2 count!], counts being multinomial."""
        factorials = sum(chance * lgamma(k + 1) for k, chance in enumerate(self._chances()))
        return self.size * log2(self.values) + (self.values * factorials - lgamma(self.size + 1)) / log(2)

    @property
    def chance(self) -> float:
        return max(self._chances())

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        text = streams.integers(2 * counter, self.values, count, self.size)
        asked = shuffled(streams, 2 * counter + 1, count, self.values)[:, :, : self.questions]
        counts = F.one_hot(text, self.values).sum(2)
        return self.of(text, self.values + asked[..., None], 2 * self.values + counts.gather(2, asked))


@dataclass(frozen=True)
class Grams(Questions):
    """What follows the first occurrence of c - 1 values in the text: c-gram retrieval.

    It is their only one but in a rare text that has too few such places: sizes at which these were common are refused.
    A question is a mark and the c - 1 values. Ids: values, then the mark.
    """

    gram: int = 3  # c, at least 2

    def __post_init__(self) -> None:
        if self.gram < 2 or self.values ** (self.gram - 1) < 2 * self.size:
            raise ValueError(
                f"grams need gram >= 2 and values^(gram - 1) >= 2 * size, so that most of them occur once; got "
                f"gram={self.gram}, {self.values}^{self.gram - 1} and 2 * {self.size}: raise values or gram"
            )
        super().__post_init__()

    @property
    def most_questions(self) -> int:
        return max(1, self.places // 4)

    @property
    def places(self) -> int:
        """Positions at which a gram may start."""
        return self.size - self.gram + 1

    @property
    def vocabulary(self) -> int:
        return self.values + 1

    @property
    def asked(self) -> int:
        return self.gram

    @property
    def required_bits(self) -> float:
        """About: the expected number of places whose c - 1 values occur once, times log2 of the values."""
        once = (1 - self.values ** (1.0 - self.gram)) ** (self.places - 1)
        return self.places * once * log2(self.values)

    def rows(self, streams: Streams, counter: int | torch.Tensor, count: int) -> Rows:
        text = streams.integers(2 * counter, self.values, count, self.size)
        windows = text.unfold(2, self.gram, 1)  # [P, B, places, gram]
        powers = self.values ** torch.arange(self.gram - 1, device=text.device)
        codes = (windows[..., :-1] * powers).sum(3)
        same = codes[..., None] == codes[:, :, None]
        order = streams.uniform(2 * counter + 1, count, self.places) + (same.sum(3) == 1)
        chosen = order.topk(self.questions, 2).indices
        places = same.int().argmax(3).gather(2, chosen)  # the same place where it occurs once
        asked = windows.gather(2, places[..., None].expand(*places.shape, self.gram))
        mark = torch.full_like(places, self.values)[..., None]
        return self.of(text, torch.cat([mark, asked[..., :-1]], 3), asked[..., -1])
