"""Data sets by name: where their files are looked for, and what to do when they are not there."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rankwise.data import arrays, folders, small
from rankwise.data.dataset import DataSet, InMemory, Split
from rankwise.data.preprocessing import Transform, get_preprocessing
from rankwise.errors import DataError, UnknownNameError

FROM_TORCHVISION = {"mnist": "MNIST", "fashionmnist": "FashionMNIST", "cifar10": "CIFAR10"}


@dataclass(frozen=True)
class Entry:
    """A data set by name: its usual preprocessing, what is read under the root, and how.

    ``read(place, argument, transform)`` gets what follows the colon in the specification, or "".
    """

    preprocessing: str
    place: str | None
    read: Callable[[Path, str, Transform], DataSet]
    summary: str


def _count(name: str, argument: str) -> int:
    if argument and not argument.isdigit():
        raise DataError(f"{name}:{argument} was given; allowed is {name} or {name}:N with a number N.")
    return int(argument or 0)


DATA: dict[str, Entry] = {
    "digits": Entry(
        "digits", None, lambda _, __, t: small.load_digits(t), "1,797 digits, 1x8x8, inside scikit-learn"
    ),
    "mnist": Entry(
        "mnist", "MNIST/raw", lambda p, _, t: arrays.load_mnist(p, t), "70,000 handwritten digits, 1x28x28"
    ),
    "fashionmnist": Entry(
        "fashionmnist",
        "FashionMNIST/raw",
        lambda p, _, t: arrays.load_fashionmnist(p, t),
        "70,000 articles of clothing, 1x28x28",
    ),
    "cifar10": Entry(
        "cifar10",
        "cifar-10-batches-py",
        lambda p, _, t: arrays.load_cifar10(p, t),
        "60,000 photographs in 10 classes, 3x32x32",
    ),
    "imagenet-sample": Entry(
        "imagenet",
        "imagenet-sample-1000",
        lambda p, n, t: folders.load_imagenet_sample(p, t, _count("imagenet-sample", n)),
        "one 224x224 image per ImageNet class, test only; imagenet-sample:N sets N aside to calibrate on",
    ),
    "tinystories": Entry(
        "identity",
        "text/tinystories/tinystories_valid_128x512_tok512.npy",
        lambda p, n, t: small.load_token_windows("tinystories", p, t, _count("tinystories", n)),
        "128 windows of 512 tokens, test only; tinystories:N sets the first N aside to calibrate on",
    ),
    "imagefolder": Entry(
        "imagenet",
        None,
        lambda p, _, t: folders.load_imagefolder(p, t),
        "imagefolder:PATH with train/ and test/ or val/, one folder of images per class",
    ),
    "random": Entry(
        "identity",
        None,
        lambda _, shape, t: small.load_random(shape, t),
        "random:3,224,224: seeded noise without labels",
    ),
}
"""Every named data set. A specification may also be "package.module:function"."""


def data_root(root: str | Path | None = None) -> Path:
    """``root``, else the environment variable RANKWISE_DATA, else ~/.cache/rankwise-data."""
    return Path(root or os.environ.get("RANKWISE_DATA") or "~/.cache/rankwise-data").expanduser()


def load_data(
    spec: str,
    *,
    transform: str | Transform | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> DataSet:
    """The data set that ``spec`` names, prepared for one network.

    Args:
        spec: a name in :data:`DATA`, with its argument after a colon where it takes one
            ("imagefolder:PATH", "random:3,224,224", "tinystories:64"), or "package.module:function"
            whose function takes no argument and returns a :class:`DataSet` or a mapping from
            "train" and "test" to tensors ``(inputs, labels)`` or ``inputs``.
        transform: what the network reads, by name or as a function on batches; by default the
            data set's usual preprocessing. A :class:`DataSet` from a function keeps its own.
        root: folder of the data files; by default RANKWISE_DATA, else ~/.cache/rankwise-data.
        download: whether torchvision may fetch mnist, fashionmnist or cifar10 when they are absent.

    Raises:
        UnknownNameError: no data set, or no preprocessing, of that name.
        DataError: the files are absent or unreadable; the message says what was looked for.
    """
    name, _, argument = spec.partition(":")
    if name not in DATA:
        if ":" in spec and not name.startswith(("/", ".")):
            return _from_function(name, argument, _resolve(transform, "identity"))
        raise UnknownNameError("data set", spec, [*DATA, "package.module:function"])
    entry = DATA[name]
    prepared = _resolve(transform, entry.preprocessing)
    if name in ("digits", "random"):
        return entry.read(Path(), argument, prepared)
    base = data_root(root)
    place = _folder_argument(argument, base) if entry.place is None else base / entry.place
    if not place.exists():
        if download and name in FROM_TORCHVISION:
            _download(name, base)
        else:
            raise DataError(_how_to_get(name, place))
    return entry.read(place, argument, prepared)


def _resolve(transform: str | Transform | None, default: str) -> Transform:
    chosen = default if transform is None else transform
    return get_preprocessing(chosen) if isinstance(chosen, str) else chosen


def _folder_argument(argument: str, base: Path) -> Path:
    if not argument:
        raise DataError("imagefolder was given without a folder; allowed is imagefolder:PATH.")
    given = Path(argument).expanduser()
    return given if given.exists() else base / argument


def _how_to_get(name: str, place: Path) -> str:
    message = f"The data set {name!r} is not there: looked for {place}. "
    if name in FROM_TORCHVISION:
        return message + (
            "Set the environment variable RANKWISE_DATA to the folder that holds it, or let torchvision "
            f"download it, in Python: rankwise.data.load_data({name!r}, download=True)."
        )
    if name == "imagefolder":
        return message + "Give an existing folder that has train/ and test/ or val/ in it."
    return message + "Set the environment variable RANKWISE_DATA to the folder that holds it; no download."


def _download(name: str, base: Path) -> None:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"Downloading {name!r} needs torchvision: pip install rankwise[vision].") from error
    try:
        getattr(datasets, FROM_TORCHVISION[name])(str(base), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"torchvision could not download {name!r} to {base}: {error}.") from error


def _from_function(module: str, attribute: str, transform: Transform) -> DataSet:
    spec = f"{module}:{attribute}"
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"The data set {spec!r} is neither a known name ({', '.join(DATA)}) nor an importable "
            f"package.module:function: {error}."
        ) from error
    made = function()
    if isinstance(made, DataSet):
        return made
    if isinstance(made, Mapping) and made and set(made) <= {"train", "test"}:
        splits = {name: _tensor_split(spec, name, value, transform) for name, value in made.items()}
        return DataSet(spec, train=splits.get("train"), test=splits.get("test"))
    raise DataError(
        f"{spec} returned {type(made).__name__}; allowed are a rankwise.data.DataSet and a mapping from "
        "'train' and 'test' to tensors (inputs, labels) or inputs."
    )


def _tensor_split(spec: str, name: str, value: Any, transform: Transform) -> Split:
    inputs, labels = value if isinstance(value, (tuple, list)) else (value, None)
    if not isinstance(inputs, torch.Tensor) or not isinstance(labels, torch.Tensor | None):
        raise DataError(f"Split {name!r} of {spec} does not hold tensors (inputs, labels) or inputs.")
    return Split.of(name, InMemory(inputs), labels, transform)
