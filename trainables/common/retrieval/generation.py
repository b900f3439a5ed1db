"""How well a net answers: with the right text before every token, and by what it writes itself, searches answered.

Writing is greedy, one token at a time. After a search call the retriever's answer is the next token, whatever the net
would have written, so that a wrong call is answered wrongly or not at all.
"""

# P lanes, B rows, T positions, V vocabulary

from typing import NamedTuple

import torch

from trainables.common.lanes import Lanes
from trainables.common.retrieval.tasks import Rows, Task
from trainables.common.sequence.network import Architecture, Decoder, logits
from trainables.common.sequence.training import token_losses

NO_ANSWER = -1  # of a row whose text ended without a label; no token has this id
LOOK_EVERY = 8  # tokens between looks at whether all rows have answered: each look waits for the device


class Predictions(NamedTuple):
    """What is asked of a net at positions 0 .. T - 2: the token after each, where it counts."""

    inputs: torch.Tensor  # [P, B, T - 1] or [P, B, T - 1, F]
    targets_PBT: torch.Tensor  # 0 where nothing is asked
    counted_PBT: torch.Tensor


def predictions(task: Task, rows: Rows) -> Predictions:
    """Rows as inputs and the tokens that follow them."""
    counted = rows.counted_PBT[:, :, 1:]
    targets = rows.tokens_PBT[:, :, 1:].where(counted, torch.zeros_like(rows.tokens_PBT[:, :, 1:]))
    return Predictions(task.inputs(rows.tokens_PBT[:, :, :-1]), targets, counted)


def loss(net: Architecture, weights: Lanes, asked: Predictions) -> torch.Tensor:
    """Mean cross-entropy of the counted tokens, nats, of each lane: [P]."""
    return token_losses(logits(net, weights, asked.inputs), asked.targets_PBT, asked.counted_PBT)


@torch.no_grad()
def teacher_forced(net: Architecture, weights: Lanes, task: Task, rows: Rows) -> Lanes:
    """Measures of each lane [P] with the right tokens before each prediction.

    loss; match: rows without an error; token_accuracy: counted tokens predicted rightly;
    before_error: the share of a row's counted tokens that stand before its first error, 1 in a row without any;
    erring: rows with an error; first_error: the sum over these of the position of the token first mistaken.
    """
    asked = predictions(task, rows)
    guesses = logits(net, weights, asked.inputs)
    wrong = (guesses.argmax(-1) != asked.targets_PBT) & asked.counted_PBT
    still_right = (wrong.cumsum(2) == 0) & asked.counted_PBT
    counts = asked.counted_PBT.sum(2)
    errs = wrong.any(2)
    first = wrong.int().argmax(2) + 1  # of the token itself, one after what predicts it
    return {
        "loss": token_losses(guesses, asked.targets_PBT, asked.counted_PBT),
        "match": (~errs).float().mean(1),
        "token_accuracy": 1 - wrong.sum((1, 2)) / counts.sum(1),
        "before_error": (still_right.sum(2) / counts).mean(1),
        "erring": errs.float().sum(1),
        "first_error": (first * errs).float().sum(1),
    }


class Written(NamedTuple):
    """Texts as nets wrote them, prompts included, and the answers read off them."""

    text_PBT: torch.Tensor
    answer_PB: torch.Tensor  # NO_ANSWER where a row never came to one
    called_PB: torch.Tensor  # int64: searches made before the answer


@torch.no_grad()
def generate(net: Architecture, weights: Lanes, task: Task, prompt_PBT: torch.Tensor) -> Written:
    """Greedy texts after a prompt, until every row has answered or is as long as the task's rows."""
    decoder, retriever = Decoder(net, weights), task.retriever()
    labels = torch.tensor(task.labels, device=prompt_PBT.device)
    text = prompt_PBT
    answer = torch.full_like(text[:, :, 0], NO_ANSWER)
    calls = torch.zeros_like(answer)
    unread = text
    for written in range(1, task.length - task.prompt + 1):
        token = decoder.read(task.inputs(unread)).argmax(-1)
        unanswered = answer == NO_ANSWER
        given = torch.zeros_like(unanswered)
        if retriever is not None:
            given, found = retriever(text)
            token = found.where(given, token)
            calls += given & unanswered
        ends = (torch.isin(token, labels) if len(labels) else torch.ones_like(given)) & ~given
        answer = token.where(unanswered & ends, answer)
        unread = token[:, :, None]
        text = torch.cat([text, unread], 2)
        if written % (LOOK_EVERY if len(labels) else 1) == 0 and not (answer == NO_ANSWER).any():
            break
    return Written(text, answer, calls)


def accuracy(net: Architecture, weights: Lanes, task: Task, rows: Rows) -> torch.Tensor:
    """Share of rows that a lane answers rightly by generation, [P]."""
    written = generate(net, weights, task, rows.tokens_PBT[:, :, : task.prompt])
    return (written.answer_PB == rows.answer_PB).float().mean(1)
