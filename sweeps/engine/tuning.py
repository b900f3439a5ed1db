"""Where a sweep's trials come from: proposals tuned within each cell, then the chosen configs on fresh seeds.

A proposal makes one trial per enumeration, tuning seed and budget. Its objective is the area under its select frontier
over log budget: at each budget the best of its enumerations. Chosen configs, one per cell, compared value and budget,
are the best on select data; on fresh seeds they are trained once more, and that is what frontiers and claims use.

With several objectives a proposal has an area for each, and those are chosen that none beats in all of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from analysis.pareto import non_dominated
from analysis.stats import frontier_area
from search_spaces import Space
from sweeps.engine import rungs
from sweeps.engine.driver import Entry, settle
from sweeps.engine.plan import Trial, make_trial
from sweeps.engine.proposals import Outcome, Proposal, Proposals, complete, failed, pruned
from sweeps.engine.spec import Spec
from sweeps.engine.store import Index
from sweeps.engine.words import Refused
from trainables.study import Row

KEPT_BYTES = 500_000_000  # states kept of the first tuning seed, for interpolation and export; none if they need more
CENTRES: Mapping[str, Callable[[Iterable[float]], float]] = {"mean": fmean, "median": median}
FRONT_CONFIRMED = 8  # of a front with more, so many are trained on fresh seeds: its ends, and evenly by rank between


@dataclass
class Asked:
    """A proposal with the entries that it has made so far, by budget and state key."""

    proposal: Proposal
    by_budget: dict[int, dict[str, Entry]] = field(default_factory=dict)
    journalled: Outcome | None = None  # what an earlier session told
    entries: list[Entry] = field(default_factory=list)
    seen: int = 0  # entries 0 .. seen - 1 are settled, and stay so

    def add(self, budget: int, entry: Entry) -> bool:
        """Take in an entry; False where its trial is there already."""
        there = self.by_budget.setdefault(budget, {})
        if entry.trial.key in there:
            return False
        there[entry.trial.key] = entry
        self.entries.append(entry)
        return True

    @property
    def settled(self) -> bool:
        while self.seen < len(self.entries) and self.entries[self.seen].status != "pending":
            self.seen += 1
        return self.seen == len(self.entries)

    def settled_at(self, budget: int) -> bool:
        return self.settled or all(entry.status != "pending" for entry in self.by_budget[budget].values())


@dataclass
class Cell:
    """One value of the cell axes, such as method=wsd, with its own journal."""

    name: str
    values: Mapping[str, Any]
    spec: Spec
    proposals: Proposals
    asked: dict[int, Asked] = field(default_factory=dict)
    untold: dict[int, Asked] = field(default_factory=dict)  # those whose outcome the journal does not know
    confirmed: bool = False
    dropped: set[int] = field(default_factory=set)
    standing: dict[int, tuple[int, list[int]]] = field(default_factory=dict)  # bracket -> its rung, who is on it

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
        for asked in list(self.untold.values()):
            self._tell(asked)
        while (proposal := self.proposals.ask()) is not None:
            new += self._adopt(proposal)
            self._tell(self.asked[proposal.index])  # one that is answered already may be what the next one waits for
        if self.tuned and not self.confirmed and not new:
            self.confirmed = True
            new += list(self._confirm())
        self.proposals.sync()
        return new

    def _tell(self, asked: Asked) -> None:
        """Tell the journal of a proposal that is at its end.

        What the journal says already stays, since later proposals were drawn from it. The store may say otherwise where
        a failure was mended meanwhile, or where a GPU trained damaged rows again.
        """
        if asked.settled and self._at_end(asked):
            self.proposals.tell(asked.proposal.index, asked.journalled or self._outcome(asked))
            del self.untold[asked.proposal.index]

    @property
    def tuned(self) -> bool:
        return self.proposals.unasked == 0 and not self.untold

    @cached_property
    def _enumerations(self) -> list[dict[str, Any]]:
        return enumerations(self.spec)

    @property
    def _first_budgets(self) -> tuple[int, ...]:
        return self.spec.budgets[:1] if self.spec.search.bracket else self.spec.budgets

    def _adopt(self, proposal: Proposal, journalled: Outcome | None = None) -> list[Entry]:
        asked = self.asked.setdefault(proposal.index, Asked(proposal))
        asked.journalled = journalled
        self.untold[proposal.index] = asked
        return self._train(asked, self._first_budgets)

    def _train(self, asked: Asked, budgets: Iterable[int]) -> list[Entry]:
        new: list[Entry] = []
        wanted = [budget for budget in budgets if budget not in asked.by_budget]
        for enumerated in self._enumerations:
            values = {**self.values, **asked.proposal.values, **enumerated}
            for seed in self.spec.tuning_seeds:
                for budget, trial in self._trials(values, seed, wanted):
                    entry = Entry(trial, "tune", self.name, asked.proposal.index, values, keep=self._keeps(trial, seed))
                    if asked.add(budget, entry):  # else an axis that this method does not read
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
            place, alive = self.standing.get(bracket.start, (0, list(bracket)))
            while place < len(stops) - 1 and self._whole(alive, stops[place].budget):
                scores = {index: self._height(self.asked[index], stops[place].budget) for index in alive}
                alive = rungs.survivors(scores, stops[place].keep, self.spec.objectives[0].goal)
                self.dropped |= set(scores) - set(alive)
                place += 1
                for index in alive:
                    new += self._train(self.asked[index], [stops[place].budget])
            self.standing[bracket.start] = place, alive
        return new

    def _whole(self, alive: Iterable[int], budget: int) -> bool:
        return all(index in self.asked and self.asked[index].settled_at(budget) for index in alive)

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

    def _score(self, asked: Asked, budget: int) -> tuple[float, ...] | None:
        """Centre of each objective over tuning seeds, of the best enumeration; None when none is complete."""
        return next((score for score, _ in chosen(self.spec, asked.by_budget.get(budget, {}).values())), None)

    def _height(self, asked: Asked, budget: int) -> float | None:
        """The same for the one objective that rungs are judged by."""
        score = self._score(asked, budget)
        return None if score is None else score[0]

    def _outcome(self, asked: Asked) -> Outcome:
        if any(entry.status == "failed" for entry in asked.entries):
            return failed()
        scores = [self._score(asked, budget) for budget in self.spec.budgets]
        known = [score for score in scores if score is not None]
        if len(known) < len(self.spec.budgets):
            return pruned()  # diverged, or lost on a rung
        return complete(*(frontier_area(self.spec.budgets, heights) for heights in zip(*known, strict=True)))

    def _confirm(self) -> Iterable[Entry]:
        """The chosen configs of each compared value and budget, on fresh seeds."""
        groups: dict[str, list[Entry]] = {}
        for asked in self.asked.values():
            for budget, entries in asked.by_budget.items():
                for entry in entries.values():
                    compared = [entry.values.get(axis) for axis in self.spec.compare]
                    groups.setdefault(repr((budget, compared)), []).append(entry)
        for members in groups.values():
            for _, best in chosen(self.spec, members):
                budget = getattr(best.trial.config, self.spec.study.budget)
                for seed in self.spec.fresh_seeds:
                    for _, trial in self._trials(best.values, seed, [budget]):
                        yield Entry(trial, "confirm", self.name, best.proposal, best.values)


def candidates(spec: Spec, entries: Iterable[Entry]) -> list[tuple[tuple[float, ...], Entry]]:
    """(centre of each objective over the tuning seeds, first entry) of each set of values complete on all of them."""
    centre = CENTRES[spec.study.centre]
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(repr((entry.proposal, *entry.values.values())), []).append(entry)
    ranked = []
    for members in groups.values():
        rows = [entry.result for entry in members]
        found = [[measured(row, objective.name, spec) for objective in spec.objectives] for row in rows if row]
        if len(found) == len(spec.tuning_seeds):
            ranked.append((tuple(map(centre, zip(*found, strict=True))), members[0]))
    return ranked


def chosen(spec: Spec, entries: Iterable[Entry]) -> list[tuple[tuple[float, ...], Entry]]:
    """The best of the candidates; with several objectives those on the front, FRONT_CONFIRMED of them at most.

    A longer front is walked along its first objective: its two ends are taken, and evenly by rank between them.
    """
    ranked = candidates(spec, entries)
    signs = [1 if objective.goal == "min" else -1 for objective in spec.objectives]
    if not ranked:
        return []
    if len(signs) == 1:
        return [min(ranked, key=lambda pair: signs[0] * pair[0][0])]
    distinct = list({entry.trial.key: (score, entry) for score, entry in reversed(ranked)}.values())
    points = np.array([score for score, _ in distinct]) * signs
    front = [distinct[place] for place in np.flatnonzero(non_dominated(points))]
    front.sort(key=lambda pair: [sign * value for sign, value in zip(signs, pair[0], strict=True)])
    places = np.linspace(0, len(front) - 1, min(FRONT_CONFIRMED, len(front))).round().astype(int)
    return [front[place] for place in places]


def measured(row: Row, name: str, spec: Spec) -> float:
    """A metric of a trial's last row. Raises Refused, with those there are, where it has none of that name."""
    if name not in row.metrics:
        there = ", ".join(sorted(metric for metric in row.metrics if not metric.startswith("report/")))
        raise Refused(f"objective={name} is no metric of the trials of {spec.study.name}; they have {there}")
    return row.metrics[name]


