from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

from rankwise.errors import CalibrationError
from rankwise.network.find import find_layers
from rankwise.statistics import LayerStatistics, collect, load_statistics, save_statistics


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2)
    ).double()


def gathered(batches: list[torch.Tensor]) -> dict[str, LayerStatistics]:
    model = network()
    layers = find_layers(model, torch.zeros(1, 2, 4, 4).double())
    need: dict[str, frozenset[Any]] = {
        layer.name: frozenset(("input", "output", "samples", "target")) for layer in layers
    }
    return collect(model, layers, batches, need, reference=model, samples=6)


def all_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(n, 2, 4, 4, generator=generator).double() for n in (3, 4, 2)]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        save_statistics(gathered(all_batches()[rank::2]), f"{folder}/rank{rank}.safetensors")
        with pytest.raises(CalibrationError, match="empty on every rank"):
            gathered([])
        save_statistics(gathered(all_batches() if rank == 0 else []), f"{folder}/lonely{rank}.safetensors")
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch.distributed is not built in")
def test_two_ranks_get_the_statistics_of_all_batches(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    expected = gathered(all_batches())
    for kind in ("rank", "lonely"):
        first, second = (load_statistics(tmp_path / f"{kind}{rank}.safetensors") for rank in (0, 1))
        for name, held in expected.items():
            one, other = first[name].tensors(), second[name].tensors()
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[key]) for key, value in one.items())
            assert one["counts"].tolist() == [9.0, held.positions, 6.0]
            torch.testing.assert_close(first[name].input_moment, held.input_moment)
            torch.testing.assert_close(first[name].output_covariance, held.output_covariance)
            torch.testing.assert_close(first[name].cross_moment, held.cross_moment)
            assert first[name].sample_inputs is not None and len(first[name].sample_inputs) == 6


def test_without_a_process_group_nothing_is_reduced() -> None:
    assert not distributed.is_initialized()
    assert gathered(all_batches())["0"].examples == 9
