"""A solution of parity without a chain of thought, written down: one layer, one head, no norms (arXiv:2410.05459).

The answer's query attends evenly to the K secret positions and so reads the share c / K of ones among them. K units
of the MLP turn the count c into a zigzag that is +1 at odd and -1 at even counts:

    f(c) = -1 + 2 relu(c) + 4 sum_{i=1}^{K-1} (-1)^i relu(c - i).
"""

# P lanes, N input bits, K secret bits, D width, T positions

import torch

from trainables.common.lanes import Lanes
from trainables.common.sequence.network import Architecture

SCORE = 12.0  # of a secret position against 0 of any other: these keep N e^-12 of the attention
STEEPNESS = 8.0  # GELU is taken at this multiple of c - i, where at whole numbers it is a relu but for 1e-14
MARGIN = 3.0  # between the right logit and the wrong one: a loss of 0.05 nats, so that training still has to hold it
NOISE = 1e-3  # share of random weights that is added, so that no weight is tied to another by symmetry
FLAG, BIT, ONE, SHARE, ZIGZAG = range(5)  # what dimensions of the residual stream hold


def constructed(net: Architecture, random: Lanes, secret_PK: torch.Tensor, noise: float = NOISE) -> Lanes:
    """The solution's weights and `noise` times random ones. Raises ValueError for a net that cannot hold it."""
    ones = secret_PK.shape[1]
    fits = net.width >= 5 and net.units >= ones
    if len(net.mixers) != 1 or net.heads != 1 or net.norm or net.embedding != "learned" or not fits:
        raise ValueError(
            f"the solution needs one layer and head, no norm, a learned embedding, width >= 5 and {ones} hidden units; "
            f"got {len(net.mixers)} layers, {net.heads} heads, norm={net.norm}, {net.embedding} embedding, "
            f"width {net.width}, {net.units} units"
        )
    weights = {name: noise * value for name, value in random.items()}
    lanes = torch.arange(len(secret_PK), device=secret_PK.device)[:, None]
    weights["embedding"][:, 1, BIT] += 1
    weights["position"][..., ONE] += 1
    weights["position"][lanes, secret_PK, FLAG] += 1
    weights["block0.mixer.query"][:, ONE, FLAG] += SCORE * net.width**0.5
    weights["block0.mixer.key"][:, FLAG, FLAG] += 1
    weights["block0.mixer.value"][:, BIT, SHARE] += 1
    weights["block0.mixer.out"][:, SHARE, SHARE] += 1
    for unit in range(ones):
        weights["block0.mlp.in"][:, SHARE, unit] += STEEPNESS * ones
        weights["block0.mlp.in_bias"][:, unit] -= STEEPNESS * unit
        slope = 2 if unit == 0 else 4 * (-1) ** unit
        weights["block0.mlp.out"][:, unit, ZIGZAG] += slope / STEEPNESS
    half = MARGIN / 2
    for token, sign in ((0, -1), (1, 1)):
        weights["readout"][:, ZIGZAG, token] += sign * half
        weights["readout_bias"][:, token] -= sign * half
    return weights
