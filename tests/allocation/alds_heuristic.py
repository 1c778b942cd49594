"""The search that the ALDS paper and its released code use, written from their description, to compare with.

Liebenwein et al., NeurIPS 2021, section 3.3 and algorithm 1: from 15 starting points (k = 3, 5, 7, 9 in
all layers, then 11 random ones), four rounds that alternate between the ranks given k (bisection on one
error bound) and the best k for each layer's present cost. The lookup in the second step is off by one
rank in the released code; ``released=False`` corrects it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rankwise.allocation import Table, with_dense
from rankwise.methods.base import Candidates
from rankwise.network.cost import Cost

Shape = tuple[int, int, int, int]  # filters, channels, kernel height, kernel width
Spectra = dict[int, npt.NDArray[np.float64]]  # k -> error with j = 0, 1, ... ranks kept in each of k groups


def group_spectra(shape: Shape, generator: np.random.Generator) -> Spectra:
    """Errors max_i sigma_{j+1}(W_i) / sigma_1(W) for all divisors k, of a random power-law layer."""
    filters, channels, *kernel = shape
    wide, full = channels * int(np.prod(kernel)), min(filters, channels * int(np.prod(kernel)))
    decay = np.arange(1.0, full + 1) ** -generator.uniform(0.3, 1.2)
    weight = (generator.standard_normal((filters, full)) * decay) @ generator.standard_normal((full, wide))
    matrix = torch.from_numpy(weight)
    largest = float(torch.linalg.svdvals(matrix)[0])
    spectra = {}
    for k in (k for k in range(1, channels + 1) if channels % k == 0):
        slices = matrix.reshape(filters, k, wide // k).transpose(0, 1)  # (k, filters, wide / k)
        gram = slices @ slices.mT if filters <= wide // k else slices.mT @ slices
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().amax(dim=0).flip(0)
        spectra[k] = np.append(values.numpy() / largest, 0.0)
    return spectra


def per_rank(shape: Shape, k: int) -> int:
    """Parameters of one rank in all of k groups."""
    filters, channels, *kernel = shape
    return k * filters + channels * int(np.prod(kernel))


def alds_table(name: str, shape: Shape, spectra: Spectra) -> Table:
    """Every (k, rank) of a layer as candidates."""
    k = np.concatenate([np.full(len(error) - 1, k) for k, error in spectra.items()])
    rank = np.concatenate([np.arange(1, len(error)) for error in spectra.values()])
    error = np.concatenate([error[1:] for error in spectra.values()])
    params = rank * np.array([per_rank(shape, i) for i in k])
    found = Candidates(params, params, error, {"groups": k, "rank": rank}, "operator")
    dense = int(np.prod(shape))
    return with_dense(name, found, Cost(dense, dense, 4 * dense))


@dataclass(frozen=True)
class Result:
    groups: list[int]
    ranks: list[int]
    params: int
    bound: float
    largest_error: float


class _Search:
    def __init__(
        self, shapes: Sequence[Shape], spectra: Sequence[Spectra], limit: int, released: bool
    ) -> None:
        self.shapes, self.spectra, self.limit, self.released = shapes, spectra, limit, released

    def ranks(self, groups: Sequence[int], bound: float) -> list[int]:
        errors = [s[k] for s, k in zip(self.spectra, groups, strict=True)]
        return [int(np.clip((error > bound).sum(), 1, len(error) - 1)) for error in errors]

    def size(self, groups: Sequence[int], ranks: Sequence[int]) -> int:
        """A layer that does not pay stays dense and is counted so."""
        each = zip(self.shapes, groups, ranks, strict=True)
        return sum(min(int(np.prod(s)), j * per_rank(s, k)) for s, k, j in each)

    def allocate(self, groups: Sequence[int]) -> Result:
        """The smallest error bound within the limit for given groups; ValueError where there is none."""
        bounds = np.unique(np.concatenate([s[k] for s, k in zip(self.spectra, groups, strict=True)]))
        low, high = 0, len(bounds)
        while low < high:
            middle = (low + high) // 2
            fits = self.size(groups, self.ranks(groups, bounds[middle])) <= self.limit
            low, high = (low, middle) if fits else (middle + 1, high)
        if high == len(bounds):
            raise ValueError
        ranks = self.ranks(groups, bounds[high])
        errors = [
            0.0 if j * per_rank(s, k) >= np.prod(s) else float(spectrum[k][j])
            for s, spectrum, k, j in zip(self.shapes, self.spectra, groups, ranks, strict=True)
        ]
        return Result(list(groups), ranks, self.size(groups, ranks), float(bounds[high]), max(errors))

    def start(self, groups: list[int]) -> Result | None:
        while max(groups) >= 1:
            try:
                return self.allocate(groups)
            except ValueError:
                if max(groups) == 1:
                    return None
                groups = [self.nearest(i, k // 2) for i, k in enumerate(groups)]
        return None

    def nearest(self, layer: int, k: int) -> int:
        """The nearest divisor; of two equally near ones the larger."""
        return min(self.spectra[layer], key=lambda divisor: (abs(divisor - k), -divisor))

    def regroup(self, layer: int, k: int, rank: int, rounding: float) -> int:
        """The number of groups with the smallest error at the layer's present cost."""
        shape, best, lowest = self.shapes[layer], k, np.inf
        for other in sorted(self.spectra[layer], reverse=True):
            error = self.spectra[layer][other]
            j = min(
                int(np.floor(rank * per_rank(shape, k) / per_rank(shape, other) + rounding)), len(error) - 1
            )
            if j >= 1 and error[j - self.released] < lowest:
                best, lowest = other, error[j - self.released]
        return best

    def improve(self, found: Result) -> Result | None:
        rounding = 0.5
        while rounding >= -0.51:
            each = enumerate(zip(found.groups, found.ranks, strict=True))
            try:
                return self.allocate([self.regroup(i, k, j, rounding) for i, (k, j) in each])
            except ValueError:
                rounding -= 0.2
        return None


def heuristic(
    shapes: Sequence[Shape], spectra: Sequence[Spectra], limit: int, seed: int, released: bool = True
) -> Result:
    """The best of 15 starts with four rounds each, under a limit on the layers' parameters."""
    search, generator, best = _Search(shapes, spectra, limit, released), np.random.default_rng(seed), None
    for number in range(15):
        if number < 4:
            groups = [search.nearest(i, 3 + 2 * number) for i in range(len(shapes))]
        else:
            groups = [int(generator.choice(list(s))) for s in spectra]
        first = now = search.start(groups)
        for _ in range(4):
            later = None if now is None else search.improve(now)
            if later is None:
                break
            now = later
        if first is not None and now is not None:
            final = min(first, now, key=lambda r: r.bound)
            best = final if best is None or final.bound < best.bound else best
    if best is None:
        raise ValueError(f"no start of the heuristic keeps within {limit} parameters")
    return best
