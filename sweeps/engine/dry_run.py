"""A sweep's first trials against the store with nothing written: its plan, in words, and what another scale takes."""

import math
from collections.abc import Callable, Sequence

from search_spaces import Space
from sweeps.engine.driver import Driver
from sweeps.engine.estimate import Estimate, estimate
from sweeps.engine.progress import duration
from sweeps.engine.proposals import Proposals
from sweeps.engine.samplers import ADAPTIVE
from sweeps.engine.spec import Spec
from sweeps.engine.store import Store
from sweeps.engine.tuning import CellTuning
from sweeps.engine.words import Refused, Words, default_slots, make_spec
from sweeps.nodes.groups import worker_counts
from sweeps.nodes.joining import slots_of
from trainables.study import AnyStudy, FusedStudy


def open_journals(spec: Spec, slots: int, record: bool) -> Callable[[str, Space], Proposals]:
    """How a cell's journal is opened: named by all that gives a proposal its meaning."""
    search = spec.search
    lag = search.bracket or slots
    if isinstance(spec.study, FusedStudy) and search.sampler in ADAPTIVE and not search.bracket:
        # A pack holds what is asked at once. An eighth of the search: a wide pack, and eight times to learn from one.
        lag = max(slots, math.ceil((search.proposals or 1) / 8) - 1)
    areas = [f"area under {objective.name} over log {spec.study.budget}" for objective in spec.objectives]
    goals = [objective.goal for objective in spec.objectives]
    several = len(goals) > 1

    def opened(cell: str, space: Space) -> Proposals:
        fields = [spec.resolved.study, spec.resolved.within]
        context = {"study": spec.study.name, "version": spec.study.version, "fields": fields}
        return Proposals.open(
            spec.results / "journals",
            cell=cell,
            space=space,
            sampler=search.sampler,
            seed=search.seed,
            count=search.proposals,
            lag=lag,
            objective=areas if several else areas[0],
            goal=goals if several else goals[0],
            context={**context, "tuning_seeds": list(spec.tuning_seeds), "bracket": search.bracket},
            record=record,
        )

    return opened


def dry_run(spec: Spec, words: Words, slots: int) -> tuple[Driver, CellTuning]:
    """The first trials against the store, with nothing written. Raises Refused for configs that cannot be honoured."""
    try:
        tuning = CellTuning(spec, open_journals(spec, slots, record=False))
        driver = Driver(Store(spec.results), tuning, slots=slots, checkpoint_every=words.resources.checkpoint_every)
        tuning.fill(driver.index)
        driver.start()
        trials = [entry.trial for entry in driver.entries]
        worker_counts(spec.study, {trial.root_key: trial.root for trial in trials}.values(), slots_of(words.resources))
    except (ValueError, RuntimeError) as error:
        raise Refused(str(error)) from error
    return driver, tuning


def plan_text(spec: Spec, expected: Estimate, tuning: CellTuning) -> str:
    """The plan in a few lines: stages, steps, saving, time, disk, and what comes on top once configs are chosen."""
    share = f"{expected.steps_shared:,} of {expected.steps_alone:,} steps, {expected.saving:.2f}x"
    basis = "at the speed measured in this store" if expected.measured else "at an assumed speed; none is measured yet"
    head = f"plan: {expected.stages:,} stages; trained once where shared: {share}"
    if isinstance(spec.study, FusedStudy):
        head = f"plan: {expected.trials:,} lanes in {expected.jobs:,} jobs, those of one shape as one program"
    lines = [
        head,
        f"      to run now: {expected.steps_to_run:,} steps, about {duration(expected.seconds)} {basis}; "
        f"about {expected.disk_bytes / 1e6:,.1f} MB of disk",
    ]
    if expected.steps_retrained:
        lines.append(f"      of these {expected.steps_retrained:,} steps are trained again: their state was not kept")
    if spec.fresh_seeds and not tuning.finished:
        count = len(tuning.cells) * len(spec.budgets) * len(spec.fresh_seeds)
        lines.append(
            f"      then each cell's chosen config per budget on {len(spec.fresh_seeds)} fresh seeds: "
            f"{count:,} trials, or more where several values are compared or a front is kept"
        )
    return "\n".join(lines)


def with_gpus(study: AnyStudy, name: str, arguments: Sequence[str], gpus: int) -> str:
    """One line for a sweep that leaves GPUs idle: the scale that would use them, in hours and GPU-hours."""
    line = f"{gpus} idle GPU{'s' if gpus > 1 else ''}: scale=gpu would use "
    others = [word for word in arguments if not word.startswith(("scale=", "slots="))]
    try:
        spec, words = make_spec(study, ["scale=gpu", *others], name)
        slots = default_slots(words, gpus)
        driver, _ = dry_run(spec, words, slots)
    except Refused as error:
        return f"{line}them, but cannot take this command: {error}"
    expected = estimate(driver.current_plan(), driver.index, slots, "gpu")
    each = words.resources.gpus * words.resources.workers
    hours = expected.seconds / 3600
    basis = "at the speed measured in this store" if expected.measured else "at an assumed speed; none is measured yet"
    used = min(gpus, slots * each)
    return f"{line}{used:g} of them, about {hours:,.1f} hours and {hours * used:,.1f} GPU-hours {basis}"
