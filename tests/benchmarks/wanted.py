"""What each benchmark is wanted to reach, in one place, and whether it did. Nothing is adjusted to meet it."""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Wanted(NamedTuple):
    """A bound for one value: "=" exactly, ">=" at least, "<=" at most. `timed` values mean little on a busy machine."""

    what: str
    rule: Literal["=", ">=", "<="]
    bound: float
    unit: str = ""
    timed: bool = True

    def met(self, value: float) -> bool:
        match self.rule:
            case "=":
                return value == self.bound
            case ">=":
                return value >= self.bound
        return value <= self.bound


WANTED: Mapping[str, Mapping[str, Wanted]] = {
    "plan": {
        "steps_alone": Wanted("plan of preset=grid360: steps of its trials alone", "=", 378_000, timed=False),
        "steps_shared": Wanted("the same, shared prefixes trained once", "=", 86_075, timed=False),
        "saving": Wanted("the same: steps alone over steps shared, two places", "=", 4.39, "x", timed=False),
    },
    "grid_trainer": {
        "cpu_ratio": Wanted("grid of 12 branches: CPU of a TorchTrainer per Tune trial over ours", ">=", 3, "x"),
        "largest_loss_difference": Wanted("the same: largest difference between losses", "=", 0, "nats", timed=False),
    },
    "grid_function": {
        "part_of_step_ratio": Wanted("grid of 12 branches: CPU ratio over step ratio, reused actors", ">=", 0.85),
        "training_seconds": Wanted("the same: seconds of training in our arm", ">=", 150, "s"),
        "largest_loss_difference": Wanted("the same: largest difference between losses", "=", 0, "nats", timed=False),
    },
    "shares": {
        "training_and_evaluation": Wanted("laptop sweep: training and evaluation, of all slots' time", ">=", 0.80),
        "evaluation": Wanted("laptop sweep: evaluation, of all slots' time", "<=", 0.05),
        "wall_seconds": Wanted("laptop sweep: the whole command, as in make sweep", "<=", 420, "s"),
    },
    "startup": {"wall_seconds": Wanted("scale=tiny, with Ray's start: the whole command", "<=", 45, "s")},
    "loop": {"part_of_bare": Wanted("training loop: tokens per CPU second, over a bare loop's", ">=", 0.95)},
    "lanes": {
        "closed_form_ratio": Wanted("512 lanes of 1-SAM in closed form: steps per CPU s over eager's", ">=", 100, "x"),
        "vmap_ratio": Wanted("the same by torch.func.vmap", ">=", 30, "x"),
        "largest_difference": Wanted("the same: largest difference of a weight to eager's", "<=", 1e-4, timed=False),
    },
    "packing": {
        "worst_ratio": Wanted("chosen packs: CPU of a study's lanes over one at a time, worst study", "<=", 1.1, "x"),
    },
    "trivial": {
        "trials_per_minute": Wanted("trials through Ray Tune, trivial training, TPE, Ray's start in it", ">=", 1000),
        "lost": Wanted("the same: trials that did not complete", "=", 0, timed=False),
    },
    "parity_pack": {
        "cpu_ratio": Wanted("16 parity nets 64x256: CPU of a Tune function trial each over one job's", ">=", 3, "x"),
        "largest_difference": Wanted("the same: largest difference of a metric", "=", 0, timed=False),
    },
    "parity_secrets": {
        "n16_wall_seconds": Wanted("secret of 16 bits at noise 0.1 found", "<=", 60, "s"),
        "n12_wall_seconds": Wanted("secret of 12 bits at noise 0.45 found", "<=", 60, "s"),
        "unsolved": Wanted("the same: secrets not found", "=", 0, timed=False),
    },
    "parity_walsh": {
        "cpu_seconds": Wanted("Walsh-Hadamard, 26 bits at noise 0.498", "<=", 10, "s"),
        "peak_gigabytes": Wanted("the same: peak memory", "<=", 1.5, "GB"),
        "unsolved": Wanted("the same: secrets not found", "=", 0, timed=False),
    },
    "sequence_lanes": {
        "cpu_ratio": Wanted("16 tiny Transformers: CPU of a process each over lanes, all costs in", ">=", 4, "x"),
        "early_loss_difference": Wanted("the same: losses in 64 steps differ by", "<=", 1e-4, "nats", timed=False),
    },
    "scan": {
        "least_ratio": Wanted("associative scan, 64 to 256 positions: CPU of a loop over it, least", ">=", 1, "x"),
        "largest_difference": Wanted("the same: largest difference of a state", "<=", 1e-5, timed=False),
    },
    "limits": {
        "trials": Wanted("a simulated sweep: trials", ">=", 1000, timed=False),
        "measurements": Wanted("the same: measurements", ">=", 10_000, timed=False),
        "incomplete": Wanted("the same: trials that did not complete", "=", 0, timed=False),
        "plan_seconds": Wanted("the same: CPU of proposing and planning", "<=", 2, "s"),
        "drive_seconds": Wanted("the same: CPU of the driver and queue from first to last job", "<=", 10, "s"),
        "memory_gigabytes": Wanted("the same: memory of the driver's process", "<=", 1, "GB"),
        "read_seconds": Wanted("the same: CPU of opening, frontier and claims", "<=", 5, "s"),
        "plan_seconds_ratio": Wanted("four times the trials: CPU of planning, over once", "<=", 6, "x"),
        "drive_seconds_ratio": Wanted("four times the trials: CPU of driver and queue, over once", "<=", 6, "x"),
        "tables_seconds_ratio": Wanted("four times the trials: CPU of the tables, over once", "<=", 6, "x"),
        "read_seconds_ratio": Wanted("four times the trials: CPU of reading, over once", "<=", 6, "x"),
    },
    "fork": {
        "unequal_forks": Wanted("forks, cut anywhere, that differ from a straight run in a bit", "=", 0, timed=False)
    },
}


def verdict(wanted: Wanted, value: float, quick: bool) -> str:
    """met or missed; of a quick run's timings nothing is said.

    >>> verdict(WANTED["plan"]["saving"], 4.39, quick=True), verdict(WANTED["loop"]["part_of_bare"], 0.9, quick=True)
    ('met', 'not judged: quick')
    """
    if quick and wanted.timed:
        return "not judged: quick"
    return "met" if wanted.met(value) else "missed"
