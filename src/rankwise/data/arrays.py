"""Image sets in the standard binary formats: idx files (MNIST, FashionMNIST) and CIFAR-10's pickles."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from rankwise.data.augment import CropFlip
from rankwise.data.dataset import Augmentation, DataSet, InMemory, Split
from rankwise.data.preprocessing import Transform
from rankwise.errors import DataError

Arrays = tuple[torch.Tensor, torch.Tensor]  # uint8 (N, C, H, W) and int64 (N,)


def _open_plain_or_gz(path: Path) -> BinaryIO:
    if path.is_file():
        return path.open("rb")
    return cast(BinaryIO, gzip.open(path.with_name(path.name + ".gz"), "rb"))


def read_idx(path: Path) -> torch.Tensor:
    """The uint8 array of an idx file, or of ``path`` + ".gz"; the shape is the file's own.

    Raises:
        DataError: the file is absent, truncated or not an idx file of unsigned bytes.
    """
    try:
        with _open_plain_or_gz(path) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"Cannot read {path} (or {path.name}.gz): {error}.") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes (it begins with {data[:4]!r}).")
    ndim = data[3]
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", data[4:start]) if len(data) >= start else (-1,)
    values = np.frombuffer(data, np.uint8, offset=min(start, len(data)))
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path} is truncated: {values.size} values, but its header says {shape}.")
    return torch.from_numpy(values.reshape(shape).copy())


class _ArraysOnly(pickle.Unpickler):
    """Reads the numpy arrays, lists and strings of CIFAR's files and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs") and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "encode",
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")


def read_cifar_batch(path: Path) -> Arrays:
    """Images uint8 ``(N, 3, 32, 32)`` and labels of one CIFAR-10 batch in Python pickle format.

    Raises:
        DataError: the file is absent, truncated or of another format.
    """
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
        images = torch.from_numpy(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32).copy())
        return images, torch.tensor(batch["labels"])
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, ImportError) as error:
        raise DataError(f"{path} is not a readable CIFAR-10 batch: {error!r}.") from error


def _read_mnist(folder: Path, train: bool) -> Arrays:
    prefix = "train" if train else "t10k"
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte").unsqueeze(1)
    return images, read_idx(folder / f"{prefix}-labels-idx1-ubyte").long()


def _read_cifar10(folder: Path, train: bool) -> Arrays:
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    parts = [read_cifar_batch(folder / name) for name in names]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _load(
    name: str,
    folder: Path,
    read: Callable[[Path, bool], Arrays],
    transform: Transform,
    classes: tuple[str, ...],
    augmentation: Augmentation | None = None,
) -> DataSet:
    splits = []
    for split, train in (("train", True), ("test", False)):
        images, labels = read(folder, train)
        splits.append(Split.of(split, InMemory(images), labels, transform))
    return DataSet(name, train=splits[0], test=splits[1], classes=classes, augmentation=augmentation)


DIGIT_NAMES = tuple(str(digit) for digit in range(10))
CIFAR10_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_mnist(folder: Path, transform: Transform) -> DataSet:
    """MNIST from the idx files in ``folder``: 60,000 training and 10,000 test images, 1 x 28 x 28."""
    return _load("mnist", folder, _read_mnist, transform, DIGIT_NAMES)


def load_fashionmnist(folder: Path, transform: Transform) -> DataSet:
    """FashionMNIST from the idx files in ``folder``, in MNIST's format."""
    return _load("fashionmnist", folder, _read_mnist, transform, FASHION_NAMES)


def load_cifar10(folder: Path, transform: Transform) -> DataSet:
    """CIFAR-10 from the Python batches in ``folder``: 50,000 training and 10,000 test images, 3 x 32 x 32."""
    return _load("cifar10", folder, _read_cifar10, transform, CIFAR10_NAMES, CropFlip())
