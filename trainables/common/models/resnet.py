"""Residual networks for small images, with or without normalisation (arXiv:1512.03385, section 4.2).

    3x3 stem, stages of widths w, 2w, 4w, ... whose first block halves the image (not in the first), mean, linear.

    block: relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))

Without normalisation each residual branch starts at zero, as in Fixup (arXiv:1901.09321, section 3), and the
convolutions have biases.
"""

# B images, C channels, H height, W width, K classes

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import gcd, sqrt
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

Norm = Literal["none", "batch", "group"]
MOST_GROUPS = 32  # of group norm (arXiv:1803.08494, section 3); fewer where groups would be unequal or of one channel


class ResNet(nn.Module):
    """The network: images to logits.

    Weights are drawn from `generator` alone, on its device and in a fixed order: convolutions normal with variance
    2 / fan-in (arXiv:1502.01852), the head uniform within 1 / sqrt(fan-in). With norm "none", of L residual branches,
    each branch's first convolution is divided by sqrt(L) and its last is zero, and so is the head (Fixup, without its
    scalar multipliers). The global generator is neither read nor moved.

    >>> model = ResNet(1, 10, width=4, blocks=(1, 1), generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int,
        blocks: Sequence[int] = (2, 2, 2, 2),
        norm: Norm = "none",
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_shape(channels, classes, width, blocks, norm)
        device = generator.device
        self.norm = norm
        self.stem = convolution(channels, width, 3, 1, norm, device)
        self.stem_norm = normalisation(norm, width, device)
        stages: list[Block] = []
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            for number in range(count):
                stages.append(Block(before, after, 2 if stage > 0 and number == 0 else 1, norm, device))
                before = after
        self.blocks = nn.ModuleList(stages)
        self.head = skip_init(nn.Linear, before, classes, device=device)
        self._draw(generator)

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        branches = len(self.blocks)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                shrink = sqrt(branches) if self.norm == "none" and name.endswith(".first") else 1.0
                module.weight.normal_(0.0, sqrt(2 / fan_in) / shrink, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
                if self.norm == "none" and name.endswith(".last"):
                    module.weight.zero_()
        reach = 0.0 if self.norm == "none" else 1 / sqrt(self.head.in_features)
        self.head.weight.uniform_(-reach, reach, generator=generator)
        self.head.bias.uniform_(-reach, reach, generator=generator)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        # Always channels first: in channels last (which images of one channel may look like) torch 2.13's backward pass
        # on CPU writes beyond its memory in some 1x1 convolutions of few channels.
        images_BCHW = images_BCHW.clone(memory_format=torch.contiguous_format)
        hidden_BCHW = F.relu(self.stem_norm(self.stem(images_BCHW)))
        for block in self.blocks:
            hidden_BCHW = block(hidden_BCHW)
        logits_BK: Tensor = self.head(hidden_BCHW.mean((2, 3)))
        return logits_BK


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm, device: torch.device) -> None:
        super().__init__()
        self.first = convolution(before, after, 3, stride, norm, device)
        self.first_norm = normalisation(norm, after, device)
        self.last = convolution(after, after, 3, 1, norm, device)
        self.last_norm = normalisation(norm, after, device)
        self.shortcut: nn.Module = nn.Identity()
        self.shortcut_norm: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = convolution(before, after, 1, stride, norm, device)
            self.shortcut_norm = normalisation(norm, after, device)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        branch_BCHW = F.relu(self.first_norm(self.first(hidden_BCHW)))
        branch_BCHW = self.last_norm(self.last(branch_BCHW))
        return F.relu(self.shortcut_norm(self.shortcut(hidden_BCHW)) + branch_BCHW)


def convolution(before: int, after: int, size: int, stride: int, norm: Norm, device: torch.device) -> nn.Conv2d:
    """A convolution that keeps the image's size at stride 1; a norm that follows would take its bias away."""
    settings = {"stride": stride, "padding": size // 2, "bias": norm == "none"}
    return skip_init(nn.Conv2d, before, after, size, **settings, device=device)


NORMS: dict[str, Callable[[int, torch.device], nn.Module]] = {
    "none": lambda channels, device: nn.Identity(),
    "batch": lambda channels, device: nn.BatchNorm2d(channels, device=device),
    "group": lambda channels, device: nn.GroupNorm(gcd(MOST_GROUPS, channels // 2, channels), channels, device=device),
}


def normalisation(norm: str, channels: int, device: torch.device) -> nn.Module:
    return NORMS[norm](channels, device)


def check_shape(channels: int, classes: int, width: int, blocks: Sequence[int], norm: str) -> None:
    """Raises ValueError for what no `ResNet` has."""
    if norm not in NORMS:
        raise ValueError(f"no norm {norm!r}; there are {', '.join(get_args(Norm))}")
    for name, value in (("channels", channels), ("classes", classes), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks needs at least one stage of at least one block, got {list(blocks)}; say (2, 2, 2)")


@contextmanager
def _unmoved(norm: nn.modules.batchnorm._BatchNorm) -> Iterator[None]:
    norm.track_running_stats = False
    try:
        yield
    finally:
        norm.track_running_stats = True


def running_statistics_held(model: nn.Module) -> ExitStack:
    """While inside, training passes leave the running means and variances of batch norms as they are.

    For the second pass of a SAM step, whose statistics belong to weights that no one will use.
    """
    stack = ExitStack()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            stack.enter_context(_unmoved(module))
    return stack


def forward_flops_per_image(
    channels: int, classes: int, width: int, blocks: Sequence[int], height: int, image_width: int
) -> float:
    """Two per multiply-add of the convolutions and the head, for an image of height x image_width pixels.

    Norms, biases, rectifiers and sums are not counted. A training step counts three times as much: forward, and two
    products backward.

    >>> forward_flops_per_image(3, 10, 64, (2, 2, 2, 2), 32, 32) / 2  # multiply-adds of ResNet-18
    555422720.0
    """
    multiply_adds = 9 * channels * width * height * image_width
    before = width
    for stage, count in enumerate(blocks):
        after = width * 2**stage
        if stage > 0:
            height, image_width = -(-height // 2), -(-image_width // 2)
        for _ in range(count):
            pixels = height * image_width
            multiply_adds += pixels * (9 * before * after + 9 * after * after)
            if before != after:
                multiply_adds += pixels * before * after
            before = after
    return 2.0 * (multiply_adds + before * classes)
