import numpy as np
import pytest
import torch
from torch import nn

from rankwise.network.layer import geometry_of
from rankwise.statistics.record import LayerStatistics
from rankwise.statistics.samples import Reservoir

GEOMETRY = geometry_of(nn.Linear(1, 1))
assert GEOMETRY is not None


def drawn(seed: int, values: torch.Tensor, weights: torch.Tensor | None = None, limit: int = 5) -> np.ndarray:
    """The sample of a stream of ``values`` in three batches."""
    reservoir = Reservoir(limit, seed, "layer")
    parts = [None] * 3 if weights is None else weights.chunk(3)
    for piece, weight in zip(values.chunk(3), parts, strict=True):
        assert GEOMETRY is not None
        reservoir.offer(GEOMETRY, piece[:, None], 2 * piece[:, None], weight)
    held = LayerStatistics()
    reservoir.store(held)
    assert held.sample_inputs is not None and held.sample_outputs is not None
    assert torch.equal(held.sample_outputs[:, 0], 2 * held.sample_inputs[:, 0])
    return held.sample_inputs[:, 0, 0].numpy()


def test_every_row_is_equally_likely() -> None:
    values = torch.arange(20).double()
    counts = np.zeros(20)
    for seed in range(800):
        sample = drawn(seed, values).astype(int)
        assert len(set(sample)) == 5
        counts[sample] += 1
    expected = 800 * 5 / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # 19 degrees of freedom, far tail


def test_weights_steer_the_first_row() -> None:
    """One row of a weighted sample comes in proportion to its weight."""
    values = torch.arange(6).double()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    counts = np.zeros(6)
    for seed in range(2000):
        counts[drawn(seed, values, weights, limit=1).astype(int)] += 1
    np.testing.assert_allclose(counts / 2000, weights / 10, atol=0.04)
    assert counts[0] == counts[5] == 0


def test_short_streams_are_kept_whole() -> None:
    sample = drawn(0, torch.arange(6).double(), limit=9)
    np.testing.assert_array_equal(np.sort(sample), np.arange(6))


@pytest.mark.parametrize("seed", [0, 2**31, -1])
def test_seeds(seed: int) -> None:
    values = torch.arange(50).double()
    np.testing.assert_array_equal(drawn(seed, values), drawn(seed, values))
