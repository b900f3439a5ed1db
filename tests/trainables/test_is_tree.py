"""Graphs, labels and bodies of IsTree against plain Python: depth-first searches over lists, row by row."""

import dataclasses

import pytest
import torch

from trainables.common.retrieval import shards
from trainables.common.retrieval.bodies import (
    DASH,
    END,
    EOS,
    FAILED,
    FALSE,
    FIRST_NODE,
    PAD,
    PARENT,
    START,
    TRUE,
    compact,
)
from trainables.common.retrieval.graphs import are_trees
from trainables.common.retrieval.is_tree import IsTree
from trainables.common.streams import Streams

CASES = [(4, "binary"), (8, "binary"), (13, "binary"), (5, "random"), (9, "random")]


def graphs_of(task, count=300, seed=1):
    """Graphs as tensors and as lists of pairs."""
    edges = task.graphs(Streams([seed], "graphs"), 0, count)
    return edges, [[tuple(edge) for edge in graph if edge[0] >= 0] for graph in edges[0].tolist()]


def reached(edges, nodes):
    """Nodes that a walk from node 0 comes to."""
    found, border = {0}, [0]
    while border:
        here = border.pop()
        for pair in edges:
            if here in pair:
                other = sum(pair) - here
                if other not in found:
                    found.add(other)
                    border.append(other)
    return found


def around(edges, node):
    return [sum(pair) - node for pair in edges if node in pair]


def tour(edges):
    """The nodes a recursive search stands at, and whether it met a cycle."""
    stands, seen = [], set()

    def visit(node, father):
        seen.add(node)
        stands.append(node)
        for other in around(edges, node):
            if other == father:
                continue
            if other in seen or visit(other, node):
                return True
            stands.append(node)
        return False

    return stands, visit(0, None)


def searched(edges):
    """The body with searches, told as a story in words; None is answered FAILED."""
    record, text = {}, []
    path, came_from = [0], None  # came_from: the child that the search has returned from

    def ask(node, sign, previous, answer):
        text.extend(["START", node, sign, *([] if previous is None else [previous]), "END"])
        text.append("FAILED" if answer is None else answer)

    def next_after(node, previous):
        others = around(edges, node)
        rest = others if previous is None else others[others.index(previous) + 1 :]
        return rest[0] if rest else None

    while path:
        node, father = path[-1], path[-2] if len(path) > 1 else None
        text.append(node)
        ask(node, "~", None, record.get(node))
        found = next_after(node, came_from)
        ask(node, "-", came_from, found)
        if found is not None and found == father:
            found = next_after(node, father)
            ask(node, "-", father, found)
        if found is None:
            came_from = path.pop()
            continue
        ask(found, "~", None, record.get(found))
        if found in record or found == 0:
            break
        text.extend([found, "~", node])
        record[found] = node
        path.append(found)
        came_from = None
    return text


def tokens_of(words):
    known = {"START": START, "END": END, "FAILED": FAILED, "~": PARENT, "-": DASH}
    return [known[word] if isinstance(word, str) else FIRST_NODE + word for word in words]


@pytest.mark.parametrize(("nodes", "kind"), CASES)
def test_a_label_says_tree_where_all_nodes_are_reached_over_as_few_edges_as_that_takes(nodes, kind):
    edges, lists = graphs_of(IsTree(nodes, kind))
    expected = [len(one) == nodes - 1 and len(reached(one, nodes)) == nodes for one in lists]
    assert are_trees(edges, nodes)[0].tolist() == expected
    assert 0.3 < sum(expected) / len(expected) < 0.75


@pytest.mark.parametrize(("nodes", "kind"), CASES)
def test_edges_join_two_nodes_the_larger_first_and_none_twice(nodes, kind):
    _, lists = graphs_of(IsTree(nodes, kind))
    for one in lists:
        assert all(0 <= smaller < larger < nodes for larger, smaller in one) and len(set(one)) == len(one)
    assert len({tuple(one) for one in lists}) > 80  # four nodes have 12 paths and 4 triangles in 6 orders: 96


def test_binary_graphs_are_two_stars_and_an_edge_between_leaves():
    _, lists = graphs_of(IsTree(10), count=200)
    for one in lists:
        assert len(one) == 9
        degree = [len(around(one, node)) for node in range(10)]
        # Without one edge between two nodes of degree two, all edges meet one of two hubs that are not neighbours.
        assert any(
            (degree[larger], degree[smaller]) == (2, 2)
            and two_stars([edge for edge in one if edge != (larger, smaller)])
            for larger, smaller in one
        )


