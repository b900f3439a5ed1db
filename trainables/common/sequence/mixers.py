"""What lets positions of a sequence see each other: causal attention, GRU, LSTM, a selective state space.

Each is a function of its weights in lanes, of inputs x_PBTD, and of the memory of the positions before, which it
returns with that of its own positions: reading a text at once, in parts or token by token gives the same.
"""

# P lanes, B rows, T positions, D width, H heads, E = D / H, S states per channel, K kernel of the convolution

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from trainables.common.lanes import Lanes
from trainables.common.sequence import selective_scan

if TYPE_CHECKING:
    from trainables.common.sequence.network import Architecture

KERNEL = 4  # positions that a state space's convolution sees, as in Mamba (arXiv:2312.00752)
ROTARY_BASE = 10_000.0


class Mixed(NamedTuple):
    """A mixer's outputs [P, B, T, D] and what it carries on to later positions."""

    outputs: torch.Tensor
    memory: Lanes


@dataclass(frozen=True)
class Mixer:
    """mix: (net, weights, x_PBTD, memory of earlier positions, maps) -> Mixed.

    shapes: net -> the weights of one lane; `_bias` names biases, `out` the map back into the residual stream.
    state: (net, positions) -> numbers that are carried past `positions` positions.
    """

    mix: "Callable[[Architecture, Lanes, torch.Tensor, Lanes, list[torch.Tensor] | None], Mixed]"
    shapes: "Callable[[Architecture], dict[str, tuple[int, ...]]]"
    state: "Callable[[Architecture, int], int]"


def linear(x_PBTI: torch.Tensor, weights: Lanes, name: str) -> torch.Tensor:
    """x W + b with each lane's own W [P, I, O] and, where there is one, b [P, O]; shape [P, B, T, O]."""
    flat = x_PBTI.flatten(1, -2)
    bias = weights.get(f"{name}_bias")
    out = torch.bmm(flat, weights[name]) if bias is None else torch.baddbmm(bias[:, None], flat, weights[name])
    return out.view(*x_PBTI.shape[:-1], out.shape[-1])


def _attention_shapes(net: "Architecture") -> dict[str, tuple[int, ...]]:
    return net.with_bias({name: (net.width, net.width) for name in ("query", "key", "value", "out")})


def attention(
    net: "Architecture", weights: Lanes, x_PBTD: torch.Tensor, memory: Lanes, maps: list[torch.Tensor] | None
) -> Mixed:
    """Causal softmax attention; its probabilities [P, B, H, T, past + T] are appended to `maps`."""
    query, key, value = (
        linear(x_PBTD, weights, name).unflatten(-1, (net.heads, -1)).transpose(2, 3)  # [P, B, H, T, E]
        for name in ("query", "key", "value")
    )
    past = memory["key"].shape[3] if memory else 0
    if net.positions == "rotary":
        query, key = rotated(query, past), rotated(key, past)
    if memory:
        key, value = torch.cat([memory["key"], key], 3), torch.cat([memory["value"], value], 3)
    queries, keys, values = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    positions, seen = query.shape[3], key.shape[3]
    if maps is None and (past == 0 or positions == 1):
        read = F.scaled_dot_product_attention(queries, keys, values, is_causal=positions > 1)
    else:
        scores = queries @ keys.mT * (query.shape[-1] ** -0.5)
        later = torch.ones(positions, seen, dtype=torch.bool, device=x_PBTD.device).triu(past + 1)
        probabilities = scores.masked_fill(later, -torch.inf).softmax(-1)
        read = probabilities @ values
        if maps is not None:
            maps.append(probabilities.unflatten(0, x_PBTD.shape[:2]))
    read_PBTD = read.unflatten(0, x_PBTD.shape[:2]).transpose(2, 3).flatten(-2)
    return Mixed(linear(read_PBTD, weights, "out"), {"key": key, "value": value})


