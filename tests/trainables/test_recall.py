"""Rows of the recall tasks against answers looked up in plain Python; bits and chances against full enumeration."""

from collections import Counter
from itertools import product
from math import log2

import pytest
import torch

from trainables.common.retrieval.recall import Counting, Grams, Index, Recall, most_accurate
from trainables.common.streams import Streams

TASKS = [
    Recall(5, 7, 3), Recall(5, 7, 5, stacked=False), Index(6, 3, 4), Counting(9, 3, 2), Grams(12, 6, 2, 3),
    Grams(10, 30, 1, 2),
]  # fmt: skip


def rows(task, seeds=(0, 1), counter=3, count=20):
    return task.rows(Streams(seeds, "test"), counter, count)


def every(task):
    """All rows of all lanes as (tokens, counted, answer) in plain Python."""
    found = rows(task)
    return zip(
        found.tokens_PBT.flatten(0, 1).tolist(), found.counted_PBT.flatten(0, 1).tolist(),
        found.answer_PB.flatten().tolist(), strict=True,
    )  # fmt: skip


def looked_up(task, text, question):
    """The answer to a question, read off the text without tensors."""
    if isinstance(task, Recall):
        key = question[0] - task.values
        if task.stacked:
            pairs = dict(divmod(token - task.values - task.size, task.values) for token in text)
        else:
            pairs = dict(zip([token - task.values for token in text[::2]], text[1::2], strict=True))
        return pairs[key]
    if isinstance(task, Index):
        return text[question[0] - task.values]
    if isinstance(task, Counting):
        return 2 * task.values + text.count(question[0] - task.values)
    assert question[0] == task.values
    places = [at for at in range(task.places) if text[at : at + task.gram - 1] == question[1:]]
    return text[places[0] + task.gram - 1]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_answers_are_those_of_the_text_and_only_answers_count(task):
    for tokens, counted, first_answer in every(task):
        assert len(tokens) == task.length
        text, rest = tokens[: task.text], tokens[task.text :]
        asked = []
        for at in range(0, len(rest), task.asked + 1):
            question, answer = rest[at : at + task.asked], rest[at + task.asked]
            assert answer == looked_up(task, text, question) and 0 <= answer < task.vocabulary
            asked.append(tuple(question))
            assert not any(counted[task.text + at : task.text + at + task.asked])
            assert counted[task.text + at + task.asked]
        assert sum(counted) == task.questions == len(asked)
        assert len(set(asked)) == len(asked) or isinstance(task, Grams)
        assert tokens[task.prompt] == first_answer and counted.index(True) == task.prompt


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_lane_draws_the_same_alone_and_other_counters_give_other_rows(task):
    both, alone = rows(task), rows(task, seeds=(1,))
    assert torch.equal(both.tokens_PBT[1], alone.tokens_PBT[0])
    assert not torch.equal(rows(task, counter=4).tokens_PBT, both.tokens_PBT)
    assert torch.equal(rows(task, counter=torch.tensor(3)).tokens_PBT, both.tokens_PBT)


def test_grams_that_are_asked_for_nearly_always_occur_once():
    task, repeated = Grams(12, 6, 2, 3), 0
    for tokens, _, _ in zip(*(part.flatten(0, 1).tolist() for part in rows(task, count=500)), strict=True):
        text, grams = tokens[:12], (tokens[13:15], tokens[17:19])
        repeated += any(sum(text[at : at + 2] == gram for at in range(10)) > 1 for gram in grams)
    assert repeated < 30  # of 1000 rows


def test_every_key_occurs_once_and_values_are_uniform():
    task = Recall(4, 3, 1)
    counts = Counter()
    for tokens, _, _ in zip(*(part.flatten(0, 1).tolist() for part in rows(task, count=1500)), strict=True):
        keys, values = zip(*(divmod(token - 7, 3) for token in tokens[:4]), strict=True)
        assert sorted(keys) == [0, 1, 2, 3]
        counts.update(values)
    assert all(abs(counts[value] / 12_000 - 1 / 3) < 5 * (2 / 9 / 12_000) ** 0.5 for value in range(3))


def test_stacked_pairs_are_the_sum_of_the_vectors_of_their_key_and_value():
    task = Recall(3, 4, 1)
    vectors = task.inputs(torch.tensor([[[2, 4 + 1, 7 + 2 * 4 + 3]]]))[0, 0].tolist()
    assert vectors == [[0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 1]]
    assert task.features == 7 and Recall(3, 4, 1, stacked=False).features is None


@pytest.mark.parametrize(("size", "values"), [(4, 3), (6, 2)])
def test_counting_demands_the_entropy_of_the_counts_and_is_guessed_by_the_commonest(size, values):
    task, texts = Counting(size, values), list(product(range(values), repeat=size))
    tallies = Counter(tuple(text.count(value) for value in range(values)) for text in texts)
    entropy = -sum(n / len(texts) * log2(n / len(texts)) for n in tallies.values())
    assert task.required_bits == pytest.approx(entropy, abs=1e-9)
    commonest = max(Counter(text.count(0) for text in texts).values()) / len(texts)
    assert task.chance == pytest.approx(commonest)


def test_recall_and_index_demand_the_logarithm_of_the_number_of_possible_texts():
    assert Recall(3, 4).required_bits == pytest.approx(log2(len(list(product(range(4), repeat=3)))))
    assert Index(5, 2).required_bits == pytest.approx(5) and Index(5, 2).chance == 0.5


def test_grams_demand_the_expected_number_of_those_that_occur_once():
    size, values, gram = 6, 4, 3
    task, once = Grams(size, values, 1, gram), []
    for text in product(range(values), repeat=size):
        codes = Counter(text[at : at + gram - 1] for at in range(task.places))
        once.append(sum(count == 1 for count in codes.values()))
    # windows that overlap are not quite independent
    assert task.required_bits == pytest.approx(2 * sum(once) / len(once), rel=0.02)


@pytest.mark.parametrize(("accuracy", "values"), [(0.9, 2), (0.6, 4), (0.99, 64)])
def test_the_ceiling_is_the_accuracy_of_a_symmetric_channel_of_that_information(accuracy, values):
    joint = [
        (accuracy if sent == got else (1 - accuracy) / (values - 1)) / values
        for sent in range(values) for got in range(values)
    ]  # fmt: skip
    information = sum(p * log2(p * values**2) for p in joint)
    assert most_accurate(information, values) == pytest.approx(accuracy, abs=1e-6)
    assert Recall(10, values).ceiling(10 * information) == pytest.approx(accuracy, abs=1e-6)


def test_the_ceiling_is_chance_without_bits_and_one_with_all_of_them():
    assert most_accurate(0, 8) == pytest.approx(1 / 8, abs=1e-6) and most_accurate(3, 8) == 1.0
    assert Index(4, 8).ceiling(12) == 1.0 and Counting(4, 8).ceiling(0) == 1.0


def test_impossible_sizes_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="1 to 3 questions, got 3, 4 and 5"):
        Recall(3, 4, 5)
    with pytest.raises(ValueError, match="raise values or gram"):
        Grams(20, 3, 1, 3)
    with pytest.raises(ValueError, match="values >= 2"):
        Index(4, 1)
