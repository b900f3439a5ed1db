"""From trials to a stage tree: what has to be trained, once. Pure: nothing here touches a disk or a device.

Trials with equal roots hang on one tree; where their canonical timelines agree they share stages. Stages whose
measurements are known do not run; a stage runs again only when a missing descendant needs its state and the state was
not kept.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

from trainables.common.timeline import Placed, place, segment_at, signature, total_steps
from trainables.common.timeline import common_steps as common_steps_of
from trainables.study import AnyStudy, FusedStudy, Point, state_key


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

    @cached_property
    def point_steps(self) -> list[int]:
        return [point.step for point in self.points]

    @cached_property
    def _keys(self) -> dict[int, str]:
        return {point.step: point.key for point in self.points}

    def key_at(self, step: int) -> str:
        """The state key on its way at an absolute step, worked out once."""
        if step not in self._keys:
            self._keys[step] = state_key(self.root_key, self.placed, step)
        return self._keys[step]


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
    def way(self) -> tuple[Placed, ...]:
        """All segments from step 0 to its end."""
        return tuple(part for part in self.trials[0].placed if part.start < self.stop)

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
            near = steps[bisect_right(steps, start) : bisect_right(steps, stop)]
            cut = next((c for c in near if (group[0].key_at(c), c) in cuts), None)
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


def _node(start: int, stop: int, group: list[Trial]) -> Node:
    wanted: dict[int, Point] = {}
    for trial in group:
        first, last = bisect_right(trial.point_steps, start), bisect_right(trial.point_steps, stop)
        for point in trial.points[first:last]:
            if point.step not in wanted or point.full:
                wanted[point.step] = point
    way = group[0]
    placed = tuple(part for part in way.placed if part.start < stop and part.stop > start)
    return Node(way.key_at(stop), start, stop, placed, tuple(wanted[step] for step in sorted(wanted)), group)


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
