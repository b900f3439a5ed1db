"""Batches against plain slices of the text, their starts against the uniform law, workers' rows against the batch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from trainables.common.data.batches import Windows, batch, evaluation_windows, window_starts, worker_rows
from trainables.common.data.corpora import Split

TEXT = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)


def split_of(lengths, bytes_of_tokens=None) -> Split:
    boundaries = np.concatenate(([0], np.cumsum(lengths)))
    return Split("report", TEXT[: boundaries[-1]], boundaries, 2.0, bytes_of_tokens)


def test_rows_are_slices_of_the_text():
    inputs_BT, targets_BT = batch(TEXT, step=5, seed=1, batch_size=4, context=16)
    assert inputs_BT.dtype == targets_BT.dtype == torch.int64 and inputs_BT.shape == targets_BT.shape == (4, 16)
    for start, inputs_T, targets_T in zip(window_starts(5000, 5, 1, 4, 16), inputs_BT, targets_BT, strict=True):
        assert inputs_T.tolist() == TEXT[start : start + 16].tolist()
        assert targets_T.tolist() == TEXT[start + 1 : start + 17].tolist()


def test_a_batch_depends_on_seed_and_step_alone():
    first = batch(TEXT, 7, 3, 4, 16)
    torch.manual_seed(99)
    np.random.seed(99)
    batch(TEXT, 8, 3, 4, 16)
    assert all(torch.equal(a, b) for a, b in zip(first, batch(TEXT, 7, 3, 4, 16), strict=True))


def test_no_two_seeds_and_steps_meet():
    starts = {(seed, step): tuple(window_starts(10**9, step, seed, 4, 16)) for seed in range(40) for step in range(40)}
    assert len(set(starts.values())) == 1600
    assert starts[1, 11] != starts[11, 1]


def test_starts_are_known_numbers():
    """A change of these numbers changes every training there is."""
    assert window_starts(10_000, 0, 0, 4, 16).tolist() == [794, 7092, 617, 8488]


def test_every_place_is_equally_likely():
    starts = np.concatenate([window_starts(116, step, 0, 50, 16) for step in range(400)])
    assert (starts.min(), starts.max()) == (0, 99)  # the last window ends with the text
    counts = np.bincount(starts, minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-3
    steps = np.array([window_starts(10**6, step, 0, 1, 16)[0] for step in range(4000)], float)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 4 / np.sqrt(4000)  # neighbouring steps are independent


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_workers_rows_are_the_batch(workers):
    whole = batch(TEXT, 2, 0, 8, 16)
    parts = [batch(TEXT, 2, 0, 8, 16, rank=rank, workers=workers) for rank in range(workers)]
    for index in (0, 1):
        assert torch.equal(whole[index], torch.cat([part[index] for part in parts]))


def test_refusals():
    with pytest.raises(ValueError, match=r"a multiple of the workers, got 8 sequences for 3"):
        worker_rows(8, 0, 3)
    with pytest.raises(ValueError, match=r"context \+ 1 = 17 tokens, the text has 16"):
        batch(TEXT[:16], 0, 0, 2, 16)
    split = split_of([100] * 10)
    with pytest.raises(ValueError, match="give tokens or documents"):
        evaluation_windows(split, context=8)
    with pytest.raises(ValueError, match="the report split has 1,000 tokens"):
        evaluation_windows(split, context=8, tokens=1000)
    with pytest.raises(ValueError, match=r"has 10 documents of at least 17 tokens \(2 windows of 8\), 11 were asked"):
        evaluation_windows(split, context=8, documents=11, windows_per_document=2)


def test_a_sample_is_fixed_spread_out_and_without_overlap():
    split = split_of([500] * 10)
    windows = evaluation_windows(split, context=16, tokens=4096)
    again, other = (evaluation_windows(split, context=16, tokens=4096, seed=seed) for seed in (0, 1))
    assert torch.equal(windows.inputs_NT, again.inputs_NT) and not torch.equal(windows.inputs_NT, other.inputs_NT)
    assert windows.tokens == 4096
    text = bytes(TEXT)
    starts = [text.index(bytes(row.to(torch.uint8).tolist())) for row in windows.inputs_NT]
    assert all(later - earlier >= 16 for earlier, later in pairwise(starts))
    assert starts[-1] + 17 <= 5000
    assert windows.document_N.tolist() == [start // 500 for start in starts]
    densest = evaluation_windows(split, context=16, tokens=4992)  # 312 windows of 16, and a last target
    assert densest.tokens == 4992


def test_windows_by_document_lie_within_their_document():
    lengths = [40, 10, 100, 33, 32, 65]
    split = split_of(lengths)
    windows = evaluation_windows(split, context=16, documents=4, windows_per_document=2)
    assert windows.document_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    text, row = bytes(TEXT), 0
    for document in (0, 2, 3, 5):  # those of at least 2 * 16 + 1 tokens
        start, stop = split.boundaries[document], split.boundaries[document + 1]
        first, second = (
            text.index(bytes([*windows.inputs_NT[row + i].tolist(), int(windows.targets_NT[row + i, -1])]))
            for i in (0, 1)
        )
        assert first == start and second >= first + 16 and second + 17 == stop
        row += 2


def test_means_per_document():
    document_N = torch.tensor([4, 4, 9, 2, 9, 9])
    windows = Windows(torch.zeros(6, 1), torch.zeros(6, 1), document_N, None)
    values_N = torch.tensor([1.0, 3.0, 6.0, 5.0, 0.0, 3.0])
    assert windows.per_document(values_N).tolist() == [5.0, 2.0, 3.0]


def test_bytes_behind_the_targets():
    by_mean = evaluation_windows(split_of([100] * 10), context=8, tokens=80)
    assert by_mean.bytes == 160.0
    lengths = np.arange(256)
    exact = evaluation_windows(split_of([100] * 10, lengths), context=8, tokens=80)
    assert exact.bytes == float(exact.targets_NT.sum()) and exact.bytes_N.tolist() == exact.targets_NT.sum(1).tolist()
