"""Weighted sums and second moments of a layer's input patches and outputs, in float64.

The second moment of the patches of a k x k convolution has k^2 x k^2 blocks, one per pair of kernel
positions. At stride 1 blocks of pairs that lie the same offset apart sum the same products over
shifted boxes: one product per offset (13 instead of 81 for 3 x 3), and edge strips for the rest.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod

import torch

from rankwise.network.layer import Geometry
from rankwise.statistics.patches import (
    as_examples,
    in_kernel_order,
    last_axes,
    padded,
    patches,
    window_stride,
)

Tensor = torch.Tensor
Offset = tuple[int, ...]

_FEWEST, _MOST = 1 << 20, 1 << 22  # float64 numbers held at a time: 8 MiB, near a cache, to 32 MiB


def widened(x: Tensor) -> Tensor:
    """``x`` in float64, on its device or, where that has no float64, on the CPU."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    return x.detach().to(device, torch.float64)


def chunks(
    x: Tensor, weights: Tensor | None, per_example: int, result: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Pieces of ``x`` along its first dimension that need ``per_example`` numbers per entry, in float64.

    A piece has at least as many numbers as the ``result`` that each is added to, within bounds.
    """
    size = max(1, min(_MOST, max(_FEWEST, result)) // max(1, per_example))
    for start in range(0, x.shape[0], size):
        piece = widened(x[start : start + size])
        yield piece, None if weights is None else weights[start : start + size].to(piece)


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    return x if weights is None else x * weights.view(-1, *(1,) * (x.ndim - 1))


def _by_group(groups: int, x: Tensor) -> Tensor:
    """``(N, C, *space)`` as ``(G, C / G, N, *space)``."""
    split: Tensor = x.unflatten(1, (groups, -1))
    return split.movedim(0, 2)


def channel_sums(
    groups: int, tensor: Tensor, weights: Tensor | None, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``sum w y`` as ``(G, o)`` and ``sum w y z^T`` as ``(G, o, p)`` over examples and positions.

    ``tensor`` y is ``(N, channels, *space)``, and ``other`` z, y itself by default, has the same
    examples and positions.
    """
    total: Tensor | None = None
    square: Tensor | None = None
    start = 0
    result = tensor.shape[1] * (tensor if other is None else other).shape[1] // groups
    for piece, piece_weights in chunks(tensor, weights, prod(tensor.shape[1:]), result):
        left = _by_group(groups, _weighted(piece, piece_weights)).flatten(2)  # (G, o, n)
        right = _by_group(groups, piece).flatten(2)
        if other is not None:
            right = _by_group(groups, other[start : start + len(piece)].detach().to(piece)).flatten(2)
        start += len(piece)
        part = left @ right.transpose(1, 2)
        total = left.sum(2) if total is None else total + left.sum(2)
        square = part if square is None else square + part
    assert total is not None and square is not None
    return total, square


def patch_sums(geometry: Geometry, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """``sum w u`` as ``(G, d)`` and ``sum w u u^T`` as ``(G, d, d)`` over the patches u of ``x``.

    ``x`` is ``(N, channels, *space)`` and ``weights`` ``(N,)`` or None.
    """
    x = as_examples(geometry, x)
    if geometry.pointwise:
        read = x[last_axes(slice(None, None, s) for s in window_stride(geometry))]
        return channel_sums(geometry.groups, read, weights)
    d, groups = geometry.columns, geometry.groups
    total = x.new_zeros(groups, d, dtype=torch.float64)
    square = x.new_zeros(groups, d, d, dtype=torch.float64)
    sizes = padded(geometry, x[:1]).shape[2:]
    shifted = _shifts_pay(geometry, sizes)
    reach = prod(sizes) // prod(window_stride(geometry))
    per_example = 3 * x.shape[1] * prod(sizes) if shifted else groups * d * reach
    for piece, piece_weights in chunks(x, weights, per_example, square.numel()):
        if shifted:
            part_total, part_square = _shifted_sums(geometry, padded(geometry, piece), piece_weights)
        else:
            rows = patches(geometry, piece)  # (n, P, G, d)
            left = _weighted(rows, piece_weights).movedim(2, 0).flatten(1, 2)
            part_total = left.sum(1)
            part_square = left.transpose(1, 2) @ rows.movedim(2, 0).flatten(1, 2)
        total += part_total.to(total)
        square += part_square.to(square)
    return total, square


def cross_sums(geometry: Geometry, x: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """``sum w t u^T`` as ``(G, o, d)`` over the patches u of ``x`` and the rows t of ``target``.

    ``x`` is ``(N, channels, *space)``; ``target`` is ``(N, out_channels, *positions)``.
    """
    x, target = as_examples(geometry, x), as_examples(geometry, target)
    groups = geometry.groups
    total = x.new_zeros(groups, geometry.rows, geometry.columns, dtype=torch.float64)
    sizes = padded(geometry, x[:1]).shape[2:]
    shifted = not geometry.pointwise and _shifts_pay(geometry, sizes)
    per_example = groups * geometry.columns * prod(target.shape[2:])
    if shifted:
        per_example = (x.shape[1] + target.shape[1]) * prod(sizes)
    start = 0
    for piece, piece_weights in chunks(x, weights, per_example, total.numel()):
        wanted = _weighted(target[start : start + len(piece)].detach().to(piece), piece_weights)
        start += len(piece)
        if shifted:
            part = _shifted_cross(geometry, padded(geometry, piece), wanted)
        else:
            rows = patches(geometry, piece).movedim(2, 0).flatten(1, 2)  # (G, n P, d)
            part = _by_group(groups, wanted).flatten(2) @ rows
        total += part.to(total)
    return total


def _shifts_pay(geometry: Geometry, sizes: tuple[int, ...]) -> bool:
    """Whether products of shifted inputs are cheaper than patches: stride 1, large maps, several channels."""
    for axis, kernel in enumerate(geometry.kernel_size):
        reach = geometry.dilation[axis] * (kernel - 1)
        if window_stride(geometry)[axis] != 1 or sizes[axis] - reach < 2 * reach:
            return False
    return geometry.in_channels // geometry.groups >= 8


def _distance(first: Offset, second: Offset) -> int:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


class _Shifted:
    """The second moment of all patches of one padded input at stride 1."""

    def __init__(self, geometry: Geometry, x: Tensor, weights: Tensor | None) -> None:
        self.right = _by_group(geometry.groups, x).contiguous()  # (G, c, n, *S)
        weighted = _weighted(x, weights)
        self.left = self.right if weights is None else _by_group(geometry.groups, weighted).contiguous()
        self.dilation = geometry.dilation
        self.sizes = tuple(x.shape[2:])
        self.last = tuple(d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True))
        self.extent = tuple(s - r for s, r in zip(self.sizes, self.last, strict=True))
        self.offsets = [
            tuple(d * i for d, i in zip(geometry.dilation, index, strict=True))
            for index in product(*map(range, geometry.kernel_size))
        ]

    def box(self, start: Offset) -> list[tuple[int, int]]:
        """The range per axis that the kernel position at ``start`` reads."""
        return [(s, s + e) for s, e in zip(start, self.extent, strict=True)]

    def _strips(self, box: list[tuple[int, int]], shift: Offset, which: Tensor) -> Tensor:
        return which[last_axes(slice(a + s, b + s) for (a, b), s in zip(box, shift, strict=True))].flatten(2)

    def _whole(self, masked: Tensor, shift: Offset) -> Tensor:
        """The product over the box that ``masked`` keeps, by one shift of the flattened maps."""
        flat = sum(s * prod(self.sizes[axis + 1 :]) for axis, s in enumerate(shift))
        length = masked.shape[2] - flat
        return masked[:, :, :length] @ self.right.flatten(2)[:, :, flat:].transpose(1, 2)

    def _masked(self, start: Offset) -> Tensor:
        masked = torch.zeros_like(self.left)
        key = last_axes(slice(a, b) for a, b in self.box(start))
        masked[key] = self.left[key]
        return masked.flatten(2)

    def _move(self, here: Offset, axis: int, step: int, shift: Offset) -> Tensor:
        """What the product changes by when the box moves from ``here`` by ``step`` along ``axis``."""
        low, high = self.box(here)[axis]
        gained, lost = self.box(here), self.box(here)
        if step > 0:
            gained[axis], lost[axis] = (high, high + step), (low, low + step)
        else:
            gained[axis], lost[axis] = (low + step, low), (high + step, high)
        none = (0,) * len(here)
        left = torch.cat([self._strips(gained, none, self.left), -self._strips(lost, none, self.left)], 2)
        right = torch.cat([self._strips(gained, shift, self.right), self._strips(lost, shift, self.right)], 2)
        return left @ right.transpose(1, 2)

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """``(i, j, block)`` for kernel positions i <= j; a block is ``(G, c, c)``."""
        index = {offset: i for i, offset in enumerate(self.offsets)}
        pairs: dict[Offset, list[Offset]] = {}
        for i, first in enumerate(self.offsets):
            for second in self.offsets[i:]:
                shift = tuple(b - a for a, b in zip(first, second, strict=True))
                pairs.setdefault(shift, []).append(first)
        masks: dict[Offset, Tensor] = {}
        for shift, starts in pairs.items():
            origin = tuple(0 if s >= 0 else last for s, last in zip(shift, self.last, strict=True))
            if origin not in masks:
                masks[origin] = self._masked(origin)
            known = {origin: self._whole(masks[origin], shift)}
            for start in sorted(starts, key=partial(_distance, origin)):
                if start != origin:
                    axis = max(a for a in range(len(start)) if start[a] != origin[a])
                    step = self.dilation[axis] if start[axis] > origin[axis] else -self.dilation[axis]
                    here = (*start[:axis], start[axis] - step, *start[axis + 1 :])
                    known[start] = known[here] + self._move(here, axis, step, shift)
                end = tuple(a + s for a, s in zip(start, shift, strict=True))
                yield index[start], index[end], known[start]


def _shifted_cross(geometry: Geometry, x: Tensor, target: Tensor) -> Tensor:
    """:func:`cross_sums` of an input that is padded already, at stride 1: one shift per kernel position.

    The target lies in a map of the input's size with zeros beyond it, so that shifts of the flattened
    maps never reach from one row or example into the next.
    """
    sizes, groups = x.shape[2:], geometry.groups
    canvas = x.new_zeros(*target.shape[:2], *sizes)
    canvas[last_axes(slice(size) for size in target.shape[2:])] = target
    left, right = (_by_group(groups, maps).contiguous().flatten(2) for maps in (canvas, x))
    blocks = []
    for index in product(*map(range, geometry.kernel_size)):
        steps = zip(index, geometry.dilation, range(len(sizes)), strict=True)
        shift = sum(i * d * prod(sizes[axis + 1 :]) for i, d, axis in steps)
        blocks.append(left[:, :, : left.shape[2] - shift] @ right[:, :, shift:].transpose(1, 2))
    if geometry.kind == "conv_transpose":
        blocks.reverse()  # reversing every kernel axis reverses the flattened kernel index
    return torch.stack(blocks, 3).flatten(2)


def _shifted_sums(geometry: Geometry, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`patch_sums` of an input that is padded already, at stride 1."""
    shifted = _Shifted(geometry, x, weights)
    groups, channels = geometry.groups, x.shape[1] // geometry.groups
    elements = geometry.kernel_elements
    square = x.new_zeros(groups, channels, elements, channels, elements)
    for i, j, block in shifted.blocks():
        square[:, :, i, :, j] = block
        square[:, :, j, :, i] = block.transpose(1, 2)
    maps = shifted.left.sum(2)  # (G, c, *S)
    boxes = [last_axes(slice(a, b) for a, b in shifted.box(offset)) for offset in shifted.offsets]
    total = torch.stack([maps[box].flatten(2).sum(2) for box in boxes], 2)  # (G, c, kernel elements)
    if geometry.kind == "conv_transpose":
        kernel = geometry.kernel_size
        total = in_kernel_order(geometry, total.unflatten(2, kernel)).flatten(2)
        square = square.flip(2, 4)  # reversing every kernel axis reverses the flattened kernel index
    return total.flatten(1), square.reshape(groups, channels * elements, channels * elements)
