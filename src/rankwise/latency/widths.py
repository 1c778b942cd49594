"""Times of a network whose layers become narrower, from a grid of measured widths of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from rankwise.latency.smooth import STAIRS, Floats, monotone_grid, points, stair
from rankwise.latency.table import LayerTimes, Probe, layer_probes
from rankwise.network.channel_group import ChannelGroup, Role
from rankwise.network.layer import Geometry, Layer

_COARSE = 5  # widths per side of a wide layer that narrows on both


@dataclass(frozen=True, eq=False)
class _Grid:
    """Seconds of one layer at some widths of its inputs and outputs, (inputs, outputs)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: Floats

    def at(self, inputs: int, outputs: int) -> float:
        """Seconds at any widths, by straight lines in both directions."""
        i, s = _place(self.inputs, stair(inputs, self.inputs[-1]))
        o, t = _place(self.outputs, stair(outputs, self.outputs[-1]))
        corners = self.seconds[i : i + 2, o : o + 2]
        row = np.array([1 - s, s][: len(corners)]) @ corners
        return float(row @ np.array([1 - t, t][: len(row)]))


def _place(known: Sequence[int], width: int) -> tuple[int, float]:
    """The interval that ``width`` lies in, and how far along it."""
    index = int(np.clip(np.searchsorted(known, width, side="right") - 1, 0, max(len(known) - 2, 0)))
    if len(known) == 1:
        return 0, 0.0
    span = known[index + 1] - known[index]
    return index, min(max((width - known[index]) / span, 0.0), 1.0)


class WidthTimes:
    """Predicted seconds of every layer at any widths, its share of the rest of the network included.

    What the whole network takes beyond its layers (normalisations, activations, additions) is shared
    out by the elements that the layers put out, and shrinks with their outputs. Where the layers alone
    take longer than the network, all are scaled down to it.

    Args:
        layers: all layers of the network, in the order in which they run.
        groups: the channel groups that may be narrowed.
        whole: seconds of the network.
        times: of single layers.
    """

    def __init__(
        self, layers: Iterable[Layer], groups: Iterable[ChannelGroup], whole: float, times: LayerTimes
    ) -> None:
        called = {layer.name: layer for layer in layers if layer.calls}
        ports = [(port.name, port.role) for group in groups for port in group.ports]
        sides = {name: {role for at, role in ports if at == name} for name in called}
        plans = {name: _plan(layer, sides[name]) for name, layer in called.items()}
        times.measure(probe for plan in plans.values() for several in plan[2].values() for probe in several)
        grids = {name: _grid(*plan, times) for name, plan in plans.items()}
        dense = {n: grids[n].at(g.in_channels, g.out_channels) for n, g in _geometries(called)}
        total = sum(dense.values())
        self._scale = min(1.0, whole / total) if total > 0 else 1.0
        rest = max(0.0, whole - total)
        elements = {name: sum(map(prod, layer.output_shapes)) for name, layer in called.items()}
        share = rest / max(sum(elements.values()), 1)
        self._rest = {n: share * elements[n] / called[n].geometry.out_channels for n in called}
        self._per_input = {n: g.out_channels / g.in_channels * (g.groups > 1) for n, g in _geometries(called)}
        self._grids = grids
        self._known: dict[tuple[str, int, int], float] = {}

    def seconds(self, name: str, inputs: int, outputs: int) -> float:
        """Of the layer ``name`` with that many channels; 0 for what is no layer, as a normalisation."""
        key = (name, inputs, outputs)
        if name not in self._grids:
            return 0.0
        if key not in self._known:
            own = self._grids[name].at(inputs, outputs) * self._scale
            per_input = self._per_input[name]
            self._known[key] = own + self._rest[name] * (inputs * per_input if per_input else outputs)
        return self._known[key]


def _geometries(layers: Mapping[str, Layer]) -> list[tuple[str, Geometry]]:
    return [(name, layer.geometry) for name, layer in layers.items()]


_Plan = tuple[tuple[int, ...], tuple[int, ...], dict[tuple[int, int], list[Probe]]]


def _plan(layer: Layer, roles: set[Role]) -> _Plan:
    """The widths at which a layer is timed, on those sides on which it can become narrower."""
    geometry = layer.geometry
    if geometry.groups > 1:
        return _grouped_plan(layer, bool(roles))
    narrow_in, narrow_out = bool(roles & {"in", "both"}), bool(roles & {"out", "both"})
    one_side = not (narrow_in and narrow_out)
    most = STAIRS if one_side else _COARSE
    inputs = points(geometry.in_channels, most) if narrow_in else [geometry.in_channels]
    outputs = points(geometry.out_channels, most) if narrow_out else [geometry.out_channels]
    probes = {
        (i, o): layer_probes(layer, replace(geometry, in_channels=i, out_channels=o))
        for i in inputs
        for o in outputs
    }
    return tuple(inputs), tuple(outputs), probes


def _grouped_plan(layer: Layer, narrows: bool) -> _Plan:
    """A grouped convolution loses whole groups, inputs and outputs together: one row over the inputs."""
    geometry = layer.geometry
    per_in, per_out = geometry.in_channels // geometry.groups, geometry.out_channels // geometry.groups
    counts = points(geometry.groups) if narrows else [geometry.groups]
    probes = {
        (k * per_in, geometry.out_channels): layer_probes(
            layer, replace(geometry, in_channels=k * per_in, out_channels=k * per_out, groups=k)
        )
        for k in counts
    }
    return tuple(k * per_in for k in counts), (geometry.out_channels,), probes


def _grid(
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    probes: Mapping[tuple[int, int], Sequence[Probe]],
    times: LayerTimes,
) -> _Grid:
    seconds = np.array([[times.seconds(probes[i, o]) for o in outputs] for i in inputs])
    return _Grid(inputs, outputs, monotone_grid(seconds))
