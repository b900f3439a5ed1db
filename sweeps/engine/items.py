"""From a stage tree to parts that one walk trains each: what has to run, cut where that pays. Pure, as the plan."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from sweeps.engine.plan import Node, Tree
from trainables.study import AnyStudy, Branch, StagedStudy


@dataclass(frozen=True)
class Item:
    """A part of a tree that one walk trains: from the state `start_key` (None: step 0) through `branch`.

    work: its FLOPs, or its steps where the study does not say what a step costs.
    level: the work from its start to the end of the longest chain through it and what its forks make ready, however
    many slots there are: no sweep ends sooner, and items of the highest level go first.
    """

    study: AnyStudy
    root: Any
    root_key: str
    start_key: str | None
    branch: Branch
    steps: int
    work: float
    level: float

    @cached_property
    def shape(self) -> Any:
        """What may be trained in one pack with it; None for a part of a tree, which is walked."""
        return None if isinstance(self.study, StagedStudy) else (self.study.name, self.study.shape(self.root))


def items(tree: Tree, most: float) -> list[Item]:
    """Cut what has to run of a tree into parts for walks, the trunk first.

    A part of at most `most` work stays whole. A larger one becomes its longest path, which no parallelism can shorten,
    and parts for what branches off it, whose forks are then kept.
    """
    parts: list[Item] = []
    work = {node.key: work_of(tree.study, tree.root, node) for node in tree.nodes() if node.runs}
    waiting = deque[tuple[Node, str | None]]((node, None) for node in tree.tops)
    while waiting:
        node, parent = waiting.popleft()
        if node.runs:
            branch, rest = _split(node, most, work)
            own = sum(work[stage.key] for stage in branch.stages())
            parts.append(Item(tree.study, tree.root, tree.root_key, parent, branch, branch.total_steps, own, own))
            waiting.extend(rest)
        else:
            waiting.extend((child, node.key) for child in node.children)
    return _with_levels(parts, work)


def work_of(study: AnyStudy, root: Any, stage: Node | Branch) -> float:
    """FLOPs of a stage, or its steps where the study does not say what a step costs."""
    each = _step_flops(study, root)
    if not isinstance(study, StagedStudy):
        return each * stage.steps
    spans = [(part, max(part.start, stage.start), min(part.stop, stage.stop)) for part in stage.placed]
    return each * sum(study.step_cost(part.at(start)) * (stop - start) for part, start, stop in spans if start < stop)


@lru_cache(maxsize=10_000)
def _step_flops(study: AnyStudy, root: Any) -> float:
    return study.units(root).get("flops") or 1.0


def in_walk_order(branch: Branch) -> Iterator[Branch]:
    """The stages of a part in the order in which `trainables.walk` trains them: small branches first."""
    waiting = [branch]
    while waiting:
        stage = waiting.pop()
        yield stage
        waiting.extend(sorted(stage.children, key=lambda child: child.total_steps, reverse=True))


def _with_levels(parts: list[Item], work: Mapping[str, float]) -> list[Item]:
    """Parts, parents before what branches off them, with their levels. `work`: by the key of a stage."""
    below: dict[str, float] = {}  # fork -> the highest level of what goes on from there
    found: list[Item] = []
    for part in reversed(parts):
        done, level = 0.0, part.work
        for stage in in_walk_order(part.branch):
            done += work[stage.key]
            level = max(level, done + below.get(stage.key, 0.0))
        if part.start_key is not None:
            below[part.start_key] = max(below.get(part.start_key, 0.0), level)
        found.append(replace(part, level=level))
    return found[::-1]


def _split(top: Node, most: float, work: Mapping[str, float]) -> tuple[Branch, list[tuple[Node, str]]]:
    inside = _down_from(top, _running)
    if sum(work[node.key] for node in inside) <= most:
        below = [(child, node.key) for node in inside for child in node.children if not child.runs]
        return _branch(top, _running), below
    chains = _longest_chains(top, work)
    path: dict[int, Node] = {}
    rest: list[tuple[Node, str]] = []
    node: Node | None = top
    while node is not None:
        following = max(_running(node), key=lambda child: chains[id(child)], default=None)
        rest += [(child, node.key) for child in node.children if child is not following]
        if following is not None:
            path[id(node)] = following
        node = following
    return _branch(top, lambda node: [path[id(node)]] if id(node) in path else []), rest


def _longest_chains(top: Node, work: Mapping[str, float]) -> dict[int, float]:
    """id(node) -> work of the longest chain of stages that starts with it and runs without a break."""
    chains: dict[int, float] = {}
    for node in reversed(_down_from(top, _running)):
        chains[id(node)] = work[node.key] + max((chains[id(child)] for child in _running(node)), default=0.0)
    return chains


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
            node.way,
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
