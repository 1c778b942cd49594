"""Reference networks by name, each with the example, the preprocessing and the task that go with it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.models.cifar_resnet import CifarResNet, CifarResNet8
from rankwise.models.densenet import CifarDenseNet
from rankwise.models.head import replace_head_
from rankwise.models.llama import Llama
from rankwise.models.mobilenet import MobileNetV1
from rankwise.models.small import DigitsCNN, MnistCNN, MnistLeNet, lenet300_100
from rankwise.models.vgg import CifarVGG16BN
from rankwise.models.vit import CifarViT
from rankwise.models.weights import load_weights_
from rankwise.models.wide_resnet import CifarWideResNet
from rankwise.network.device import device_named
from rankwise.network.state import seeded

Task = Literal["classification", "language"]


@dataclass(frozen=True)
class Entry:
    """A network by name.

    ``shape`` is that of one example; ``tokens`` is the size of the vocabulary where examples are
    token numbers. ``preprocessing`` names what the network was trained on, ``dataset`` its data set.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    preprocessing: str
    dataset: str
    summary: str
    task: Task = "classification"
    tokens: int = 0


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready for use, in evaluation mode, with what goes with it.

    ``example`` is a batch of one example; ``preprocessing`` names how its images are prepared and
    ``dataset`` its usual data set. They are None where a network of the user's own does not say.
    """

    spec: str
    module: nn.Module = field(repr=False)
    example: torch.Tensor | None = field(default=None, repr=False)
    preprocessing: str | None = None
    dataset: str | None = None
    task: Task = "classification"

    def on(self, device: str) -> "LoadedModel":
        """The same, with the network moved to the device that torch calls ``device``.

        Raises:
            RankwiseError: there is no such device.
        """
        self.module.to(device_named(device))
        return self


def _resnet(depth: int) -> Entry:
    blocks = (depth - 2) // 6
    summary = f"residual network of depth {depth} for 32x32 images, shortcuts without parameters"
    return Entry(lambda: CifarResNet(blocks), (3, 32, 32), "imagenet", "cifar10", summary)


MODELS: dict[str, Entry] = {
    "digits_cnn": Entry(DigitsCNN, (1, 8, 8), "digits", "digits", "three convolutions for 8x8 digits"),
    "lenet300_100": Entry(lenet300_100, (1, 28, 28), "mnist", "mnist", "two hidden layers of 300 and 100"),
    "mnist_cnn": Entry(MnistCNN, (1, 28, 28), "mnist", "mnist", "two 3x3 convolutions, two linear layers"),
    "mnist_lenet": Entry(MnistLeNet, (1, 28, 28), "mnist", "mnist", "LeNet-5 with 20 and 50 filters of 5x5"),
    **{f"cifar10_resnet{depth}": _resnet(depth) for depth in (20, 32, 44, 56, 110)},
    "cifar10_resnet8": Entry(
        CifarResNet8, (3, 32, 32), "raw", "cifar10", "MLPerf Tiny's ResNet-8, 1x1 shortcuts"
    ),
    "cifar10_vgg16_bn": Entry(
        CifarVGG16BN, (3, 32, 32), "cifar10", "cifar10", "VGG-16 with BatchNorm for 32x32 images"
    ),
    "cifar10_densenet22": Entry(
        CifarDenseNet,
        (3, 32, 32),
        "cifar10",
        "cifar10",
        "DenseNet-BC, depth 22, growth 12",
    ),
    "cifar10_wrn16_8": Entry(
        CifarWideResNet, (3, 32, 32), "cifar10", "cifar10", "wide residual network 16-8 for 32x32 images"
    ),
    "cifar10_vit": Entry(
        CifarViT, (3, 32, 32), "cifar10", "cifar10", "vision transformer, patch 4, dimension 128, 6 layers"
    ),
    "mobilenet_v1_075": Entry(
        MobileNetV1, (3, 224, 224), "symmetric", "imagenet-sample", "MobileNet v1 of width 0.75 for ImageNet"
    ),
    "tinystories_llama": Entry(
        Llama,
        (512,),
        "identity",
        "tinystories",
        "Llama of 260,032 parameters, vocabulary 512",
        "language",
        512,
    ),
}
"""Every named network. Also specifications: "torchvision:NAME[@WEIGHTS]", "package.module:callable"."""


def load_model(spec: str, weights: str | Path | None = None, *, seed: int = 0) -> LoadedModel:
    """The network that ``spec`` names, in evaluation mode.

    Args:
        spec: a name in :data:`MODELS`; "torchvision:NAME" with random weights, or
            "torchvision:NAME@WEIGHTS" with weights that torchvision downloads; or
            "package.module:callable", which is called without arguments and returns an
            ``nn.Module`` or a :class:`LoadedModel`. Any of them followed by "#N" has its last layer
            replaced by a fresh one with N outputs, after ``weights`` are loaded.
        weights: a file to load the weights from, see :func:`rankwise.models.read_weights`.
        seed: of the random initial weights; the global generator is left as it was.

    Raises:
        UnknownNameError: no network of that name.
        WeightsError: ``weights`` cannot be read or does not fit.
        RankwiseError: a needed package is absent, or the callable does not give a module.
    """
    base, hash_sign, classes = spec.partition("#")
    if hash_sign and not (classes.isdigit() and int(classes) > 0):
        raise RankwiseError(f"The model {spec!r} was given; allowed is {base}#N with a number N of classes.")
    with seeded(seed):
        loaded = _build(base)
    if weights is not None:
        load_weights_(loaded.module, weights)
    if hash_sign:
        replace_head_(loaded.module, int(classes), loaded.example, seed)
        loaded = replace(loaded, spec=spec)
    loaded.module.eval()
    return loaded


def _build(spec: str) -> LoadedModel:
    if spec in MODELS:
        entry = MODELS[spec]
        example = _example(entry.shape, entry.tokens)
        return LoadedModel(spec, entry.build(), example, entry.preprocessing, entry.dataset, entry.task)
    kind, separator, name = spec.partition(":")
    if not separator:
        raise UnknownNameError("model", spec, [*MODELS, "torchvision:NAME", "package.module:callable"])
    return _from_torchvision(spec, name) if kind == "torchvision" else _from_callable(spec, kind, name)


def _example(shape: tuple[int, ...], tokens: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if tokens:
        return torch.randint(tokens, (1, *shape), generator=generator)
    return torch.randn(1, *shape, generator=generator)


def _from_torchvision(spec: str, name: str) -> LoadedModel:
    try:
        from torchvision import models
    except ImportError as error:
        raise RankwiseError(f"{spec} needs torchvision: pip install rankwise[vision].") from error
    name, _, weights = name.partition("@")
    if name not in models.list_models():
        raise UnknownNameError("torchvision model", name, models.list_models())
    known = [entry.name for entry in models.get_model_weights(name)]
    if weights and weights not in [*known, "DEFAULT"]:
        raise UnknownNameError(f"weights of torchvision's {name}", weights, [*known, "DEFAULT"])
    size = 299 if name == "inception_v3" else 224
    takes = signature(models.get_model_builder(name)).parameters
    parts = {"weights_backbone": None} if "weights_backbone" in takes else {}  # its default is a download
    module = models.get_model(name, weights=weights or None, **parts)
    return LoadedModel(spec, module, _example((3, size, size)), "imagenet", "imagenet-sample")


def _from_callable(spec: str, module: str, attribute: str) -> LoadedModel:
    try:
        made = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise RankwiseError(
            f"The model {spec!r} is neither a known name ({', '.join(MODELS)}, torchvision:NAME) nor an "
            f"importable package.module:callable: {error}."
        ) from error
    if isinstance(made, LoadedModel):
        return made
    if isinstance(made, nn.Module):
        return LoadedModel(spec, made)
    raise RankwiseError(
        f"{spec} returned {type(made).__name__}; allowed are an nn.Module and a rankwise.models.LoadedModel."
    )
