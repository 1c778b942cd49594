"""Data that need no folder: scikit-learn's digits, seeded noise, and token windows from one array."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rankwise.data.arrays import DIGIT_NAMES
from rankwise.data.dataset import DataSet, InMemory, Split
from rankwise.data.preprocessing import Transform
from rankwise.errors import DataError


def load_digits(transform: Transform) -> DataSet:
    """The 1,797 handwritten digits inside scikit-learn, 1 x 8 x 8 with values 0..16.

    A permutation seeded with 0 gives 1,437 training and 360 test images.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError(
            "The data set 'digits' comes with scikit-learn, which is not installed: "
            "pip install rankwise[demo]."
        ) from error
    bunch = load()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)  # (1797, 1, 8, 8)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    everything = Split.of("train", InMemory(images), labels, transform)
    return DataSet(
        "digits",
        train=everything.subset(order[:1437]),
        test=everything.subset(order[1437:], "test"),
        classes=DIGIT_NAMES,
    )


@dataclass(frozen=True, eq=False)
class Noise:
    """``count`` examples of ``shape`` with independent standard normal entries, float32.

    Example ``i`` depends on ``seed`` and ``i`` only, so it is the same in every batch.
    """

    shape: tuple[int, ...]
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """Examples ``indices``, ``(n, *shape)``."""
        generator = torch.Generator()
        examples = []
        for index in indices.tolist():
            generator.manual_seed(self.seed + index)
            examples.append(torch.randn(self.shape, generator=generator))
        return torch.stack(examples)


def load_random(shape: str, transform: Transform) -> DataSet:
    """Standard normal examples without labels: ``shape`` is like "3,224,224".

    4,096 training and 512 test examples, made when a batch is asked for.

    Raises:
        DataError: ``shape`` is not a list of positive integers.
    """
    try:
        sizes = tuple(int(part) for part in shape.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise DataError(
            f"random:{shape} was given; allowed is a shape of positive integers: random:3,224,224."
        )
    train, test = Noise(sizes, 4096, seed=0), Noise(sizes, 512, seed=1_000_000)
    return DataSet(
        f"random:{shape}",
        train=Split.of("train", train, None, transform),
        test=Split.of("test", test, None, transform),
    )


def load_token_windows(name: str, path: Path, transform: Transform, train_windows: int = 0) -> DataSet:
    """Windows of tokens for language modelling, from a ``.npy`` array of integers ``(windows, length)``.

    An example is one window, and its label the same window: the model predicts each token from those
    before it. All windows are test data unless ``train_windows`` are set aside: the first ones, so
    that no story is cut between calibration and test more than once.

    Raises:
        DataError: the file is absent or of another form, or ``train_windows`` leaves no test window.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"Cannot read token windows from {path}: {error}.") from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{path} holds {values.dtype} {values.shape}; allowed are integers (windows, length)."
        )
    if not 0 <= train_windows < len(values):
        raise DataError(
            f"{name}:{train_windows} was asked for; allowed are 0 to {len(values) - 1} windows to train on."
        )
    tokens = torch.from_numpy(values.astype(np.int64))
    everything = Split.of("test", InMemory(tokens), tokens, transform)
    train, test = torch.arange(len(values)).tensor_split([train_windows])
    return DataSet(
        name,
        train=everything.subset(train, "train") if train_windows else None,
        test=everything.subset(test),
        task="language",
        no_train_reason=f"All windows are test data. Write {name}:{max(1, len(values) // 2)} to set the "
        "first half aside for calibration.",
    )
