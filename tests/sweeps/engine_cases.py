"""What several engine tests share: a study without training for the planner, and small sweeps over the toy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.engine.plan import Plan, Tree
from trainables.study import Metric, StagedStudy


@dataclass(frozen=True)
class Free:
    """A config that is its own timeline."""

    timeline: tuple
    seed: int = 0
    measure_every: int = 1_000
    budget_steps: int = 0


@dataclass(frozen=True)
class FreeRoot:
    seed: int
    measure_every: int


def _never(*arguments):
    raise AssertionError("the planner trains nothing")


FREE: StagedStudy = StagedStudy(
    "free",
    paper="none",
    version=1,
    config=Free,
    root=lambda config: FreeRoot(config.seed, config.measure_every),
    timeline=lambda config: config.timeline,
    start=_never,
    advance=_never,
    measure=_never,
    tiny=Free(()),
    select=Metric("select/loss", "min"),
    module=__name__,
)


@dataclass
class Memory:
    """A Known held in dictionaries."""

    points: dict[str, bool]
    states: dict[str, dict[str, int]]
    bad: frozenset[str] = frozenset()
    failed: dict[str, str] | None = None

    def measured(self, key):
        return self.points.get(key)

    def finite(self, key):
        return key not in self.bad

    def kept(self, root_key):
        return self.states.get(root_key, {})

    def failure(self, key):
        return (self.failed or {}).get(key)


def nodes(plan: Plan) -> list:
    return [node for tree in plan.trees for node in tree.nodes()]


def running(tree: Tree) -> dict[str, int]:
    """Key -> steps of the stages that are to run."""
    return {node.key: node.steps for node in tree.nodes() if node.runs}


def stages_of(items: Iterable) -> list:
    return [branch for item in items for branch in item.branch.stages()]
