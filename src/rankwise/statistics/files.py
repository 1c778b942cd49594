"""Statistics in a safetensors file, so that calibration need not be repeated."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rankwise.errors import FileFormatError
from rankwise.files import write_atomically
from rankwise.statistics.record import LayerStatistics

_FORMAT, _VERSION = "rankwise-statistics", 1


def save_statistics(statistics: Mapping[str, LayerStatistics], path: Path | str) -> None:
    """Write ``statistics`` to ``path``, wholly or not at all."""
    tensors = {
        f"{name}/{key}": value.contiguous()
        for name, held in statistics.items()
        for key, value in held.tensors().items()
    }
    header = {"format": _FORMAT, "version": str(_VERSION)}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, header))


def load_statistics(path: Path | str) -> dict[str, LayerStatistics]:
    """Read what :func:`save_statistics` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, of another kind, or of a newer version.
    """
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise FileFormatError(f"{path} is no file of statistics; save_statistics writes such files.")
            if header.get("version") != str(_VERSION):
                raise FileFormatError(
                    f"{path} has version {header.get('version')!r}; this rankwise reads version {_VERSION}."
                )
            for key in file.keys():  # noqa: SIM118  safe_open is no mapping
                name, _, field = key.rpartition("/")
                tensors.setdefault(name, {})[field] = file.get_tensor(key)
        return {name: LayerStatistics.from_tensors(held) for name, held in tensors.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as statistics: {error}.") from error
