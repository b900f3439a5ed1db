"""Nets of which training may change a part: all weights, all but a random balanced query-key map, or only a mask.

The mask chooses which weights of a random net are kept. Scores of the weights are trained, the largest of each matrix
keep theirs, and the gradient passes the choice as if it were the score (arXiv:1911.13299).
"""

# P lanes, C classes, D width, F features

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trainables.common.dyck.measures import class_scores, last_block
from trainables.common.dyck.source import Source
from trainables.common.lanes import Lanes, spread
from trainables.common.sequence.network import Architecture, embedded, initial, normed
from trainables.common.streams import Streams

Trains = Literal["weights", "around_map", "mask"]
READ_BY_THE_MAP = ("input", "block0.mixer_norm", "block0.mixer.query", "block0.mixer.key")


@dataclass
class Net:
    """`free` is what training changes, `fixed` what it does not; `weights` makes of both what the net computes with."""

    free: Lanes
    fixed: Lanes
    keep_rates: Lanes  # empty unless a mask is trained: {"keep": [P]}

    def weights(self, free: Lanes) -> Lanes:
        if not self.keep_rates:
            return self.fixed | free
        kept = {name: self.fixed[name] * passed(scores, self.keep_rates["keep"]) for name, scores in free.items()}
        return self.fixed | kept

    @property
    def lanes(self) -> tuple[Lanes, ...]:
        return self.fixed, self.keep_rates


def passed(scores: torch.Tensor, keep_P: torch.Tensor) -> torch.Tensor:
    """The mask of the scores, whose gradient is theirs."""
    return scores + (mask(scores.detach(), keep_P) - scores.detach())


def mask(scores: torch.Tensor, keep_P: torch.Tensor) -> torch.Tensor:
    """1 at the largest scores of each lane, as many as its share `keep_P` says (at least one), else 0.

    >>> mask(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]), torch.tensor([0.5]))
    tensor([[[0., 1.],
             [1., 0.]]])
    """
    ordered = scores.flatten(1).sort(1, descending=True).values
    last = (keep_P * ordered.shape[1]).round().long().clamp_min(1) - 1
    return (scores >= spread(ordered.gather(1, last[:, None])[:, 0], scores)).to(scores.dtype)


def kept_of_the_map(net: Architecture, parts: Net) -> torch.Tensor:
    """Which weights of the last query and key matrices a masked net keeps, 0 or 1, [P, 2 D D]."""
    block = f"block{len(net.mixers) - 1}.mixer"
    scores = [parts.free[f"{block}.{name}"].flatten(1) for name in ("query", "key")]
    return torch.cat([mask(part, parts.keep_rates["keep"]) for part in scores], 1)


def all_free(net: Architecture, seeds: Sequence[int], device: torch.device) -> Net:
    return Net(initial(net, seeds, device), {}, {})


def masked(
    net: Architecture, seeds: Sequence[int], network_seeds: Sequence[int], keep_P: torch.Tensor, device: torch.device
) -> Net:
    """A random net of `network_seeds`, and scores of `seeds` for its matrices.

    Weights are +-sqrt(2 / (fan in * keep)): of one size, so that only the choice matters, and as large as training
    through the choice needs (arXiv:1911.13299). Biases are 0.
    """
    fixed, free = initial(net, network_seeds, device), {}
    for name, value in fixed.items():
        if value.ndim > 2:
            signs = Streams(network_seeds, f"sign {name}", device).signs(0, *value.shape[1:])
            fixed[name] = signs * spread((2 / (value.shape[1] * keep_P)).sqrt(), value)
            free[name] = Streams(seeds, f"score {name}", device).uniform(0, *value.shape[1:]) * value.shape[1] ** -0.5
        elif name.endswith("_bias"):
            fixed[name] = torch.zeros_like(value)
    return Net(free, fixed, {"keep": keep_P})


def around_map(
    net: Architecture, source: Source, features_CF: torch.Tensor, seeds: Sequence[int], spread_P: torch.Tensor
) -> Net:
    """A net of one block whose query-key map is random, balanced and fixed, with all that the map reads.

    With e the classes as the attention reads them, keys are taken orthogonally to every e(opener) - e(closer): a pair
    has one score for every query. What is left is scaled to scores of standard deviation `spread_P` over queries.
    """
    device = features_CF.device
    weights = initial(net, seeds, device)
    classes_PCF = features_CF.expand(len(seeds), 1, -1, -1)
    e_PCD = normed(net, last_block(net, weights), "mixer_norm", embedded(net, weights, classes_PCF))[:, 0]
    opener, closer = zip(*source.pairs, strict=True)
    difference = (e_PCD[:, list(opener)] - e_PCD[:, list(closer)]).double()
    query, key = "block0.mixer.query", "block0.mixer.key"
    drawn = Streams(seeds, "balanced key", device).normal(0, net.width, net.width, dtype=torch.float64)
    kept = drawn - torch.linalg.pinv(difference) @ (difference @ drawn)
    weights[key] = kept.to(weights[key].dtype)
    weights[query] = Streams(seeds, "balanced query", device).normal(0, net.width, net.width)
    for name in (f"{query}_bias", f"{key}_bias"):
        weights[name] = torch.zeros_like(weights[name])
    scores = class_scores(net, weights, e_PCD)[:, :-1, :-1]
    size = scores.var(-1, correction=0).mean(1).sqrt()
    weights[query] *= spread(spread_P / size, weights[query])
    fixed = {name: value for name, value in weights.items() if name.startswith(READ_BY_THE_MAP)}
    return Net({name: value for name, value in weights.items() if name not in fixed}, fixed, {})
