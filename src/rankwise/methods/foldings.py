"""Foldings: the ways to see a kernel as a matrix, each giving another chain of two convolutions.

A folding says which spatial axes the encoder carries; the decoder carries the others. The kernel
``(f, c, k1, .., kn)`` becomes the matrix ``(f, decoder axes) x (c, encoder axes)``, and a product
``decoder @ encoder`` of that shape is a convolution along the encoder's axes followed by one along the
decoder's. Padding, stride and dilation go with their axis, so the chain computes exactly the
convolution with the assembled kernel, for every padding mode, and for transposed convolutions too.

For two spatial axes these are the four folding schemes of ALDS (Liebenwein et al. 2021, 2107.11442):

=========  ======================  =================  =========  ====
name       matrix                  encoder            decoder    ALDS
=========  ======================  =================  =========  ====
channel    f x (c k1 k2)           k1 x k2            1 x 1      0
axis1      (f k1) x (c k2)         1 x k2             k1 x 1     1
axis0      (f k2) x (c k1)         k1 x 1             1 x k2     2
pointwise  (f k1 k2) x c           1 x 1              k1 x k2    3
=========  ======================  =================  =========  ====

``slices`` cut the input channels of each group into contiguous blocks: the encoder is then a grouped
convolution with one group per block (ALDS' k).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import nn

from rankwise.network.factors import Count, Factor, build_chain
from rankwise.network.layer import Geometry, Layer

Tensor = torch.Tensor
FOLDINGS = ("channel", "axis0", "axis1", "axis2", "axis01", "axis02", "axis12", "pointwise")


@dataclass(frozen=True)
class Folding:
    """One split of the spatial axes between encoder and decoder."""

    name: str
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    def elements(self, geometry: Geometry) -> tuple[int, int]:
        """Kernel elements of the encoder and of the decoder."""
        size = geometry.kernel_size
        return int(np.prod([size[a] for a in self.encoder])), int(np.prod([size[a] for a in self.decoder]))


def foldings(geometry: Geometry) -> dict[str, Folding]:
    """The foldings of a layer by name that differ from each other; "channel" first.

    An axis with kernel size 1 stays with the encoder, so a linear layer and a 1x1 convolution have
    the folding "channel" only, and a Conv1d has "channel" and "pointwise".
    """
    axes = range(geometry.ndim)
    wide = [axis for axis in axes if geometry.kernel_size[axis] > 1]
    found = {}
    for count in range(len(wide), -1, -1):
        for chosen in combinations(wide, count):
            decoder = tuple(axis for axis in wide if axis not in chosen)
            name = "axis" + "".join(map(str, chosen))
            name = "channel" if not decoder else "pointwise" if not chosen else name
            found[name] = Folding(name, tuple(a for a in axes if a not in decoder), decoder)
    return found


def check_folding(wanted: str) -> None:
    """Raise ValueError where ``wanted`` is no value of the option ``folding``."""
    if wanted not in (*FOLDINGS, "spatial", "all"):
        allowed = ", ".join((*FOLDINGS, "spatial", "all"))
        raise ValueError(f"folding={wanted!r} was given; allowed: {allowed}.")


def chosen_foldings(geometry: Geometry, wanted: str) -> list[Folding]:
    """The foldings of this layer that the option ``wanted`` stands for; empty where it has none of them.

    ``wanted`` is "all", "spatial" (those in which both factors have spatial axes) or a name. A name
    stands for the folding that it coincides with here: "pointwise" is "channel" for a 1x1 kernel.
    """
    known = foldings(geometry)
    if wanted == "all":
        return list(known.values())
    if wanted == "spatial":
        return [folding for name, folding in known.items() if name not in ("channel", "pointwise")]
    if wanted in ("channel", "pointwise"):
        return [known.get(wanted, known["channel"])]
    axes = {int(digit) for digit in wanted.removeprefix("axis")}
    if not axes <= set(range(geometry.ndim)):
        return []
    wide = {axis for axis in range(geometry.ndim) if geometry.kernel_size[axis] > 1}
    return [f for f in known.values() if set(f.encoder) & wide == axes & wide]


def slice_counts(geometry: Geometry) -> list[int]:
    """The numbers of equal blocks that the input channels of a group can be cut into, ascending."""
    channels = geometry.in_channels // geometry.groups
    return [k for k in range(1, channels + 1) if channels % k == 0]


def nearest_slices(geometry: Geometry, wanted: int) -> int:
    """The possible number of slices nearest to ``wanted``; of two equally near ones the larger."""
    return min(slice_counts(geometry), key=lambda k: (abs(k - wanted), -k))


def _axis_order(geometry: Geometry, folding: Folding) -> list[int]:
    """Permutation of (G, f, k, c/k, axes..) to (G, k, f, decoder axes, c/k, encoder axes)."""
    return [0, 2, 1, *(4 + a for a in folding.decoder), 3, *(4 + a for a in folding.encoder)]


def fold(kernel: Tensor, geometry: Geometry, folding: Folding, slices: int) -> Tensor:
    """``(out, in / groups, *k)`` as ``(groups, slices, rows * decoder, in / groups / slices * encoder)``."""
    encoder, decoder = folding.elements(geometry)
    split = kernel.reshape(geometry.groups, geometry.rows, slices, -1, *geometry.kernel_size)
    columns = geometry.in_channels // geometry.groups // slices * encoder
    return split.permute(_axis_order(geometry, folding)).reshape(
        geometry.groups, slices, geometry.rows * decoder, columns
    )


def assemble(geometry: Geometry, folding: Folding, decoder: Tensor, encoder: Tensor) -> Tensor:
    """The kernel ``(out, in / groups, *k)`` of the chain; inverse of :func:`fold` on the product.

    Args:
        geometry: of the layer.
        folding: of the matrices.
        decoder: (groups, slices, rows * decoder elements, rank).
        encoder: (groups, slices, rank, columns of a slice).
    """
    slices = decoder.shape[1]
    order = _axis_order(geometry, folding)
    shape = (geometry.groups, geometry.rows, slices, geometry.in_channels // geometry.groups // slices)
    full = (*shape, *geometry.kernel_size)
    product = (decoder @ encoder).reshape([full[i] for i in order])
    return product.permute([order.index(i) for i in range(len(order))]).reshape(
        geometry.out_channels, shape[2] * shape[3], *geometry.kernel_size
    )


def fold_factors(
    layer: Layer, folding: Folding, slices: Count, rank: Count, bias: bool
) -> tuple[Factor, Factor]:
    """Grouped encoder and decoder of ``rank`` channels per slice; arrays give the cost of many at once."""
    geometry = layer.geometry
    middle = rank * slices * geometry.groups
    encoder = Factor(geometry.in_channels, middle, folding.encoder, geometry.groups * slices)
    return encoder, Factor(middle, geometry.out_channels, folding.decoder, geometry.groups, bias)


def build_folded(
    layer: Layer, folding: Folding, decoder: Tensor, encoder: Tensor, bias: Tensor | None
) -> nn.Sequential:
    """The two plain layers whose kernel is ``assemble(geometry, folding, decoder, encoder)``."""
    geometry = layer.geometry
    slices, rank = encoder.shape[1:3]
    factors = fold_factors(layer, folding, slices, rank, bias is not None)
    # (G, k, f * D, r) -> (G * f, k * r, D); the encoder (G * k * r, c / k, E) is in order already
    elements = folding.elements(geometry)[1]
    second = decoder.reshape(geometry.groups, slices, geometry.rows, elements, rank).permute(0, 2, 1, 4, 3)
    return build_chain(layer, factors, (encoder, second), (None, bias))


def sliceable(layer: Layer) -> bool:
    """Whether the encoder may have groups: not for a linear layer on more than two dimensions."""
    return layer.geometry.kind != "linear" or all(len(shape) == 1 for shape in layer.input_shapes)


def none_pays(layer: Layer, offered: Sequence[tuple[Folding, int]]) -> str | None:
    """Why no (folding, slices) of ``offered`` can be smaller than the layer at rank 1, or None."""
    geometry = layer.geometry
    channels = geometry.in_channels // geometry.groups
    for folding, slices in offered:
        encoder, decoder = folding.elements(geometry)
        if slices * geometry.rows * decoder + channels * encoder < geometry.rows * geometry.columns:
            return None
    what = "depthwise" if geometry.depthwise else "thin"
    return (
        f"{what}: each of its {geometry.groups} group(s) has {channels} inputs, {geometry.rows} outputs and "
        f"{geometry.kernel_elements} kernel positions, which two factors in the foldings "
        f"{', '.join(sorted({f.name for f, _ in offered})) or 'asked for (it has none of them)'} "
        "cannot make smaller"
    )
