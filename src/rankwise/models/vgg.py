"""VGG-16 with BatchNorm for 32x32 images.

Simonyan and Zisserman (arXiv 1409.1556), configuration D; Zagoruyko's CIFAR form: BatchNorm after every
convolution and one linear layer on the 512 remaining features.
"""

import torch
from torch import nn

WIDTHS: tuple[int | None, ...] = (
    *(64, 64, None, 128, 128, None, 256, 256, 256, None),
    *(512, 512, 512, None, 512, 512, 512, None),
)


class CifarVGG16BN(nn.Module):
    """Thirteen 3x3 convolutions with BatchNorm and ReLU, five poolings (None in WIDTHS), one linear layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, 32, 32)`` to logits ``(N, classes)``."""
        logits: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return logits
