"""Images in folders, decoded when a batch is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.data.dataset import DataSet, Split
from rankwise.data.preprocessing import Preprocessing, Transform
from rankwise.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "Image folders are decoded by Pillow, which is not installed: pip install rankwise[vision]."
        ) from error
    return Image


def decode(path: Path, size: int) -> torch.Tensor:
    """The RGB image at ``path`` as uint8 ``(3, size, size)``.

    An image that already is ``size`` x ``size`` is only decoded. Any other is resized (bilinear) so
    that its shorter side is ``size * 256 / 224``, and cropped in the centre, as torchvision's
    classification networks are evaluated.

    Raises:
        DataError: the file is not a readable image.
    """
    image_module = _pillow()
    try:
        with image_module.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise DataError(f"{path} is not a readable image: {error}.") from error
    if image.size != (size, size):
        shorter = round(size * 256 / 224)
        scale = shorter / min(image.size)
        width, height = (max(shorter, round(side * scale)) for side in image.size)
        image = image.resize((width, height), image_module.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files, each decoded to uint8 ``(3, size, size)`` when fetched."""

    paths: tuple[Path, ...] = field(repr=False)
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images ``indices``, uint8 ``(n, 3, size, size)``."""
        return torch.stack([decode(self.paths[i], self.size) for i in indices.tolist()])


def _size(transform: Transform) -> int:
    return transform.size if isinstance(transform, Preprocessing) else 224


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _split(folder: Path, classes: tuple[str, ...], transform: Transform) -> Split:
    paths: list[Path] = []
    labels: list[int] = []
    unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in classes)
    if unknown:
        raise DataError(f"{folder} has class folders that the first split lacks: {', '.join(unknown)}.")
    for label, name in enumerate(classes):
        found = _images(folder / name)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"No images under {folder}; looked for {', '.join(sorted(SUFFIXES))}.")
    source = ImageFiles(tuple(paths), _size(transform))
    return Split.of(folder.name, source, torch.tensor(labels), transform)


def load_imagefolder(folder: Path, transform: Transform) -> DataSet:
    """``train/`` and ``test/`` or ``val/`` under ``folder``, each with one folder of images per class.

    ``test/`` is the test split and ``val/`` the held-out validation split; without ``test/`` the
    examples of ``val/`` are the test split. Classes are the sorted folder names of the first split.

    Raises:
        DataError: no such folder, no split in it, a split without images, or an unknown class.
    """
    found = {name: folder / name for name in ("train", "test", "val") if (folder / name).is_dir()}
    if not found:
        raise DataError(
            f"Looked for train/, test/ or val/ in {folder} and found none. Each holds one folder of "
            "images per class."
        )
    first = next(iter(found.values()))
    classes = tuple(sorted(entry.name for entry in first.iterdir() if entry.is_dir()))
    splits = {name: _split(path, classes, transform) for name, path in found.items()}
    return DataSet(
        f"imagefolder:{folder.name}",
        train=splits.get("train"),
        test=splits.get("test", splits.get("val")),
        held_out=splits.get("val") if "test" in splits else None,
        classes=classes,
        no_train_reason=f"Add {folder}/train with one folder of images per class.",
    )


def load_imagenet_sample(folder: Path, transform: Transform, train_images: int = 0) -> DataSet:
    """One image for each ImageNet-1k class, named ``<synset>_<name>.JPEG``, in a flat folder.

    The position in the sorted list of file names is the class. All images are test images, so
    there is nothing to calibrate on, unless ``train_images`` are set aside: the first of a
    permutation seeded with 0; the classes of the test split are then the others.

    Raises:
        DataError: not a folder of images, or ``train_images`` leaves no test image.
    """
    paths = tuple(_images(folder)) if folder.is_dir() else ()
    if not 0 <= train_images < max(1, len(paths)):
        raise DataError(
            f"imagenet-sample:{train_images} was asked for; allowed are 0 to {len(paths) - 1} images "
            f"to calibrate on, of the {len(paths)} in {folder}."
        )
    if not paths:
        raise DataError(f"No images under {folder}; looked for {', '.join(sorted(SUFFIXES))}.")
    everything = Split.of("test", ImageFiles(paths, _size(transform)), torch.arange(len(paths)), transform)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    train, test = order[:train_images], order[train_images:].sort().values
    return DataSet(
        "imagenet-sample",
        train=everything.subset(train, "train") if train_images else None,
        test=everything.subset(test),
        classes=tuple(path.stem.partition("_")[2] for path in paths),
        no_train_reason="It has one image per class. Write imagenet-sample:500 to set 500 of its 1,000 "
        "images aside for calibration and test on the other 500.",
    )
