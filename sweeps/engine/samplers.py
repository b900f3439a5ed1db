"""Where the next proposal lies: a pure function of the seed, the proposal's index and the outcomes known to it.

`grid`, `random` and `qmc` know nothing and are functions of the index alone. `tpe`, `gp`, `nsga2` and `cmaes` are
Optuna's; each draw has a sampler of its own, seeded by hash(seed, index), over a study in memory that is told outcomes
in order. With several objectives there is no best proposal but a front of those that none beats in all of them.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc

SAMPLERS: dict[str, str] = {
    "grid": "every combination of the axes' points, spread out from the middle",
    "random": "independent draws",
    "qmc": "a scrambled Sobol sequence: covers the space evenly",
    "tpe": "learns: a Parzen estimator of the good and the bad half, over all axes together",
    "gp": "learns: a Gaussian process; for few and costly proposals",
    "nsga2": "learns: generations of an eighth of the proposals, bred from the front; for two or more objectives",
    "cmaes": "learns: an evolving normal distribution; two or more numeric axes and many proposals",
}
ADAPTIVE = ("tpe", "gp", "nsga2", "cmaes")
ONE_OBJECTIVE = ("cmaes",)
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {"min": "minimize", "max": "maximize"}
SOBOL_BLOCK = 256
SMALLEST_POPULATION = 4  # of nsga2: fewer leave nothing to cross


@dataclass(frozen=True)
class Outcome:
    """What became of a proposal; made by `complete`, `pruned` and `failed`.

    complete: finished with all its budgets. pruned: diverged, or lost on a rung; samplers treat it as bad.
    failed: a crash, no memory, a lost node; says nothing about the values, which are proposed again.
    """

    state: Literal["complete", "pruned", "failed"]
    values: tuple[float, ...] = ()  # of a complete one: its objectives in order, always finite

    def __post_init__(self) -> None:
        if (self.state == "complete") != bool(self.values):
            raise ValueError(f"a complete proposal has objectives and no other has, got {self.state} {self.values}")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(
                f"a complete proposal has finite objectives, got {self.words()}; tell pruned() for one that diverged"
            )

    @property
    def value(self) -> float | None:
        """The objective, where there is one."""
        return self.values[0] if len(self.values) == 1 else None

    def words(self) -> str:
        return f"{self.state} with {', '.join(map(str, self.values))}" if self.values else self.state


def complete(*values: float) -> Outcome:
    """A proposal that finished, with its objectives. Raises ValueError unless they are finite."""
    return Outcome("complete", tuple(map(float, values)))


def pruned() -> Outcome:
    """A proposal that diverged or was lost on a rung."""
    return Outcome("pruned")


def failed() -> Outcome:
    """A proposal whose training crashed."""
    return Outcome("failed")


STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def draw_seed(seed: int, index: int) -> int:
    """hash(seed, index) in [0, 2**32): the seed of the draw of one proposal."""
    return int.from_bytes(hashlib.sha256(f"proposal {seed} {index}".encode()).digest()[:4], "big")


def random_values(distributions: Mapping[str, BaseDistribution], seed: int, index: int) -> dict[str, Any]:
    """The proposal of that index under `random`."""
    parts = np.random.default_rng(draw_seed(seed, index)).random(len(distributions))
    return _at(distributions, parts)


def qmc_values(distributions: Mapping[str, BaseDistribution], seed: int, index: int) -> dict[str, Any]:
    """The proposal of that index under `qmc`: a point of the one scrambled Sobol sequence of this seed."""
    block, place = divmod(index, SOBOL_BLOCK)
    return _at(distributions, _sobol(len(distributions), seed, block)[place])


@lru_cache(maxsize=8)
def _sobol(dimensions: int, seed: int, block: int) -> np.ndarray:
    """Points of the sequence from block * SOBOL_BLOCK, [SOBOL_BLOCK, dimensions]; scrambling costs more than these."""
    engine = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(draw_seed(seed, 0)))
    if block:
        engine.fast_forward(block * SOBOL_BLOCK)
    return engine.random(SOBOL_BLOCK)


def _at(distributions: Mapping[str, BaseDistribution], parts: np.ndarray) -> dict[str, Any]:
    pairs = zip(distributions.items(), parts, strict=True)
    return {name: at_quantile(distribution, float(part)) for (name, distribution), part in pairs}


def at_quantile(distribution: BaseDistribution, part: float) -> Any:
    """The value below which the share `part` in [0, 1) of a distribution lies.

    Every whole number, step and choice weighs the same; on a log axis, as much as its share of the logarithm.

    >>> at_quantile(FloatDistribution(1e-4, 1e-2, log=True), 0.5), at_quantile(IntDistribution(1, 3), 0.99)
    (0.001, 3)
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(part * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        margin = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        bottom, top = math.log(low - margin), math.log(high + margin)
        value: float = math.exp(bottom + (top - bottom) * part)
    elif step is not None:
        value = low + step * int(part * (round((high - low) / step) + 1))
    else:
        value = low + (high - low) * part
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), low), high)
    return min(max(float(f"{value:.15g}"), low), high)


