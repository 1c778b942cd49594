"""Finding the channel groups of any model by running it once with a label on every channel.

Leaf modules (convolutions, linear layers, normalisations) make and read channels; every other operator
only moves, joins or mixes them (see :mod:`rankwise.network.channel_rules`). The idea of groups of
coupled channels is that of DepGraph (Fang et al., CVPR 2023); following labels through the tensors
themselves instead of matching graph patterns gives exact index maps through padding, flattening,
concatenation and shuffling.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from rankwise.network.batches import device_of, forward, output_tensor, to_device
from rankwise.network.channel_group import ChannelGroup, Port, Units
from rankwise.network.channel_rules import Call, propagate
from rankwise.network.labels import LabelSpace
from rankwise.network.layer import Geometry, geometry_of
from rankwise.network.select import input_dim, passenger_width, select_
from rankwise.network.state import preserved

Tensor = torch.Tensor

_LARGEST_PARAMETER = 2_000_000
"""Entries of a parameter used outside its module that are still followed one by one."""


@dataclass
class _Leaf:
    """A module that makes or reads channels, and the label of each of its channels."""

    name: str
    module: nn.Module
    geometry: Geometry | None
    inputs: Tensor | None = None  # (in,) labels
    outputs: Tensor | None = None  # (out,) labels

    @property
    def producer(self) -> bool:
        return self.geometry is not None and self.geometry.groups == 1


def _leaves(model: nn.Module) -> dict[str, _Leaf]:
    """Modules with a plain forward of torch's own and parameters that belong to them alone."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    leaves = {}
    for name, module in model.named_modules():
        geometry = geometry_of(module)
        if geometry is None and passenger_width(module) is None:
            continue
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        plain = type(module).forward.__module__.startswith(("torch.nn.modules", "transformers.pytorch_utils"))
        own = all(len(owners[id(p)]) == 1 for p in module.parameters(recurse=False))
        direct = geometry is None or module._parameters.get("weight") is not None
        if plain and own and direct:
            leaves[name] = _Leaf(name, module, geometry)
    return leaves


