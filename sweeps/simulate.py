"""`python -m sweeps.simulate sweeps/NAME.py [WORD=VALUE ...]`: a sweep on so many GPUs, in simulated time.

Nothing is trained and nothing is written. The sweep's own words (scale, preset, space.AXIS ...) say what is swept; the
driver, the queue and the tuning of a real sweep decide what runs when. Beside them:

  gpus=[8,64,256]                how many GPUs there are, for scales whose jobs take GPUs; one line of the table each
  slots=[1,2,4]                  jobs at a time, for scales on CPU cores
  preemptions_per_gpu_hour=0.002 how often a GPU is taken away, and its job with it; without notice
  away_minutes=10                until it, or another in its place, is back
  flops_per_second=...           of one GPU (or CPU slot) in training; default: an assumption, which the table says
  calibrate=FOLDER               speed, measurements and start-up as measured in a results folder, by sweeps whose jobs
                                 had what this sweep's jobs get: GPUs, workers, lanes; all on one kind of device
  job_seconds=60                 from a job's start to its first step, where nothing is calibrated
  seed=0                         of the preemptions
  format=text                    or markdown, latex
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import expm1
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from analysis import tables
from sweeps.engine.calibration import measured_pace
from sweeps.engine.dry_run import open_journals
from sweeps.engine.estimate import ASSUMED_FLOPS_PER_SECOND, ASSUMED_FLOPS_PER_SECOND_IN_LANES
from sweeps.engine.launch import question_of
from sweeps.engine.progress import duration
from sweeps.engine.samplers import ADAPTIVE
from sweeps.engine.simulation import Alone, Fleet, Pace, Simulated, simulate
from sweeps.engine.spec import Spec
from sweeps.engine.tuning import CellTuning
from sweeps.engine.words import Refused, Words, make_spec
from trainables.study import FusedStudy

UNLIMITED = 10_000  # slots: every job starts as soon as its fork is there
MOST_CUT_SHORT = 5_000  # jobs of one simulated sweep: each is planned anew, and more of them take hours


@dataclass
class Simulation:
    """The words of a simulation; see above."""

    gpus: list[int] = field(default_factory=lambda: [8, 64, 256])
    slots: list[int] = field(default_factory=lambda: [1, 2, 4])
    preemptions_per_gpu_hour: float = 0.002
    away_minutes: float = 10.0
    flops_per_second: float | None = None
    calibrate: str | None = None
    job_seconds: float = 60.0
    seed: int = 0
    format: str = "text"

    def __post_init__(self) -> None:
        for name in ("gpus", "slots"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is a list of numbers from 1 on, got {getattr(self, name)}; say {name}=[8,64]")
        for name in ("preemptions_per_gpu_hour", "away_minutes", "job_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.flops_per_second is not None and self.flops_per_second <= 0:
            raise ValueError(f"flops_per_second must be above 0, got {self.flops_per_second}")
        if self.flops_per_second is not None and self.calibrate is not None:
            raise ValueError("flops_per_second and calibrate both say how fast a slot is; give one of them")
        if self.format not in tables.FORMATS:
            raise ValueError(f"no format {self.format!r}; there are {', '.join(tables.FORMATS)}")


@dataclass(frozen=True)
class Line:
    """One fleet: the sweep, every trial alone (None where lanes train together), and the least time there could be."""

    gpus: int
    fleet: Fleet
    sweep: Simulated
    alone: Simulated | None
    critical_seconds: float

    @property
    def least_seconds(self) -> float:
        """No schedule is faster: the longest chain of stages, or all work evenly on all slots."""
        return max(self.critical_seconds, self.sweep.useful_seconds / self.fleet.slots)

    @property
    def efficiency(self) -> float:
        return self.least_seconds / self.sweep.wall_seconds


def own_words(arguments: Sequence[str]) -> list[str]:
    names = {item.name for item in fields(Simulation)}
    return [word for word in arguments if word.partition("=")[0] in names]


def read_words(arguments: Sequence[str]) -> tuple[Simulation, list[str]]:
    """The simulation's own words, and those of the sweep. Raises Refused for a value that cannot be."""
    mine = own_words(arguments)
    try:
        given = OmegaConf.merge(OmegaConf.structured(Simulation), OmegaConf.from_dotlist(mine))
        simulation = OmegaConf.to_object(given)
    except (OmegaConfBaseException, ValueError) as error:
        raise Refused(f"{str(error).splitlines()[0]}; --help lists the words, such as gpus=[8,64]") from error
    assert isinstance(simulation, Simulation)
    return simulation, [word for word in arguments if word not in mine]