def enumerations(spec: Spec) -> list[dict[str, Any]]:
    """What each proposal is trained with: every combination of the enumerated axes beside cells and budget."""
    return spec.space.enumerations((*spec.space.cell_axes, spec.study.budget))


def refuse_several_objectives(spec: Spec) -> None:
    """Raises ValueError for what asks for one number per proposal, where several objectives give it as many."""
    names = ", ".join(objective.name for objective in spec.objectives)
    apart = (*spec.space.cell_axes, spec.study.budget)
    axis = next((name for name, values in spec.space.enumerated.items() if name not in apart and len(values) > 1), None)
    if axis is not None:
        raise ValueError(
            f"a search with several objectives ({names}) compares proposals trained in one way, but {axis} is "
            f"enumerated; pin it with space.{axis}=VALUE, or name it among the cells of the space file, which are "
            "searched apart"
        )
    if spec.search.bracket:
        raise ValueError(
            f"a bracket is halved by one objective, got {names}; drop bracket={spec.search.bracket}, or name one"
        )


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
        if len(spec.objectives) > 1:
            refuse_several_objectives(spec)
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
        starting = [cell for cell in self.cells if cell.proposals.adaptive and not cell.proposals.begun]
        values = earlier_values(self.cells[0].spec) if starting else []
        for cell in starting:
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
