"""Where the next proposal lies: a pure function of the seed, the proposal's index and the outcomes known to it.

`grid`, `random` and `qmc` know nothing and are functions of the index alone. `tpe`, `gp` and `cmaes` are Optuna's; each
draw has a sampler of its own, seeded by hash(seed, index), over a study in memory that is told outcomes in order.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    "cmaes": "learns: an evolving normal distribution; two or more numeric axes and many proposals",
}
ADAPTIVE = ("tpe", "gp", "cmaes")
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True)
class Outcome:
    """What became of a proposal; made by `complete`, `pruned` and `failed`.

    complete: finished with all its budgets. pruned: diverged, or lost on a rung; samplers treat it as bad.
    failed: a crash, no memory, a lost node; says nothing about the values, which are proposed again.
    """

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None  # the objective of a complete one, always finite

    def __post_init__(self) -> None:
        if (self.state == "complete") != (self.value is not None):
            raise ValueError(f"a complete proposal has an objective and no other has, got {self.state} {self.value}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(
                f"a complete proposal has a finite objective, got {self.value}; tell pruned() for one that diverged"
            )

    def words(self) -> str:
        return self.state if self.value is None else f"{self.state} with {self.value}"


def complete(value: float) -> Outcome:
    """A proposal that finished, with its objective. Raises ValueError unless that is finite."""
    return Outcome("complete", float(value))


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
    engine = qmc.Sobol(len(distributions), scramble=True, rng=np.random.default_rng(draw_seed(seed, 0)))
    if index:
        engine.fast_forward(index)
    return _at(distributions, engine.random(1)[0])


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

    Proposals whose outcome is not yet known count as running, which keeps the next draw away from them.
    """

    def __init__(
        self,
        sampler: str,
        distributions: Mapping[str, BaseDistribution],
        seed: int,
        goal: Literal["min", "max"],
        priors: Sequence[tuple[Mapping[str, Any], Outcome]] = (),
    ) -> None:
        self.sampler, self.distributions, self.seed = sampler, dict(distributions), seed
        self.study = optuna.create_study(
            direction=DIRECTIONS[goal],
            sampler=optuna.samplers.RandomSampler(seed),  # replaced at each draw
        )
        for values, outcome in priors:
            self.study.add_trial(finished_trial(values, self.distributions, outcome))
        self.numbers: list[int] = []  # of our proposals in the study
        self.learned = 0  # outcomes of proposals 0 .. learned - 1 are known

    def draw(self) -> dict[str, Any]:
        """Values of the next proposal, which from now on counts as running."""
        index = len(self.numbers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = _optuna_sampler(self.sampler, self.distributions, draw_seed(self.seed, index))
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
        trial = create_trial(state=TrialState.RUNNING, params=dict(values), distributions=self.distributions)
        self.study.add_trial(trial)
        self.numbers.append(len(self.study.get_trials(deepcopy=False)) - 1)

    def learn(self, outcome: Outcome) -> None:
        """The outcome of the next proposal in order."""
        self.study.tell(self.numbers[self.learned], outcome.value, STATES[outcome.state])
        self.learned += 1


def finished_trial(
    values: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    outcome: Outcome,
    attributes: Mapping[str, Any] | None = None,
) -> optuna.trial.FrozenTrial:
    """An Optuna trial that is already over. Raises ValueError where the values lie outside the space."""
    return create_trial(
        state=STATES[outcome.state],
        value=outcome.value,
        params=dict(values),
        distributions=dict(distributions),
        user_attrs=dict(attributes or {}),
    )


def refuse_unfit(sampler: str, distributions: Mapping[str, BaseDistribution]) -> None:
    """Raises ValueError for an unknown sampler, or one that cannot search these axes."""
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
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


def _optuna_sampler(
    sampler: str, distributions: Mapping[str, BaseDistribution], seed: int
) -> optuna.samplers.BaseSampler:
    # Optuna's ten random draws before it learns are more than a whole search of costly trials.
    start_up = min(10, 3 + 2 * len(distributions))
    match sampler:
        case "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=start_up
            )
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=start_up)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    raise ValueError(f"sampler {sampler!r} does not learn; there are {', '.join(ADAPTIVE)}")