def refuse_idle_words(mine: Sequence[str], words: Words) -> None:
    """Raise Refused for a fleet of GPUs at a scale whose jobs take none, or for slots at one whose jobs take GPUs."""
    said = {word.partition("=")[0] for word in mine}
    takes = "gpus" if words.resources.gpus else "slots"
    other = {"gpus": "slots", "slots": "gpus"}[takes]
    if other in said:
        raise Refused(f"{other}= says nothing at scale={words.scale}, whose fleets are given by {takes}=[...]")


def pace_of(spec: Spec, words: Words, simulation: Simulation) -> Pace:
    """How fast one slot is: measured, given, or assumed."""
    if simulation.calibrate is not None:
        return measured_pace(Path(simulation.calibrate), spec.study, words.resources)
    assumed = ASSUMED_FLOPS_PER_SECOND_IN_LANES if isinstance(spec.study, FusedStudy) else ASSUMED_FLOPS_PER_SECOND
    gpus = words.resources.gpus * words.resources.workers
    each = simulation.flops_per_second or assumed["gpu" if gpus else "cpu"]
    said = "as given" if simulation.flops_per_second is not None else "ASSUMED, not measured"
    source = (
        f"{each:.3g} FLOP/s per {'GPU' if gpus else 'slot'}, {said}; {simulation.job_seconds:g} s to start a job; "
        "measurements and checkpoints take no time"
    )
    return Pace(each * (gpus or 1), source, job_seconds=simulation.job_seconds)


