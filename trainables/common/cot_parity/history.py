"""What a lane's evaluations saw: when it learned, and one number for it that understands censoring."""

# L layers, H heads, M measurements

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log10

Values = Mapping[str, float | Sequence[float]]


def first_success(exact: Sequence[float], success_at: float, confirmations: int) -> int | None:
    """Place of the first evaluation that succeeds and whose next `confirmations` do too; None where there is none.

    A success too near to the end to be confirmed is none.

    >>> first_success([0.2, 1.0, 0.9, 1.0, 1.0], 1.0, 1), first_success([0.2, 1.0], 1.0, 1)
    (3, None)
    """
    successes = [value >= success_at for value in exact]
    starts = range(len(successes) - confirmations)
    return next((at for at in starts if all(successes[at : at + confirmations + 1])), None)


def log_samples(samples: int | None, budget_samples: int, exact: float, rows: int) -> float:
    """log10 of the samples to success; of a censored run log10(budget) + 1 - progress: worse than any success.

    Progress is the share of right rows as if one more had been wrong, so that it stays below 1.

    >>> log_samples(1000, 10_000, 1.0, 9), round(log_samples(None, 10_000, 1.0, 9), 6)
    (3.0, 4.1)
    """
    if samples is not None:
        return log10(samples)
    return log10(budget_samples) + 1 - exact * rows / (rows + 1)


@dataclass
class History:
    """One lane's evaluations. `seen` holds numbers by name, and of every head the two entropies and the mass."""

    batch_size: int
    budget_steps: int
    held_out_rows: int
    success_at: float
    confirmations: int
    steps: list[int] = field(default_factory=list)
    seen: list[Mapping[str, float]] = field(default_factory=list)
    heads: list[Mapping[str, Sequence[float]]] = field(default_factory=list)  # [L, H] flattened

    def add(self, step: int, seen: Mapping[str, float], heads: Mapping[str, Sequence[float]]) -> None:
        self.steps.append(step)
        self.seen.append(seen)
        self.heads.append(heads)

    @property
    def samples(self) -> list[int]:
        return [step * self.batch_size for step in self.steps]

    def success(self, part: str) -> int | None:
        return first_success(self.trace(f"{part}/exact_match"), self.success_at, self.confirmations)

    @property
    def learned(self) -> bool:
        """Whether select and report rows both show a confirmed success.

        A lane that ends here ends at a success on report rows: its last exact match is one by construction.
        """
        return self.success("select") is not None and self.success("report") is not None

    def trace(self, name: str) -> list[float]:
        return [seen[name] for seen in self.seen]

    def heads_trace(self, name: str) -> list[float]:
        """[M, L, H], flattened in this order."""
        return [value for heads in self.heads for value in heads[name]]

    def row(self) -> dict[str, float]:
        """What every measurement reports."""
        seen, heads, at = self.seen[-1], self.heads[-1], self.success("select")
        samples = None if at is None else self.samples[at]
        budget, exact = self.budget_steps * self.batch_size, seen["select/exact_match"]
        return {
            "select/log_samples": log_samples(samples, budget, exact, self.held_out_rows),
            **{name: value for name, value in seen.items() if not name.startswith("report/")},
            "entropy_min": min(heads["least_entropy"]),
            "entropy_mean": sum(heads["mean_entropy"]) / len(heads["mean_entropy"]),
            "secret_mass": max(heads["secret_mass"]),
            "samples": float(self.samples[-1]),
        }

    def verdict(self, free_running: float) -> Values:
        """What the trial is worth, on report rows; what a censored one does not have is left out.

        Entropies and attention on the secret are of select rows, which decide nothing here; success is of report rows.
        """
        at, exact = self.success("report"), self.trace("report/exact_match")
        found: dict[str, float | Sequence[float]] = {
            **{name: value for name, value in self.seen[-1].items() if name.startswith("report/")},
            "report/free_running_accuracy": free_running,
            "report/least_exact_match": min(exact),
            "report/censored": float(at is None),
            "report/samples_trace": [float(samples) for samples in self.samples],
            "report/exact_match_trace": exact,
            "report/train_exact_match_trace": self.trace("train/exact_match"),
            "report/train_loss_trace": self.trace("train/loss"),
            "report/least_entropy_trace": self.heads_trace("least_entropy"),
            "report/mean_entropy_trace": self.heads_trace("mean_entropy"),
            "report/secret_mass_trace": self.heads_trace("secret_mass"),
        }
        if at is not None:
            found["report/sample_complexity"] = float(self.samples[at])
            found["report/entropy_at_success"] = min(self.heads[at]["least_entropy"])
            found["report/secret_mass_at_success"] = max(self.heads[at]["secret_mass"])
        return found