class Learner:
    """An adaptive sampler and the outcomes it knows; proposals enter and outcomes are learned in order of their index.

    Proposals whose outcome is not yet known count as running, which keeps the next draw away from them. `count` is how
    many proposals there will be, `priors` are proposals of earlier searches with their outcomes.
    """

    def __init__(
        self,
        sampler: str,
        distributions: Mapping[str, BaseDistribution],
        seed: int,
        goals: Sequence[str],
        count: int,
        priors: Sequence[tuple[Mapping[str, Any], Outcome]] = (),
    ) -> None:
        self.sampler, self.distributions, self.seed = sampler, dict(distributions), seed
        self.population = max(SMALLEST_POPULATION, math.ceil(count / 8))
        self.study = optuna.create_study(
            directions=[DIRECTIONS[goal] for goal in goals],
            sampler=optuna.samplers.RandomSampler(seed),  # replaced at each draw
        )
        for values, outcome in priors:
            if sampler == "nsga2":  # a finished trial could not be given a generation
                self.study.tell(self._enter(values), list(outcome.values) or None, STATES[outcome.state])
            else:
                self.study.add_trial(finished_trial(values, self.distributions, outcome))
        self.numbers: list[int] = []  # of our proposals in the study
        self.learned = 0  # outcomes of proposals 0 .. learned - 1 are known

    def draw(self) -> dict[str, Any]:
        """Values of the next proposal, which from now on counts as running."""
        index = len(self.numbers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = self._sampler(draw_seed(self.seed, index))
            trial = self.study.ask(self.distributions)
        self.numbers.append(trial.number)
        return dict(trial.params)

    def adopt(self, values: Mapping[str, Any]) -> None:
        """Enter a proposal that was drawn before, from a journal.

        CMA-ES keeps its state beside its own draws, so it draws again and the journal's values count if they differ.
        """
        if self.sampler == "cmaes":
            if self.draw() == dict(values):
                return
            self.study.tell(self.numbers.pop(), state=TrialState.FAIL)
        self.numbers.append(self._enter(values))

    def learn(self, outcome: Outcome) -> None:
        """The outcome of the next proposal in order."""
        self.study.tell(self.numbers[self.learned], list(outcome.values) or None, STATES[outcome.state])
        self.learned += 1

    def _enter(self, values: Mapping[str, Any]) -> int:
        """A running trial with these values; its number."""
        trial = create_trial(state=TrialState.RUNNING, params=dict(values), distributions=self.distributions)
        self.study.add_trial(trial)
        entered = self.study.get_trials(deepcopy=False)[-1]
        if self.sampler == "nsga2":  # a draw notes its generation, and the first of one the parents of all
            sampler = self._sampler(self.seed)
            assert isinstance(sampler, optuna.samplers.NSGAIISampler)
            sampler.get_parent_population(self.study, sampler.get_trial_generation(self.study, entered))
        return entered.number

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        # Optuna's ten random draws before it learns are more than a whole search of costly trials.
        start_up = min(10, 3 + 2 * len(self.distributions))
        match self.sampler:
            case "tpe":
                return _Tpe(self.distributions, seed, start_up)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=start_up)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        raise ValueError(f"sampler {self.sampler!r} does not learn; there are {', '.join(ADAPTIVE)}")


class _Tpe(optuna.samplers.TPESampler):
    """TPE over axes that are known; Optuna would work them out from all trials again at each draw."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int, start_up: int) -> None:
        super().__init__(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=start_up)
        self._axes = {name: axis for name, axis in sorted(distributions.items()) if not axis.single()}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._axes


def finished_trial(
    values: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    outcome: Outcome,
    attributes: Mapping[str, Any] | None = None,
) -> optuna.trial.FrozenTrial:
    """An Optuna trial that is already over. Raises ValueError where the values lie outside the space."""
    return create_trial(
        state=STATES[outcome.state],
        values=list(outcome.values) or None,
        params=dict(values),
        distributions=dict(distributions),
        user_attrs=dict(attributes or {}),
    )


def refuse_unfit(sampler: str, distributions: Mapping[str, BaseDistribution], objectives: int = 1) -> None:
    """Raises ValueError for an unknown sampler, or one that cannot search these axes or follow so many objectives."""
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    if sampler in ONE_OBJECTIVE and objectives > 1:
        raise ValueError(
            f"sampler={sampler} follows one objective, got {objectives}; take sampler=nsga2, tpe or gp, or name one"
        )
    if sampler == "grid":
        return
    if not distributions:
        raise ValueError(
            f"sampler={sampler} has no axis to search, all are pinned or enumerated; "
            "search one (space.peak_lr={low: 1e-3, high: 1e-2, log: true}) or take sampler=grid"
        )
    numeric = [name for name, axis in distributions.items() if not isinstance(axis, CategoricalDistribution)]
    if sampler == "cmaes" and (len(numeric) < 2 or len(numeric) < len(distributions)):
        raise ValueError(
            f"sampler=cmaes needs two or more searched axes, all numeric, got {', '.join(distributions)}; "
            "take sampler=tpe or sampler=gp"
        )
