"""A bidirectional encoder with a masked-language-model head, of the BERT kind (arXiv:1810.04805).

Its parameters have the names that Hugging Face's transformers give to BertForMaskedLM, so that a state is a model
there. No dropout: what a step does is a function of its weights and its batch.
"""

# B batch, T positions, P masked positions of a row, V vocabulary, D width, F feed-forward width, H heads, K head width

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

INITIAL_STD = 0.02
NORM_EPSILON = 1e-12


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an `Encoder`; all counts are at least 1.

    >>> EncoderShape(vocabulary=100, width=8, layers=1, heads=2, ffn_width=16, context=10).parameters
    1692
    """

    vocabulary: int  # tokens the model can read and predict
    width: int  # of the residual stream; a multiple of heads
    layers: int
    heads: int
    ffn_width: int  # hidden units (neurons) of a feed-forward layer
    context: int  # positions there are

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "ffn_width", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width} and heads={self.heads}")

    @property
    def parameters(self) -> int:
        """Trainable numbers; the embedding is the head's matrix too and counts once."""
        width, hidden = self.width, self.ffn_width
        layer = 4 * (width**2 + width) + 2 * width * hidden + hidden + width + 4 * width
        embeddings = (self.vocabulary + self.context + 1) * width + 2 * width
        head = width**2 + width + 2 * width + self.vocabulary
        return self.layers * layer + embeddings + head

    def training_flops(self, tokens: int, masked: int, rows: int) -> float:
        """FLOPs of a step on `rows` sequences with so many tokens and masked tokens in all: three forward passes.

        A product of a vector with an [a, b] matrix is 2ab: 2 (4 D^2 + 2 D F) + 4 T D per layer and token, and
        2 (D^2 + V D) per masked token, where alone the head is applied.
        """
        matrices = 4 * self.width**2 + 2 * self.width * self.ffn_width
        body = self.layers * (2 * matrices + 4 * tokens / rows * self.width)
        return 3.0 * (tokens * body + masked * 2 * (self.width**2 + self.vocabulary * self.width))

    def for_transformers(self) -> dict[str, object]:
        """The same sizes as Hugging Face's BertConfig calls them."""
        return {
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.ffn_width,
            "max_position_embeddings": self.context,
            "type_vocab_size": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": NORM_EPSILON,
            "initializer_range": INITIAL_STD,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "tie_word_embeddings": True,
        }

    @classmethod
    def from_transformers(cls, config: dict[str, int]) -> "EncoderShape":
        """The shape that a config.json of BertForMaskedLM describes; see `for_transformers`."""
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            ffn_width=config["intermediate_size"],
            context=config["max_position_embeddings"],
        )


class Encoder(nn.Module):
    """Token numbers to logits, at all positions or at some.

    Matrices and embeddings are drawn from `generator` alone, in a fixed order: normal with standard deviation 0.02;
    biases are 0. The global generator is neither read nor moved.

    >>> shape = EncoderShape(vocabulary=50, width=16, layers=1, heads=2, ffn_width=32, context=8)
    >>> model = Encoder(shape, torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 8, 50])
    """

    def __init__(self, shape: EncoderShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.bert = Body(shape)
        self.cls = Output(shape)
        self._draw_weights(generator)

    @torch.no_grad()
    def _draw_weights(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("LayerNorm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=INITIAL_STD, generator=generator)

    def forward(self, tokens_BT: Tensor, at_BP: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or [B, P, V] at positions `at_BP` of each row. Refuses more than `context` positions."""
        if tokens_BT.shape[1] > self.shape.context:
            raise ValueError(f"a sequence has at most context={self.shape.context} tokens, got {tokens_BT.shape[1]}")
        x_BTD = self.bert(tokens_BT)
        if at_BP is not None:
            x_BTD = x_BTD.gather(1, at_BP.unsqueeze(2).expand(-1, -1, x_BTD.shape[2]))
        return self.cls.predictions(x_BTD, self.bert.embeddings.word_embeddings.weight)


# The modules below are cut and named as BertForMaskedLM's are, since their names become those of the weights.


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder = Layers(shape)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.encoder(self.embeddings(tokens_BT))


class Embeddings(nn.Module):
    """Token, position and (one) segment embedding, added and normalized."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.word_embeddings = skip_init(nn.Embedding, shape.vocabulary, shape.width)
        self.position_embeddings = skip_init(nn.Embedding, shape.context, shape.width)
        self.token_type_embeddings = skip_init(nn.Embedding, 1, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        positions_TD = self.position_embeddings.weight[: tokens_BT.shape[1]]
        return self.LayerNorm(self.word_embeddings(tokens_BT) + positions_TD + self.token_type_embeddings.weight)


class Layers(nn.Module):
    """The layers, one after the other."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, x_BTD: Tensor) -> Tensor:
        for layer in self.layer:
            x_BTD = layer(x_BTD)
        return x_BTD


class Layer(nn.Module):
    """Attention, then a feed-forward layer; each is added to its input and then normalized."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.intermediate = Dense(shape.width, shape.ffn_width)
        self.output = Added(shape.ffn_width, shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.attention(x_BTD)
        return self.output(F.gelu(self.intermediate.dense(x_BTD)), x_BTD)


class Attention(nn.Module):
    """LayerNorm(x + attention of every position to every position)."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.self = Projections(shape.width)
        self.output = Added(shape.width, shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, positions, width = x_BTD.shape

        def heads(projection: nn.Linear) -> Tensor:
            return projection(x_BTD).view(batch, positions, self.heads, width // self.heads).transpose(1, 2)

        own = self.self
        mixed_BHTK = F.scaled_dot_product_attention(heads(own.query), heads(own.key), heads(own.value))
        return self.output(mixed_BHTK.transpose(1, 2).reshape(batch, positions, width), x_BTD)


class Projections(nn.Module):
    """What makes queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = skip_init(nn.Linear, width, width)
        self.key = skip_init(nn.Linear, width, width)
        self.value = skip_init(nn.Linear, width, width)


class Dense(nn.Module):
    """A matrix and a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = skip_init(nn.Linear, inputs, outputs)


class Added(nn.Module):
    """LayerNorm(x + W y + b)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = skip_init(nn.Linear, inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, y_BTF: Tensor, x_BTD: Tensor) -> Tensor:
        return self.LayerNorm(x_BTD + self.dense(y_BTF))


class Output(nn.Module):
    """Holds the head under its name."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.predictions = Head(shape)


class Head(nn.Module):
    """The logits of a position: one more layer, then the product with every token's embedding."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))
        self.transform = Transform(shape.width)

    def forward(self, x_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        return F.linear(self.transform(x_BTD), embedding_VD, self.bias)


class Transform(nn.Module):
    """LayerNorm(GELU(W x + b))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = skip_init(nn.Linear, width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x_BTD)))