def run(spec: Spec, words: Words, simulation: Simulation) -> tuple[list[Line], Pace]:
    """The lines of the table. Raises Refused for a fleet that holds no job, or that takes jobs away too often."""
    each = words.resources.gpus * words.resources.workers
    pace = pace_of(spec, words, simulation)
    unhurried = replace(pace, job_seconds=0.0)
    every, lines = words.resources.checkpoint_every, []
    ways = [False] if isinstance(spec.study, FusedStudy) else [False, True]  # with all that is shared, and alone
    unlimited: dict[int, list[Simulated]] = {}

    def simulated(fleet: Fleet, pace: Pace, alone: bool, slots: int) -> Simulated:
        tuning = CellTuning(spec, open_journals(spec, slots, record=False))
        return simulate(spec, Alone(tuning) if alone else tuning, fleet, pace, every)

    for gpus in simulation.gpus if each else simulation.slots:
        slots = int(gpus // (each or 1))
        if slots < 1:
            raise Refused(f"a job of scale={words.scale} takes {each:g} GPUs, gpus has {gpus}; raise it")
        fleet = Fleet(
            *(slots, each, simulation.preemptions_per_gpu_hour, 60 * simulation.away_minutes),
            seed=simulation.seed,
        )
        lag = slots if spec.search.sampler in ADAPTIVE else 0  # what later proposals may know
        if lag not in unlimited:
            unlimited[lag] = [simulated(Fleet(UNLIMITED, each), unhurried, alone, slots) for alone in ways]
        for least in unlimited[lag]:
            refuse_endless(fleet, least, pace, every)
        shared, *others = [simulated(fleet, pace, alone, slots) for alone in ways]
        lines.append(Line(gpus, fleet, shared, others[0] if others else None, unlimited[lag][0].wall_seconds))
    return lines, pace


def refuse_endless(fleet: Fleet, least: Simulated, pace: Pace, every: int | None) -> None:
    """Raise Refused where so many jobs would be cut short that simulating them takes hours, or has no end.

    What loses x GPUs on average before it commits is tried exp(x) times.
    """
    losses = [fleet.losses(pace.job_seconds + seconds) for seconds in least.stretches]
    cut_short = sum(expm1(min(loss, 700.0)) for loss in losses)  # beyond is no float
    if cut_short > MOST_CUT_SHORT:
        longest = duration(pace.job_seconds + max(least.stretches))
        raise Refused(
            f"a simulated sweep has at most {MOST_CUT_SHORT:,} jobs cut short, got about {cut_short:.2g}: at "
            f"preemptions_per_gpu_hour={fleet.preemptions_per_gpu_hour:g} a job loses {max(losses):.2g} GPUs "
            f"on average in the {longest} to its next checkpoint; lower that rate, or checkpoint a staged "
            f"study more often than resources.checkpoint_every={'null' if every is None else every}"
        )


def table(lines: Sequence[Line], format: str) -> str:
    on_gpus = bool(lines[0].fleet.gpus_per_slot)
    unit = "GPU" if on_gpus else "slot"
    header = [f"{unit}s", "jobs at a time", "wall time", f"{unit}-hours", "steps run", "preemptions", "steps lost"]
    header += ["least possible", "efficiency", "each trial alone", f"its {unit}-hours", "saving"]
    rows = []
    for line in lines:
        sweep, alone = line.sweep, line.alone
        each = (line.fleet.gpus_per_slot or 1) / 3600
        row = [
            f"{line.gpus:,}",
            f"{line.fleet.slots:,}",
            duration(sweep.wall_seconds),
            f"{sweep.busy_seconds * each:,.1f}",
            f"{sweep.executed_steps:,}",
            f"{sweep.preemptions:,}",
            f"{sweep.lost_steps:,}",
            duration(line.least_seconds),
            f"{line.efficiency:.0%}",
        ]
        if alone is None:
            rows.append([*row, "", "", ""])
        else:
            saving = f"{alone.wall_seconds / sweep.wall_seconds:.2f}x"
            rows.append([*row, duration(alone.wall_seconds), f"{alone.busy_seconds * each:,.1f}", saving])
    return tables.render(header, rows, format)


def caption(spec: Spec, lines: Sequence[Line], pace: Pace, simulation: Simulation) -> str:
    first = lines[0]
    rate = simulation.preemptions_per_gpu_hour
    taken = f"each GPU is taken away {rate:g} times an hour, without notice, and is back after"
    lines_of_text = [
        f"Simulated: {first.sweep.trials:,} trials of {spec.study.name} at scale={spec.scale}, preset={spec.preset}. "
        "Nothing was trained; driver, queue and tuning are those of a real sweep.",
        f"Speed: {pace.source}.",
        f"Preemptions: {taken} {simulation.away_minutes:g} minutes." if rate else "Preemptions: none.",
        "Least possible: the longest chain of stages or all work spread evenly, without start-ups and preemptions; "
        "efficiency is its part of the wall time. Saving is in wall time, over the same trials through the same queue "
        "on the same slots with nothing shared.",
    ]
    if first.alone is None:
        lines_of_text.append("Lanes of one shape train together, so that there is no column for each trial alone.")
    return "\n".join(lines_of_text)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"--help", "-h", "help"} & set(given):
        print(__doc__)
        return 0
    try:
        question = question_of(given[0])
        simulation, rest = read_words(given[1:])
        with tempfile.TemporaryDirectory() as empty:
            spec, words = make_spec(question.study, [*rest, f"results={empty}"], question.name)
            refuse_idle_words(own_words(given), words)
            lines, pace = run(spec, words, simulation)
    except (Refused, ValueError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table(lines, simulation.format))
    console.print("\n" + caption(spec, lines, pace, simulation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
