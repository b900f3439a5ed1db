"""How spread attention is: the normalised entropy of its rows, 0 for one position and 1 for all alike. T positions."""

import torch


def normalised_entropy(attention: torch.Tensor) -> torch.Tensor:
    """Entropy of each causal row t >= 1 over log(t + 1), its largest value: [..., T, T] to [..., T - 1].

    H_t = - sum_{s <= t} a_ts ln a_ts / ln(t + 1)   (arXiv:2410.05459)

    Row 0 sees one position and has no entropy to speak of, so it is left out: place t - 1 of the result is row t.
    Computed in float32 at least: the logarithm of a small probability is lost in bfloat16.

    >>> normalised_entropy(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    tensor([1., 0.])
    """
    length = attention.shape[-1]
    if attention.ndim < 2 or attention.shape[-2] != length or length < 2:
        raise ValueError(f"attention must be [..., T, T] with T at least 2, got shape {list(attention.shape)}")
    probabilities = attention.to(torch.promote_types(attention.dtype, torch.float32))[..., 1:, :]
    # Masked positions are exactly 0: a floor under the logarithm keeps their gradient finite, and 0 ln 0 at 0.
    floor = torch.finfo(probabilities.dtype).tiny
    entropy = (probabilities * -probabilities.clamp_min(floor).log()).sum(-1)
    most = torch.arange(2, length + 1, device=attention.device, dtype=probabilities.dtype).log()
    return entropy / most
