"""Nets of many lanes trained side by side, each until its secret is found. P lanes, I nets a lane, T parameters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import torch

from trainables.common.captured import Captured
from trainables.common.lanes import Alive, Lanes
from trainables.common.parity import networks
from trainables.common.parity.networks import Architecture
from trainables.common.parity.problems import Problem
from trainables.common.parity.recovery import recover, worth_trying
from trainables.common.parity.samples import labelled, labels
from trainables.common.streams import Streams
from trainables.study import LaneRun

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


def adam(lanes: Lanes, gradient: torch.Tensor, step: torch.Tensor) -> None:
    """Adam (arXiv:1412.6980) in place, as torch.optim.Adam does it: weight decay is already in the gradient."""
    lanes["first"].lerp_(gradient, 1 - BETA1)
    lanes["second"].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    first, second = ((1 - beta ** step.double()).float() for beta in (BETA1, BETA2))  # corrections for the start at 0
    lanes["flat"].sub_(lanes["rate"] / first * lanes["first"] / (lanes["second"].sqrt() / second.sqrt() + EPSILON))


def sgd(lanes: Lanes, gradient: torch.Tensor, step: torch.Tensor) -> None:
    lanes["flat"].sub_(lanes["rate"] * gradient)


OPTIMIZERS: Mapping[str, Callable[[Lanes, torch.Tensor, torch.Tensor], None]] = {"adam": adam, "sgd": sgd}


@dataclass(frozen=True)
class Training:
    """How nets are trained; what a lane has of its own is a list over all lanes of the pack."""

    net: Architecture
    optimizer: str
    batch_size: int
    budget_steps: int
    measure_every: int
    initialisations: int
    learning_rates: Sequence[float]
    weight_decays: Sequence[float]
    keep_rates: Sequence[float]


@dataclass(frozen=True)
class Seen:
    """A lane at a measured step: the best net's error, estimated on select and report data; the secret once found."""

    error: float
    report_error: float
    secret: int | None


