"""Where a sweep's trials come from: proposals tuned within each cell, then the chosen configs on fresh seeds.

A proposal makes one trial per enumeration, tuning seed and budget. Its objective is the area under its select frontier
over log budget: at each budget the best of its enumerations. Chosen configs, one per cell, compared value and budget,
are the best on select data; on fresh seeds they are trained once more, and that is what frontiers and claims use.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from analysis.stats import frontier_area
from search_spaces import Space
from sweeps.engine import rungs
from sweeps.engine.driver import Entry, settle
from sweeps.engine.plan import Trial, make_trial
from sweeps.engine.proposals import Outcome, Proposal, Proposals, complete, failed, pruned
from sweeps.engine.spec import Spec
from sweeps.engine.store import Index

KEPT_BYTES = 500_000_000  # states kept of the first tuning seed, for interpolation and export; none if they need more


@dataclass
class Asked:
    """A proposal with the entries that it has made so far, by budget."""

    proposal: Proposal
    by_budget: dict[int, list[Entry]] = field(default_factory=dict)
    journalled: Outcome | None = None  # what an earlier session told
    told: bool = False

    @property
    def entries(self) -> list[Entry]:
        return [entry for entries in self.by_budget.values() for entry in entries]

    @property
    def settled(self) -> bool:
        return all(entry.status != "pending" for entry in self.entries)


@dataclass
class Cell:
    """One value of the cell axes, such as method=wsd, with its own journal."""

    name: str
    values: Mapping[str, Any]
    spec: Spec
    proposals: Proposals
    asked: dict[int, Asked] = field(default_factory=dict)
    confirmed: bool = False
    dropped: set[int] = field(default_factory=set)

    def resume(self) -> list[Entry]:
        """Entries of the proposals that the journal already has. Closed ones are answered from the store."""
        new: list[Entry] = []
        for proposal, outcome in self.proposals.outcomes():
            if outcome is not None and proposal.index < self.proposals.count:
                new += self._adopt(proposal, outcome)
        return new

    def advance(self) -> list[Entry]:
        """New entries, given how all earlier ones stand."""
        new = self._promote() if self.spec.search.bracket else []
        self._tell()
        while (proposal := self.proposals.ask()) is not None:
            new += self._adopt(proposal)
            self._tell()  # a proposal that is answered already may be what the next one waits for
        if self.tuned and not self.confirmed and not new:
            self.confirmed = True
            new += list(self._confirm())
        return new

    def _tell(self) -> None:
        """Tell the journal of every proposal that is at its end.

        What the journal says already stays, since later proposals were drawn from it. The store may say otherwise where
        a failure was mended meanwhile, or where a GPU trained damaged rows again.
        """
        for asked in self.asked.values():
            if not asked.told and asked.settled and self._at_end(asked):
                self.proposals.tell(asked.proposal.index, asked.journalled or self._outcome(asked))
                asked.told = True

    @property
    def tuned(self) -> bool:
        return self.proposals.unasked == 0 and all(asked.told for asked in self.asked.values())

    @property
    def _first_budgets(self) -> tuple[int, ...]:
        return self.spec.budgets[:1] if self.spec.search.bracket else self.spec.budgets

    def _adopt(self, proposal: Proposal, journalled: Outcome | None = None) -> list[Entry]:
        asked = self.asked.setdefault(proposal.index, Asked(proposal))
        asked.told, asked.journalled = False, journalled
        return self._train(asked, self._first_budgets)

    def _train(self, asked: Asked, budgets: Iterable[int]) -> list[Entry]:
        new: list[Entry] = []
        wanted = [budget for budget in budgets if budget not in asked.by_budget]
        for values in self.spec.space.enumerations((*self.spec.space.cell_axes, self.spec.study.budget)):
            values = {**self.values, **asked.proposal.values, **values}
            for seed in self.spec.tuning_seeds:
                for budget, trial in self._trials(values, seed, wanted):
                    if any(entry.trial.key == trial.key for entry in asked.by_budget.get(budget, [])):
                        continue  # an axis that this method does not read
                    entry = Entry(trial, "tune", self.name, asked.proposal.index, values, keep=self._keeps(trial, seed))
                    asked.by_budget.setdefault(budget, []).append(entry)
                    new.append(entry)
        return new

    def _trials(self, values: Mapping[str, Any], seed: int, wanted: Iterable[int]) -> list[tuple[int, Trial]]:
        study = self.spec.study
        configs = configs_of(self.spec, values, seed)
        return [
            (budget, make_trial(study, config))
            for budget, config in zip(self.spec.budgets, configs, strict=True)
            if budget in wanted
        ]

    def _keeps(self, trial: Trial, seed: int) -> bool:
        if seed != self.spec.tuning_seeds[0]:
            return False
        state_bytes = 12 * trial.study.units(trial.root).get("parameters", 0)
        return 2 * state_bytes * len(self.spec.budgets) * self.proposals.count <= KEPT_BYTES

    def _at_end(self, asked: Asked) -> bool:
        """Has this proposal trained all that it will?"""
        if not self.spec.search.bracket:
            return True
        return len(asked.by_budget) == len(self.spec.budgets) or asked.proposal.index in self.dropped

    def _promote(self) -> list[Entry]:
        """Close each rung that is whole: its best go on to the next budget."""
        size, eta = self.spec.search.bracket or 0, self.spec.search.eta
        stops = rungs.rungs(size, self.spec.budgets, eta)
        new: list[Entry] = []
        for bracket in rungs.brackets(self.proposals.count, size):
            alive = [self.asked[index] for index in bracket if index in self.asked]
            if len(alive) < size:
                continue
            for place, rung in enumerate(stops[:-1]):
                if not all(entry.status != "pending" for asked in alive for entry in asked.by_budget[rung.budget]):
                    break
                scores = {asked.proposal.index: self._score(asked, rung.budget) for asked in alive}
                going = rungs.survivors(scores, rung.keep, self.spec.study.select.goal)
                self.dropped |= set(scores) - set(going)
                alive = [self.asked[index] for index in going]
                for asked in alive:
                    new += self._train(asked, [stops[place + 1].budget])
        return new

    def answered(self, values: Mapping[str, Any], index: Index) -> Outcome | None:
        """What a proposal with these values would be told from the store alone; None where that lacks a trial."""
        asked = Asked(Proposal(-1, values))
        try:
            entries = self._train(asked, self.spec.budgets)
        except ValueError:
            return None
        for entry in entries:
            settle(entry, index)
        return self._outcome(asked) if entries and asked.settled else None

    def _score(self, asked: Asked, budget: int) -> float | None:
        """Best over enumerations of the mean select metric over tuning seeds; None when no enumeration is complete."""
        scores = [score for score, _ in candidates(self.spec, asked.by_budget.get(budget, []))]
        return None if not scores else (min if self.spec.study.select.goal == "min" else max)(scores)

    def _outcome(self, asked: Asked) -> Outcome:
        if any(entry.status == "failed" for entry in asked.entries):
            return failed()
        scores = [self._score(asked, budget) for budget in self.spec.budgets]
        known = [score for score in scores if score is not None]
        if len(known) < len(self.spec.budgets):
            return pruned()  # diverged, or lost on a rung
        return complete(frontier_area(self.spec.budgets, known))

    def _confirm(self) -> Iterable[Entry]:
        """The chosen config of each compared value and budget, on fresh seeds."""
        groups: dict[str, list[Entry]] = {}
        for asked in self.asked.values():
            for budget, entries in asked.by_budget.items():
                for entry in entries:
                    compared = [entry.values.get(axis) for axis in self.spec.compare]
                    groups.setdefault(repr((budget, compared)), []).append(entry)
        sign = 1 if self.spec.study.select.goal == "min" else -1
        for entries in groups.values():
            ranked = candidates(self.spec, entries)
            if not ranked:
                continue
            _, chosen = min(ranked, key=lambda pair: sign * pair[0])
            budget = getattr(chosen.trial.config, self.spec.study.budget)
            for seed in self.spec.fresh_seeds:
                for _, trial in self._trials(chosen.values, seed, [budget]):
                    yield Entry(trial, "confirm", self.name, chosen.proposal, chosen.values)


def candidates(spec: Spec, entries: Iterable[Entry]) -> list[tuple[float, Entry]]:
    """(mean select metric over the tuning seeds, first entry) of each set of values that is complete on all of them."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(repr((entry.proposal, sorted(entry.values.items(), key=str))), []).append(entry)
    ranked = []
    for members in groups.values():
        results = [entry.result for entry in members]
        metrics = [row.metrics[spec.study.select.name] for row in results if row is not None]
        if len(metrics) == len(spec.tuning_seeds):
            ranked.append((fmean(metrics), members[0]))
    return ranked


