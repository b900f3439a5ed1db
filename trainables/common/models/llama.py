"""A decoder-only Transformer of the Llama kind: RMSNorm, rotary positions, SwiGLU, no biases (arXiv:2302.13971)."""

# B batch, T positions, V vocabulary, D width, H heads, K width of a head, F width of the feed-forward layer

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

INITIAL_STD = 0.02
ROTARY_BASE = 10_000.0
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a `Llama`; all counts are at least 1.

    >>> LlamaShape(vocabulary=256, width=64, layers=2, heads=2, ffn_width=176, context=64).parameters
    133440
    """

    vocabulary: int  # tokens the model can read and predict
    width: int  # of the residual stream; a multiple of heads
    layers: int
    heads: int  # width / heads must be even: rotary positions turn pairs of channels
    ffn_width: int  # hidden channels of SwiGLU
    context: int  # longest sequence, in tokens
    tie_embeddings: bool = False  # one matrix for the embedding and the head

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "ffn_width", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width} and heads={self.heads}")
        if self.head_width % 2:
            raise ValueError(
                f"rotary positions need an even width per head, got {self.width} / {self.heads} = {self.head_width}; "
                f"change width or heads"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Trainable numbers, embedding and head included (counted once when tied)."""
        block = 4 * self.width**2 + 3 * self.width * self.ffn_width + 2 * self.width
        embeddings = (1 if self.tie_embeddings else 2) * self.vocabulary * self.width
        return self.layers * block + self.width + embeddings


class Llama(nn.Module):
    """The network: token numbers to logits of the next token.

    The weights are drawn from `generator` alone, on its device and in a fixed order: normal with standard deviation
    0.02, divided by sqrt(2 * layers) for the two matrices of a block that write into the residual stream
    (GPT-2's rule). The global generator is neither read nor moved.

    >>> shape = LlamaShape(vocabulary=256, width=16, layers=1, heads=2, ffn_width=32, context=8)
    >>> model = Llama(shape, torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 8, 256])
    """

    rotary_TK: Tensor
    swapped_rotary_TK: Tensor

    def __init__(self, shape: LlamaShape, generator: torch.Generator) -> None:
        super().__init__()
        device = generator.device
        self.shape = shape
        self.embedding = skip_init(nn.Embedding, shape.vocabulary, shape.width, device=device)
        self.blocks = nn.ModuleList(Block(shape, device) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=NORM_EPSILON, device=device)
        self.head = linear(shape.width, shape.vocabulary, device)
        if shape.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos_TK, sin_TK = rotary_tables(shape.context, shape.head_width, device)
        self.register_buffer("rotary_TK", cos_TK, persistent=False)
        self.register_buffer("swapped_rotary_TK", sin_TK, persistent=False)
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator) -> None:
        residual_std = INITIAL_STD / sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes_residual = name.endswith(("attention_out.weight", "ffn_out.weight"))
                parameter.normal_(std=residual_std if writes_residual else INITIAL_STD, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]; position t sees tokens up to and including t. Refuses more than `context` positions."""
        positions = tokens_BT.shape[1]
        if positions > self.shape.context:
            raise ValueError(f"a sequence has at most context={self.shape.context} tokens, got {positions}")
        cos_TK, sin_TK = self.rotary_TK[:positions], self.swapped_rotary_TK[:positions]
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TK, sin_TK)
        return self.head(self.norm(x_BTD))


class Block(nn.Module):
    """Attention and SwiGLU, each behind its norm and added to the residual stream."""

    def __init__(self, shape: LlamaShape, device: torch.device) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.RMSNorm(shape.width, eps=NORM_EPSILON, device=device)
        self.query_key_value = linear(shape.width, 3 * shape.width, device)
        self.attention_out = linear(shape.width, shape.width, device)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=NORM_EPSILON, device=device)
        self.gate_and_up = linear(shape.width, 2 * shape.ffn_width, device)
        self.ffn_out = linear(shape.ffn_width, shape.width, device)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TK, sin_TK)
        gate_BTF, up_BTF = self.gate_and_up(self.ffn_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.ffn_out(F.silu(gate_BTF) * up_BTF)

    def attention(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        """Causal attention over positions that are rotated into the queries and keys."""
        batch, positions, width = x_BTD.shape
        qkv_BTHK = self.query_key_value(x_BTD).view(batch, positions, 3 * self.heads, width // self.heads)
        qkv_BHTK = qkv_BTHK.transpose(1, 2)
        q_and_k_BHTK, v_BHTK = qkv_BHTK.split((2 * self.heads, self.heads), dim=1)
        q_BHTK, k_BHTK = rotate(q_and_k_BHTK, cos_TK, sin_TK).chunk(2, dim=1)
        mixed_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.attention_out(mixed_BHTK.transpose(1, 2).reshape(batch, positions, width))


def rotary_tables(positions: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each [T, K], of position * 10000^(-2i/K): channel i turns with channel i + K/2.

    The sines of the first half are negative, so that `rotate` needs no negation (arXiv:2104.09864, eq. 34,
    with the pairs laid out as halves).
    """
    frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), 1).float().to(device), torch.cat((-sin, sin), 1).float().to(device)


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each pair of channels by its position's angle; dtype and shape stay."""
    swapped_BHTK = x_BHTK.roll(x_BHTK.shape[-1] // 2, dims=-1)
    return (x_BHTK * cos_TK + swapped_BHTK * sin_TK).type_as(x_BHTK)


def linear(inputs: int, outputs: int, device: torch.device) -> nn.Linear:
    """A matrix without bias whose weights are yet to be drawn."""
    return skip_init(nn.Linear, inputs, outputs, bias=False, device=device)