class Race:
    """The nets of the lanes `racing`. `counts`: how many samples of its pool each lane may use; None: fresh samples.

    round: which race of these lanes it is; initial parameters and batches differ between rounds.
    """

    def __init__(
        self, training: Training, problem: Problem, racing: Sequence[int], counts: Sequence[int] | None, round: int = 0
    ):
        self.training, self.problem, self.net, device = training, problem, training.net, problem.device
        self.alive = Alive(len(problem.seeds), device)
        seeds = problem.seeds
        nets = [Streams(seeds, f"net {number}", device) for number in range(training.initialisations)]
        flat = torch.stack([networks.initial(self.net, stream, 2 * round) for stream in nets], 1)
        self.lanes: Lanes = {
            "flat": flat,
            "rate": torch.tensor(training.learning_rates, device=device)[:, None, None],
            "decay": torch.tensor(training.weight_decays, device=device)[:, None, None],
            "secret": problem.secret_P,
            "noise_rate": problem.noise_rate_P,
            "select": problem.select_PE,
            "report": problem.report_PE,
        }
        if training.optimizer == "adam":
            self.lanes |= {"first": torch.zeros_like(flat), "second": torch.zeros_like(flat)}
        if self.net.network == "sparse_mlp":
            kept = torch.tensor(training.keep_rates, device=device)
            masks = [networks.mask(self.net, stream, 2 * round + 1, kept) for stream in nets]
            self.lanes["mask"] = torch.stack(masks, 1)
            flat.mul_(self.lanes["mask"])
        if counts is not None:
            assert problem.table_PM is not None
            self.lanes |= {"table": problem.table_PM, "count": torch.tensor(counts, device=device)[:, None]}
        self.batches = Streams(seeds, "batches", device)
        self.attempts = Streams(seeds, "attempts", device)
        self.step_count = torch.zeros((), dtype=torch.int64, device=device)
        self.offset = round * training.budget_steps
        self.captured = Captured(self.step, device)
        self.drop([lane for lane in self.alive.lane if lane not in set(racing)])

    def drop(self, lanes: Sequence[int]) -> None:
        if lanes:
            kept = self.alive.drop([self.alive.lane.index(lane) for lane in lanes], self.lanes)
            self.batches, self.attempts = self.batches.kept(kept), self.attempts.kept(kept)
            self.captured.renew()

    def batch(self) -> torch.Tensor:
        """Packed samples of this step: fresh, or drawn from each lane's pool with replacement; shape [P, B]."""
        counter, size = self.step_count + self.offset, self.training.batch_size
        if "table" not in self.lanes:
            words = self.batches.words(counter, size)
            return labelled(words, self.lanes["secret"], self.lanes["noise_rate"], self.net.dimension)
        places = self.batches.uniform(counter, size, dtype=torch.float64) * self.lanes["count"]
        return self.lanes["table"].gather(1, places.long())

    def step(self) -> None:
        self.step_count.add_(1)
        gradient = networks.gradients(self.net, *self.of_all_nets(self.batch())).view_as(self.lanes["flat"])
        gradient.add_(self.lanes["decay"] * self.lanes["flat"])
        if "mask" in self.lanes:
            gradient.mul_(self.lanes["mask"])  # so a masked weight stays at 0
        OPTIMIZERS[self.training.optimizer](self.lanes, gradient, self.step_count)

    def of_all_nets(self, samples_PB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Parameters [P I, T] and samples [P I, B]: the nets of a lane get the same samples."""
        return self.lanes["flat"].flatten(0, 1), samples_PB.repeat_interleave(self.training.initialisations, 0)

    def disagreement(self, name: str) -> torch.Tensor:
        """Share of a held-out set's labels that each net predicts wrongly, shape [P, I]; NaN for a net that is lost."""
        flat, samples = self.of_all_nets(self.lanes[name])
        wrong = (networks.predictions(self.net, flat, samples) != labels(samples).bool()).double().mean(1)
        return wrong.masked_fill(~flat.isfinite().all(1), torch.nan).view(-1, self.training.initialisations)

    def look(self, step: int) -> dict[int, Seen]:
        """All lanes as they are; recovery is tried where the best net is good enough.

        A share p of wrong noisy labels is the error (p - tau) / (1 - 2 tau) against clean ones: unbiased, noisy itself.
        """
        rate = self.lanes["noise_rate"][:, None]
        errors = ((self.disagreement("select") - rate) / (1 - 2 * rate)).tolist()
        report_errors = self.disagreement("report").tolist()
        seen = {}
        for place, lane in enumerate(self.alive.lane):
            finite = [(error, net) for net, error in enumerate(errors[place]) if isfinite(error)]
            error, best = min(finite, default=(nan, 0))
            tried = isfinite(error) and worth_trying(error, self.net.dimension)
            secret = self.recovered(place, best, step) if tried else None
            seen[lane] = Seen(error, report_errors[place][best], secret)
        return seen

    def recovered(self, place: int, best: int, step: int) -> int | None:
        lane, flat = self.alive.lane[place], self.lanes["flat"][place, best][None]
        stream = self.attempts.kept(torch.tensor([place], device=self.problem.device))
        found = recover(
            lambda queries: networks.predictions(self.net, flat, queries[None])[0],
            *(stream, self.offset + step, self.net.dimension, self.problem.reduced_verification[lane]),
        )
        return None if found is None else self.problem.whole_secret(lane, found)

    def run(self, run: LaneRun) -> Iterator[tuple[int, dict[int, Seen]]]:
        """Train; yield each measured step with what was seen. Solved and lost lanes leave; ends early on a stop."""
        step, budget = 0, self.training.budget_steps
        while step < budget and len(self.alive):
            span = min(self.training.measure_every, budget - step)
            self.captured(span)
            step += span
            if run.should_stop():
                return
            with run.measuring():
                seen = self.look(step)
            yield step, seen
            self.drop([lane for lane, one in seen.items() if one.secret is not None or not isfinite(one.error)])
