"""What one command asks for, resolved: the sweep as data."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search_spaces import Space
from search_spaces.files import ResolvedSpace
from trainables.study import AnyStudy, Metric

FIRST_FRESH_SEED = 1000  # fresh seeds never meet tuning seeds, however many of either


@dataclass(frozen=True)
class Search:
    """How configs are found. `bracket` None trains every proposal at every budget; a number halves brackets of it.

    `objectives` are the metrics that the search follows where these are named; none: the study's select metric.
    """

    sampler: str = "grid"
    proposals: int | None = None
    bracket: int | None = None
    eta: int = 2
    seed: int = 0
    objectives: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Spec:
    """One sweep. `axes` are those of `space` as written, `resolved` says which config fields are set beside them.

    `compare` are axes whose every value is confirmed on fresh seeds.
    """

    name: str
    study: AnyStudy
    scale: str
    preset: str
    command: str
    axes: Mapping[str, Any]
    space: Space
    resolved: ResolvedSpace
    budgets: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]
    search: Search
    compare: tuple[str, ...]
    results: Path

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """What the search follows; of several, it looks for the front that none beats in all of them."""
        return self.search.objectives or (self.study.select,)

    @cached_property
    def sweep(self) -> str:
        """The sweep's id and folder name: stable under more proposals, budgets and seeds."""
        return f"{self.name}-{self.preset}-{self.scale}-{self.meaning[:6]}"

    @property
    def folder(self) -> Path:
        return self.results / "sweeps" / self.sweep

    @cached_property
    def meaning(self) -> str:
        """sha256 hex of what gives a trial of this sweep its meaning, beside budgets, seeds and proposals."""
        identity = self.space.identity()
        identity["enumerated"].pop(self.study.budget, None)
        identity["pinned"].pop(self.study.budget, None)
        content = [
            self.study.name,
            self.study.version,
            identity,
            [self.search.sampler, self.search.bracket, self.search.eta, *self.search.objectives],
            self.resolved.study,
            self.resolved.within,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()


def seeds(tuning: int, fresh: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tuning seeds from 0, fresh seeds from FIRST_FRESH_SEED.

    >>> seeds(2, 1)
    ((0, 1), (1000,))
    """
    return tuple(range(tuning)), tuple(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + fresh))


def named_objectives(study: AnyStudy, written: str | Sequence[str] | None) -> tuple[Metric, ...]:
    """The objectives of `objective=...`, each NAME:min, NAME:max or the name of the study's select metric alone.

    Empty where that is the study's select metric, which is the objective of every search that names none. Raises
    ValueError for report data, a missing or wrong goal, or a name twice.
    """
    found: dict[str, Metric] = {}
    for text in [written] if isinstance(written, str) else written or ():
        name, _, goal = str(text).partition(":")
        select = study.select
        if name.startswith("report/"):
            raise ValueError(
                f"objective={text} is measured on report data, which must not guide a search; "
                f"the objective of {study.name} is {select.name}"
            )
        if name == select.name and goal not in ("", select.goal):
            raise ValueError(f"objective={text} turns the goal of {study.name} around; say {name}:{select.goal}")
        if name != select.name and goal not in ("min", "max"):
            raise ValueError(
                f"objective={text} does not say whether less or more is better; say {name}:min or {name}:max "
                f"(the objective of {study.name} is {select.name})"
            )
        if name in found:
            raise ValueError(f"objective={name} is named twice; a search follows each metric once")
        found[name] = select if name == select.name else Metric(name, "min" if goal == "min" else "max")
    objectives = tuple(found.values())
    return () if objectives == (study.select,) else objectives
