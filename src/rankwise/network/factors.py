"""Chains of plain layers that stand in for one layer: their cost by formula, and their modules.

A :class:`Factor` says which of the original's spatial axes it carries. Channel numbers may be numpy
arrays, so that one call gives the cost of every candidate rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankwise.network.layer import CONVS, TRANSPOSED, Geometry, Layer, store_kernel_

Count = int | npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Factor:
    """One layer of a chain.

    ``axes`` are the spatial axes whose kernel, stride, padding and dilation it carries (an empty
    tuple: a pointwise layer). ``inputs``, ``outputs`` and ``groups`` count channels.
    """

    inputs: Count
    outputs: Count
    axes: tuple[int, ...] = ()
    groups: Count = 1
    bias: bool = False


def _output_size(geometry: Geometry, size: int, axis: int) -> int:
    kernel, stride, dilation = geometry.kernel_size[axis], geometry.stride[axis], geometry.dilation[axis]
    before, after = geometry.pads()[axis], geometry.pads_after()[axis]
    if geometry.kind == "conv_transpose":
        reach = dilation * (kernel - 1) + geometry.output_padding[axis] + 1
        return (size - 1) * stride - before - after + reach
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def chain_cost(
    layer: Layer, factors: Sequence[Factor]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``(params, macs)`` of the chain ``factors`` in the place of ``layer``, as ``build_chain`` makes it.

    MACs are those of one example over all calls of the layer, counted as
    ``torch.utils.flop_counter`` counts them (a transposed convolution at its input positions).
    Arrays in ``factors`` broadcast.
    """
    geometry = layer.geometry
    calls = [list(sizes) for sizes in layer.spatial_inputs]
    params: Any = 0
    macs: Any = 0
    for factor in factors:
        kernel = prod(geometry.kernel_size[axis] for axis in factor.axes)
        weights = np.asarray(factor.outputs) * (np.asarray(factor.inputs) // factor.groups) * kernel
        params = params + weights + (np.asarray(factor.outputs) if factor.bias else 0)
        for sizes in calls:
            positions_before = prod(sizes)
            for axis in factor.axes:
                sizes[axis] = _output_size(geometry, sizes[axis], axis)
            transposed = geometry.kind == "conv_transpose" and factor.axes
            macs = macs + weights * (positions_before if transposed else prod(sizes))
    return np.atleast_1d(np.asarray(params, np.int64)), np.atleast_1d(np.asarray(macs, np.int64))


def _factor_module(layer: Layer, factor: Factor) -> nn.Module:
    """The module of one factor with unset weights; a linear one with groups takes rows of inputs only."""
    geometry = layer.geometry
    options: dict[str, Any]
    inputs, outputs, groups = int(factor.inputs), int(factor.outputs), int(factor.groups)
    weight = layer.weight
    if geometry.kind == "linear":
        options = {"bias": factor.bias, "device": weight.device, "dtype": weight.dtype}
        if groups == 1:
            return nn.Linear(inputs, outputs, **options)
        grouped = nn.Conv1d(inputs, outputs, 1, groups=groups, **options)
        return nn.Sequential(nn.Unflatten(1, (inputs, 1)), grouped, nn.Flatten(1))

    def kept(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(v if axis in factor.axes else default for axis, v in enumerate(values))

    kind = geometry.kind if factor.axes else "conv"
    padding = geometry.padding if isinstance(geometry.padding, str) else kept(geometry.padding, 0)
    options = {
        "kernel_size": kept(geometry.kernel_size, 1),
        "stride": kept(geometry.stride, 1),
        "padding": padding if factor.axes else 0,
        "dilation": kept(geometry.dilation, 1),
        "groups": groups,
        "bias": factor.bias,
        "padding_mode": geometry.padding_mode if factor.axes else "zeros",
    }
    if kind == "conv_transpose":
        options["output_padding"] = kept(geometry.output_padding, 0)
    types = TRANSPOSED if kind == "conv_transpose" else CONVS
    return types[geometry.ndim - 1](inputs, outputs, device=weight.device, dtype=weight.dtype, **options)


def empty_chain(layer: Layer, factors: Sequence[Factor]) -> nn.Sequential:
    """The chain as plain torch modules with the layer's data type and device, with unset weights."""
    with torch.random.fork_rng(devices=[]):  # module constructors draw initial weights
        parts = [_factor_module(layer, factor) for factor in factors]
    return nn.Sequential(*(m for p in parts for m in (p if isinstance(p, nn.Sequential) else [p])))


def build_chain(
    layer: Layer,
    factors: Sequence[Factor],
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
) -> nn.Sequential:
    """The chain as plain torch modules with the layer's data type and device.

    ``weights[i]`` has as many elements as ``(outputs, inputs / groups, *kernel)`` of factor i, in
    that order, kernel axes being those it carries; ``biases[i]`` is ``(outputs,)`` where the factor
    has a bias and None elsewhere.
    """
    modules: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):  # module constructors draw initial weights
        for factor, weight, bias in zip(factors, weights, biases, strict=True):
            part = _factor_module(layer, factor)
            module = part[1] if isinstance(part, nn.Sequential) else part
            carried = [layer.geometry.kernel_size[a] for a in sorted(factor.axes)]
            shape = (int(factor.outputs), int(factor.inputs) // int(factor.groups), *carried)
            store_kernel_(module, weight.reshape(shape))
            if bias is not None:
                stored = module.bias
                assert isinstance(stored, torch.Tensor)
                with torch.no_grad():
                    stored.copy_(bias)
            modules.extend(part if isinstance(part, nn.Sequential) else [part])
    chain = nn.Sequential(*modules)
    chain.train(layer.module.training)
    original = layer.module.weight
    chain.requires_grad_(isinstance(original, torch.Tensor) and original.requires_grad)
    return chain