def rotated(x_PBHTE: torch.Tensor, past: int) -> torch.Tensor:
    """Rotary positions (arXiv:2104.09864): the pair (e, e + E/2) turned by t * base^(-2 e / E)."""
    half = x_PBHTE.shape[-1] // 2
    place = torch.arange(half, dtype=torch.float32, device=x_PBHTE.device)
    time = torch.arange(past, past + x_PBHTE.shape[-2], dtype=torch.float32, device=x_PBHTE.device)
    angle = time[:, None] * ROTARY_BASE ** (-place / half)
    cosine, sine = angle.cos().to(x_PBHTE.dtype), angle.sin().to(x_PBHTE.dtype)
    first, second = x_PBHTE[..., :half], x_PBHTE[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _gated_shapes(gates: int) -> "Callable[[Architecture], dict[str, tuple[int, ...]]]":
    def shapes(net: "Architecture") -> dict[str, tuple[int, ...]]:
        wide = (net.width, gates * net.width)
        return {"input": wide, "input_bias": wide[1:], "recurrent": wide, "recurrent_bias": wide[1:]}

    return shapes


def _unrolled(
    weights: Lanes, x_PBTD: torch.Tensor, memory: Lanes, names: tuple[str, ...], step: Callable[..., Lanes]
) -> Mixed:
    """A recurrent net position by position; what its inputs alone decide is computed for all positions at once."""
    from_inputs = linear(x_PBTD, weights, "input")
    bias = weights["recurrent_bias"][:, None]
    zero = torch.zeros_like(x_PBTD[:, :, 0])
    memory = memory or dict.fromkeys(names, zero)
    outputs = []
    for now in from_inputs.unbind(2):
        memory = step(now, torch.baddbmm(bias, memory["hidden"], weights["recurrent"]), memory)
        outputs.append(memory["hidden"])
    return Mixed(torch.stack(outputs, 2), memory)


def gru(
    net: "Architecture", weights: Lanes, x_PBTD: torch.Tensor, memory: Lanes, maps: list[torch.Tensor] | None
) -> Mixed:
    """Gated recurrent unit (arXiv:1406.1078), in the form and gate order of torch.nn.GRU."""

    def step(now: torch.Tensor, recurrent: torch.Tensor, memory: Lanes) -> Lanes:
        reset_now, update_now, new_now = now.chunk(3, -1)
        reset_then, update_then, new_then = recurrent.chunk(3, -1)
        update = torch.sigmoid(update_now + update_then)
        new = torch.tanh(torch.addcmul(new_now, torch.sigmoid(reset_now + reset_then), new_then))
        return {"hidden": torch.lerp(new, memory["hidden"], update)}

    return _unrolled(weights, x_PBTD, memory, ("hidden",), step)


def lstm(
    net: "Architecture", weights: Lanes, x_PBTD: torch.Tensor, memory: Lanes, maps: list[torch.Tensor] | None
) -> Mixed:
    """Long short-term memory (Hochreiter and Schmidhuber 1997), in the form and gate order of torch.nn.LSTM."""

    def step(now: torch.Tensor, recurrent: torch.Tensor, memory: Lanes) -> Lanes:
        enter, forget, new, show = (now + recurrent).chunk(4, -1)
        cell = torch.sigmoid(forget) * memory["cell"] + torch.sigmoid(enter) * torch.tanh(new)
        return {"hidden": torch.sigmoid(show) * torch.tanh(cell), "cell": cell}

    return _unrolled(weights, x_PBTD, memory, ("hidden", "cell"), step)


def _ssm_shapes(net: "Architecture") -> dict[str, tuple[int, ...]]:
    width, state = net.width, net.state
    return {
        "input": (width, 2 * width),
        "kernel": (width, KERNEL),
        "kernel_bias": (width,),
        "pace": (width, width),
        "pace_bias": (width,),
        "write_read": (width, 2 * state),
        "log_decay": (width, state),
        "skip": (width,),
        "out": (width, width),
    }


def ssm(
    net: "Architecture", weights: Lanes, x_PBTD: torch.Tensor, memory: Lanes, maps: list[torch.Tensor] | None
) -> Mixed:
    """A selective state space, the core of Mamba (arXiv:2312.00752, algorithm 2), gated, after a short convolution.

    Channel d has S states: h_t = exp(-pace_t exp(log_decay)) h_{t-1} + pace_t write_t u_t; it shows read_t . h_t.
    """
    inputs, gate = linear(x_PBTD, weights, "input").chunk(2, -1)
    recent = memory["recent"] if memory else torch.zeros_like(inputs[:, :, :1]).repeat(1, 1, KERNEL - 1, 1)
    window = torch.cat([recent, inputs], 2)
    seen = window.unfold(2, KERNEL, 1)  # [P, B, T, D, K]
    channels = F.silu((seen * weights["kernel"][:, None, None]).sum(-1) + weights["kernel_bias"][:, None, None])
    pace = F.softplus(linear(channels, weights, "pace"))
    write, read = linear(channels, weights, "write_read").chunk(2, -1)
    shown, states = selective_scan.selective_scan(
        channels, pace, -weights["log_decay"].exp(), write, read, memory.get("states")
    )
    outputs = (shown + weights["skip"][:, None, None] * channels) * F.silu(gate)
    return Mixed(linear(outputs, weights, "out"), {"recent": window[:, :, 1 - KERNEL :], "states": states})


MIXERS: Mapping[str, Mixer] = {
    "attention": Mixer(attention, _attention_shapes, lambda net, positions: 2 * net.width * positions),
    "gru": Mixer(gru, _gated_shapes(3), lambda net, positions: net.width),
    "lstm": Mixer(lstm, _gated_shapes(4), lambda net, positions: 2 * net.width),
    "ssm": Mixer(ssm, _ssm_shapes, lambda net, positions: net.width * (net.state + KERNEL - 1)),
}
