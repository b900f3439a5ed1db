"""A frozen encoder with what is trained on it: prompt vectors, or its biases (BitFit), or bottleneck adapters.

    prompt: [MASK] p_1 .. p_K text   BitFit and adapters: [MASK] text   (no [MASK] where outputs are averaged)

Scores of the classes are logits of their words at the masked position, or `LOGIT_SCALE` times the cosine between the
encoder's output and what it gives for the class word alone, where it has no head for masked tokens.
"""

# B texts, T positions, P prompt positions (the mask too), F neurons, D width, C classes

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F

from trainables.common.skills.encoders import Encoder
from trainables.common.skills.texts import Batch

Readout = Literal["mask", "first", "mean"]
Tuning = Literal["prompt", "bitfit", "adapter"]
TUNINGS: tuple[Tuning, ...] = ("prompt", "bitfit", "adapter")
PROMPT_SPREAD = 1 / 30  # standard deviation of the prompt vectors at the start
LOGIT_SCALE = 20.0
OnActivations = Callable[[int, torch.Tensor], torch.Tensor | None]


class Adapter(torch.nn.Module):
    """x + U gelu(V x + v) + u behind a feed-forward block; it starts as the identity (arXiv:2005.00247)."""

    def __init__(self, width: int, bottleneck: int, generator: torch.Generator):
        super().__init__()
        self.down = torch.nn.Parameter(torch.randn(bottleneck, width, generator=generator) / width**0.5)
        self.down_bias = torch.nn.Parameter(torch.zeros(bottleneck))
        self.up = torch.nn.Parameter(torch.zeros(width, bottleneck))
        self.up_bias = torch.nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.linear(F.gelu(F.linear(x, self.down, self.down_bias)), self.up, self.up_bias)


