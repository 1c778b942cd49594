"""The input of a layer as the patches that its matrix multiplies, one per output position."""

from collections.abc import Iterable
from itertools import chain
from math import prod
from typing import Any

import torch
from torch.nn import functional

from rankwise.errors import CalibrationError
from rankwise.network.layer import Geometry, Layer

Tensor = torch.Tensor


def last_axes(slices: Iterable[slice]) -> Any:
    """The index that applies ``slices`` to the last axes of a tensor."""
    return (..., *slices)


def as_examples(geometry: Geometry, tensor: Tensor) -> Tensor:
    """``tensor`` as ``(N, channels, *space)``: a linear layer's rows, a convolution's examples.

    Raises:
        CalibrationError: the tensor has a number of dimensions that the layer cannot take.
    """
    if geometry.kind == "linear":
        return tensor.reshape(-1, tensor.shape[-1])
    if tensor.ndim == geometry.ndim + 1:
        return tensor.unsqueeze(0)
    if tensor.ndim != geometry.ndim + 2:
        raise CalibrationError(
            f"A convolution with {geometry.ndim} spatial dimensions was given a tensor of shape "
            f"{tuple(tensor.shape)}; allowed are (N, C, *space) and (C, *space)."
        )
    return tensor


def _stuffed(geometry: Geometry, x: Tensor) -> Tensor:
    """``x`` with ``stride - 1`` zeros between neighbours: what a transposed convolution slides over."""
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], geometry.stride, strict=True)]
    stuffed = x.new_zeros(*x.shape[:2], *sizes)
    stuffed[last_axes(slice(None, None, step) for step in geometry.stride)] = x
    return stuffed


def padded(geometry: Geometry, x: Tensor) -> Tensor:
    """``(N, C, *space)`` padded, so that :func:`windows` slides over it without padding of its own."""
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)]
    before, after = geometry.pads(), geometry.pads_after()
    mode = geometry.padding_mode
    if geometry.kind == "conv_transpose":
        x, mode = _stuffed(geometry, x), "zeros"
        before = tuple(r - p for r, p in zip(reach, before, strict=True))
        after = tuple(b + extra for b, extra in zip(before, geometry.output_padding, strict=True))
    pairs = list(chain.from_iterable(zip(reversed(before), reversed(after), strict=True)))
    if not any(pairs):
        return x
    return functional.pad(x, pairs, mode="constant" if mode == "zeros" else mode)


def window_stride(geometry: Geometry) -> tuple[int, ...]:
    """The stride of the windows over the padded input: 1 for transposed convolutions."""
    return (1,) * geometry.ndim if geometry.kind == "conv_transpose" else geometry.stride


def windows(geometry: Geometry, x: Tensor) -> Tensor:
    """A view ``(N, *positions, groups, channels per group, *kernel)`` of the padded input ``x``.

    For a transposed convolution the kernel axes run backwards; see :func:`in_kernel_order`.
    """
    ndim = geometry.ndim
    view = x
    for axis, (kernel, step) in enumerate(zip(geometry.kernel_size, window_stride(geometry), strict=True)):
        view = view.unfold(2 + axis, geometry.dilation[axis] * (kernel - 1) + 1, step)
    view = view[last_axes(slice(None, None, d) for d in geometry.dilation)]
    by_group: Tensor = view.unflatten(1, (geometry.groups, -1))  # (N, G, C / G, *positions, *kernel)
    return by_group.movedim((1, 2), (1 + ndim, 2 + ndim))


def in_kernel_order(geometry: Geometry, kernel_last: Tensor) -> Tensor:
    """``kernel_last``, with the kernel's axes last as :func:`windows` has them, in the kernel's order."""
    if geometry.kind != "conv_transpose":
        return kernel_last
    return kernel_last.flip(tuple(range(-geometry.ndim, 0)))


def patches(layer: Layer | Geometry, x: Tensor) -> Tensor:
    """The input patches ``(N, positions, groups, d)`` of ``layer`` on the input ``x``.

    ``d`` runs over the group's input channels, then the kernel positions, as the columns of
    :meth:`Layer.matrix` do; ``matrix @ patch + bias`` is the layer's output at that position. For a
    linear layer every row of ``x`` is one of N with one position. The data type is that of ``x``.
    """
    geometry = layer if isinstance(layer, Geometry) else layer.geometry
    x = as_examples(geometry, x)
    if geometry.kind == "linear":
        return x[:, None, None, :]
    view = in_kernel_order(geometry, windows(geometry, padded(geometry, x)))
    positions = prod(view.shape[1 : 1 + geometry.ndim])
    return view.reshape(x.shape[0], positions, geometry.groups, geometry.columns)
