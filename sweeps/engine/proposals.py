"""The proposals of one tuning cell, and their journal.

A proposal is one Optuna trial: values for the searched axes. Proposal i is drawn from hash(seed, i) and the outcomes of
proposals 0 .. i - lag - 1, whatever else has finished meanwhile, so a rerun proposes the same. Every proposal and every
outcome is one appended line of the journal before anybody acts on it; killed at any time, it opens again and hands out
first what was interrupted. With several objectives an outcome has a number for each.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces import Space
from sweeps.engine.journal import damage_told, drop_torn_line, new_study, open_study, outcome_of
from sweeps.engine.samplers import (
    ADAPTIVE,
    STATES,
    Learner,
    Outcome,
    complete,
    failed,
    finished_trial,
    pruned,
    qmc_values,
    random_values,
    refuse_unfit,
)

__all__ = ["Outcome", "Proposal", "Proposals", "complete", "failed", "pruned"]

Goal = Literal["min", "max"]


@dataclass(frozen=True)
class Proposal:
    """Values for the searched axes, and which proposal of its cell this is."""

    index: int
    values: Mapping[str, Any]
    attempt: int = 0  # how often these values have failed before


@dataclass
class _Entry:
    """A proposal as the journal has it, over all its attempts."""

    values: dict[str, Any]
    lag: int
    number: int  # of the last attempt in Optuna's journal
    attempt: int = 0
    outcome: Outcome | None = None


class Proposals:
    """The proposals of one cell: `ask` for the next one, `tell` its outcome. Open it with `Proposals.open`."""

    def __init__(
        self,
        path: Path | None,
        space: Space,
        sampler: str,
        seed: int,
        count: int | None,
        lag: int,
        attempts: int,
        goals: Sequence[str],
    ) -> None:
        self.path, self.sampler, self.seed, self.lag = path, sampler, seed, lag
        self.adaptive = sampler in ADAPTIVE
        self._attempts = attempts
        self._goals = tuple(goals)
        self._distributions = space.distributions()
        self._grid = space.grid() if sampler == "grid" else []
        self.count = _count(sampler, count, space, len(self._grid))
        self._priors: list[tuple[dict[str, Any], Outcome]] = []
        self._entries: list[_Entry] = []
        self._known = 0  # the outcomes of proposals 0 .. _known - 1 are known
        self._again: deque[int] = deque()  # interrupted or failed before, handed out first
        self._learner: Learner | None = None
        self._journal: optuna.Study | None = None
        self._journalled = 0  # trials in the journal
        self._unsynced = False
        self._lock: FileLock | None = None

    @classmethod
    def open(
        cls,
        folder: Path | str | None,
        *,
        cell: str,
        space: Space,
        sampler: str = "grid",
        seed: int = 0,
        count: int | None = None,
        lag: int = 1,
        objective: str | Sequence[str] = "objective",
        goal: Goal | Sequence[Goal] = "min",
        context: Mapping[str, Any] | None = None,
        attempts: int = 3,
        record: bool = True,
    ) -> Proposals:
        """Open the journal of a cell, or begin it.

        Its file is named by a hash of all that gives a proposal and its objective their meaning: the space without its
        cell axes, the objective, the sampler and seed, the cell, and `context` (anything for JSON: study, version,
        fixed fields, tuning seeds). A change of these opens a new journal, which `fill` may start from records.
        Several objectives are lists of names and of goals.

        `count` None means the whole grid; a larger one continues. `lag` is the number of slots. A proposal that failed
        is handed out again when the journal is next opened, `attempts` times in all. With `record=False` (a plan), or
        without a folder, nothing is locked or written.

        Raises ValueError for a sampler that fits neither space nor objectives or more proposals than the grid has,
        RuntimeError where another process has the journal open.
        """
        goals = [goal] if isinstance(goal, str) else list(goal)
        refuse_unfit(sampler, space.distributions(), len(goals))
        if lag < 0:
            raise ValueError(f"lag must be at least 0, got {lag}; it is the number of slots")
        header = {
            "space": space.identity(points=sampler == "grid"),
            "objective": objective if isinstance(objective, str) else list(objective),
            "goal": goal if isinstance(goal, str) else goals,
            "sampler": sampler,
            "seed": None if sampler == "grid" else seed,
            "cell": cell,
            "context": dict(context or {}),
        }
        path = None if folder is None else Path(folder) / f"{_hash(header)}.log"
        self = cls(path, space, sampler, seed, count, lag, attempts, goals)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if path is not None and record:
            self._open_to_write(path, header)
        elif path is not None and path.exists():
            with damage_told(path):
                self._read(open_study(path))
        return self

    def ask(self) -> Proposal | None:
        """The next proposal: one that was interrupted, else a new one. None: wait for a `tell`, or all are handed out
        (`unasked` is 0 then)."""
        if self._again:
            return self._hand_out_again(self._again.popleft())
        index = len(self._entries)
        if index >= self.count:
            return None
        if self.adaptive:
            # Drawing this one replays the earlier ones, which with a smaller lag knew more than this one has to.
            replayed = max((place - entry.lag for place, entry in enumerate(self._entries)), default=0)
            if self._known < max(index - self.lag, replayed):
                return None
        values = self._draw(index)
        number = self._record_start(index, values, self.lag, attempt=0)
        self._entries.append(_Entry(values, self.lag, number))
        return Proposal(index, values)

    def tell(self, index: int, outcome: Outcome) -> None:
        """What became of a proposal. Told at once, in any order; told the same twice, the second is ignored."""
        if not 0 <= index < len(self._entries):
            raise ValueError(
                f"proposal {index} was never handed out; there are {len(self._entries)}, counted from 0: ask first"
            )
        entry = self._entries[index]
        before = entry.outcome
        if before is not None and before != outcome:
            raise ValueError(f"proposal {index} is already {before.words()}, so it cannot be {outcome.words()}")
        if outcome.values and len(outcome.values) != len(self._goals):
            raise ValueError(f"proposal {index} has {len(self._goals)} objectives, so it cannot be {outcome.words()}")
        if before is None:
            if self._journal is not None:
                self._journal.tell(entry.number, list(outcome.values) or None, STATES[outcome.state])
                self._unsynced = True
            entry.outcome = outcome
            self._count_known()

    def fill(self, records: Iterable[tuple[Mapping[str, Any], Outcome]]) -> int:
        """Start a new journal from finished records; returns how many it knows.

        Records outside this space are left out. A journal that has proposals of its own stays as it is: what was drawn
        would not have been drawn so.
        """
        if not self._entries:
            there = {_same(values, outcome) for values, outcome in self._priors}
            for values, outcome in records:
                prior, same = dict(values), _same(values, outcome)
                if outcome.state == "failed" or same in there or not self._contains(prior):
                    continue
                there.add(same)
                self._enter(finished_trial(prior, self._distributions, outcome, {"filled": True}))
                self._priors.append((prior, outcome))
        return len(self._priors)

    def outcomes(self) -> Iterator[tuple[Proposal, Outcome | None]]:
        """All proposals so far with what became of them, None while open."""
        for index, entry in enumerate(self._entries):
            yield Proposal(index, entry.values, entry.attempt), entry.outcome

    @property
    def begun(self) -> bool:
        """Has a proposal been handed out?"""
        return bool(self._entries)

    @property
    def unasked(self) -> int:
        """How many proposals are still to be handed out, those that come again among them."""
        return max(0, self.count - len(self._entries)) + len(self._again)

    @property
    def finished(self) -> bool:
        """Has every proposal been handed out and told?"""
        return self.unasked == 0 and self._known >= self.count

    def sync(self) -> None:
        """Bring the journal to the disk, after what is asked or told together: then a lost machine loses none of it."""
        if self._unsynced and self.path is not None:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
            self._unsynced = False

    def close(self) -> None:
        """Let another process open the journal."""
        self.sync()
        self._journal = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Proposals:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Drawing

    def _draw(self, index: int) -> dict[str, Any]:
        if self.sampler == "grid":
            return dict(self._grid[index])
        if self.sampler == "random":
            return random_values(self._distributions, self.seed, index)
        if self.sampler == "qmc":
            return qmc_values(self._distributions, self.seed, index)
        if self._learner is None:
            self._learner = Learner(self.sampler, self._distributions, self.seed, self._goals, self.count, self._priors)
        learner = self._learner
        # The same sequence whether the proposals before this one were drawn now or are in the journal.
        for place in range(len(learner.numbers), index + 1):
            lag = self._entries[place].lag if place < index else self.lag
            for known in range(learner.learned, place - lag):
                outcome = self._entries[known].outcome
                assert outcome is not None, "ask() waits for it"
                learner.learn(outcome)
            if place < index:
                learner.adopt(self._entries[place].values)
        return learner.draw()

    def _hand_out_again(self, index: int) -> Proposal:
        entry = self._entries[index]
        if entry.outcome is not None:  # it failed
            entry.attempt += 1
            entry.number = self._record_start(index, entry.values, entry.lag, entry.attempt)
            entry.outcome = None
            self._known = min(self._known, index)
        return Proposal(index, entry.values, entry.attempt)

    def _count_known(self) -> None:
        while self._known < len(self._entries) and self._entries[self._known].outcome is not None:
            self._known += 1

    def _contains(self, values: Mapping[str, Any]) -> bool:
        try:
            finished_trial(values, self._distributions, pruned())
        except (ValueError, TypeError):
            return False
        return True

    # The journal

    def _open_to_write(self, path: Path, header: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise RuntimeError(
                f"another process has the journal {path} open; "
                "wait for that sweep to end, or take another results folder"
            ) from None
        try:
            drop_torn_line(path)
            journal = open_study(path) or new_study(path, self._goals)
            with damage_told(path):
                if "header" not in journal.user_attrs:
                    journal.set_user_attr("header", header)
                self._read(journal)
            self._journal = journal
        except BaseException:
            self.close()
            raise

    def _read(self, study: optuna.Study | None) -> None:
        for trial in study.get_trials(deepcopy=False) if study else ():
            self._journalled += 1
            if trial.user_attrs.get("filled"):
                outcome = outcome_of(trial)
                assert outcome is not None
                self._priors.append((dict(trial.params), outcome))
                continue
            index, attempt, lag = (trial.user_attrs[key] for key in ("index", "attempt", "lag"))
            entry = _Entry(dict(trial.params), lag, trial.number, attempt, outcome_of(trial))
            if index == len(self._entries):
                self._entries.append(entry)
            else:
                self._entries[index] = entry
        self._count_known()
        for index, entry in enumerate(self._entries[: self.count]):
            retry = entry.outcome is not None and entry.outcome.state == "failed"
            if entry.outcome is None or (retry and entry.attempt + 1 < self._attempts):
                self._again.append(index)

    def _record_start(self, index: int, values: Mapping[str, Any], lag: int, attempt: int) -> int:
        if self._journal is None:
            return -1
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions=self._distributions,
            user_attrs={"index": index, "attempt": attempt, "lag": lag},
        )
        self._enter(trial)
        return self._journalled - 1

    def _enter(self, trial: FrozenTrial) -> None:
        if self._journal is not None:
            self._journal.add_trial(trial)
            self._journalled += 1
            self._unsynced = True


def _same(values: Mapping[str, Any], outcome: Outcome) -> str:
    """Equal for equal records."""
    return repr((sorted(values.items()), outcome))


def _hash(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]


def _count(sampler: str, count: int | None, space: Space, size: int) -> int:
    """How many proposals there will be; `size` is that of the grid."""
    if count is not None and count < 1:
        raise ValueError(f"proposals must be at least 1, got {count}")
    if sampler != "grid":
        if count is None:
            raise ValueError(f"sampler={sampler} has no end of its own; say how many: proposals=12")
        return count
    if count is not None and count > size:
        axes = next(iter(space.searched), None)
        wider = f"raise space.{axes}.points, or " if axes else ""
        raise ValueError(f"the grid has {size} points, proposals={count} asks for more; {wider}take sampler=qmc or tpe")
    return size if count is None else count
