"""The FLOPs formula is compared with torch's counter, which reads the shapes of the products really made."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainables.common import flops
from trainables.common.models.llama import Llama, LlamaShape

SHAPE = LlamaShape(vocabulary=50, width=24, layers=3, heads=2, ffn_width=40, context=16)


@pytest.mark.parametrize("positions", [16, 7])
def test_formula_equals_the_counter(positions):
    # The counter has no rule for the CPU's flash attention (it counts 0); written out, attention is two products.
    model = Llama(SHAPE, torch.Generator().manual_seed(0))
    tokens_BT = torch.zeros(4, positions, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits_BTV = model(tokens_BT)
        with FlopCounterMode(display=False) as backward:
            F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten()).backward()
    assert flops.forward_flops_per_token(SHAPE, positions) * 4 * positions == forward.get_total_flops()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert flops.training_flops_per_token(SHAPE, positions) * 4 * positions == both


def test_causal_attention_counts_the_pairs_that_the_mask_lets_through():
    no_attention = flops.forward_flops_per_token(SHAPE, context=0)
    pairs = sum(1 for query in range(16) for key in range(16) if key <= query)
    expected = no_attention + SHAPE.layers * pairs * 2 * 2 * SHAPE.width / 16  # two products of `width` channels
    assert flops.forward_flops_per_token(SHAPE, attention="causal") == expected


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
    ],
)
def test_utilization_is_one_at_the_peak(name, teraflops):
    assert flops.model_flops_utilization(1e6, teraflops * 1e6, name) == pytest.approx(1)


def test_an_unlisted_device_has_no_utilization():
    assert flops.model_flops_utilization(1.0, 1.0, "cpu") is None
