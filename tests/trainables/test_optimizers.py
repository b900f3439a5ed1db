"""`adamw` is compared with AdamW's update written out per parameter."""

import sys

import pytest
import torch
from torch import nn

from trainables.common.models.llama import Llama, LlamaShape
from trainables.common.optimizers import adamw, make_optimizer

SHAPE = LlamaShape(vocabulary=11, width=8, layers=1, heads=2, ffn_width=12, context=6)
SETTINGS = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "weight_decay": 0.3}


def llama(tied: bool = False) -> Llama:
    shape = LlamaShape(**{**vars(SHAPE), "tie_embeddings": tied})
    return Llama(shape, torch.Generator().manual_seed(0))


def decays(name: str, tied: bool) -> bool:
    return not ("norm" in name or name.startswith("embedding") or (tied and name.startswith("head")))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_two_steps_equal_the_written_out_update(fused, tied):
    model, reference = llama(tied).double(), llama(tied).double()
    optimizer = adamw(model, **SETTINGS, fused=fused)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in reference.named_parameters()}
    for step in (1, 2):
        for name, parameter in model.named_parameters():
            gradient = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) + step).view_as(parameter)
            parameter.grad = gradient
            with torch.no_grad():
                expected, (mean, square) = reference.get_parameter(name), moments[name]
                expected.mul_(1 - 0.01 * (0.3 if decays(name, tied) else 0))
                mean.copy_(0.8 * mean + 0.2 * gradient)
                square.copy_(0.9 * square + 0.1 * gradient**2)
                unbiased = (square / (1 - 0.9**step)).sqrt() + 1e-6
                expected.sub_(0.01 * mean / (1 - 0.8**step) / unbiased)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=1e-12, atol=1e-12)


def test_biases_and_any_kind_of_norm_do_not_decay():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    decayed, undecayed = adamw(model, **SETTINGS).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[1].weight), id(model[3].weight)]
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.3, 0.0)
    assert len(undecayed["params"]) == 4


def test_an_optimizer_of_ones_own_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "my_optimizers.py").write_text(
        "import torch\n"
        "def sgd(model, settings):\n    return torch.optim.SGD(model.parameters(), lr=settings['learning_rate'])\n"
        "def nothing(model, settings):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    optimizer = make_optimizer("my_optimizers:sgd", llama(), SETTINGS)
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["lr"] == 0.01
    assert isinstance(make_optimizer("adamw", llama(), SETTINGS), torch.optim.AdamW)
    with pytest.raises(TypeError, match=r"must return a torch.optim.Optimizer, got int"):
        make_optimizer("my_optimizers:nothing", llama(), SETTINGS)
    with pytest.raises(ValueError, match="no optimizer 'adam'; there are adamw"):
        make_optimizer("adam", llama(), SETTINGS)