class _Trace(TorchDispatchMode):
    """One forward pass with labels on every tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it unannotated
        self.space = LabelSpace()
        self.leaves = _leaves(model)
        self.outside: set[str] = set()
        self.parameters: dict[str, Tensor] = {}
        self._labels = WeakTensorKeyDictionary()
        self._names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        self._depth = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._depth == 0:
            self._assign(out, propagate(Call(self.space, func, args, kwargs, out, self.lookup)))
        return out

    def _assign(self, out: Any, labels: Any) -> None:
        if labels is None:
            return
        for tensor, label in zip(tree_leaves(out), tree_leaves(labels), strict=True):
            if isinstance(tensor, Tensor) and isinstance(label, Tensor):
                self._labels[tensor] = label

    def lookup(self, tensor: Tensor) -> Tensor | None:
        """The labels of an activation, or of a parameter that is used outside a leaf module."""
        found = self._labels.get(tensor)
        if found is not None:
            return found  # type: ignore[no-any-return] # a weak dictionary
        name = self._names.get(id(tensor))
        if name is None:
            return None
        owner = name.rpartition(".")[0]
        if owner in self.leaves:
            self.outside.add(owner)
        if name not in self.parameters:
            if tensor.numel() > _LARGEST_PARAMETER:
                code = self.space.constant("read from a large parameter")
                self.parameters[name] = torch.tensor(code).expand(tensor.shape)
            else:
                self.parameters[name] = self.space.fresh(tensor.numel()).reshape(tensor.shape)
        return self.parameters[name]

    def input_labels(self, tensor: Tensor) -> Tensor:
        """Labels of what a leaf module reads."""
        found = self.lookup(tensor)
        return (
            found
            if found is not None
            else torch.tensor(self.space.constant("model input")).expand(tensor.shape)
        )

    def channel_vector(self, labels: Tensor, dim: int) -> Tensor:
        """One label per channel, ``(channels,)``: all positions of a channel are united."""
        for other in range(labels.ndim):
            if other != dim % labels.ndim:
                labels = self.space.unite_along(labels, other)
        return labels.reshape(-1)

    def enter(self) -> None:
        """A leaf module starts: its own operators are not looked at."""
        self._depth += 1

    def leave(self, leaf: _Leaf, given: Tensor, out: Tensor) -> None:
        """A leaf module is done: unite what it reads, label what it makes."""
        self._depth -= 1
        dim = 1 if leaf.geometry is None else given.ndim - leaf.geometry.ndim - 1
        vector = self.channel_vector(self.input_labels(given), dim)
        if leaf.inputs is not None:
            vector = self.space.unite(leaf.inputs, vector)
        leaf.inputs = vector
        leaf.outputs = self._outputs(leaf, vector)
        shape = [-1 if d == dim else 1 for d in range(out.ndim)]
        self._labels[out] = leaf.outputs.reshape(shape).expand(out.shape)

    def _outputs(self, leaf: _Leaf, vector: Tensor) -> Tensor:
        if leaf.geometry is None:
            blocks = leaf.module.num_groups if isinstance(leaf.module, nn.GroupNorm) else vector.numel()
            return (
                self.space.unite_along(vector.reshape(blocks, -1), 1)
                .expand(blocks, vector.numel() // blocks)
                .reshape(-1)
            )
        if leaf.producer:
            return leaf.outputs if leaf.outputs is not None else self.space.fresh(leaf.geometry.out_channels)
        grouped = self.space.unite_along(vector.reshape(leaf.geometry.groups, -1), 1)
        return grouped.expand(-1, leaf.geometry.rows).reshape(-1)


@contextmanager
def _hooked(trace: _Trace) -> Iterator[None]:
    handles: list[RemovableHandle] = []

    def hook(leaf: _Leaf) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            trace.enter()

        def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            trace.leave(leaf, next(t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), out)

        handles.append(leaf.module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(leaf.module.register_forward_hook(after, with_kwargs=True))

    try:
        for leaf in trace.leaves.values():
            hook(leaf)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors_in(vars(value))


def _run(model: nn.Module, example: Any) -> _Trace:
    trace = _Trace(model)
    example = to_device(example, device_of(model))
    with preserved(model), torch.no_grad(), _hooked(trace):
        model.eval()
        for tensor in _tensors_in(example):
            trace._labels[tensor] = torch.tensor(trace.space.constant("model input")).expand(tensor.shape)
        with trace:
            out = forward(model, example)
    for tensor in _tensors_in(out):
        trace.space.freeze(trace.input_labels(tensor), "model output")
    for name in sorted(trace.outside):
        leaf = trace.leaves[name]
        for vector in (leaf.inputs, leaf.outputs):
            if vector is not None:
                trace.space.freeze(vector, f"{name} is also used outside its own call")
    return trace


def _parameter_ports(trace: _Trace, produced: set[int]) -> dict[str, tuple[int, list[int]]]:
    """By parameter name: the dimension that runs over channels and the label at each index of it."""
    ports = {}
    for name, labels in trace.parameters.items():
        roots = trace.space.resolve(labels)
        if not produced & set(torch.unique(roots).tolist()):
            continue
        varying = [d for d in range(roots.ndim) if trace.space.varies(roots, d)]
        if len(varying) == 1:
            (dim,) = varying
            vector = roots.movedim(dim, 0).reshape(roots.shape[dim], -1)[:, 0]
            ports[name] = (dim, vector.tolist())
        else:
            trace.space.freeze(roots, f"meets parameter {name}, which has no single dimension of channels")
    return ports


def _units(units: list[int], vector: list[int]) -> Units:
    places: dict[int, list[int]] = {unit: [] for unit in units}
    for index, label in enumerate(vector):
        if label in places:
            places[label].append(index)
    return tuple(tuple(indices) for indices in places.values())


def _coupled(producers: dict[str, list[int]]) -> list[list[str]]:
    """Producers that share a label, in the order in which they run."""
    first: dict[int, str] = {}
    above = {name: name for name in producers}

    def top(name: str) -> str:
        while above[name] != name:
            name = above[name]
        return name

    for name, labels in producers.items():
        for label in labels:
            above[top(name)] = top(first.setdefault(label, name))
    sets: dict[str, list[str]] = {}
    for name in producers:
        sets.setdefault(top(name), []).append(name)
    return list(sets.values())


class _Assembler:
    """Turns the labels of a finished trace into groups."""

    def __init__(self, trace: _Trace) -> None:
        self.space = trace.space
        called = [
            leaf for leaf in trace.leaves.values() if leaf.inputs is not None and leaf.outputs is not None
        ]
        self.outputs = {leaf.name: self._roots(leaf.outputs) for leaf in called if leaf.producer}
        self.inputs = {leaf.name: self._roots(leaf.inputs) for leaf in called}
        self.passengers = [leaf.name for leaf in called if not leaf.producer]
        produced = {label for labels in self.outputs.values() for label in labels}
        self.parameters = _parameter_ports(trace, produced)

    def _roots(self, labels: Tensor | None) -> list[int]:
        assert labels is not None
        return self.space.resolve(labels).tolist()

    def groups(self) -> list[ChannelGroup]:
        return [self._group(names) for names in _coupled(self.outputs)]

    def _group(self, names: list[str]) -> ChannelGroup:
        labels = list(dict.fromkeys(label for name in names for label in self.outputs[name]))
        units = [label for label in labels if self.space.reason(label) is None]
        reason = None
        if len(units) < 2:
            frozen = [r for r in map(self.space.reason, labels) if r is not None]
            reason, units = (frozen[0] if frozen else "all its channels go together"), []
        known = set(units)
        fixed = sum(label not in known for label in self.outputs[names[0]])
        producers = tuple(Port(n, "out", _units(units, self.outputs[n]), len(self.outputs[n])) for n in names)
        passengers, consumers = [], []
        for name, vector in self.inputs.items():
            if known.isdisjoint(vector):
                continue
            if name in self.passengers:
                passengers.append(Port(name, "both", _units(units, vector), len(vector)))
            else:
                consumers.append(Port(name, "in", _units(units, vector), len(vector)))
        for name, (dim, vector) in self.parameters.items():
            if not known.isdisjoint(vector):
                passengers.append(Port(name, "parameter", _units(units, vector), len(vector), dim))
        return ChannelGroup(
            names[0], len(units), producers, tuple(passengers), tuple(consumers), fixed, reason
        )

    def suspected(self, group: ChannelGroup) -> bool:
        """Whether removing units of the group relies on sizes computed at run time."""
        return any(self.space.suspected(label) for p in group.producers for label in self.outputs[p.name])


def find_groups(model: nn.Module, example: Any) -> list[ChannelGroup]:
    """The channel groups of ``model``, in the order in which it runs; the model is left as it was.

    Args:
        model: any module; it is run once in evaluation mode on ``example``.
        example: a batch as for :func:`rankwise.network.batches.forward`; one example is enough.

    Every convolution and linear layer that makes channels is a producer of exactly one group. A group
    whose channels cannot be removed says why in ``reason``. Where the forward pass reshapes or splits
    channels, one unit is removed from a copy of the model to see whether the sizes follow.
    """
    trace = _run(model, example)
    assembler = _Assembler(trace)
    groups = assembler.groups()
    doubtful = [g.name for g in groups if g.reason is None and assembler.suspected(g)]
    if doubtful and not _follows(model, example, groups, doubtful):
        for name in doubtful:
            if not _follows(model, example, groups, [name]):
                group = next(g for g in groups if g.name == name)
                for port in group.producers:
                    labels = torch.tensor(assembler.outputs[port.name])
                    trace.space.freeze(labels, "the forward pass fixes a size that depends on these channels")
        groups = assembler.groups()
    return groups


def _follows(model: nn.Module, example: Any, groups: list[ChannelGroup], names: list[str]) -> bool:
    """Whether removing the last unit of each named group equals not reading it."""
    chosen = [g for g in groups if g.name in names]
    try:
        with preserved(model), torch.no_grad():
            unread, removed = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
            for group in chosen:
                for port in group.consumers:
                    _ignore_(unread.get_submodule(port.name), list(port.units[-1]))
            select_(removed, groups, {g.name: range(g.size - 1) for g in chosen})
            expected, got = (output_tensor(forward(m, example)) for m in (unread, removed))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False
    scale = float(expected.abs().max()) + 1e-12
    return expected.shape == got.shape and bool(((expected - got).abs() <= 1e-3 * scale).all())


def _ignore_(module: nn.Module, inputs: list[int]) -> None:
    """Set the weights that read the given input channels to zero, in place."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.index_fill_(input_dim(module), torch.tensor(inputs, device=weight.device), 0.0)
