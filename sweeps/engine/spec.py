"""What one command asks for, resolved: the sweep as data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import Space
from search_spaces.files import ResolvedSpace
from trainables.study import AnyStudy

FIRST_FRESH_SEED = 1000  # fresh seeds never meet tuning seeds, however many of either


@dataclass(frozen=True)
class Search:
    """How configs are found. `bracket` None trains every proposal at every budget; a number halves brackets of it."""

    sampler: str = "grid"
    proposals: int | None = None
    bracket: int | None = None
    eta: int = 2
    seed: int = 0


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
    def sweep(self) -> str:
        """The sweep's id and folder name: stable under more proposals, budgets and seeds."""
        return f"{self.name}-{self.preset}-{self.scale}-{self.meaning[:6]}"

    @property
    def folder(self) -> Path:
        return self.results / "sweeps" / self.sweep

    @property
    def meaning(self) -> str:
        """sha256 hex of what gives a trial of this sweep its meaning, beside budgets, seeds and proposals."""
        identity = self.space.identity()
        identity["enumerated"].pop(self.study.budget, None)
        identity["pinned"].pop(self.study.budget, None)
        content = [
            self.study.name,
            self.study.version,
            identity,
            [self.search.sampler, self.search.bracket, self.search.eta],
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
