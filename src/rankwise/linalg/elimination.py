"""Removing channels one after the other by what their readers lose: with and without compensation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rankwise.linalg.interpolative import NOISE

Tensor = torch.Tensor

DEFERRED = 64
"""Rank-one updates that are carried out together: one pass over the matrix in place of as many."""


@dataclass
class Reader:
    """One consumer of a group in terms of second moments.

    ``moment`` (n, n) is E[z z^T] of its n input channels, ``weight`` (n, n) is the sum of W_p^T W_p over
    its kernel positions p, so that tr(weight @ E[r r^T]) is the squared error of its output where
    its input has the error r (errors at different kernel positions taken as uncorrelated).
    ``units[u]`` are the channels of unit u. ``inverse`` is :func:`ridged_inverse` of the moment, where
    it is known already.
    """

    moment: Tensor
    weight: Tensor
    units: Sequence[Sequence[int]]
    inverse: Tensor | None = None


def ridged_inverse(moment: Tensor, ridge: float) -> Tensor:
    """Inverse (n, n) of a second moment with ``ridge`` times its mean diagonal added, above rounding."""
    values, vectors = torch.linalg.eigh(moment.double())
    floor = max(ridge * float(moment.diagonal().mean()), NOISE * float(values[-1]))
    floor = max(floor, torch.finfo(torch.float64).tiny ** 0.5)
    scaled = vectors / (values.clamp_min(0.0) + floor)
    inverse: Tensor = scaled @ vectors.mT
    return inverse


class _Updated:
    """A symmetric matrix under updates that keep it so, which are carried out many at a time."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.diagonal = value, value.diagonal().clone()
        self.left, self.right = (value.new_zeros(DEFERRED, len(value)) for _ in range(2))
        self.count = 0

    def row(self, j: int) -> Tensor:
        """Row j, (n,)."""
        return self.value[j] + self.left[: self.count, j] @ self.right[: self.count]

    def blocks(self, indices: Tensor) -> Tensor:
        """The submatrices at ``indices`` (blocks, size), as (blocks, size, size)."""
        left, right = self.left[: self.count, indices], self.right[: self.count, indices]
        return self.value[indices[:, :, None], indices[:, None]] + torch.einsum("cus,cut->ust", left, right)

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add the outer product of two vectors (n,)."""
        if self.count == DEFERRED:
            self.value.addmm_(self.left.mT, self.right)
            self.count = 0
        self.left[self.count], self.right[self.count] = left, right
        self.count += 1
        self.diagonal += left * right


class _State:
    """The readers' weights after refitting, while channels disappear (Optimal Brain Surgeon updates)."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        inverse = ridged_inverse(reader.moment, ridge) if reader.inverse is None else reader.inverse
        channels = sorted({channel for unit in reader.units for channel in unit})
        place = {channel: i for i, channel in enumerate(channels)}
        self.units = [[place[channel] for channel in unit] for unit in reader.units]
        # Inverse second moment of the channels still there, and W'^T W' of the refitted weights; no step
        # reads more of them than what belongs to the group.
        self.inverse = _Updated(inverse[channels][:, channels].clone())
        self.weight = _Updated(reader.weight.double()[channels][:, channels].clone())
        # The units still there with their channels, by the number of these.
        self.alive: dict[int, tuple[Tensor, Tensor]] = {}
        for size in {len(unit) for unit in self.units if unit}:
            same = [u for u, unit in enumerate(self.units) if len(unit) == size]
            self.alive[size] = torch.tensor(same), torch.tensor([self.units[u] for u in same])

    def losses(self) -> Tensor:
        """Squared output error that removing each unit adds, the rest refitted. (units,)"""
        losses = torch.zeros(len(self.units), dtype=torch.float64)  # and where a unit is gone
        for units, channels in self.alive.values():
            losses[units] = self._losses(channels)
        return losses

    def loss(self, unit: int) -> float:
        """The same of one unit."""
        return float(self._losses(torch.tensor([self.units[unit]]))[0]) if self.units[unit] else 0.0

    def _losses(self, channels: Tensor) -> Tensor:
        """Of units with the same number of channels, (units, size)."""
        if channels.shape[1] == 1:
            tiny = torch.finfo(torch.float64).tiny
            single = channels[:, 0]
            each = self.weight.diagonal[single] / self.inverse.diagonal[single].clamp_min(tiny)
        else:
            solved = torch.linalg.solve(self.inverse.blocks(channels), self.weight.blocks(channels))
            each = solved.diagonal(dim1=1, dim2=2).sum(1)
        return each.clamp_min(0.0)

    def remove(self, unit: int) -> None:
        """Remove the channels of a unit and refit."""
        for j in self.units[unit]:
            row, column = self.inverse.row(j), self.weight.row(j)
            step = row / row[j]
            self.weight.add(column[j] * step - column, step)
            self.weight.add(-step, column)
            self.inverse.add(-step, row)
        if self.units[unit]:
            units, channels = self.alive[len(self.units[unit])]
            self.alive[len(self.units[unit])] = units[units != unit], channels[units != unit]


