"""One small network of every architecture that channel selection must run on, with random weights."""

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from tests.network.channel_nets import OptionAResNet, Scaled, SmallVGG, UNet
from torch import Tensor, nn
from torchvision.models import convnext, efficientnet, inception, mobilenetv3, regnet, shufflenetv2

from rankwise.models.mobilenet import MobileNetV1

vision = torchvision.models
Build = Callable[[], nn.Module]


class Inception(nn.Module):
    """Two of the blocks of Inception v3: branches of different depth, pooled and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = inception.BasicConv2d(3, 16, kernel_size=3, stride=2)
        mixed = inception.InceptionA(16, pool_features=8)  # 232 channels come out
        self.blocks = nn.Sequential(mixed, inception.InceptionC(232, channels_7x7=16))  # 768
        self.fc = nn.Linear(768, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class VolumeNet(nn.Module):
    """Three-dimensional convolutions with BatchNorm and pooling, then a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(8, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def mobilenet_v3() -> nn.Module:
    block = partial(mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [block(16, 3, 32, 16, True, "RE", 2), block(16, 5, 48, 24, True, "HS", 1),
              block(24, 3, 48, 24, False, "HS", 1)]  # fmt: skip
    return mobilenetv3.MobileNetV3(blocks, last_channel=32, num_classes=5)


def efficientnet_b() -> nn.Module:
    blocks = [efficientnet.MBConvConfig(1, 3, 1, 16, 8, 1), efficientnet.MBConvConfig(4, 5, 2, 8, 16, 2)]
    return efficientnet.EfficientNet(blocks, dropout=0.1, num_classes=5, last_channel=64)


def regnet_y() -> nn.Module:
    blocks = regnet.BlockParams.from_init_params(
        depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25
    )
    return regnet.RegNet(blocks, num_classes=5, stem_width=16)


def convnext_small() -> nn.Module:
    blocks = [convnext.CNBlockConfig(16, 24, 1), convnext.CNBlockConfig(24, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=5, layer_scale=0.5)


ARCHITECTURES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "VGG with BatchNorm": (SmallVGG, (3, 16, 16)),
    "ResNet, shortcuts padded": (OptionAResNet, (3, 16, 16)),
    "ResNet, shortcuts projected": (
        lambda: vision.ResNet(vision.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5), (3, 32, 32),
    ),
    "DenseNet": (lambda: vision.DenseNet(8, (2, 2), 16, num_classes=5), (3, 32, 32)),
    "MobileNet V1": (lambda: MobileNetV1(0.25, 5), (3, 64, 64)),
    "MobileNet V2": (
        lambda: vision.MobileNetV2(5, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]), (3, 32, 32),
    ),
    "MobileNet V3": (mobilenet_v3, (3, 32, 32)),
    "EfficientNet": (efficientnet_b, (3, 32, 32)),
    "SqueezeNet": (lambda: vision.squeezenet1_1(num_classes=5), (3, 32, 32)),
    "ShuffleNet V2": (
        lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [16, 24, 32, 48, 64], num_classes=5), (3, 64, 64),
    ),
    "Inception": (Inception, (3, 17, 17)),
    "ConvNeXt": (convnext_small, (3, 32, 32)),
    "RegNet": (regnet_y, (3, 32, 32)),
    "U-Net": (UNet, (3, 8, 8)),
    "perceptron": (mlp, (12,)),
    "3-D CNN": (VolumeNet, (1, 8, 8, 8)),
    "3-D CNN, channels last": (Scaled, (2, 4, 4, 4)),
}  # fmt: skip
"""By name: the network, and the shape of one example."""


def settled(build: Build, *shape: int, seed: int = 0) -> nn.Module:
    """The network with affine parameters and running statistics that are not those of the first day."""
    torch.manual_seed(seed)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        for _ in range(2 if shape else 0):
            model(torch.randn(32, *shape))
    return model.eval()


def random_batches(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(16, *shape, generator=generator) for _ in range(count)]
