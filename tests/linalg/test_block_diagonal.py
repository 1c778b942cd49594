import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.linalg.block_diagonal import block_runs, fit_blocks


def mask(rows: int, columns: int, blocks: int) -> np.ndarray:
    """Where the blocks are, by splitting both ranges as numpy does."""
    found = np.zeros((rows, columns), dtype=bool)
    row_parts, column_parts = (np.array_split(np.arange(n), blocks) for n in (rows, columns))
    for r, c in zip(row_parts, column_parts, strict=True):
        found[np.ix_(r, c)] = True
    return found


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_runs_cover_the_blocks_that_numpy_splits(rows: int, columns: int, data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, min(rows, columns)))
    runs = block_runs(rows, columns, blocks)
    assert len(runs) <= 3 and sum(run.count for run in runs) == blocks
    wanted = mask(rows, columns, blocks)
    assert sum(run.elements for run in runs) == wanted.sum()
    if blocks == min(rows, columns):
        assert wanted.sum() == max(rows, columns)
    numbered = torch.arange(rows * columns, dtype=torch.float64).reshape(rows, columns)
    inside = np.concatenate([run.blocks(numbered).flatten().numpy() for run in runs])
    assert sorted(inside) == sorted(numbered.numpy()[wanted])


@pytest.mark.parametrize("shape,blocks", [((6, 9), 3), ((7, 4), 4), ((5, 8), 2), ((4, 11), 3)])
@pytest.mark.parametrize("examples", [60, 2])
def test_each_row_is_least_squares_on_its_block(shape: tuple[int, int], blocks: int, examples: int) -> None:
    draw = np.random.default_rng(0)
    weight, u = draw.normal(size=shape), draw.normal(size=(examples, shape[1]))
    u = u @ draw.normal(size=(shape[1], shape[1]))
    found = fit_blocks(
        torch.from_numpy(weight), torch.from_numpy(u.T @ u), block_runs(*shape, blocks)
    ).numpy()
    inside = mask(*shape, blocks)
    assert not found[~inside].any()
    y = u @ weight.T
    for row in range(shape[0]):
        own = inside[row]
        best = np.linalg.lstsq(u[:, own], y[:, row], rcond=None)[1]
        error = ((y[:, row] - u[:, own] @ found[row, own]) ** 2).sum()
        assert error == pytest.approx(best.item() if best.size else 0.0, rel=1e-8, abs=1e-8)


def test_without_data_the_blocks_of_the_matrix_are_kept() -> None:
    weight = torch.randn(4, 6, dtype=torch.float64)
    found = fit_blocks(weight, torch.zeros(6, 6, dtype=torch.float64), block_runs(4, 6, 2))
    assert torch.equal(found, weight * torch.from_numpy(mask(4, 6, 2)))
