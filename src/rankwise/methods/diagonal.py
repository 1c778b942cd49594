"""Diagonal and block-diagonal fully connected layers, with an optional low-rank part."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from rankwise.linalg.block_diagonal import Run, block_runs, fit_blocks
from rankwise.linalg.lowrank import principal_axes, tail_sums
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.network.factors import Factor, build_chain
from rankwise.network.layer import Layer
from rankwise.network.spec import parallel
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class _Fit:
    """Block-diagonal part S and, for every rank r, the low-rank part U_r U_r^T (W - S)."""

    blocks: Tensor  # (o, d)
    axes: Tensor  # (o, o)
    error: Tensor  # (p + 1,) error of rank 0 to p, p = min(o, d)


@register("diagonal")
@dataclass(frozen=True)
class Diagonal(Method):
    """y' = (S + L) u + c: S block-diagonal with b blocks, L of rank r, c such that the mean of y is kept.

    With b = min(N, M) blocks S is a tiled diagonal: every input feeds one output (or every output reads
    one input), max(N, M) weights in all. Only the weights inside the blocks are stored and multiplied.
    Each row of S is the least-squares fit to the layer's output from the block's own inputs on the
    calibration data; L is then the best part of rank r of what S leaves, in the same metric. More
    sweeps fit S and L again to what the other leaves.

    Args:
        sweeps: how often S and L are fitted in turn; 1 is the closed form for all ranks at once.
    """

    summary: ClassVar[str] = (
        "block-diagonal or diagonal layer plus a low-rank part, fitted to the activations"
    )
    source: ClassVar[str] = "the diagonal layers that kzhang14/Pruning describes, made real"

    sweeps: int = 1

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ValueError(f"sweeps={self.sweeps} was given; it must be at least 1.")

    @property
    def requires(self) -> frozenset[Statistic]:
        """Moments of the input."""
        return frozenset({"input"})

    def supports(self, layer: Layer) -> str | None:
        """Takes linear layers whose input is one vector per example."""
        geometry = layer.geometry
        if geometry.kind != "linear":
            return "not fully connected: a block-diagonal convolution is a grouped one"
        if any(len(shape) != 1 for shape in layer.input_shapes):
            shape = next(s for s in layer.input_shapes if len(s) != 1)
            return f"reads {shape} per example; plain torch modules of this shape take one vector"
        if min(geometry.in_channels, geometry.out_channels) < 2:
            return "has a single input or output, so that nothing lies off its diagonal"
        return None

    def _fit(self, weight: Tensor, moment: Tensor, blocks: int) -> _Fit:
        part = fit_blocks(weight, moment, _runs(weight, blocks))
        rest = weight - part
        values, axes = principal_axes(rest @ moment @ rest.mT)
        error = tail_sums(values)[: min(weight.shape) + 1].clone()
        error[-1] = 0.0
        return _Fit(part, axes, error)

    def _refined(self, weight: Tensor, moment: Tensor, blocks: int, rank: int, first: _Fit) -> _Fit:
        fit = first
        for _ in range(self.sweeps - 1 if 0 < rank < min(weight.shape) else 0):
            low = fit.axes[:, :rank] @ (fit.axes[:, :rank].mT @ (weight - fit.blocks))
            part = fit_blocks(weight - low, moment, _runs(weight, blocks))
            rest = weight - part
            values, axes = principal_axes(rest @ moment @ rest.mT)
            fit = _Fit(part, axes, tail_sums(values)[: min(weight.shape) + 1])
        return fit

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Blocks 2, 4, 8, ... and min(N, M); every rank of the low-rank part, with sweeps 0, 1, 2, 4, ...."""
        assert statistics is not None
        weight, moment = layer.matrix()[0], statistics.input_covariance[0]
        full = min(weight.shape)
        found = []
        for blocks in _powers_of_two(full)[1:]:
            first = self._fit(weight, moment, blocks)
            stored = sum(run.elements for run in _runs(weight, blocks))
            for rank in range(full + 1) if self.sweeps == 1 else (0, *_powers_of_two(full)):
                fit = self._refined(weight, moment, blocks, rank, first)
                found.append((blocks, rank, stored + rank * sum(weight.shape), float(fit.error[rank])))
        columns = np.array([entry[:3] for entry in found], dtype=np.int64)
        error = np.array([entry[3] for entry in found]) * layer.positions
        scale = float((weight @ moment @ weight.mT).trace()) * layer.positions
        choices = {"blocks": columns[:, 0], "low_rank": columns[:, 1]}
        params = columns[:, 2] + len(weight)
        return Candidates(params, columns[:, 2] * layer.calls, error, choices, "output", scale)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Grouped pointwise convolutions over the features, beside two linear layers."""
        assert statistics is not None
        weight, moment = layer.matrix()[0], statistics.input_covariance[0]
        blocks, rank = int(choice["blocks"]), int(choice["low_rank"])
        fit = self._refined(weight, moment, blocks, rank, self._fit(weight, moment, blocks))
        rest, basis = weight - fit.blocks, fit.axes[:, :rank]
        if rank == weight.shape[1] < weight.shape[0]:
            basis = torch.linalg.qr(rest)[0]
        encoder = basis.mT @ rest
        mean = statistics.input_mean[0]
        bias = (weight - fit.blocks - basis @ encoder) @ mean
        given = layer.bias()
        bias = bias if given is None else bias + given
        runs = _runs(weight, blocks)
        branches: list[nn.Module] = [_run_module(layer, run, fit.blocks, bias) for run in runs]
        if rank:
            pair = (Factor(weight.shape[1], rank), Factor(rank, weight.shape[0]))
            branches.append(build_chain(layer, pair, (encoder, basis), (None, None)))
        return branches[0] if len(branches) == 1 else parallel(*branches)


def _runs(weight: Tensor, blocks: int) -> list[Run]:
    rows, columns = weight.shape
    return block_runs(rows, columns, blocks)


def _powers_of_two(full: int) -> list[int]:
    """1, 2, 4, ... below ``full``, and ``full``."""
    return [*(1 << i for i in range((full - 1).bit_length())), full]


def _run_module(layer: Layer, run: Run, blocks: Tensor, bias: Tensor) -> nn.Sequential:
    """The blocks of one run as a grouped convolution between features, and zeros for all other outputs."""
    rows, columns = blocks.shape
    inputs, outputs = run.count * run.columns, run.count * run.rows
    factor = Factor(inputs, outputs, (), run.count, True)
    own_bias = bias[run.first_row : run.first_row + outputs]
    modules = list(build_chain(layer, (factor,), (run.blocks(blocks),), (own_bias,)))
    if inputs < columns:
        crop = (-run.first_column, run.first_column + inputs - columns)
        modules.insert(0, nn.ConstantPad1d(crop, 0.0))
    if outputs < rows:
        modules.append(nn.ConstantPad1d((run.first_row, rows - run.first_row - outputs), 0.0))
    return nn.Sequential(*modules).train(layer.module.training)
