"""What each lane of a pack is asked, on one device: its secret, its samples, and those held out.

P lanes, M training samples, E select samples
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trainables.common.parity.recovery import verification_samples, verified
from trainables.common.parity.reduction import Reduction
from trainables.common.parity.samples import Words, pool, queries, secrets
from trainables.common.streams import Streams

REPORT_QUERIES = 4096


@dataclass
class Problem:
    """Instances of one dimension. The nets see what `reduction` leaves of them: secret_P, noise_rate_P, dimension.

    samples: size of each lane's finite pool before the reduction; None for fresh samples at every step.
    """

    seeds: Sequence[int]
    weights: Sequence[int]
    noise_rates: Sequence[float]
    reduction: Reduction
    samples: Sequence[int] | None
    select_samples: int
    device: torch.device
    pools: list[Words] = field(default_factory=list)  # of each lane, before the reduction; kept only where there is one

    def __post_init__(self) -> None:
        self.dimension = self.reduction.remaining
        whole = self.reduction.dimension
        self.whole_secret_P = secrets(self.seeds, whole, self.weights, self.device)
        self.secret_P = queries(self.whole_secret_P, self.dimension)
        self.noise_rate_P = torch.tensor(self.noise_rates, dtype=torch.float64, device=self.device)
        clean = torch.zeros_like(self.noise_rate_P)
        self.report_PE = self._draw("report", self.secret_P, clean, self.dimension, REPORT_QUERIES)
        needed = [verification_samples(rate) for rate in self.noise_rates]
        every = self._draw("verify", self.whole_secret_P, self.noise_rate_P, whole, max(needed)).cpu().numpy()
        self.verification = [one[:count] for one, count in zip(every, needed, strict=True)]  # of the whole secret
        self.reduced_verification = self.verification
        self.table_PM, self.counts = None, [0] * len(self.seeds)
        if self.dimension < whole:
            self._reduce()
            return
        self.select_PE = self._draw("select", self.secret_P, self.noise_rate_P, whole, self.select_samples)
        if self.samples is not None:
            self.counts = list(self.samples)
            self.table_PM = self._draw("samples", self.secret_P, self.noise_rate_P, whole, max(self.samples))

    def _draw(
        self, purpose: str, secret_P: torch.Tensor, noise_rate_P: torch.Tensor, dimension: int, count: int
    ) -> torch.Tensor:
        return pool(Streams(self.seeds, purpose, self.device), secret_P, noise_rate_P, dimension, count)

    def _reduce(self) -> None:
        """Reduce the finite pools; the first reduced samples are held out to select and to verify, the others train."""
        assert self.samples is not None
        whole = self.reduction.dimension
        every = self._draw("samples", self.whole_secret_P, self.noise_rate_P, whole, max(self.samples)).cpu().numpy()
        self.pools = [one[:count] for one, count in zip(every, self.samples, strict=True)]
        rates = [self.reduction.noise_rate(rate) for rate in self.noise_rates]
        self.noise_rate_P = torch.tensor(rates, dtype=torch.float64, device=self.device)
        self.reduced_verification, tables, select = [], [], []
        for words, rate in zip(self.pools, rates, strict=True):
            reduced = self.reduction.levels(words)[-1]
            held_out = self.select_samples + verification_samples(rate)
            if len(reduced) <= held_out:
                raise ValueError(
                    f"the reduction leaves {len(reduced):,} of {len(words):,} samples, of which {held_out:,} are held "
                    "out to select and to verify; raise samples, or reduce by fewer bits"
                )
            select.append(torch.from_numpy(reduced[: self.select_samples]))
            self.reduced_verification.append(reduced[self.select_samples : held_out])
            tables.append(torch.from_numpy(reduced[held_out:]))
        self.counts = [len(table) for table in tables]
        self.select_PE = torch.stack(select).to(self.device)
        self.table_PM = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True).to(self.device)

    def whole_secret(self, lane: int, found: int) -> int | None:
        """The lane's secret from the bits a net gave away; None where noisy samples do not bear it out."""
        if self.dimension == self.reduction.dimension:
            return found
        secret = self.reduction.whole_secret(found, self.pools[lane])
        return secret if verified(secret, self.verification[lane], self.reduction.dimension) else None