def configs_of(spec: Spec, values: Mapping[str, Any], seed: int) -> list[Any]:
    """One config per budget of a point of the space. Raises ValueError for what no config can honour."""
    pinned = {name: value for name, value in spec.space.pinned.items() if name != spec.study.budget}
    fixed = spec.resolved.study_in({axis: values.get(axis, pinned.get(axis)) for axis in spec.space.cell_axes})
    return spec.study.configs({**fixed, **pinned, **values, "seed": seed}, spec.budgets)


def earlier_values(spec: Spec) -> list[dict[str, Any]]:
    """The searched values of all trials of this study in the results folder, in the order of their records."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((spec.results / "sweeps").glob("*/trials.parquet")):
        for row in pq.read_table(file, columns=["study", "config"]).to_pylist():
            if row["study"] == spec.study.name:
                config = json.loads(row["config"])
                values = {axis: config[axis] for axis in spec.space.searched if axis in config}
                found.setdefault(repr(sorted(values.items())), values)
    return list(found.values())


class CellTuning:
    """All cells of a sweep. Raises ValueError where a proposal makes a config that cannot be honoured."""

    def __init__(self, spec: Spec, open_proposals: Callable[[str, Space], Proposals]):
        self.cells = []
        for values in spec.space.cells():
            name = ",".join(f"{axis}={value}" for axis, value in values.items()) or "all"
            self.cells.append(Cell(name, values, spec, open_proposals(name, spec.space)))
        self._resumed = False

    def advance(self) -> list[Entry]:
        new: list[Entry] = []
        if not self._resumed:
            self._resumed = True
            new = [entry for cell in self.cells for entry in cell.resume()]
        return new or [entry for cell in self.cells for entry in cell.advance()]

    def fill(self, index: Index) -> None:
        """Start new journals of learning samplers from what the store answers: the space or the objective may have
        changed since it was trained. Journals that have proposals stay as they are."""
        values = earlier_values(self.cells[0].spec) if any(cell.proposals.adaptive for cell in self.cells) else []
        for cell in self.cells:
            if cell.proposals.adaptive:
                known = [(one, cell.answered(one, index)) for one in values]
                cell.proposals.fill([(one, outcome) for one, outcome in known if outcome is not None])

    @property
    def finished(self) -> bool:
        return self._resumed and all(cell.tuned and cell.confirmed for cell in self.cells)

    @property
    def proposals(self) -> int:
        return sum(cell.proposals.count for cell in self.cells)

    def close(self) -> None:
        for cell in self.cells:
            cell.proposals.close()
