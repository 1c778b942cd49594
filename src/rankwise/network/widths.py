"""What a network costs when only some units of its channel groups are kept, without building it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from rankwise.network.channel_group import ChannelGroup, Port
from rankwise.network.cost import Cost
from rankwise.network.layer import Layer, geometry_of

SecondsOf = Callable[[str, int, int], float]
"""Predicted seconds of a module by its name and its numbers of input and output channels."""


class WidthCost:
    """Exact costs of a model for any widths of its groups; its time as ``seconds`` predicts it.

    Costs are products of the widths on both sides of a layer, so they do not add up over groups:
    :meth:`cost` answers for all widths at once.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[Layer],
        groups: Sequence[ChannelGroup],
        whole: Cost,
        seconds: SecondsOf | None = None,
    ) -> None:
        self._whole, self._seconds = whole, seconds
        groups = [group for group in groups if group.reason is None]
        self._ports = {group.name: [(port, _Counter(port)) for port in group.ports] for group in groups}
        macs = {layer.name: layer.cost.macs for layer in layers}
        touched = {port.name: port for group in groups for port in group.ports}
        self._modules = {
            name: _Module(model.get_submodule(name), macs.get(name, 0))
            for name, port in touched.items()
            if port.role != "parameter"
        }
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._parameters = {
            name: (tensors[name], name in dict(model.named_parameters()))
            for name, port in touched.items()
            if port.role == "parameter"
        }

    def cost(self, kept: Mapping[str, Sequence[int]]) -> Cost:
        """The cost of the whole model when of each group named there only those units are kept."""
        inputs: dict[str, int] = {}
        outputs: dict[str, int] = {}
        slices: dict[str, float] = {}
        for name, units in kept.items():
            for port, counter in self._ports[name]:
                if len(units) == len(counter.lengths):
                    break  # the whole group stays
                gone = counter.gone(units)
                if port.role == "parameter":
                    slices[port.name] = slices.get(port.name, 1.0) * (1 - gone / port.size)
                elif port.role == "out":
                    outputs[port.name] = outputs.get(port.name, 0) + gone
                else:
                    inputs[port.name] = inputs.get(port.name, 0) + gone
        total = self._whole
        for name in dict.fromkeys((*inputs, *outputs)):
            sides = (inputs.get(name, 0), outputs.get(name, 0))
            total -= self._modules[name].saved(*sides)
            total -= Cost(latency=self._time_saved(name, *sides))
        for name, share in slices.items():
            tensor, counted = self._parameters[name]
            lost = tensor.numel() - round(tensor.numel() * share)
            total -= Cost(lost if counted else 0, 0, lost * tensor.element_size())
        return total

    def _time_saved(self, name: str, inputs: int, outputs: int) -> int:
        """Nanoseconds that go with that many input and output channels of one module."""
        if self._seconds is None:
            return 0
        module = self._modules[name]
        whole = self._seconds(name, module.inputs, module.outputs)
        return round(1e9 * (whole - self._seconds(name, module.inputs - inputs, module.outputs - outputs)))


class _Counter:
    """How many channels go at a port with the units that go."""

    def __init__(self, port: Port) -> None:
        self.lengths: npt.NDArray[np.int64] = np.array(
            [len(indices) for indices in port.units], dtype=np.int64
        )
        self.same = int(self.lengths[0]) if (self.lengths == self.lengths[0]).all() else None

    def gone(self, units: Sequence[int]) -> int:
        """Channels that go when only ``units`` stay."""
        if self.same is not None:
            return (len(self.lengths) - len(units)) * self.same
        return int(self.lengths.sum() - self.lengths[np.asarray(units, dtype=np.int64)].sum())


class _Module:
    """Widths of one module and what it costs per input and output channel."""

    def __init__(self, module: nn.Module, macs: int) -> None:
        geometry = geometry_of(module)
        self.grouped = geometry is None or geometry.groups > 1
        tensors: list[tuple[Tensor, bool]] = [(t, True) for t in module.parameters(recurse=False)]
        tensors += [(t, False) for t in module.buffers(recurse=False)]
        vectors = [(t, p) for t, p in tensors if t.ndim == 1]
        arrays = [(t, p) for t, p in tensors if t.ndim > 1]
        width = max((len(t) for t, _ in vectors), default=1)
        self.inputs = width if geometry is None else geometry.in_channels
        self.outputs = width if geometry is None else geometry.out_channels
        self.vector, self.array = _cost(vectors, 0), _cost(arrays, macs)

    def saved(self, inputs: int, outputs: int) -> Cost:
        """What goes with that many input and output channels."""
        left_in, left_out = self.inputs - inputs, self.outputs - outputs
        if self.grouped:  # a passenger: outputs go with inputs, arrays with whole groups
            array, vector, whole, width = left_in, left_in, self.inputs, self.inputs
        else:
            array, vector, whole, width = (
                left_in * left_out,
                left_out,
                self.inputs * self.outputs,
                self.outputs,
            )
        return _share(self.array, whole - array, whole) + _share(self.vector, width - vector, width)


def _cost(tensors: Iterable[tuple[Tensor, bool]], macs: int) -> Cost:
    tensors = list(tensors)
    params = sum(t.numel() for t, counted in tensors if counted)
    return Cost(params, macs, sum(t.numel() * t.element_size() for t, _ in tensors))


def _share(cost: Cost, part: int, whole: int) -> Cost:
    return Cost(cost.params * part // whole, cost.macs * part // whole, cost.bytes * part // whole)
