"""Floating-point operations of a Llama, counted from its matrix products, and the share of a device's peak."""

from typing import Literal

from trainables.common.models.llama import LlamaShape

Attention = Literal["full", "causal"]

PEAK_FLOPS_PER_SECOND = {
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.4e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "A100": 312e12,
}
"""Dense bf16 on tensor cores, from the data sheets NVIDIA H100, H200 and A100 (those of H100 and H200 print the
figures with sparsity, twice as high). A plain name is the SXM board; of several matches the first counts."""


def forward_flops_per_token(shape: LlamaShape, context: int | None = None, attention: Attention = "full") -> float:
    """FLOPs of one forward pass per token, in sequences of `context` tokens (default: the shape's own).

    A product of a vector with an [a, b] matrix is 2ab. With D width, F feed-forward width, L layers, V vocabulary
    and S positions attended to:

        L * (2 * (4 D^2 + 3 D F) + 4 S D) + 2 V D

    "full" takes S = context, as every query meets every key: what is usually reported (arXiv:2204.02311, appendix B)
    and what torch's counter gives. "causal" takes S = (context + 1) / 2, the mean of what the mask lets through.
    Norms, rotations, SwiGLU's product, softmax and the embedding look-up are not counted.

    >>> shape = LlamaShape(vocabulary=256, width=64, layers=2, heads=2, ffn_width=160, context=64)
    >>> forward_flops_per_token(shape)
    253952.0
    """
    context = shape.context if context is None else context
    seen = context if attention == "full" else (context + 1) / 2
    matrices = 4 * shape.width**2 + 3 * shape.width * shape.ffn_width
    return float(shape.layers * (2 * matrices + 4 * seen * shape.width) + 2 * shape.vocabulary * shape.width)


def training_flops_per_token(shape: LlamaShape, context: int | None = None, attention: Attention = "full") -> float:
    """FLOPs of one training step per token: forward, and twice as much backward.

    Each product y = xW is met again as the gradient of x and the gradient of W. What a kernel computes a second time
    (flash attention's scores, activation checkpoints) is no work of the model and is left out.
    """
    return 3 * forward_flops_per_token(shape, context, attention)


def peak_flops_per_second(device_name: str) -> float | None:
    """Dense bf16 peak of a device by the name that `torch.cuda.get_device_name` gives; None when it is not listed.

    >>> peak_flops_per_second("NVIDIA H100 80GB HBM3")
    989400000000000.0
    """
    for name, peak in PEAK_FLOPS_PER_SECOND.items():
        if all(word in device_name for word in name.split()):
            return peak
    return None


def model_flops_utilization(tokens_per_second: float, flops_per_token: float, device_name: str) -> float | None:
    """Share of the device's peak, in [0, 1]; None for a device that is not in the table.

    >>> round(model_flops_utilization(400_000, 8.5e8, "NVIDIA H100 80GB HBM3"), 3)
    0.344
    """
    peak = peak_flops_per_second(device_name)
    return None if peak is None else tokens_per_second * flops_per_token / peak
