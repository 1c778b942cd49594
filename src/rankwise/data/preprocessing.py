"""From stored examples (uint8 images, token numbers) to what a network reads, per batch and by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rankwise.errors import UnknownNameError

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """The affine map ``(x / divisor - mean) / std`` per channel, on a batch ``(N, C, H, W)``.

    ``mean`` and ``std`` have one entry, or one per channel. ``size`` is the height and width to which
    images of differing sizes are brought when they are decoded; it does not act on tensors in memory.
    """

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: int = 224

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 of the shape of ``images``."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return images.float().div_(self.divisor).sub_(mean).div_(std)


def identity(values: torch.Tensor) -> torch.Tensor:
    """``values`` as they are: token numbers, or examples that are already normalised."""
    return values


PREPROCESSINGS: dict[str, Transform] = {
    "identity": identity,
    "raw": Preprocessing(divisor=1.0),
    "unit": Preprocessing(),
    "digits": Preprocessing(divisor=8.0, mean=(1.0,)),
    "mnist": Preprocessing(mean=(0.1307,), std=(0.3081,)),
    "fashionmnist": Preprocessing(mean=(0.2860,), std=(0.3530,)),
    "cifar10": Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "imagenet": Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "symmetric": Preprocessing(divisor=127.5, mean=(1.0,)),
}
"""Every preprocessing by name. "symmetric" maps 0..255 to -1..1, "digits" maps 0..16 to -1..1."""


def get_preprocessing(name: str) -> Transform:
    """The preprocessing called ``name``.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in PREPROCESSINGS:
        raise UnknownNameError("preprocessing", name, PREPROCESSINGS)
    return PREPROCESSINGS[name]