def backward_elimination(readers: Sequence[Reader], count: int, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Remove, ``count`` times, the unit whose loss the refitted readers feel least.

    Every step is exact for the readers' second moments: the loss of unit u is tr(W_u'^T W_u'
    (H_uu)^-1) with H the inverse moment of the channels still there and W' the refitted weights
    (Hassibi and Stork, "Optimal brain surgeon", 1993; for channels Meng et al., "OSSCAR", ICML 2024).

    Args:
        readers: consumers of one group; all have ``count`` units.
        count: number of units.
        ridge: added to each moment's diagonal, relative to its mean.

    Returns:
        order (count,), the last unit removed first, so that its first k entries are the k units kept;
        errors (count + 1,), entry k being the summed squared output error when k units are kept.
    """
    states = [_State(reader, ridge) for reader in readers]
    gone: list[int] = []
    total, errors = 0.0, [0.0]
    open_ = torch.ones(count, dtype=torch.bool)
    for _ in range(count):
        losses = sum((state.losses() for state in states), torch.zeros(count, dtype=torch.float64))
        unit = int(losses.masked_fill(~open_, torch.inf).argmin())
        total += float(losses[unit])
        errors.append(total)
        gone.append(unit)
        open_[unit] = False
        for state in states:
            state.remove(unit)
    return torch.tensor(gone[::-1], dtype=torch.int64), torch.tensor(errors[::-1], dtype=torch.float64)


def refitted_losses(readers: Sequence[Reader], order: Tensor, ridge: float = 1e-6) -> Tensor:
    """Error curve (n + 1,) of keeping the first k units of ``order`` with the readers refitted."""
    states = [_State(reader, ridge) for reader in readers]
    total, errors = 0.0, [0.0]
    for unit in order.flip(0).tolist():
        total += sum(state.loss(unit) for state in states)
        errors.append(total)
        for state in states:
            state.remove(unit)
    return torch.tensor(errors[::-1], dtype=torch.float64)


def sliced_losses(readers: Sequence[Reader], order: Tensor) -> Tensor:
    """Error curve (n + 1,) of keeping the first k units of ``order`` without any compensation."""
    errors = torch.zeros(len(order) + 1, dtype=torch.float64)
    for reader in readers:
        gone = [channel for unit in order.flip(0).tolist() for channel in reader.units[unit]]
        loss = (reader.moment.double() * reader.weight.double())[gone][:, gone]
        sums = loss.cumsum(0).cumsum(1).diagonal()  # of the leading blocks
        sums = torch.cat([sums.new_zeros(1), sums])
        counts = torch.tensor([0, *(len(reader.units[unit]) for unit in order.flip(0).tolist())])
        errors += sums[counts.cumsum(0)].flip(0)
    return errors.clamp_min(0.0)


def greedy_removal(contribution: Tensor) -> Tensor:
    """ThiNet's order of channels: remove, one by one, those whose summed contribution stays smallest.

    Source: Luo, Wu, Lin, "ThiNet", ICCV 2017, equation 6 and algorithm 1.

    Args:
        contribution: (n, n) second moment of the channels' contributions to the next layer's outputs.

    Returns:
        order (n,), the last removed first.
    """
    loss = contribution.double()
    cost = loss.diagonal().clone()  # what the summed removed contribution becomes with this channel too
    gone: list[int] = []
    for _ in range(len(loss)):
        j = int(cost.argmin())
        gone.append(j)
        cost = cost + 2 * loss[j]
        cost[gone] = torch.inf
    return torch.tensor(gone[::-1], dtype=torch.int64)


def sampling_probabilities(sensitivity: Tensor) -> Tensor:
    """PFP's probabilities of channels: their share in the summed sensitivities; uniform where all are 0.

    Source: Liebenwein, Baykal, Lang, Feldman, Rus, "Provable filter pruning", ICLR 2020, algorithm 2.
    """
    total = sensitivity.double().sum()
    n = sensitivity.numel()
    return sensitivity.double() / total if float(total) > 0 else torch.full((n,), 1.0 / n).double()


def sample_distinct(probabilities: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw channels with replacement until k are distinct, as PFP's randomised variant does.

    Args:
        probabilities: (n,), summing to 1; where fewer than k are positive, the largest of the rest follow.
        k: how many channels are kept.
        generator: source of randomness.

    Returns:
        kept (k,) in the order of their first draw, and factors (k,) count / (draws * probability) that
        make the summed contribution of the kept channels an unbiased estimate of that of all.
    """
    p = probabilities.double()
    counts: dict[int, int] = {}
    draws, reachable = 0, min(k, int((p > 0).sum()))
    while len(counts) < reachable:
        j = int(torch.multinomial(p, 1, generator=generator))
        counts[j] = counts.get(j, 0) + 1
        draws += 1
        if draws > 200 * p.numel():  # what is left is too improbable to wait for
            break
    kept = list(counts)
    factors = [counts[j] / (draws * float(p[j])) for j in kept]
    rest = [j for j in p.argsort(descending=True, stable=True).tolist() if j not in counts][: k - len(kept)]
    return torch.tensor(kept + rest), torch.tensor(factors + [1.0] * len(rest), dtype=torch.float64)
