"""What a candidate really does to the network's output: measured, one layer at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankwise.allocation.measured import scaled_to
from rankwise.factorise import Offers, build_each
from rankwise.methods import Candidates, Method
from rankwise.network import Cost, Layer
from rankwise.network.batches import batch_size, device_of, forward, output_tensor, to_device
from rankwise.network.replay import Prefix
from rankwise.network.state import evaluating, unfused
from rankwise.network.surgery import get_module, replace_
from rankwise.progress import Progress
from rankwise.recovery.divergence import divergence_of
from rankwise.statistics import LayerStatistics

Floats = npt.NDArray[np.float64]

_FLOOR = 1e-12
_LARGEST = 2**30  # bytes of expected outputs that are kept
_FAR = 2.0  # times the least error of the other methods: one measurement is then enough


def some_examples(batches: Iterable[Any], count: int) -> list[Any]:
    """The first batches, until they hold ``count`` examples."""
    taken: list[Any] = []
    seen = 0
    for batch in batches:
        if seen >= count:
            break
        taken.append(batch)
        seen += batch_size(batch)
    return taken


@contextmanager
def swapped(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` stands in the place of the layer ``name``."""
    old = get_module(model, name)
    replace_(model, name, module)
    try:
        yield
    finally:
        replace_(model, name, old)


@dataclass(eq=False)
class Probe:
    """Measures how far the output moves when single layers are replaced.

    Args:
        model: a copy of the original network, changed only for the time of a measurement.
        batches: a few calibration batches; of large outputs, the first whose outputs fit in 1 GiB.
    """

    model: nn.Module
    batches: Sequence[Any]
    expected: list[torch.Tensor] = field(init=False)
    measured: int = field(default=0, init=False)
    """How many candidates have been measured."""

    def __post_init__(self) -> None:
        device = device_of(self.model)
        batches, self.expected, size = [], [], 0
        with torch.no_grad(), evaluating(self.model), unfused():
            for batch in self.batches:
                if size > _LARGEST:
                    break
                batches.append(to_device(batch, device))
                self.expected.append(output_tensor(forward(self.model, batches[-1])))
                size += self.expected[-1].nbytes
        self.batches = batches
        self._prefix = Prefix(self.model, self.batches[0])

    def divergence(self, layer: str | None = None, module: nn.Module | None = None) -> float:
        """Mean divergence of the output with ``module`` in the place of ``layer``.

        Layers must be asked for in the order in which they run: what comes before is not computed anew.
        """
        return self._mean(lambda index, batch: self._output(layer, module, index, batch))

    def of(self, model: nn.Module) -> float:
        """Mean divergence of the output of another network."""
        with evaluating(model):
            return self._mean(lambda _, batch: output_tensor(forward(model, batch)))

    def _mean(self, output: Callable[[int, Any], torch.Tensor]) -> float:
        self.measured += 1
        total, rows = 0.0, 0
        with torch.no_grad(), evaluating(self.model), unfused():
            for index, (batch, expected) in enumerate(zip(self.batches, self.expected, strict=True)):
                values = divergence_of(expected, output(index, batch))
                total, rows = total + float(values.sum()), rows + len(values)
        return total / rows if np.isfinite(total) else float("inf")

    def _output(self, layer: str | None, module: nn.Module | None, index: int, batch: Any) -> torch.Tensor:
        if layer is None or module is None:
            return output_tensor(forward(self.model, batch))
        with self._prefix.until(layer, index, batch), swapped(self.model, layer, module):
            return output_tensor(forward(self.model, batch))


def grid(candidates: Candidates, points: int) -> list[int]:
    """Up to ``points`` of the candidates that none beats in both cost and error, spread over the errors.

    Evenly on a log scale, the smallest and the largest error included. Interpolated candidates are left
    out.
    """
    price = candidates.params / max(1, candidates.params.max()) + candidates.macs / max(
        1, candidates.macs.max()
    )
    order = np.argsort(price, kind="stable")
    best = np.minimum.accumulate(np.concatenate([[np.inf], candidates.error[order]]))[:-1]
    front = order[candidates.error[order] < best]
    if candidates.fitted is not None:
        front = front[candidates.fitted[front]]
    if len(front) <= points:
        return [int(i) for i in front]
    levels = np.log(np.maximum(candidates.error[front], _FLOOR * max(candidates.scale, _FLOOR)))
    wanted = np.linspace(levels.max(), levels.min(), points)
    return sorted({int(front[np.abs(levels - w).argmin()]) for w in wanted})


def rivals(cost: Cost, offers: Sequence[Candidates]) -> list[bool]:
    """Which of the methods come near the least predicted error of the others at no larger cost.

    Only candidates that cost less than the dense layer count, and only where another method has one that
    costs no more: a method that is alone at some cost need not be near anything there.

    Args:
        cost: of the dense layer.
        offers: what each method offers, with errors in one unit.
    """
    prices = [o.params / max(1, cost.params) + o.macs / max(1, cost.macs) for o in offers]
    found = []
    for own, candidates in enumerate(offers):
        others = [i for i in range(len(offers)) if i != own]
        price = np.concatenate([np.zeros(0), *(prices[i] for i in others)])
        error = np.concatenate([np.zeros(0), *(offers[i].error for i in others)])
        order = np.argsort(price)
        least = np.concatenate([[np.inf], np.minimum.accumulate(error[order])])
        beside = least[np.searchsorted(price[order], prices[own], side="right")]
        counts = (prices[own] < 2.0) & np.isfinite(beside)
        near = candidates.error[counts] <= _FAR * beside[counts]
        found.append(bool(near.any()) or not counts.any())
    return found


def corrected(candidates: Candidates, known: dict[int, float]) -> Candidates:
    """The candidates with errors in measured divergence: the prediction times what it was off by.

    See :func:`rankwise.allocation.measured.scaled_to`.

    Args:
        candidates: predicted errors.
        known: measured divergence by index.
    """
    error = scaled_to(candidates.error, known, candidates.scale)
    return replace(candidates, error=error, unit="loss", scale=1.0)


def measured(
    probe: Probe,
    offered: Sequence[tuple[Layer, Offers]],
    statistics: Mapping[str, LayerStatistics],
    points: int,
    progress: Progress,
) -> list[tuple[Layer, list[tuple[Method, Candidates]]]]:
    """What the methods offer, with errors in measured divergence of the network's output (nats).

    ``points`` candidates are measured of every method, and one of those that are far from being the best.
    """
    grids = []
    for layer, offers in offered:
        near = rivals(layer.cost, [candidates for _, candidates in offers])
        wanted = [points if rival else 1 for rival in near]
        grids.append([grid(known, most) for (_, known), most in zip(offers, wanted, strict=True)])
    tried = [
        (layer, method, candidates.choice(index))
        for (layer, offers), chosen in zip(offered, grids, strict=True)
        for (method, candidates), indices in zip(offers, chosen, strict=True)
        for index in indices
    ]
    modules = iter(build_each(tried, statistics, progress))
    found = []
    for done, ((layer, offers), chosen) in enumerate(zip(offered, grids, strict=True)):
        progress("measure", done, len(offered))
        new = []
        for (method, candidates), indices in zip(offers, chosen, strict=True):
            known = {index: probe.divergence(layer.name, next(modules)) for index in indices}
            new.append((method, corrected(candidates, known)))
        found.append((layer, new))
    return found
