"""Rows for a masked language model, a function of a key alone (arXiv:1810.04805)."""

# B rows, T tokens of text in a row, P masked positions of a row

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainables.common.data.batches import draws
from trainables.common.data.wordpiece import Masking

HIDDEN, REPLACED = 0.8, 0.1  # shares of the chosen tokens that become [MASK], or a random token; the rest stays
FRAME = 2  # [CLS] before the text and [SEP] behind it


class MaskedRows(NamedTuple):
    """[CLS] text [SEP] with some tokens hidden, where they stand, and what they were."""

    inputs_BT: Tensor  # int64, FRAME longer than the text
    at_BP: Tensor  # positions in inputs_BT, increasing
    targets_BP: Tensor

    def rows(self, some: slice) -> "MaskedRows":
        return MaskedRows(*(part[some] for part in self))

    def to(self, device: torch.device) -> "MaskedRows":
        return MaskedRows(*(part.to(device) for part in self))


def masked_tokens(tokens: int, rate: float) -> int:
    """Tokens chosen in a row of so many: the share `rate`, rounded, at least one.

    >>> masked_tokens(62, 0.15)
    9
    """
    return max(1, round(rate * tokens))


def masked_rows(text_BT: np.ndarray, rate: float, masking: Masking, *key: str | int) -> MaskedRows:
    """In every row equally many tokens are chosen; of these 80 % become [MASK], 10 % a random token, 10 % stay.

    A function of the text and the key. Ends of documents and unknown words are chosen only where nothing else is left.
    """
    rows, tokens = text_BT.shape
    count = masked_tokens(tokens, rate)
    order_BT = draws(rows * tokens, "where", *key).reshape(rows, tokens) >> np.uint64(1)
    ordinary_V = np.zeros(masking.vocabulary, bool)
    ordinary_V[masking.ordinary] = True
    order_BT[~ordinary_V[text_BT]] = np.iinfo(np.uint64).max
    at_BP = np.sort(np.argsort(order_BT, axis=1, kind="stable")[:, :count], axis=1)
    targets_BP = np.take_along_axis(text_BT, at_BP, axis=1).astype(np.int64)
    chance_BP = (draws(rows * count, "how", *key) / 2.0**64).reshape(rows, count)
    picked_BP = draws(rows * count, "what", *key).reshape(rows, count) % np.uint64(len(masking.ordinary))
    put_BP = np.where(chance_BP < HIDDEN + REPLACED, masking.ordinary[picked_BP.astype(np.int64)], targets_BP)
    put_BP[chance_BP < HIDDEN] = masking.mask
    inputs_BT = np.empty((rows, tokens + FRAME), np.int64)
    inputs_BT[:, 0], inputs_BT[:, 1:-1], inputs_BT[:, -1] = masking.cls, text_BT, masking.sep
    np.put_along_axis(inputs_BT, at_BP + 1, put_BP, axis=1)
    return MaskedRows(torch.from_numpy(inputs_BT), torch.from_numpy(at_BP + 1), torch.from_numpy(targets_BP))


COUNTED_AT_ONCE = 10_000_000


def unigram_nats(tokens: np.ndarray, masking: Masking) -> Tensor:
    """-log of each token's share in a text [V], special tokens left out and one added to every count.

    The loss of a model that knows the shares and looks at no context. Special tokens (unknown words, ends of documents)
    are counted as if they were not in the text, as they are not chosen for masking.
    """
    counts_V = np.zeros(masking.vocabulary, np.int64)
    for first in range(0, len(tokens), COUNTED_AT_ONCE):
        counts_V += np.bincount(tokens[first : first + COUNTED_AT_ONCE], minlength=masking.vocabulary)
    ordinary_V = np.zeros_like(counts_V)
    ordinary_V[masking.ordinary] = counts_V[masking.ordinary]
    return torch.from_numpy(-np.log((ordinary_V + 1) / (ordinary_V + 1).sum()))
