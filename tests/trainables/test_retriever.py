"""The retriever against bodies that were written without it, against a plain Python reader, and malformed searches."""

import pytest
import torch

from trainables.common.retrieval.bodies import (
    BOS,
    DASH,
    END,
    EOS,
    FAILED,
    FIRST_NODE,
    PAD,
    PARENT,
    START,
    TRUE,
)
from trainables.common.retrieval.is_tree import IsTree
from trainables.common.retrieval.retriever import GraphRetriever
from trainables.common.streams import Streams


@pytest.mark.parametrize(("nodes", "kind"), [(4, "binary"), (10, "binary"), (8, "random")])
def test_the_searches_of_a_right_body_are_answered_with_the_tokens_that_stand_there(nodes, kind):
    task = IsTree(nodes, kind, "retrieval")
    tokens = task.rows(Streams([1, 2], "data"), 0, 60).tokens_PBT
    retriever, asked = task.retriever(), 0
    for place in range(task.prompt, task.length - 1):
        called, answer = retriever(tokens[..., : place + 1])
        assert torch.equal(called, tokens[..., place] == END)
        assert torch.equal(answer[called], tokens[..., place + 1][called])
        asked += int(called.sum())
    assert asked == (tokens == END).sum() > 100 * nodes


def test_bodies_without_searches_have_no_retriever():
    assert IsTree(8, body="cot").retriever() is None and IsTree(8, body="none").retriever() is None


def node(number):
    return FIRST_NODE + number


# 3 - 1, 2 - 0, 3 - 0, 4 - 3 and a place without an edge
PROMPT = [BOS, PAD, PAD, PAD]
for larger, smaller in ((3, 1), (2, 0), (3, 0), (4, 3)):
    PROMPT += [node(larger), DASH, node(smaller)]
PROMPT.append(EOS)


def answered(*body):
    called, answer = GraphRetriever(5)(torch.tensor([[PROMPT + list(body)]]))
    assert called.item()
    return answer.item()


@pytest.mark.parametrize(
    ("asked", "after", "answer"),
    [
        (3, None, 1),
        (3, 1, 0),
        (3, 0, 4),
        (3, 4, None),  # the last of them
        (0, None, 2),
        (0, 2, 3),
        (1, None, 3),
        (1, 3, None),
        (3, 2, None),  # 2 is no neighbour of 3
        (3, 3, None),
        (5, None, None),  # no edge
    ],
)
def test_a_neighbour_is_the_one_that_follows_in_the_order_of_the_edges(asked, after, answer):
    previous = [] if after is None else [node(after)]
    expected = FAILED if answer is None else node(answer)
    assert answered(node(0), START, node(asked), DASH, *previous, END) == expected


def test_a_father_is_the_one_last_written_and_searches_are_no_records():
    record = [node(3), PARENT, node(0), node(1), PARENT, node(3)]
    search = [START, node(1), PARENT, END]
    assert answered(*record, *search) == node(3)
    assert answered(*record, node(1), PARENT, node(4), *search) == node(4)
    assert answered(*record, *search, node(3), *search) == node(3)
    assert answered(*record, START, node(0), PARENT, END) == FAILED
    assert answered(*search) == FAILED
    assert answered(node(1), PARENT, END, *search) == FAILED  # followed by no node
    assert answered(node(1), PARENT, FAILED, *search) == FAILED


@pytest.mark.parametrize(
    "body",
    [
        [END],
        [START, END],
        [node(3), END],
        [START, node(3), END],
        [START, DASH, END],
        [START, node(3), node(1), END],
        [START, DASH, node(3), END],
        [START, node(3), DASH, FAILED, END],
        [START, node(3), DASH, TRUE, END],
        [START, node(3), PARENT, node(1), END],
        [START, EOS, PARENT, END],
        [START, node(3), DASH, node(1), node(0), END],
        [node(3), DASH, END],
        [START, node(3), START, DASH, END],
        [START, node(3), DASH, END, END],
    ],
)
def test_what_is_no_search_is_answered_failed(body):
    assert answered(*body) == FAILED


def test_only_rows_that_end_with_a_search_are_called():
    bodies = [[START, node(3), DASH, END], [START, node(3), END, DASH], [START, node(0), DASH, END]]
    called, answer = GraphRetriever(5)(torch.tensor([[PROMPT + body for body in bodies]]))
    assert called.tolist() == [[True, False, True]] and answer.tolist() == [[node(1), FAILED, node(2)]]


def test_random_texts_are_answered_as_a_plain_python_reader_does():
    """Bodies of random tokens that end with a search, half of them well formed."""
    task, streams = IsTree(6, body="retrieval"), Streams([0], "texts")
    count, length = 1000, 30
    prompts = task.rows(streams, 0, count).tokens_PBT[0, :, : task.prompt]
    alphabet = torch.tensor([START, DASH, PARENT, PARENT, PARENT, FAILED, *(node(number) for number in range(6))])
    bodies = alphabet[streams.integers(1, len(alphabet), count, length)[0]]
    nodes = FIRST_NODE + streams.integers(2, 6, 2, count)[0]
    bodies[:, -1], (short, long) = END, torch.arange(count).view(2, -1)
    bodies[short, -4], bodies[long, -5] = START, START
    formed = torch.arange(count) % 2 == 0
    bodies[short, -3] = torch.where(formed, nodes[0], bodies[:, -3])[short]
    bodies[short, -2] = torch.where(formed & (nodes[1] % 2 == 0), PARENT, bodies[:, -2])[short]
    for place, wanted in ((-4, nodes[0]), (-3, DASH), (-2, nodes[1])):
        bodies[long, place] = torch.where(formed, wanted, bodies[:, place])[long]
    texts = torch.cat([prompts, bodies], 1)
    _, answer = task.retriever()(texts[None])
    found = [read(text, task.prompt) for text in texts.tolist()]
    assert answer[0].tolist() == found
    assert sum(token != FAILED for token in found) > 50 and found.count(FAILED) > 50


def read(text, prompt):
    edges = [(text[place], text[place + 2]) for place in range(1, prompt - 1, 3)]
    body = text[prompt:-1]
    begin = len(body) - 1 - body[::-1].index(START)
    match body[begin + 1 :]:
        case [u, sign] if sign == PARENT and u >= FIRST_NODE:
            for place in range(len(body) - 3, -1, -1):
                if body[place] == u and body[place + 1] == PARENT and body[place + 2] >= FIRST_NODE:
                    return body[place + 2]
        case [v, sign, *after] if sign == DASH and v >= FIRST_NODE and len(after) < 2:
            around = [sum(edge) - v for edge in edges if v in edge]
            if not after:
                return around[0] if around else FAILED
            if after[0] in around and around.index(after[0]) + 1 < len(around):
                return around[around.index(after[0]) + 1]
    return FAILED
