"""The two-layer chain that all matrix factorisations of a layer share: encoder, then pointwise decoder."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankwise.methods.base import Candidates, Unit
from rankwise.network.factors import Count, Factor, build_chain, chain_cost
from rankwise.network.layer import Layer

Tensor = torch.Tensor


def two_factors(layer: Layer, rank: Count, bias: bool) -> tuple[Factor, Factor]:
    """Encoder (all spatial axes, ``rank`` outputs per group) and pointwise decoder."""
    geometry = layer.geometry
    groups = geometry.groups
    middle = np.asarray(rank) * groups if isinstance(rank, np.ndarray) else rank * groups
    encoder = Factor(geometry.in_channels, middle, tuple(range(geometry.ndim)), groups)
    return encoder, Factor(middle, geometry.out_channels, (), groups, bias)


def build_two_factors(layer: Layer, decoder: Tensor, encoder: Tensor, bias: Tensor | None) -> nn.Sequential:
    """Two plain layers computing ``decoder @ encoder @ patch + bias``.

    Args:
        layer: the layer that is replaced.
        decoder: (groups, rows, rank).
        encoder: (groups, rank, columns).
        bias: (out_channels,) or None.
    """
    rank = encoder.shape[1]
    factors = two_factors(layer, rank, bias is not None)
    return build_chain(layer, factors, (encoder, decoder), (None, bias))


def rank_candidates(
    layer: Layer, error: npt.NDArray[np.float64], unit: Unit, scale: float, bias: bool | None = None
) -> Candidates:
    """Candidates of ranks 1..len(error), ``error[r - 1]`` being that of rank r.

    ``bias`` says whether the decoder has one; by default it has where the layer has.
    """
    ranks = np.arange(1, len(error) + 1)
    with_bias = layer.bias() is not None if bias is None else bias
    params, macs = chain_cost(layer, two_factors(layer, ranks, with_bias))
    return Candidates(params, macs, np.asarray(error, np.float64), {"rank": ranks}, unit, scale)


def too_thin(layer: Layer) -> str | None:
    """Why two factors cannot be smaller than ``layer``, or None: even rank 1 must cost less than it does."""
    geometry = layer.geometry
    if geometry.rows * geometry.columns > geometry.rows + geometry.columns:
        return None
    what = "depthwise" if geometry.depthwise else "thin"
    return (
        f"{what}: each of its {geometry.groups} group(s) is a {geometry.rows} x {geometry.columns} matrix, "
        "which two factors cannot make smaller"
    )
