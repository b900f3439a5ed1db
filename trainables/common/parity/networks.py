"""Networks that learn parities: initial parameters, scores and gradients of many nets at once, one flat vector each.

Raw 0/1 inputs; every linear map carries its bias as its last row, fed by an input of 1.
N nets, T parameters, B samples, D inputs, H hidden units; inputs_NBD have D + 1 columns
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from trainables.common.parity import fused_mlp
from trainables.common.parity.samples import inputs, labels
from trainables.common.streams import Streams

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "cosine": lambda x: (torch.cos(x) + 1) / 2,
}
NETWORKS = ("mlp", "norm_mlp", "sparse_mlp")


@dataclass(frozen=True)
class Architecture:
    """A net of the study: `layers` hidden layers of `width`, one output between 0 and 1.

    norm_mlp normalises each hidden layer before its activation; sparse_mlp keeps a fixed random share of the weights.
    """

    dimension: int
    network: str = "mlp"
    layers: int = 1
    width: int = 128
    activation: str = "relu"
    output: str = "sigmoid"
    loss: str = "bce"

    @property
    def by_hand(self) -> bool:
        """Whether the gradient is written out: a two-layer ReLU net under binary cross-entropy."""
        plain = self.network != "norm_mlp" and self.layers == 1
        return plain and (self.activation, self.output, self.loss) == ("relu", "sigmoid", "bce")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name, in the order of the flat vector.

        >>> Architecture(dimension=10, width=64).shapes
        {'hidden1': (11, 64), 'readout': (65, 1)}
        """
        found: dict[str, tuple[int, ...]] = {}
        for layer in range(1, self.layers + 1):
            found[f"hidden{layer}"] = ((self.dimension if layer == 1 else self.width) + 1, self.width)
            if self.network == "norm_mlp":
                found[f"gain{layer}"] = found[f"shift{layer}"] = (self.width,)
        return found | {"readout": (self.width + 1, 1)}

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat vector [..., T] by name."""
        parts = flat.split([prod(shape) for shape in self.shapes.values()], -1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def initial(net: Architecture, stream: Streams, counter: int) -> torch.Tensor:
    """torch's default for linear layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), per lane: shape [N, T]."""
    flat = 2 * stream.uniform(counter, net.parameters) - 1
    for name, part in net.named(flat).items():
        if name.startswith(("gain", "shift")):
            part.fill_(float(name.startswith("gain")))
        else:
            part.mul_((part.shape[-2] - 1) ** -0.5)
    return flat


def mask(net: Architecture, stream: Streams, counter: int, keep_rates: torch.Tensor) -> torch.Tensor:
    """1 where a parameter takes part, shape [N, T]: a Bernoulli draw per weight; biases always do."""
    kept = (stream.uniform(counter, net.parameters) < keep_rates[:, None]).float()
    for part in net.named(kept).values():
        part[..., -1, :] = 1
    return kept


def score(net: Architecture, flat_T: torch.Tensor, inputs_BD: torch.Tensor) -> torch.Tensor:
    """One net's output before the sigmoid (or its cosine's argument), shape [B]."""
    named, x = net.named(flat_T), inputs_BD
    for layer in range(1, net.layers + 1):
        x = x @ named[f"hidden{layer}"]
        if net.network == "norm_mlp":
            x = F.layer_norm(x, (net.width,), named[f"gain{layer}"], named[f"shift{layer}"])
        x = F.pad(ACTIVATIONS[net.activation](x), (0, 1), value=1.0)
    return (x @ named["readout"]).squeeze(-1)


def output_of(net: Architecture, scores: torch.Tensor) -> torch.Tensor:
    """Chance of label 1, by the sigmoid or by (cos + 1) / 2."""
    return torch.sigmoid(scores) if net.output == "sigmoid" else ACTIVATIONS["cosine"](scores)


def loss(net: Architecture, flat_T: torch.Tensor, inputs_BD: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Mean loss of one net: binary cross-entropy, or the mean distance |output - label|."""
    scores = score(net, flat_T, inputs_BD)
    if net.loss == "l1":
        return (output_of(net, scores) - labels_B).abs().mean()
    if net.output == "sigmoid":
        return F.binary_cross_entropy_with_logits(scores, labels_B)
    return F.binary_cross_entropy(output_of(net, scores).clamp(1e-7, 1 - 1e-7), labels_B)


def gradients(net: Architecture, flat_NT: torch.Tensor, samples_NB: torch.Tensor) -> torch.Tensor:
    """Each net's gradient of its mean loss on its own packed samples, shape [N, T]."""
    if net.by_hand:
        named = net.named(flat_NT)
        both = fused_mlp.gradients(samples_NB, named["hidden1"], named["readout"][..., 0], net.dimension)
        return torch.cat([part.flatten(1) for part in both], 1)
    one = vmap(grad(lambda flat, x, y: loss(net, flat, x, y)))
    parts = []
    for flat, samples in zip(*(t.split(_nets(net, samples_NB)) for t in (flat_NT, samples_NB)), strict=True):
        parts.append(one(flat, inputs(samples, net.dimension), labels(samples).float()))
    return torch.cat(parts)


def predictions(net: Architecture, flat_NT: torch.Tensor, samples_NB: torch.Tensor) -> torch.Tensor:
    """The likelier label of each sample's query, bool, shape [N, B]."""
    nets, rows = [], fused_mlp.rows_at_a_time(net.width, flat_NT.device)
    for flat, samples in zip(*(t.split(_nets(net, samples_NB)) for t in (flat_NT, samples_NB)), strict=True):
        parts = [_scores(net, flat, part) for part in samples.split(rows, 1)]
        nets.append(output_of(net, torch.cat(parts, 1)) > 0.5)
    return torch.cat(nets)


def _scores(net: Architecture, flat_NT: torch.Tensor, samples_NB: torch.Tensor) -> torch.Tensor:
    if net.by_hand:
        named = net.named(flat_NT)
        return fused_mlp.scores(samples_NB, named["hidden1"], named["readout"][..., 0], net.dimension)
    return vmap(lambda flat, x: score(net, flat, x))(flat_NT, inputs(samples_NB, net.dimension))


def _nets(net: Architecture, samples_NB: torch.Tensor) -> int:
    """How many nets to compute at a time, so that their activations stay small."""
    return max(1, fused_mlp.rows_at_a_time(net.width, samples_NB.device) // samples_NB.shape[1])
