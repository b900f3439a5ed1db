"""Optimizers: AdamW as language models use it, or a user's own by import path."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from trainables.common import imports

Settings = Mapping[str, float]
UNDECAYED = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.1,
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) with two groups: matrices, which decay, then norms, embeddings and biases, which do not.

    A head that is tied to the embedding does not decay either. `fused` None: one kernel for all parameters where torch
    has one (CPU and CUDA). Fused and unfused differ in the last bits, so a fork keeps to one of them.
    """
    undecayed = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, UNDECAYED) or name.endswith("bias") or parameter.dim() < 2
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if fused is None:
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    groups = [
        {
            "params": [parameter for parameter in trained if id(parameter) not in undecayed],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in trained if id(parameter) in undecayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=epsilon, fused=fused)


def _adamw(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    return adamw(model, **dict(settings))  # type: ignore[arg-type]


OPTIMIZERS: dict[str, Callable[[nn.Module, Settings], torch.optim.Optimizer]] = {"adamw": _adamw}


def make_optimizer(name: str, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer of that name, or of the function at import path "package.module:function".

    The function is given the model and the settings (numbers by name: learning_rate, beta1, beta2, epsilon,
    weight_decay) and returns a `torch.optim.Optimizer` whose groups have a learning rate under "lr". Raises ValueError
    for an unknown name or path and TypeError when something else comes back.
    """
    if name not in OPTIMIZERS and ":" not in name:
        raise ValueError(f"no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}, or 'package.module:function'")
    optimizer = (OPTIMIZERS[name] if name in OPTIMIZERS else imports.load(name))(model, settings)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{name} must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer
