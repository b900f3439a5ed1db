"""Generation with memory against whole forward passes; measures against plain loops; nets against later tokens."""

from dataclasses import dataclass
from typing import get_args

import pytest
import torch

from trainables.common.retrieval import generation
from trainables.common.retrieval.models import Model, architecture, initial_weights, is_recurrent
from trainables.common.retrieval.recall import Grams, Recall
from trainables.common.retrieval.tasks import Rows
from trainables.common.sequence.network import logits
from trainables.common.streams import Streams

CALL, LABELS, FOUND = 3, (1, 2), 9
MODELS = get_args(Model)


@dataclass(frozen=True)
class Walk:
    """Texts of ten tokens: 3 calls the retriever, which answers with `found`, and 1 or 2 ends the text."""

    labels: tuple[int, ...] = LABELS
    found: int | None = FOUND
    name: str = "walk"
    vocabulary: int = 10
    length: int = 16
    prompt: int = 4
    features: None = None
    required_bits: float = 1.0
    chance: float = 0.5

    def rows(self, streams, counter, count):
        tokens = streams.integers(counter, self.vocabulary, count, self.length)
        counted = streams.integers(counter + 1, 3, count, self.length) > 0
        counted[:, :, : self.prompt] = False
        return Rows(tokens, counted, tokens[:, :, -1])

    def inputs(self, tokens_PBT):
        return tokens_PBT

    def retriever(self):
        if self.found is None:
            return None
        return lambda text: (text[:, :, -1] == CALL, torch.full_like(text[:, :, 0], self.found))


def made(model, task, lanes=2, size="1k"):
    net = architecture(model, size, task, "rotary", "learned")
    weights = initial_weights(net, range(lanes), torch.ones(lanes), "cpu")
    weights["readout"] = 5 * weights["readout"]  # texts that vary
    return net, weights


def written_slowly(net, weights, task, prompt):
    """Every row by itself, each token from a forward pass over the whole text: (text, answer, calls)."""
    lanes, count, _ = prompt.shape
    found = {}
    for lane in range(lanes):
        own = {name: value[lane : lane + 1] for name, value in weights.items()}
        for row in range(count):
            text, answer, calls = prompt[lane, row].tolist(), generation.NO_ANSWER, 0
            while len(text) < task.length and answer == generation.NO_ANSWER:
                if task.found is not None and text[-1] == CALL:
                    text.append(task.found)
                    calls += 1
                    continue
                token = int(logits(net, own, torch.tensor([[text]]))[0, 0, -1].argmax())
                text.append(token)
                if token in task.labels or not task.labels:
                    answer = token
            found[lane, row] = text, answer, calls
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", [Walk(), Walk(found=None), Walk(labels=()), Walk(found=1)], ids=str)
def test_texts_written_with_a_memory_are_those_of_whole_forward_passes(model, task):
    net, weights = made(model, task)
    prompt = task.rows(Streams([0, 1], "test"), 0, 3).tokens_PBT[:, :, : task.prompt]
    prompt[0, 0, -1] = CALL
    written = generation.generate(net, weights, task, prompt)
    for (lane, row), (text, answer, calls) in written_slowly(net, weights, task, prompt).items():
        assert written.text_PBT[lane, row, : len(text)].tolist() == text
        assert written.answer_PB[lane, row] == answer and written.called_PB[lane, row] == calls
    if task.found is not None and task.labels:
        assert written.called_PB[0, 0] >= 1  # and a label that the retriever wrote (found=1) is no answer


def test_accuracy_is_the_share_of_right_answers_of_each_lane():
    task = Recall(3, 4, 2)
    net, weights = made("transformer", task, lanes=3)
    rows = task.rows(Streams([0, 1, 2], "test"), 0, 50)
    guesses = logits(net, weights, task.inputs(rows.tokens_PBT[:, :, : task.prompt]))[:, :, -1].argmax(-1)
    right = (guesses == rows.answer_PB).float().mean(1)
    assert generation.accuracy(net, weights, task, rows).tolist() == right.tolist() and 0 < right.sum() < 3


def test_measures_with_the_right_text_before_them_are_those_of_plain_loops():
    task = Walk()
    net, weights = made("gru", task)
    rows = task.rows(Streams([5, 6], "test"), 0, 40)
    found = generation.teacher_forced(net, weights, task, rows)
    chances = logits(net, weights, rows.tokens_PBT).log_softmax(-1)
    for lane in range(2):
        losses, rights, shares, firsts = [], [], [], []
        for row in range(40):
            tokens, counted = rows.tokens_PBT[lane, row].tolist(), rows.counted_PBT[lane, row].tolist()
            places = [at for at in range(1, task.length) if counted[at]]
            losses += [-float(chances[lane, row, at - 1, tokens[at]]) for at in places]
            right = [int(chances[lane, row, at - 1].argmax()) == tokens[at] for at in places]
            rights += right
            shares.append((right + [False]).index(False) / len(right))
            firsts += [places[right.index(False)]] if not all(right) else []
        assert found["loss"][lane] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert found["token_accuracy"][lane] == pytest.approx(sum(rights) / len(rights), rel=1e-5)
        assert found["before_error"][lane] == pytest.approx(sum(shares) / 40, rel=1e-5)
        assert found["match"][lane] == pytest.approx(1 - len(firsts) / 40, abs=1e-6)
        assert (found["erring"][lane], found["first_error"][lane]) == (len(firsts), sum(firsts))


def test_a_row_without_errors_has_none_before_any():
    """A net that always says token 0 is right where only zeros count."""
    task = Walk()
    net, weights = made("transformer", task, lanes=1)
    weights["readout"] *= 0
    weights["readout_bias"] = torch.eye(1, task.vocabulary)
    rows = task.rows(Streams([0], "test"), 0, 8)
    rows = rows._replace(tokens_PBT=torch.zeros_like(rows.tokens_PBT))
    found = generation.teacher_forced(net, weights, task, rows)
    assert [float(found[name]) for name in ("match", "token_accuracy", "before_error", "erring")] == [1, 1, 1, 0]
    assert generation.generate(net, weights, task, rows.tokens_PBT[:, :, :4]).answer_PB.tolist() == [[-1] * 8]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", [Grams(12, 6, 1, 3), Recall(8, 4, 2)], ids=str)
def test_no_net_sees_a_later_token(model, task):
    net, weights = made(model, task, size="1k")
    tokens = task.rows(Streams([3, 4], "test"), 0, 5).tokens_PBT
    before = logits(net, weights, task.inputs(tokens))
    for at in (1, 4, task.text - 1):
        changed = tokens.clone()
        changed[:, :, at] = torch.where(tokens[:, :, at] == tokens[:, :, 0], tokens[:, :, -1], tokens[:, :, 0])
        after = logits(net, weights, task.inputs(changed))
        torch.testing.assert_close(after[:, :, :at], before[:, :, :at], rtol=1e-5, atol=1e-5)
        moved = (after - before)[:, :, at + 1 :].abs().amax((2, 3))
        assert (moved[(changed != tokens).any(2)] > 1e-4).all()  # and all later ones see it


@pytest.mark.parametrize("model", [model for model in MODELS if not is_recurrent(model) and model != "transformer"])
def test_a_hybrid_is_recurrent_but_for_one_block_of_attention_at_its_end(model):
    net, _ = made(model, Recall(3, 4, 2), size="0.5M")
    assert net.mixers[-1] == "attention" and set(net.mixers[:-1]) == {model.removesuffix("_hybrid")}
    assert len(net.mixers) == 13
