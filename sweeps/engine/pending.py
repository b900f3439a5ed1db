"""What a driver keeps of its trials and forks, so that a word from a job costs what it tells, not what the sweep is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from sweeps.engine.items import worth_keeping
from sweeps.engine.plan import Plan

if TYPE_CHECKING:
    from sweeps.engine.driver import Entry


class Pending:
    """The trials without a result, in their order, and those among them whose end is measured."""

    def __init__(self) -> None:
        self._places: dict[Entry, int] = {}
        self._ending: dict[str, set[Entry]] = {}  # state key -> the trials that end there
        self._measured: set[Entry] = set()
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, new: Iterable[Entry]) -> None:
        for entry in new:
            self._places[entry] = self._count
            self._ending.setdefault(entry.trial.key, set()).add(entry)
            self._count += 1

    def drop(self, entry: Entry) -> None:
        """It has its result."""
        del self._places[entry]
        self._ending[entry.trial.key].discard(entry)
        self._measured.discard(entry)

    def rows_at(self, keys: Iterable[str]) -> None:
        """These states were measured."""
        for key in keys:
            self._measured |= self._ending.get(key, set())

    def all(self) -> list[Entry]:
        return list(self._places)

    def touched(self, lossy: Collection[str]) -> list[Entry]:
        """Trials that may be settled: what they lack beside the measurement at their end may come with any row.

        With them all on the roots where something was lost.
        """
        found = set(self._measured)
        if lossy:
            found |= {entry for entry in self._places if entry.trial.root_key in lossy}
        return sorted(found, key=self._places.__getitem__)


class Forks:
    """Which kept states are forks, by root, that may go when their last branch is in.

    The tree of a root is looked at again only when it has grown, or when a state is kept that was not on it.
    """

    def __init__(self) -> None:
        self._forks: dict[str, dict[str, bool]] = {}
        self._grown: dict[str, bool] = {}

    @property
    def roots(self) -> Iterable[str]:
        return self._grown

    def grow(self, root_keys: Iterable[str]) -> None:
        """Trials were added to the trees of these roots."""
        self._grown.update(dict.fromkeys(root_keys, True))

    def unknown(self, root_key: str, states: Iterable[str]) -> bool:
        known = self._forks.get(root_key, {})
        return any(self._grown[root_key] or key not in known for key in states)

    def learn(self, root_key: str, plan: Plan, states: Mapping[str, object]) -> None:
        """Take in the whole tree of a root. A state that is on no trial's way is none of ours and stays."""
        on_tree = {node.key: not worth_keeping(node) for tree in plan.trees for node in tree.nodes()}
        self._forks[root_key] = {**dict.fromkeys(states, False), **on_tree}
        self._grown[root_key] = False

    def may_go(self, root_key: str, key: str) -> bool:
        return self._forks[root_key][key]