def two_stars(edges):
    return any(all((a in edge) != (b in edge) for edge in edges) for a in range(10) for b in range(a))


def test_the_hubs_coin_is_fair_and_every_node_and_edge_place_is_as_likely_as_another():
    edges = IsTree(8).graphs(Streams([3], "graphs"), 0, 20_000)[0]
    trees = are_trees(edges[None], 8).float().mean().item()
    assert abs(trees - 0.5) < 5 * 0.5 / 20_000**0.5
    for place in (0, 6):  # in a star or in both, a node's mean degree is 14 / 8, so that each has 1/4 of a place
        share = torch.stack([(edges[:, place] == node).any(1).float().mean() for node in range(8)])
        assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 20_000) ** 0.5


def test_random_graphs_are_recursive_trees_or_have_the_edges_of_the_authors_second_kind():
    """Share of trees and mean number of edges against a plain Python simulation of the description."""
    import random

    generator, nodes, count = random.Random(0), 7, 4000
    trees, sizes = 0, 0
    for _ in range(count):
        names = generator.sample(range(nodes), nodes)
        if generator.random() < 0.5:
            drawn = {frozenset((names[i], names[generator.randrange(i)])) for i in range(1, nodes)}
        else:
            free = generator.randrange(1, nodes)
            drawn = {frozenset((names[i], names[generator.randrange(nodes)])) for i in range(nodes) if i != free}
            drawn = {pair for pair in drawn if len(pair) == 2}
            while True:
                pair = frozenset((generator.randrange(nodes), generator.randrange(nodes)))
                if len(pair) == 2 and pair not in drawn and free not in pair:
                    break
            drawn.add(pair)
        sizes += len(drawn)
        trees += len(drawn) == nodes - 1 and len(reached([tuple(one) for one in drawn], nodes)) == nodes
    edges = IsTree(nodes, "random").graphs(Streams([0], "graphs"), 0, count)
    assert abs(are_trees(edges, nodes).float().mean() - trees / count) < 5 * (0.5 / count) ** 0.5
    assert abs((edges[..., 0] >= 0).sum(2).float().mean() - sizes / count) < 5 * (2 / count) ** 0.5


@pytest.mark.parametrize(("nodes", "kind"), CASES)
@pytest.mark.parametrize("body", ["none", "cot", "retrieval"])
def test_rows_are_those_of_plain_python_token_for_token(nodes, kind, body):
    task = IsTree(nodes, kind, body)
    edges, lists = graphs_of(task, count=120)
    rows = task.written(edges)
    assert rows.tokens_PBT.shape == (1, 120, task.length) and rows.tokens_PBT.max() < task.vocabulary
    for one, tokens, counted, answer in zip(lists, *(value[0].tolist() for value in rows), strict=True):
        empty = task.edges - len(one)
        prompt = [11, *[PAD] * 3 * empty, *(t for a, b in one for t in (FIRST_NODE + a, DASH, FIRST_NODE + b)), EOS]
        assert len(prompt) == task.prompt and tokens[: task.prompt] == prompt
        written = {"none": [], "cot": [*tour(one)[0], "EOS"], "retrieval": [*searched(one), "EOS"]}[body]
        rest = [EOS if word == "EOS" else tokens_of([word])[0] for word in written] + [answer]
        padding = [PAD] * (task.length - len(prompt) - len(rest))
        assert tokens[task.prompt :] == rest + padding
        is_tree = len(one) == nodes - 1 and len(reached(one, nodes)) == nodes
        assert answer == (TRUE if is_tree else FALSE)
        predicted = [before != END for before in [EOS, *rest][: len(rest)]]
        assert counted == [False] * len(prompt) + predicted + [False] * len(padding)
        assert not (is_tree and padding)


@pytest.mark.parametrize("nodes", [8, 16])
def test_lengths_are_those_of_the_authors_generator(nodes):
    """3 n without a body; with a search at most 5 n; on average 35 and 69 tokens were counted for 8 and 16 nodes."""
    streams = Streams([0], "lengths")
    assert IsTree(nodes, body="none").length == 3 * nodes and IsTree(nodes).length == 5 * nodes
    written = (IsTree(nodes).rows(streams, 0, 4000).tokens_PBT != PAD).sum(2).float()
    assert abs(written.mean() - {8: 35, 16: 69}[nodes]) < 1 and written.max() == 5 * nodes


