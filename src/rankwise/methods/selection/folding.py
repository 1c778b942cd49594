"""New weights of a consumer for the channels it can still read."""

from collections.abc import Sequence

import torch

from rankwise.linalg.interpolative import interpolation
from rankwise.network.layer import is_hf_conv1d
from rankwise.network.select import Fold
from rankwise.statistics.channels import ChannelMoments, Intake

Tensor = torch.Tensor


def fold(intake: Intake, table: Tensor, bias: Tensor | None = None) -> Fold:
    """The consumer of ``intake`` reading k channels in place of n, z = table^T z_kept.

    Args:
        intake: the consumer with its weights for all n channels.
        table: (k, n), the T of the interpolative decomposition.
        bias: (out,) the new bias; None leaves it as it is.
    """
    weight = torch.einsum("onp,kn->okp", intake.weight(), table)  # (out, k, places)
    return Fold(_as_stored(intake, weight), bias)


def _as_stored(intake: Intake, weight: Tensor) -> Tensor:
    """A weight (out, k, places) in the layout of the consumer's module."""
    geometry = intake.layer.geometry
    if geometry.kind == "linear":
        flat = weight.flatten(1)
        return flat.mT if is_hf_conv1d(intake.layer.module) else flat
    kernel = weight.reshape(*weight.shape[:2], *geometry.kernel_size)
    return kernel.transpose(0, 1) if geometry.kind == "conv_transpose" else kernel


def has_exact_intercept(intake: Intake) -> bool:
    """Whether a constant at the consumer's input is one in its bias: it has one, and no zero padding."""
    geometry = intake.layer.geometry
    if intake.layer.bias() is None or geometry.kind == "conv_transpose":
        return False
    return geometry.kind == "linear" or geometry.padding_mode != "zeros" or not any(geometry.pads())


def refitted(
    intake: Intake, moments: ChannelMoments, kept: Sequence[int], ridge: float, intercept: bool
) -> Fold:
    """The consumer refitted by least squares to what it can read.

    Args:
        intake: the consumer as it was, with its weights for all n channels.
        moments: of what it reads now; with cross moments the n channels of the reference network are
            predicted (anchored refit), otherwise those that are read themselves.
        kept: which of the channels in ``moments`` stay, ascending.
        ridge: relative to the mean second moment.
        intercept: fit a constant too where the bias can take it exactly.
    """
    index = torch.tensor(list(kept), dtype=torch.int64)
    moment, mean = moments.moment, moments.mean
    cross = None if moments.cross is None else moments.cross / moments.rows
    target = mean if moments.target is None else moments.target / moments.rows
    if not (intercept and has_exact_intercept(intake)):
        return fold(intake, interpolation(moment, index, cross, ridge))
    moment = moment - torch.outer(mean, mean)
    cross = None if cross is None else cross - torch.outer(mean, target)
    table = interpolation(moment, index, cross, ridge)
    bias = intake.layer.bias()
    assert bias is not None
    return fold(intake, table, bias + intake.weight().sum(2) @ (target - table.mT @ mean[index]))


def regressed(intake: Intake, moments: ChannelMoments, ridge: float, intercept: bool) -> Fold:
    """The consumer's weights for all kernel positions, fitted to its outputs in the reference network.

    Args:
        intake: the consumer as it was.
        moments: of its patches now, with the reference network's outputs as target.
        ridge: relative to the mean second moment.
        intercept: fit the bias too, where there is one; padding does not matter here.
    """
    assert moments.cross is not None and moments.target is not None
    moment, cross, mean, bias = (
        moments.moment,
        moments.cross / moments.rows,
        moments.mean,
        intake.layer.bias(),
    )
    target = moments.target / moments.rows
    if bias is not None:
        centre = target if intercept else bias
        cross = cross - torch.outer(mean, centre)
        moment = moment - torch.outer(mean, mean) if intercept else moment
    table = interpolation(moment, torch.arange(len(moment)), cross, ridge)  # (columns, out)
    if bias is not None and intercept:
        bias = target - table.mT @ mean
    places = intake.weight().shape[2]
    return Fold(_as_stored(intake, table.mT.unflatten(1, (-1, places))), bias)


def sliced(intake: Intake, kept: Sequence[int], factors: Tensor) -> Fold:
    """The consumer without refit, its kept channels multiplied by ``factors`` (k,)."""
    table = torch.zeros(len(kept), intake.channels, dtype=torch.float64)
    table[torch.arange(len(kept)), list(kept)] = factors.double()
    return fold(intake, table)