class Tuned(torch.nn.Module):
    """Scores [B, C] of texts. Its parameters are what training may change; the encoder's own weights are not among
    them, but for its biases, which are.

    `tuning` says which of them act and train. `watch` sees the activations [B, P + T, F] of each layer's feed-forward
    neurons, after their nonlinearity, and may return others.
    """

    def __init__(
        self,
        encoder: Encoder,
        words: Sequence[str],
        *,
        readout: Readout,
        prompt_length: int,
        adapter_width: int,
        seed: int,
    ):
        super().__init__()
        self._encoder = [encoder]  # in a list, so that its weights are no parameters of this module
        self.readout: Readout = readout
        self.tuning: Tuning = "prompt"
        self.watch: OnActivations | None = None
        self._prompted = True
        device, width = encoder.embeddings.device, encoder.embeddings.shape[1]
        generator = torch.Generator().manual_seed(seed)
        self.prompt = torch.nn.Parameter(PROMPT_SPREAD * torch.randn(prompt_length, width, generator=generator))
        self.biases = torch.nn.ParameterList(
            parameter for name, parameter in encoder.base.named_parameters() if name.endswith("bias")
        )
        self.adapters = torch.nn.ModuleList(Adapter(width, adapter_width, generator) for _ in encoder.blocks)
        self.to(device)
        for at, block in enumerate(encoder.blocks):
            block.intermediate.register_forward_hook(self._on_activations(at))
            block.output.register_forward_hook(self._on_output(at))
        self.class_tokens, self.class_outputs = class_words(self, words)
        self.use("prompt")

    @property
    def encoder(self) -> Encoder:
        return self._encoder[0]

    @property
    def leading(self) -> int:
        """Masked positions in front: none where outputs are averaged."""
        return 0 if self.readout == "mean" else 1

    @property
    def positions(self) -> int:
        """P: positions before the text under a prompt."""
        return self.leading + len(self.prompt)

    def use(self, tuning: Tuning) -> None:
        """Let these parameters act and train. Biases act always; they are the encoder's own until they train."""
        self.tuning = tuning
        parts = {"prompt": [self.prompt], "bitfit": list(self.biases), "adapter": list(self.adapters.parameters())}
        for name, part in parts.items():
            for parameter in part:
                parameter.requires_grad_(name == tuning)

    @contextmanager
    def watching(self, watch: OnActivations | None) -> Iterator[None]:
        before, self.watch = self.watch, watch
        try:
            yield
        finally:
            self.watch = before

    @contextmanager
    def unprompted(self) -> Iterator[None]:
        """The encoder as it comes: no prompt, no adapters."""
        self._prompted = False
        try:
            yield
        finally:
            self._prompted = True

    def forward(self, batch: Batch) -> torch.Tensor:
        encoder, count = self.encoder, len(batch.tokens)
        front = [] if self.readout == "mean" else [encoder.embeddings[encoder.tokenizer.mask_token_id][None]]
        if self._prompted and self.tuning == "prompt":
            front.append(self.prompt)
        inputs, present = encoder.embeddings[batch.tokens], batch.present
        if front:
            leading_PD = torch.cat(front)
            inputs = torch.cat([leading_PD.expand(count, -1, -1), inputs], 1)
            present = torch.cat([present.new_ones(count, len(leading_PD)), present], 1)
        hidden_BTD = encoder.base(inputs_embeds=inputs, attention_mask=present).last_hidden_state
        if self.readout == "mask":
            assert encoder.head is not None
            return encoder.head(hidden_BTD[:, :1])[:, 0, self.class_tokens]
        pooled_BD = hidden_BTD[:, 0] if self.readout == "first" else averaged(hidden_BTD, present)
        return LOGIT_SCALE * F.normalize(pooled_BD, dim=-1) @ self.class_outputs.T

    def _on_activations(self, layer: int) -> Callable[..., torch.Tensor | None]:
        return lambda module, inputs, output: None if self.watch is None else self.watch(layer, output)

    def _on_output(self, layer: int) -> Callable[..., torch.Tensor | None]:
        def adapt(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            return self.adapters[layer](output) if self.tuning == "adapter" and self._prompted else None

        return adapt


def averaged(hidden_BTD: torch.Tensor, present_BT: torch.Tensor) -> torch.Tensor:
    """Mean over the positions that are there."""
    return (hidden_BTD * present_BT[..., None]).sum(1) / present_BT.sum(1, keepdim=True)


def words_of(classes: Sequence[str], verbaliser: str | None) -> list[str]:
    """The words that stand for the classes: those given, or the classes' names (of WordNet's their last part).

    >>> words_of(["noun.person", "noun.artifact"], None), words_of(["negative", "positive"], "bad, good")
    (['person', 'artifact'], ['bad', 'good'])
    """
    if verbaliser is None:
        return [name.rpartition(".")[2] for name in classes]
    return [word.strip() for word in verbaliser.split(",")]


def first_tokens(tokenizer: Any, words: Sequence[str], readout: Readout) -> list[int]:
    """Token of each class word. Raises ValueError where one is unknown, shared, or, under readout=mask, not alone."""
    tokens = []
    for word in words:
        # A space in front, since RoBERTa's tokens inside a sentence begin with it.
        pieces = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        if not pieces or tokenizer.unk_token_id in pieces or (readout == "mask" and len(pieces) > 1):
            raise ValueError(
                f"a class word must be one known token under readout=mask, and known under others, got {word!r}, "
                f"which is {tokenizer.convert_ids_to_tokens(pieces)}; give others by verbaliser=[WORD, ...]"
            )
        tokens.append(pieces[0])
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"class words must differ in their first token, got {list(words)}; see verbaliser=[WORD, ...]")
    return tokens


@torch.no_grad()
def class_words(tuned: Tuned, words: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token of each class word [C], and the encoder's output for the word alone, averaged and of length 1 [C, D].

    Raises ValueError where words are one at the masked position, or none.
    """
    encoder, device = tuned.encoder, tuned.encoder.embeddings.device
    tokens = first_tokens(encoder.tokenizer, words, tuned.readout)
    outputs = []
    for word in words:
        row = torch.tensor([encoder.tokenizer(word)["input_ids"]], device=device)
        present = torch.ones(row.shape, device=device)
        hidden = encoder.base(inputs_embeds=encoder.embeddings[row], attention_mask=present).last_hidden_state
        outputs.append(F.normalize(averaged(hidden, present), dim=-1)[0])
    return torch.tensor(tokens, device=device), torch.stack(outputs)