def test_a_lane_draws_the_same_rows_alone_in_a_pack_and_as_the_start_of_more_rows():
    for kind in ("binary", "random"):
        task = IsTree(8, kind)
        pack = task.rows(Streams([4, 9], "data"), torch.tensor(7), 20)
        alone = task.rows(Streams([9], "data"), 7, 20)
        more = task.rows(Streams([9], "data"), 7, 50)
        assert torch.equal(pack.tokens_PBT[1], alone.tokens_PBT[0])
        assert torch.equal(more.tokens_PBT[:, :20], alone.tokens_PBT)
        assert not torch.equal(pack.tokens_PBT[0], pack.tokens_PBT[1])


def test_compacting_is_what_a_list_does():
    tokens = torch.where(Streams([0], "holes").bits(0, 30, 12) == 1, PAD, 9)
    tokens = tokens + torch.arange(12) * (tokens != PAD)
    for row, found in zip(tokens[0].tolist(), compact(tokens, 14)[0].tolist(), strict=True):
        kept = [token for token in row if token != PAD]
        assert found == kept + [PAD] * (14 - len(kept))


def test_required_bits_count_the_cases_that_a_last_edge_tells_apart():
    """Small cases by enumeration: which sets of leaves hang on hub 0, told apart by all pairs of leaves."""
    for nodes in (4, 6, 9):
        leaves = range(nodes - 2)
        cases = {
            tuple((code >> a ^ code >> b) & 1 for a in leaves for b in range(a)) for code in range(2 ** (nodes - 2))
        }
        assert 2 ** IsTree(nodes, body="none").required_bits == len(cases)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no graph 'ring'; there are binary, random"):
        IsTree(8, graph="ring")
    with pytest.raises(ValueError, match="no body 'prose'; there are none, cot, retrieval"):
        IsTree(8, body="prose")
    with pytest.raises(ValueError, match="at least 5 nodes, got 4"):
        IsTree(4, graph="random")


def test_a_fixed_set_gives_the_rows_that_the_task_gave(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 1024)  # three files
    task, size = IsTree(8, body="retrieval"), 2500
    stored = shards.FixedSet(task, seed=3, size=size, folder=tmp_path)
    assert len(list(stored.path.glob("*.parquet"))) == 3
    expected = [task.rows(Streams([3], "fixed set"), counter, 1024) for counter in range(3)]
    tokens = torch.cat([rows.tokens_PBT[0] for rows in expected])[:size]
    counted = torch.cat([rows.counted_PBT[0] for rows in expected])[:size]
    answer = torch.cat([rows.answer_PB[0] for rows in expected])[:size]
    everything = stored.at(torch.arange(size)[None])
    assert torch.equal(everything.tokens_PBT[0], tokens)
    assert torch.equal(everything.counted_PBT[0], counted) and torch.equal(everything.answer_PB[0], answer)
    drawn = stored.rows(Streams([5, 6], "data"), 2, 40)
    places = Streams([5, 6], "data").integers(2, size, 40)
    assert torch.equal(drawn.tokens_PBT, tokens[places]) and torch.equal(drawn.answer_PB, answer[places])


def test_a_fixed_set_is_written_once_found_again_and_apart_from_others(tmp_path):
    def written(**changes):
        given = {"task": IsTree(6), "seed": 0, "size": 40, "folder": tmp_path} | changes
        return shards.FixedSet(**given).path

    first = written()
    times = {file.name: file.stat().st_mtime_ns for file in first.iterdir() if file.suffix == ".parquet"}
    assert written() == first
    assert times == {file.name: file.stat().st_mtime_ns for file in first.iterdir() if file.suffix == ".parquet"}
    others = {
        written(seed=1),
        written(size=41),
        written(task=IsTree(7)),
        written(task=dataclasses.replace(IsTree(6), body="none")),
    }
    assert len({first, *others}) == 5 and not [path for path in tmp_path.iterdir() if "writing" in path.name]


def test_a_damaged_shard_is_refused_with_the_way_out(tmp_path):
    path = shards.FixedSet(IsTree(6), seed=0, size=40, folder=tmp_path).path
    shard = next(path.glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"damaged.*delete the folder"):
        shards.FixedSet(IsTree(6), seed=0, size=40, folder=tmp_path)


@pytest.mark.parametrize("kind", ["binary", "random"])
def test_rows_are_made_on_the_streams_device_without_a_look_at_their_values(kind):
    """On the meta device, which has no values: another device in between or a look at one would raise."""
    for body in ("none", "cot", "retrieval"):
        rows = IsTree(8, kind, body).rows(Streams([1, 2], "data", "meta"), torch.tensor(3, device="meta"), 4)
        assert [value.device.type for value in rows] == ["meta"] * 3 and rows.answer_PB.shape == (2, 4)
