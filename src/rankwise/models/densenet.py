"""DenseNet-BC for 32x32 images (Huang et al., CVPR 2017, arXiv 1608.06993): depth 22, growth 12."""

import torch
from torch import nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 to four times the growth, BatchNorm, ReLU, 3x3; the output joins the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, channels, H, W)`` to ``(N, channels + growth, H, W)``."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat((x, new), 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 to half the channels, 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, channels, H, W)`` to ``(N, channels / 2, H / 2, W / 2)``."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class CifarDenseNet(nn.Module):
    """Three dense blocks of ``(depth - 4) / 6`` layers each, two transitions between them."""

    def __init__(self, depth: int = 22, growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for _ in range((depth - 4) // 6):
                blocks.append(DenseLayer(channels, growth))
                channels += growth
            if stage < 2:
                blocks.append(Transition(channels))
                channels //= 2
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, 32, 32)`` to logits ``(N, classes)``."""
        x = F.relu(self.bn(self.blocks(self.conv(x))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits
