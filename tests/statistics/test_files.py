from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.statistics.test_record import some

from rankwise.errors import FileFormatError
from rankwise.statistics import LayerStatistics, load_statistics, save_statistics


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    held = {"layer1.0.conv": some(5, 1, samples=3), "": some(2, 2, factored=True), "empty": LayerStatistics()}
    save_statistics(held, path)
    again = load_statistics(path)
    assert set(again) == set(held)
    for name, value in held.items():
        loaded = again[name].tensors()
        assert loaded.keys() == value.tensors().keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in value.tensors().items())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_statistics(path)
    save_statistics({"a": some(5, 1)}, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_statistics(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match="no file of statistics"):
        load_statistics(path)
    save_file({"a/counts": torch.zeros(3)}, path, {"format": "rankwise-statistics", "version": "9"})
    with pytest.raises(FileFormatError, match="version '9'"):
        load_statistics(path)
    save_file({"a/other": torch.zeros(3)}, path, {"format": "rankwise-statistics", "version": "1"})
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_statistics(path)
