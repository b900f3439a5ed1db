"""A causal sequence model as a function of weights in lanes: blocks of a mixer and an MLP on a residual stream.

A Transformer has attention in every block, a recurrent net a GRU, an LSTM or a state space, a hybrid some of each.
"""

# P lanes, B rows, T positions, D width, H heads, V vocabulary, F features

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log, prod
from typing import Literal

import torch
import torch.nn.functional as F

from trainables.common.lanes import Lanes
from trainables.common.sequence.mixers import MIXERS, linear
from trainables.common.streams import Streams

Drop = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """A net's kind and sizes. `initial` draws its weights, `logits` is its forward pass."""

    vocabulary: int  # V: tokens that are predicted, and read unless `features` are
    length: int  # most positions T of a row
    width: int = 64  # D: of the residual stream
    mixers: tuple[str, ...] = ("attention",)  # one block each: attention, gru, lstm, ssm
    heads: int = 1  # of each attention; divides width
    hidden: int | None = None  # units of each block's MLP; None: 4 * width; 0: no MLP
    positions: Literal["learned", "linear", "rotary", "none"] = "learned"  # linear: t / length times a learned vector
    norm: bool = True  # layer norms before each part and before the readout
    embedding: Literal["learned", "tied", "sinusoidal"] = "learned"  # the latter two are the readout too
    features: int | None = None  # F: inputs are vectors of this size instead of tokens
    state: int = 16  # S: states per channel of an ssm
    bias: bool = True  # of attention, MLPs and readout
    spread: float | None = None  # std of first matrices and embeddings (0.02 in GPT-2); None: torch's defaults
    dropout: float = 0.0  # of embeddings and of each part's outputs, in [0, 1)

    def __post_init__(self) -> None:
        unknown = [mixer for mixer in self.mixers if mixer not in MIXERS]
        if unknown or not self.mixers:
            raise ValueError(f"a net needs mixers out of {', '.join(MIXERS)}, got {list(self.mixers)}")
        if min(self.vocabulary, self.length, self.width, self.heads, self.state) < 1 or self.width % self.heads:
            raise ValueError(
                "vocabulary, length, width, heads and state must be at least 1 and heads divide width, got "
                f"{self.vocabulary}, {self.length}, {self.width}, {self.heads}, {self.state}"
            )
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(f"rotary positions need an even width per head, got {self.width} / {self.heads}")
        if self.embedding == "sinusoidal" and self.width % 2:
            raise ValueError(f"a sinusoidal embedding needs an even width, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def with_bias(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The same matrices with a bias each, where this net has biases."""
        biases = {f"{name}_bias": (shape[-1],) for name, shape in shapes.items()} if self.bias else {}
        return shapes | biases

    @property
    def units(self) -> int:
        """Hidden units of each MLP."""
        return 4 * self.width if self.hidden is None else self.hidden

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of one lane by name."""
        width = self.width
        found: dict[str, tuple[int, ...]] = {}
        if self.features is not None:
            found["input"] = (self.features, width)
        if self.embedding != "sinusoidal" and (self.features is None or self.embedding == "tied"):
            found["embedding"] = (self.vocabulary, width)
        if self.positions in ("learned", "linear"):
            found["position"] = (self.length if self.positions == "learned" else 1, width)
        for at, mixer in enumerate(self.mixers):
            parts = {f"mixer.{name}": shape for name, shape in MIXERS[mixer].shapes(self).items()}
            if self.units:
                parts |= self.with_bias({"mlp.in": (width, self.units), "mlp.out": (self.units, width)})
            if self.norm:
                for part in ("mixer", "mlp") if self.units else ("mixer",):
                    parts |= {f"{part}_norm.gain": (width,), f"{part}_norm.shift": (width,)}
            found |= {f"block{at}.{name}": shape for name, shape in parts.items()}
        if self.norm:
            found |= {"norm.gain": (width,), "norm.shift": (width,)}
        if self.embedding == "learned":
            found |= self.with_bias({"readout": (width, self.vocabulary)})
        return found

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def state_numbers(self, positions: int) -> int:
        """Numbers that are carried past `positions` positions: constant for recurrent mixers, a cache for attention."""
        return sum(MIXERS[mixer].state(self, positions) for mixer in self.mixers)

    def state_bits(self, positions: int, bits: int = 32) -> int:
        """The same in bits of the numbers' own format."""
        return bits * self.state_numbers(positions)

    def flops(self, positions: int) -> float:
        """FLOPs of a forward pass over one row: 2 per weight of a matrix, and attention's two products."""
        matrices = [shape for name, shape in self.shapes.items() if len(shape) == 2 and name not in _LOOKED_UP]
        readout = 0 if self.embedding == "learned" else self.vocabulary * self.width
        scans = sum(mixer == "ssm" for mixer in self.mixers) * 6 * self.width * self.state * positions
        attentions = sum(mixer == "attention" for mixer in self.mixers)
        # a causal query sees (T + 1) / 2 positions on average, once to score and once to read
        return (
            2.0 * positions * (sum(map(prod, matrices)) + readout)
            + scans
            + attentions * 2.0 * positions * (positions + 1) * self.width
        )


_LOOKED_UP = ("embedding", "position")
_ONES = ("gain", "skip")
_ZEROS = ("shift",)


def initial(net: Architecture, seeds: Sequence[int], device: torch.device | str = "cpu") -> Lanes:
    """First weights of every lane, [P, ...].

    Without `spread` U(-1, 1)/sqrt(fan in) and embeddings N(0, 1), torch's defaults; with it N(0, spread^2), outputs
    into the residual stream divided by sqrt(2 blocks), and biases 0, as GPT-2. State spaces as Mamba: decays -1 .. -S,
    paces log-uniform in [0.001, 0.1].
    """
    weights: Lanes = {}
    for name, shape in net.shapes.items():
        stream, last = Streams(seeds, f"weight {name}", device), name.rsplit(".", 1)[-1]
        if last in _ONES or last in _ZEROS:
            weights[name] = torch.full((len(seeds), *shape), float(last in _ONES), device=device)
        elif last == "log_decay":
            rates = torch.arange(1, shape[-1] + 1, dtype=torch.float32, device=device).log()
            weights[name] = rates.expand(len(seeds), *shape).clone()
        elif last == "pace_bias":
            pace = torch.exp(stream.uniform(0, *shape) * log(100) + log(1e-3))
            weights[name] = pace + torch.log(-torch.expm1(-pace))  # softplus takes it back
        elif net.spread is not None and last.endswith("_bias"):
            weights[name] = torch.zeros(len(seeds), *shape, device=device)
        elif net.spread is not None:
            scale = net.spread / (2 * len(net.mixers)) ** 0.5 if last == "out" else net.spread
            weights[name] = scale * stream.normal(0, *shape)
        elif name in _LOOKED_UP:
            weights[name] = stream.normal(0, *shape)
        else:
            weights[name] = (2 * stream.uniform(0, *shape) - 1) * _fan_in(net, name) ** -0.5
    return weights


def _fan_in(net: Architecture, name: str) -> int:
    shape = net.shapes[name.removesuffix("_bias")]
    return shape[-1] if name.rsplit(".", 1)[-1].startswith("kernel") else shape[0]


def sinusoidal(vocabulary: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Fixed vectors of token ids, [V, D]: the sines and cosines of arXiv:1706.03762, with the id for the position."""
    half = width // 2
    rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float32, device=device) / half)
    angle = torch.arange(vocabulary, dtype=torch.float32, device=device)[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], 1)


def of_part(weights: Lanes, part: str) -> Lanes:
    """The weights whose names start with `part`, under the rest of their names."""
    return {name[len(part) + 1 :]: value for name, value in weights.items() if name.startswith(f"{part}.")}


def normed(net: Architecture, weights: Lanes, part: str, x_PBTD: torch.Tensor) -> torch.Tensor:
    """Layer norm with each lane's own gain and shift; x itself in a net without norms."""
    if not net.norm:
        return x_PBTD
    gain, shift = weights[f"{part}.gain"][:, None, None], weights[f"{part}.shift"][:, None, None]
    return torch.addcmul(shift, F.layer_norm(x_PBTD, (net.width,)), gain)


def embedded(net: Architecture, weights: Lanes, inputs: torch.Tensor, past: int = 0) -> torch.Tensor:
    """Tokens [P, B, T] or features [P, B, T, F] as vectors of the residual stream, with their positions."""
    if past + inputs.shape[2] > net.length:
        raise ValueError(f"a row has {past + inputs.shape[2]} positions, more than the net's length {net.length}")
    if net.features is not None:
        x_PBTD = linear(inputs, weights, "input")
    elif net.embedding == "sinusoidal":
        x_PBTD = F.embedding(inputs, sinusoidal(net.vocabulary, net.width, inputs.device))
        x_PBTD = x_PBTD.to(next(iter(weights.values())).dtype)
    else:
        lane = torch.arange(inputs.shape[0], device=inputs.device)[:, None, None] * net.vocabulary
        x_PBTD = F.embedding(inputs + lane, weights["embedding"].flatten(0, 1))
    if net.positions == "learned":
        x_PBTD = x_PBTD + weights["position"][:, None, past : past + inputs.shape[2]]
    elif net.positions == "linear":
        time = torch.arange(past, past + inputs.shape[2], device=inputs.device) / net.length
        x_PBTD = x_PBTD + time[:, None].to(x_PBTD.dtype) * weights["position"][:, None]
    return x_PBTD


def blocks(
    net: Architecture,
    weights: Lanes,
    x_PBTD: torch.Tensor,
    memories: list[Lanes] | None = None,
    maps: list[torch.Tensor] | None = None,
    drop: Drop | None = None,
) -> torch.Tensor:
    """The residual stream after all blocks; `memories` (one per block) are read and replaced, `maps` are added to."""
    dropped = drop or (lambda x: x)
    x_PBTD = dropped(x_PBTD)
    for at, name in enumerate(net.mixers):
        block = of_part(weights, f"block{at}")
        inputs = normed(net, block, "mixer_norm", x_PBTD)
        memory = memories[at] if memories is not None else {}
        outputs, memory = MIXERS[name].mix(net, of_part(block, "mixer"), inputs, memory, maps)
        if memories is not None:
            memories[at] = memory
        x_PBTD = x_PBTD + dropped(outputs)
        if net.units:
            inside = F.gelu(linear(normed(net, block, "mlp_norm", x_PBTD), of_part(block, "mlp"), "in"))
            x_PBTD = x_PBTD + dropped(linear(inside, of_part(block, "mlp"), "out"))
    return x_PBTD


def read_out(net: Architecture, weights: Lanes, x_PBTD: torch.Tensor) -> torch.Tensor:
    """Logits [P, B, T, V] of the residual stream."""
    x_PBTD = normed(net, weights, "norm", x_PBTD)
    if net.embedding == "learned":
        return linear(x_PBTD, weights, "readout")
    if net.embedding == "tied":
        return linear(x_PBTD, {"readout": weights["embedding"].mT}, "readout")
    return x_PBTD @ sinusoidal(net.vocabulary, net.width, x_PBTD.device).to(x_PBTD.dtype).mT


def logits(
    net: Architecture,
    weights: Lanes,
    inputs: torch.Tensor,
    maps: list[torch.Tensor] | None = None,
    drop: Drop | None = None,
) -> torch.Tensor:
    """What is predicted after each position, [P, B, T, V], of tokens [P, B, T] or features [P, B, T, F].

    `maps`: a list that receives the attention probabilities [P, B, H, T, T] of each attention block. `drop`: see
    `dropout`; None: nothing is dropped.
    """
    return read_out(net, weights, blocks(net, weights, embedded(net, weights, inputs), None, maps, drop))


def dropout(net: Architecture, streams: Streams, counter: int | torch.Tensor) -> Drop | None:
    """Inverted dropout whose masks are each lane's own, as `drop` of one forward pass; None where the rate is 0."""
    if net.dropout == 0:
        return None
    sites = 0

    def drop(x_PBTD: torch.Tensor) -> torch.Tensor:
        nonlocal sites
        sites += 1
        kept = streams.uniform(counter * 1024 + sites, *x_PBTD.shape[1:]) >= net.dropout
        return x_PBTD * kept / (1 - net.dropout)

    return drop


class Decoder:
    """Reads rows of tokens in parts of any length and remembers: generation is one `read` of one token per step."""

    def __init__(self, net: Architecture, weights: Lanes):
        self.net, self.weights = net, weights
        self.memories: list[Lanes] = [{} for _ in net.mixers]
        self.past = 0

    @torch.no_grad()
    def read(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [P, B, V] after the last of `inputs` [P, B, T] (or features [P, B, T, F])."""
        x_PBTD = embedded(self.net, self.weights, inputs, self.past)
        self.past += inputs.shape[2]
        x_PBTD = blocks(self.net, self.weights, x_PBTD, self.memories)
        return read_out(self.net, self.weights, x_PBTD[:, :, -1:])[:, :, 0]
