"""From a stage tree to parts that one walk trains each: what has to run, cut where that pays. Pure, as the plan."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sweeps.engine.plan import Node, Tree
from trainables.study import AnyStudy, Branch, FusedStudy


@dataclass(frozen=True)
class Item:
    """A part of a tree that one walk trains: from the state `start_key` (None: step 0) through `branch`."""

    study: AnyStudy
    root: Any
    root_key: str
    start_key: str | None
    branch: Branch
    steps: int

    @cached_property
    def shape(self) -> Any:
        """What may be trained in one pack with it; None for a part of a tree, which is walked."""
        return (self.study.name, self.study.shape(self.root)) if isinstance(self.study, FusedStudy) else None


def items(tree: Tree, longest: float) -> list[Item]:
    """Cut what has to run of a tree into parts for walks, the trunk first.

    A part of at most `longest` steps stays whole. A larger one becomes its heaviest path, which no parallelism can
    shorten, and parts for what branches off it, whose forks are then kept.
    """
    parts: list[Item] = []
    waiting: list[tuple[Node, str | None]] = [(node, None) for node in tree.tops]
    while waiting:
        node, parent = waiting.pop(0)
        if node.runs:
            branch, rest = _split(node, longest)
            parts.append(Item(tree.study, tree.root, tree.root_key, parent, branch, branch.total_steps))
            waiting.extend(rest)
        else:
            waiting.extend((child, node.key) for child in node.children)
    return parts


def _split(top: Node, longest: float) -> tuple[Branch, list[tuple[Node, str]]]:
    totals = running_totals(top)
    if totals[id(top)] <= longest:
        inside = _down_from(top, _running)
        below = [(child, node.key) for node in inside for child in node.children if not child.runs]
        return _branch(top, _running), below
    heavy: dict[int, Node] = {}
    rest: list[tuple[Node, str]] = []
    node: Node | None = top
    while node is not None:
        following = max(_running(node), key=lambda child: totals[id(child)], default=None)
        rest += [(child, node.key) for child in node.children if child is not following]
        if following is not None:
            heavy[id(node)] = following
        node = following
    return _branch(top, lambda node: [heavy[id(node)]] if id(node) in heavy else []), rest


def running_totals(top: Node) -> dict[int, int]:
    """id(node) -> steps to run from its start on without a break, for all that runs below a stage that runs."""
    totals: dict[int, int] = {}
    for node in reversed(_down_from(top, _running)):
        totals[id(node)] = node.steps + sum(totals[id(child)] for child in _running(node))
    return totals


def _running(node: Node) -> list[Node]:
    return [child for child in node.children if child.runs]


def _down_from(top: Node, followed: Callable[[Node], list[Node]]) -> list[Node]:
    """A node and those that follow it, parents before children."""
    order, waiting = [], [top]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting.extend(followed(node))
    return order


def _branch(top: Node, followed: Callable[[Node], list[Node]]) -> Branch:
    """Nodes as Branches; a state is kept where something goes on from it: a killed job then loses one stage, no more.

    The driver drops it when all of that is in, unless it is worth keeping.
    """
    made: dict[int, Branch] = {}
    for node in reversed(_down_from(top, followed)):
        inside = followed(node)
        goes_on = bool(_running(node)) or worth_keeping(node)
        made[id(node)] = Branch(
            node.key,
            node.start,
            node.stop,
            node.placed,
            node.missing,
            keep=not node.has_state and (node.keep or goes_on),
            children=tuple(made[id(child)] for child in inside),
        )
    return made[id(top)]


def worth_keeping(node: Node) -> bool:
    """The end of a stable stretch: a larger budget goes on from there."""
    return (
        bool(node.children)
        and node.placed[-1].segment.constant
        and not any(child.placed[0].segment.knobs == node.placed[-1].segment.knobs for child in node.children)
    )
