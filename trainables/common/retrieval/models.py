"""Transformers, recurrent nets and hybrids of equal size: their blocks at named numbers of parameters.

Width and number of blocks at 0.5M to 2M are those of arXiv:2402.18510, whose Transformers are Llama's and whose
recurrent nets are Mamba; a hybrid is a recurrent net with one block of causal attention at its end. Here the units of
the MLPs make up for what mixers differ in, so that all models of a size have equally many parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args

import torch

from trainables.common.lanes import Lanes
from trainables.common.retrieval.tasks import Task
from trainables.common.sequence.network import Architecture, initial

Model = Literal["transformer", "gru", "lstm", "ssm", "gru_hybrid", "lstm_hybrid", "ssm_hybrid"]
SizeName = Literal["1k", "4k", "16k", "0.1M", "0.5M", "1M", "2M"]
Positions = Literal["rotary", "learned", "none"]
Embedding = Literal["sinusoidal", "tied", "learned"]
HEAD_WIDTH = 16  # of attention, as at the sizes of the paper whose heads are known; narrower nets have one head
MOST_APART = 0.1  # of a model's parameters from its size


@dataclass(frozen=True)
class Size:
    """(width, blocks) of each family; `state` numbers per channel of a state space."""

    parameters: int  # of all blocks: embeddings and readout depend on the task, and are the same in all models
    transformer: tuple[int, int]
    recurrent: tuple[int, int]
    hybrid: tuple[int, int]  # the block of attention comes on top
    state: int = 16


SIZES: dict[SizeName, Size] = {
    "1k": Size(1_000, (8, 1), (8, 1), (8, 1), state=2),
    "4k": Size(4_000, (16, 1), (16, 1), (16, 1), state=4),
    "16k": Size(16_000, (32, 1), (32, 1), (32, 1), state=8),
    "0.1M": Size(100_000, (64, 2), (64, 2), (64, 1)),
    "0.5M": Size(500_000, (64, 8), (64, 16), (64, 12)),
    "1M": Size(1_000_000, (64, 16), (128, 10), (128, 7)),
    "2M": Size(2_000_000, (128, 12), (128, 18), (128, 14)),
}


def is_recurrent(model: Model) -> bool:
    """No attention at all: what it knows of the text is in a state of fixed size."""
    return model in ("gru", "lstm", "ssm")


def architecture(model: Model, size: SizeName, task: Task, positions: Positions, embedding: Embedding) -> Architecture:
    """A net for a task; ValueError where a model cannot have so few parameters."""
    sizes = SIZES[size]
    family = "recurrent" if is_recurrent(model) else "hybrid" if model != "transformer" else "transformer"
    width, blocks = getattr(sizes, family)
    mixer = "attention" if model == "transformer" else model.removesuffix("_hybrid")
    bare = Architecture(
        vocabulary=task.vocabulary,
        length=task.length,
        width=width,
        mixers=(mixer,) * blocks + (("attention",) if family == "hybrid" else ()),
        heads=max(1, width // HEAD_WIDTH),
        hidden=1,
        positions="none" if is_recurrent(model) else positions,
        embedding=embedding,
        features=task.features,
        state=sizes.state,
    )
    first = block_parameters(bare)
    unit = (block_parameters(replace(bare, hidden=2)) - first) or 1
    net = replace(bare, hidden=max(1, 1 + round((sizes.parameters - first) / unit)))
    found = block_parameters(net)
    if abs(found / sizes.parameters - 1) > MOST_APART:
        fitting = [name for name in get_args(SizeName) if SIZES[name].parameters > sizes.parameters]
        raise ValueError(
            f"the blocks of {model} at size={size} have {found:,} parameters at least, over {MOST_APART:.0%} from "
            f"{sizes.parameters:,}; take another model, or one of {', '.join(fitting) or 'the smaller sizes'}"
        )
    return net


def block_parameters(net: Architecture) -> int:
    """Parameters of a net's blocks, without embeddings, the last norm and the readout."""
    return sum(prod(shape) for name, shape in net.shapes.items() if name.startswith("block"))


def initial_weights(
    net: Architecture, seeds: Sequence[int], recurrent_gain: torch.Tensor, device: torch.device | str
) -> Lanes:
    """First weights of every lane, with what recurrent blocks add to the residual stream scaled by about the gain [P].

    Under a small gain attention at the end of a hybrid sees the tokens nearly as they are, as in a Transformer.
    """
    weights = initial(net, seeds, device)
    for at, mixer in enumerate(net.mixers):
        if mixer == "attention":
            continue
        mixed = f"block{at}.mixer.out" if mixer == "ssm" else f"block{at}.mixer."  # gates have no map of their own out
        for name in [name for name in weights if name.startswith((mixed, f"block{at}.mlp.out"))]:
            weights[name] = weights[name] * recurrent_gain.view(-1, *(1,) * (weights[name].ndim - 1))
    return weights
