"""MobileNet v1 in TensorFlow's conventions (Howard et al., arXiv 1704.04861, table 1)."""

import torch
from torch import nn
from torch.nn import functional as F

BLOCKS = (  # output channels at width 1, stride of the depthwise convolution
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)


def _same_pad(x: torch.Tensor, stride: int) -> torch.Tensor:
    """TensorFlow's "same" padding of a 3x3 kernel at stride 2 and even size: bottom and right only."""
    return x if stride == 1 else F.pad(x, (0, 1, 0, 1))


class SeparableBlock(nn.Module):
    """A 3x3 depthwise convolution, then a 1x1 convolution, each with BatchNorm and ReLU6."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        padding = 1 if stride == 1 else 0
        self.dw = nn.Conv2d(in_channels, in_channels, 3, stride, padding, groups=in_channels, bias=False)
        self.dw_bn = nn.BatchNorm2d(in_channels, eps=1e-3)
        self.pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.pw_bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        x = F.relu6(self.dw_bn(self.dw(_same_pad(x, self.stride))))
        return F.relu6(self.pw_bn(self.pw(x)))


class MobileNetV1(nn.Module):
    """Thirteen depthwise-separable blocks; ``width`` scales every channel count."""

    def __init__(self, width: float = 0.75, classes: int = 1000) -> None:
        super().__init__()
        channels = round(32 * width)
        self.conv1 = nn.Conv2d(3, channels, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        blocks = []
        for full, stride in BLOCKS:
            blocks.append(SeparableBlock(channels, round(full * width), stride))
            channels = round(full * width)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, 224, 224)`` to logits ``(N, classes)``."""
        x = F.relu6(self.bn1(self.conv1(_same_pad(x, 2))))
        logits: torch.Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return logits
