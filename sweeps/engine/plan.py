"""From trials to a stage tree: what has to be trained, once. Pure: nothing here touches a disk or a device.

Trials with equal roots hang on one tree; where their canonical timelines agree they share stages. Stages whose
measurements are known do not run; a stage runs again only when a missing descendant needs its state and the state was
not kept.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

from trainables.common.timeline import Placed, place, segment_at, signature, total_steps
from trainables.common.timeline import common_steps as common_steps_of
from trainables.study import AnyStudy, Branch, FusedStudy, Point, state_key


@dataclass(frozen=True)
class Trial:
    """One config with all that the planner needs of it. `key` is the state key of its end."""

    study: AnyStudy
    config: Any
    root: Any
    root_key: str
    placed: tuple[Placed, ...]
    points: tuple[Point, ...]

    @property
    def key(self) -> str:
        return self.points[-1].key

    @cached_property
    def id(self) -> str:
        """12 hex digits of a config and the state that it ends in: two configs may end in one state, such as WSD and
        WSD-S at the first budget."""
        config = json.dumps(asdict(self.config), sort_keys=True)
        return hashlib.sha256((self.key + config).encode()).hexdigest()[:12]

    @property
    def steps(self) -> int:
        return self.placed[-1].stop

    @cached_property
    def point_at(self) -> dict[int, Point]:
        return {point.step: point for point in self.points}


def make_trial(study: AnyStudy, config: Any) -> Trial:
    """A config as a trial. Raises ValueError for a timeline without steps."""
    root, timeline = study.root(config), study.timeline(config)
    placed, root_key = place(timeline), study.root_key(root)
    if total_steps(timeline) < 1:
        raise ValueError(f"the timeline of {config} has no steps; raise {study.budget}")
    points = tuple(
        Point(step, state_key(root_key, placed, step), full)
        for step, full in sorted(study.measured_at(root, timeline).items())
    )
    return Trial(study, config, root, root_key, placed, points)


class Known(Protocol):
    """What is already there: measured state keys (-> in full?), kept states, and keys whose way failed (-> why)."""

    def measured(self, key: str) -> bool | None: ...
    def finite(self, key: str) -> bool: ...
    def kept(self, root_key: str) -> Mapping[str, int]: ...
    def failure(self, key: str) -> str | None: ...


class NothingKnown:
    def measured(self, key: str) -> bool | None:
        return None

    def finite(self, key: str) -> bool:
        return True

    def kept(self, root_key: str) -> Mapping[str, int]:
        return {}

    def failure(self, key: str) -> str | None:
        return None


@dataclass(eq=False)
class Node:
    """A stage of the tree: the steps between two neighbouring states that some trial ends at, forks at or keeps."""

    key: str
    start: int
    stop: int
    placed: tuple[Placed, ...]
    points: tuple[Point, ...]
    trials: list[Trial]
    children: list["Node"] = field(default_factory=list)
    runs: bool = True
    missing: tuple[Point, ...] = ()
    trained: int = 0  # of its steps, those that measurements or states say were trained before
    lost: str | None = None
    has_state: bool = False
    keep: bool = False
    wanted: bool = False

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def ends(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.steps == self.stop]


@dataclass(eq=False)
class Tree:
    """All stages of one root. `tops` start at step 0."""

    study: AnyStudy
    root: Any
    root_key: str
    trials: list[Trial]
    tops: list[Node]

    def nodes(self) -> Iterator[Node]:
        """Parents before children."""
        waiting = list(reversed(self.tops))
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))


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


@dataclass(frozen=True)
class Plan:
    trees: list[Tree]

    @cached_property
    def trials(self) -> int:
        return sum(len(tree.trials) for tree in self.trees)

    @cached_property
    def steps_alone(self) -> int:
        return sum(trial.steps for tree in self.trees for trial in tree.trials)

    @cached_property
    def steps_shared(self) -> int:
        return sum(node.steps for tree in self.trees for node in tree.nodes())

    @cached_property
    def steps_to_run(self) -> int:
        return sum(node.steps for tree in self.trees for node in tree.nodes() if node.runs)

    @cached_property
    def steps_retrained(self) -> int:
        """Steps to run that were trained before, but whose state was not kept and is needed again."""
        return sum(node.trained for tree in self.trees for node in tree.nodes() if node.runs)

    @cached_property
    def stages(self) -> int:
        return sum(1 for tree in self.trees for _ in tree.nodes())

    @property
    def saving(self) -> float:
        return self.steps_alone / max(self.steps_shared, 1)


def plan(
    trials: Iterable[Trial],
    known: Known | None = None,
    checkpoint_every: int | None = None,
    keep: frozenset[str] = frozenset(),
    wanted: frozenset[str] = frozenset(),
) -> Plan:
    """Merge trials into one tree per root and mark what has to run.

    Long stages are cut at multiples of `checkpoint_every`, where a kept state bounds what an interruption loses, and
    at measured states whose keys are in `keep`: these are kept when they are trained. Those in `wanted` are trained
    again when they were not kept.
    """
    known = known or NothingKnown()
    by_root: dict[str, dict[str, Trial]] = {}
    for trial in trials:
        by_root.setdefault(trial.root_key, {}).setdefault(trial.key, trial)
    trees = []
    for root_key, members in by_root.items():
        unique = list(members.values())
        cuts = set(known.kept(root_key).items())
        cuts |= {(point.key, point.step) for trial in unique for point in trial.points if point.key in keep | wanted}
        fused = isinstance(unique[0].study, FusedStudy)  # its one stage is never cut and leaves no state
        tops = _grow(unique, set() if fused else cuts, None if fused else checkpoint_every)
        tree = Tree(unique[0].study, unique[0].root, root_key, unique, tops)
        worth = keep | wanted
        for node in tree.nodes():
            node.keep, node.wanted = not fused and node.key in worth, not fused and node.key in wanted
        _mark(tree, known)
        trees.append(tree)
    return Plan(trees)


def common_steps(one: Trial, other: Trial) -> int:
    """Steps that two trials train alike before their timelines or roots part."""
    return common_steps_of(one.placed, other.placed) if one.root_key == other.root_key else 0


def marginal_steps(trials: Sequence[Trial]) -> list[int]:
    """What each trial adds, in this order, when every shared prefix is trained once."""
    return [
        trial.steps - max((common_steps(trial, earlier) for earlier in trials[:place]), default=0)
        for place, trial in enumerate(trials)
    ]


def _grouped(trials: list[Trial], step: int) -> list[list[Trial]]:
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        if trial.steps > step:
            groups.setdefault(signature(trial.placed, step), []).append(trial)
    return list(groups.values())


def _grow(trials: list[Trial], cuts: set[tuple[str, int]], every: int | None) -> list[Node]:
    """The forest of stages from step 0 on: extend each group until it splits, ends or is cut.

    `cuts` are (state key, step) of states that are there or are to be kept.
    """
    steps = sorted({step for _, step in cuts})
    tops: list[Node] = []
    waiting: list[tuple[int, list[Trial], list[Node]]] = [(0, group, tops) for group in _grouped(trials, 0)]
    while waiting:
        start, group, siblings = waiting.pop()
        stop = start
        while True:
            segment = segment_at(group[0].placed, stop).segment
            stop = min(segment_at(trial.placed, stop).stop for trial in group)
            cut = next((c for c in steps if start < c <= stop and (_key(group[0], c), c) in cuts), None)
            if every is not None:
                grid = (start // every + 1) * every
                cut = grid if grid < stop and (cut is None or grid < cut) else cut
            if cut is not None:
                stop = cut
                break
            if any(trial.steps == stop for trial in group) or len(_grouped(group, stop)) != 1:
                break
            if segment.constant and segment_at(group[0].placed, stop).segment.falling:
                break  # the end of a stable stretch: a larger budget goes on from here
        node = _node(start, stop, group)
        siblings.append(node)
        waiting.extend((stop, part, node.children) for part in _grouped(group, stop))
    return tops


def _key(trial: Trial, step: int) -> str:
    return state_key(trial.root_key, trial.placed, step)


def _node(start: int, stop: int, group: list[Trial]) -> Node:
    wanted: dict[int, Point] = {}
    for trial in group:
        for point in trial.points:
            if start < point.step <= stop and (point.step not in wanted or point.full):
                wanted[point.step] = point
    first = group[0]
    placed = tuple(part for part in first.placed if part.start < stop and part.stop > start)
    return Node(_key(first, stop), start, stop, placed, tuple(wanted[step] for step in sorted(wanted)), group)


def _mark(tree: Tree, known: Known) -> None:
    """Fill in what is lost, missing, kept and to be run."""
    kept = known.kept(tree.root_key)
    nodes = list(tree.nodes())
    for node in nodes:
        node.has_state = node.key in kept
        node.trained = node.steps if node.has_state else 0
        missing = []
        for point in node.points:
            full = known.measured(point.key)
            if full is not None and not known.finite(point.key):
                node.lost = "diverged"
                break
            reason = known.failure(point.key)
            if reason is not None:
                node.lost = reason
                break
            if full is not None:
                node.trained = max(node.trained, point.step - node.start)
            if full is None or (point.full and not full):
                missing.append(point)
        else:
            node.lost = node.lost or known.failure(node.key)
        node.missing = () if node.lost else tuple(missing)
    for node in nodes:  # parents first: what is lost loses all that follows
        for child in node.children:
            child.lost = child.lost or node.lost
            child.missing = () if child.lost else child.missing
    for node in reversed(nodes):
        if any(child.trained for child in node.children):
            node.trained = node.steps
        wanted = node.wanted or any(child.runs for child in node.children)
        node.runs = node.lost is None and (bool(node.missing) or (wanted and not node.has_state))


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
