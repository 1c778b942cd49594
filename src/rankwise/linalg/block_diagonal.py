"""Block-diagonal matrices, fitted to a matrix in the metric of a second moment."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from rankwise.linalg.metric import anchored_regression

Tensor = torch.Tensor


@dataclass(frozen=True)
class Run:
    """``count`` neighbouring blocks of one shape, from ``first_row`` and ``first_column`` on."""

    count: int
    rows: int
    columns: int
    first_row: int
    first_column: int

    @property
    def elements(self) -> int:
        """Numbers in the blocks."""
        return self.count * self.rows * self.columns

    def blocks(self, matrix: Tensor) -> Tensor:
        """The run's blocks of a (rows, columns) matrix as (count, rows, columns)."""
        height, width = self.count * self.rows, self.count * self.columns
        here = matrix[self.first_row : self.first_row + height, self.first_column : self.first_column + width]
        tiles = here.reshape(self.count, self.rows, self.count, self.columns)
        return tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def block_runs(rows: int, columns: int, blocks: int) -> list[Run]:
    """``blocks`` blocks along the diagonal of a (rows, columns) matrix, as equal as they can be.

    Every row and every column lies in exactly one block; where a size is not divisible, the first
    blocks are larger by one. ``blocks`` is at most min(rows, columns).
    """
    borders = sorted({0, rows % blocks, columns % blocks, blocks})
    runs = []
    row = column = 0
    for start, stop in pairwise(borders):
        height = rows // blocks + (start < rows % blocks)
        width = columns // blocks + (start < columns % blocks)
        runs.append(Run(stop - start, height, width, row, column))
        row, column = row + height * (stop - start), column + width * (stop - start)
    return runs


def fit_blocks(matrix: Tensor, moment: Tensor, runs: list[Run]) -> Tensor:
    """The block-diagonal S that minimises tr((matrix - S) moment (matrix - S)^T), with its zeros.

    Row by row this is least squares on the block's own inputs. Directions without data keep the entries
    of ``matrix``.

    Args:
        matrix: (o, d).
        moment: (d, d).
        runs: of :func:`block_runs`.
    """
    cross = matrix @ moment
    fitted = torch.zeros_like(matrix)
    for run in runs:
        first = run.first_column
        width = run.count * run.columns
        square = Run(run.count, run.columns, run.columns, 0, 0)
        own = square.blocks(moment[first : first + width, first : first + width])  # (n, c, c)
        found = anchored_regression(run.blocks(matrix), own, run.blocks(cross), 0.0)  # (n, r, c)
        for index, block in enumerate(found):
            row, column = run.first_row + index * run.rows, first + index * run.columns
            fitted[row : row + run.rows, column : column + run.columns] = block
    return fitted
