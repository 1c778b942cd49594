"""The layer kinds that every method meets, one line each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class LayerCase:
    """A module and the shape of one input batch."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def _hf_conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(10, 12)
    nn.init.normal_(layer.bias)
    return layer


LAYER_CASES = [
    LayerCase("linear", lambda: nn.Linear(12, 10), (6, 12)),
    LayerCase("linear-no-bias-tokens", lambda: nn.Linear(9, 14, bias=False), (4, 5, 9)),
    LayerCase("linear-wide", lambda: nn.Linear(24, 6), (5, 24)),
    LayerCase("hf-conv1d", _hf_conv1d, (4, 5, 12)),
    LayerCase("conv1d", lambda: nn.Conv1d(6, 8, 3, padding=1), (3, 6, 9)),
    LayerCase("conv1d-strided-dilated", lambda: nn.Conv1d(6, 8, 3, 2, 2, dilation=2), (3, 6, 11)),
    LayerCase("conv2d", lambda: nn.Conv2d(6, 8, 3, padding=1), (3, 6, 7, 6)),
    LayerCase("conv2d-1x1", lambda: nn.Conv2d(8, 10, 1, bias=False), (3, 8, 5, 4)),
    LayerCase("conv2d-1x1-stride2", lambda: nn.Conv2d(8, 10, 1, stride=2), (3, 8, 5, 4)),
    LayerCase(
        "conv2d-rectangular", lambda: nn.Conv2d(6, 8, (3, 5), (2, 1), (1, 2), bias=False), (2, 6, 8, 9)
    ),
    LayerCase("conv2d-unequal-padding", lambda: nn.Conv2d(6, 8, 3, padding=(0, 2)), (2, 6, 7, 6)),
    LayerCase("conv2d-same-dilated", lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2), (2, 6, 7, 8)),
    LayerCase("conv2d-same-even", lambda: nn.Conv2d(5, 8, (2, 4), padding="same"), (2, 5, 7, 8)),
    LayerCase("conv2d-valid", lambda: nn.Conv2d(6, 8, 3, padding="valid"), (2, 6, 7, 8)),
    LayerCase("conv2d-reflect", lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (2, 6, 7, 8)),
    LayerCase("conv2d-circular", lambda: nn.Conv2d(6, 8, 3, 2, 1, padding_mode="circular"), (2, 6, 7, 8)),
    LayerCase("conv2d-grouped", lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 6, 6)),
    LayerCase("conv2d-depthwise", lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 6, 6)),
    LayerCase("conv3d", lambda: nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), (2, 4, 3, 5, 4)),
    LayerCase("conv-transpose1d", lambda: nn.ConvTranspose1d(6, 8, 4, 2, 1), (2, 6, 5)),
    LayerCase("conv-transpose2d", lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1, 1), (2, 6, 4, 5)),
    LayerCase("conv-transpose2d-grouped", lambda: nn.ConvTranspose2d(8, 12, 3, 2, 1, groups=2), (2, 8, 4, 4)),
    LayerCase("conv-transpose3d", lambda: nn.ConvTranspose3d(4, 6, 2, 2, bias=False), (1, 4, 2, 3, 2)),
]


def build(case: LayerCase, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[torch.Tensor]]:
    """The module inside a Sequential, seeded, and three calibration batches with a non-zero mean."""
    generator = torch.Generator().manual_seed(11)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = case.make()
    model = nn.Sequential(module).to(dtype).eval()
    mixing = torch.randn(case.shape[-1], case.shape[-1], generator=generator, dtype=torch.float64)
    batches = [
        (torch.randn(case.shape, generator=generator, dtype=torch.float64) @ mixing + 0.5).to(dtype)
        for _ in range(3)
    ]
    return model, batches
