"""Small networks with the couplings that channel tracing must follow."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OptionABlock(nn.Module):
    """Residual block whose shortcut pads channels with zeros (the CIFAR ResNets of He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        return F.relu(y + x)


class OptionAResNet(nn.Module):
    """Two blocks per stage of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(OptionABlock(*b) for b in blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.linear(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


class UNet(nn.Module):
    """Encoder, transposed-convolution decoder, skip connection by concatenation, GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU())
        self.bottom = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.PReLU(12))
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.join = nn.Conv2d(14, 10, 3, padding=1)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(F.gelu(self.join(torch.cat([self.up(self.bottom(skip)), skip], 1))))


class SmallVGG(nn.Module):
    """Convolutions with BatchNorm, then a flatten of 2 x 2 positions into linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 8), (8, 12), (12, 16)):
            layers += [
                nn.Conv2d(a, b, 3, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Shuffle(nn.Module):
    """Split in halves, concatenate, shuffle, depthwise with multiplier 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        y = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.wide(torch.relu(y))))


class Scaled(nn.Module):
    """Per-channel parameters and buffers that are used in the forward pass itself; channels last; 3-D."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 6, 3, padding=1)
        self.gamma = nn.Parameter(torch.randn(6, 1, 1, 1))
        self.register_buffer("shift", torch.randn(6))
        self.inner = nn.Linear(6, 9)
        self.last = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = (torch.tanh(self.conv(x)) * self.gamma).permute(0, 2, 3, 4, 1) * self.shift
        return self.last(
            F.gelu(self.inner(F.interpolate(y.permute(0, 4, 1, 2, 3), scale_factor=2).mean((2, 3, 4))))
        )


class Grouped(nn.Module):
    """Grouped convolutions, plain and transposed, with squeeze and excitation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.grouped = nn.Conv2d(12, 24, 3, groups=4)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.transposed = nn.ConvTranspose2d(24, 12, 3, groups=6)
        self.norm = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.grouped(torch.relu(self.first(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.last(torch.relu(self.norm(self.transposed(y * gate))))


class Fixed(nn.Module):
    """What cannot be removed: sizes written into the code, places, attention, tied and wrapped weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.hard = nn.Linear(4 * 36, 8)
        self.sliced = nn.Linear(8, 8)
        self.query = nn.Linear(6, 6)
        self.normed = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.tied, self.twin = nn.Linear(6, 6), nn.Linear(6, 6)
        self.twin.weight = self.tied.weight
        self.wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.free = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sliced(torch.relu(self.hard(self.conv(x).view(-1, 4 * 36))))[:, :6]
        y = self.norm(self.normed(self.query(y) @ torch.eye(6)))
        return self.head(torch.relu(self.free(self.wrapped(self.twin(self.tied(y))))))
