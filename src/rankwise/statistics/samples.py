"""A seeded sample of fixed size from a stream of unknown length."""

import zlib

import torch

from rankwise.network.layer import Geometry
from rankwise.statistics.patches import in_kernel_order, padded, windows
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor


class Reservoir:
    """The ``limit`` rows with the smallest random keys; weighted rows come in proportion to their weight.

    A row of weight w draws ``u ** (1 / w)`` with u uniform and takes part with key one minus that
    (Efraimidis and Spirakis, 2006, "Weighted random sampling with a reservoir", algorithm A), so two
    reservoirs merge by keeping the smallest keys of both.
    """

    def __init__(self, limit: int, seed: int, name: str) -> None:
        self.limit = limit
        key = zlib.crc32(f"{seed}/{name}".encode())  # torch's CPU generator reads the low 32 bits alone
        self._generator = torch.Generator().manual_seed(key)
        self._held = LayerStatistics()

    def offer(self, geometry: Geometry, x: Tensor, y: Tensor, weights: Tensor | None) -> None:
        """Let every output position of the call ``x -> y`` take part."""
        outputs = y.flatten(2).transpose(1, 2) if y.ndim > 2 else y[:, None, :]  # (N, P, O)
        count, positions = outputs.shape[:2]
        keys = torch.rand(count, positions, generator=self._generator, dtype=torch.float64)
        if weights is not None:
            root = weights.to("cpu", torch.float64).clamp_min(1e-300)[:, None]
            keys = -torch.expm1(torch.log(keys) / root)  # 1 - u^(1/w)
            keys[weights.cpu() <= 0] = 2.0
        held = self._held.sample_keys
        bound = 1.0 if held is None or len(held) < self.limit else float(held[-1])
        flat = keys.flatten()
        picked = (flat <= bound).nonzero().squeeze(1)
        picked = picked[torch.argsort(flat[picked], stable=True)][: self.limit]
        if len(picked) == 0:
            return
        example, position = picked // positions, picked % positions
        offered = LayerStatistics(
            positions=1.0,
            sample_inputs=_rows(geometry, x.detach(), example.to(x.device), position.to(x.device)),
            sample_outputs=outputs.detach()[example.to(y.device), position.to(y.device)]
            .to("cpu", torch.float64)
            .unflatten(1, (geometry.groups, geometry.rows)),
            sample_keys=flat[picked],
            sample_limit=self.limit,
        )
        self._held = self._held + offered

    def store(self, statistics: LayerStatistics) -> None:
        """Put the sample into ``statistics``."""
        held = self._held
        statistics.sample_inputs, statistics.sample_outputs = held.sample_inputs, held.sample_outputs
        statistics.sample_keys, statistics.sample_limit = held.sample_keys, self.limit


def _rows(geometry: Geometry, x: Tensor, example: Tensor, position: Tensor) -> Tensor:
    """The patches ``(n, G, d)`` at output ``position`` of ``example``, without unfolding the rest."""
    if geometry.kind == "linear":
        return x[example].to("cpu", torch.float64)[:, None, :]
    view = windows(geometry, padded(geometry, x))  # (N, *positions, G, C / G, *kernel)
    axes = torch.unravel_index(position, view.shape[1 : 1 + geometry.ndim])
    rows = view[(example, *axes)].to("cpu", torch.float64)
    return in_kernel_order(geometry, rows).flatten(2)
