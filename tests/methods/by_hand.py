"""Layers of every kind, and their statistics gathered by hand: patches come from torch's own convolutions."""

import numpy as np
import torch
from torch import nn

from rankwise.network import Layer, find_layers
from rankwise.statistics.record import LayerStatistics

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(9, 6), (9,)),
    "linear_tall": (nn.Linear(5, 12), (5,)),
    "linear_tokens": (nn.Linear(8, 6, bias=False), (4, 8)),
    "conv1d": (nn.Conv1d(3, 6, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (3, 6, 6)),
    "conv2d_dilated": (nn.Conv2d(2, 7, 3, padding=2, dilation=2, padding_mode="reflect"), (2, 7, 7)),
    "conv2d_grouped": (nn.Conv2d(6, 8, 3, padding=1, groups=2), (6, 4, 4)),
    "pointwise_tall": (nn.Conv2d(4, 10, 1), (4, 3, 3)),
    "conv3d": (nn.Conv3d(2, 5, 2), (2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (6, 4, 3)),
}


def case(name: str, examples: int = 40, seed: int = 0) -> tuple[Layer, torch.Tensor]:
    """The float64 layer ``name`` of the table and an input whose channels are correlated and off-centre."""
    module, shape = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(examples, *shape, generator=generator, dtype=torch.float64)
    axis = -1 if isinstance(module, nn.Linear) else 1
    mix = torch.randn(x.shape[axis], x.shape[axis], generator=generator, dtype=torch.float64)
    x = (x.movedim(axis, -1) @ mix + mix[0]).movedim(-1, axis).contiguous()
    return layer_of(module, x), x


def layer_of(module: nn.Module, x: torch.Tensor) -> Layer:
    (layer,) = find_layers(nn.Sequential(module), x)
    return layer


def patches_of(layer: Layer, x: torch.Tensor) -> np.ndarray:
    """(groups, rows, columns): the convolution's own answer for a kernel that picks one input each."""
    geometry, module = layer.geometry, layer.module
    if geometry.kind == "linear":
        return x.reshape(1, -1, x.shape[-1]).numpy()
    d, groups = geometry.columns, geometry.groups
    eye = torch.eye(d, dtype=torch.float64).reshape(d, geometry.in_channels // groups, *geometry.kernel_size)
    kernel = eye.repeat(groups, *(1,) * (geometry.ndim + 1))  # (G d, in / G, *k)
    probe = type(module)(
        geometry.in_channels, groups * d, geometry.kernel_size, geometry.stride, geometry.padding,
        dilation=geometry.dilation, groups=groups, bias=False, padding_mode=geometry.padding_mode,
        **({"output_padding": geometry.output_padding} if geometry.kind == "conv_transpose" else {}),
    ).double()  # fmt: skip
    if geometry.kind == "conv_transpose":  # (in, d, *k)
        kernel = eye.transpose(0, 1).repeat(groups, *(1,) * (geometry.ndim + 1))
    probe.weight.data.copy_(kernel)
    return rows_of(layer, probe(x).detach(), d)


def rows_of(layer: Layer, output: torch.Tensor, width: int | None = None) -> np.ndarray:
    """(groups, rows, width): one row per example and position."""
    geometry = layer.geometry
    width = geometry.rows if width is None else width
    if geometry.kind == "linear":
        return output.reshape(1, -1, width).numpy()
    split = output.flatten(2).unflatten(1, (geometry.groups, width))  # (N, G, w, P)
    return split.permute(1, 0, 3, 2).reshape(geometry.groups, -1, width).numpy()


def statistics_of(
    layer: Layer, x: torch.Tensor, target: torch.Tensor | None = None, gradient: torch.Tensor | None = None
) -> LayerStatistics:
    """Everything about ``layer`` on ``x``, by numpy over explicit rows."""
    u = patches_of(layer, x)
    y = rows_of(layer, layer.module(x).detach())
    t = y if target is None else rows_of(layer, target)

    def moment(a: np.ndarray, b: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.einsum("gni,gnj->gij", a, b))

    def total(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(a.sum(1))

    g = None if gradient is None else rows_of(layer, gradient)
    return LayerStatistics(
        examples=len(x), positions=u.shape[1],
        input_sum=total(u), input_square=moment(u, u),
        output_sum=total(y), output_square=moment(y, y),
        target_sum=total(t), target_square=moment(t, t), cross=moment(t, u),
        gradient_square=None if g is None else moment(g, g),
        sample_inputs=torch.from_numpy(u.swapaxes(0, 1).copy()),
        sample_outputs=torch.from_numpy(y.swapaxes(0, 1).copy()),
    )  # fmt: skip


def measured_error(
    layer: Layer, built: nn.Module, x: torch.Tensor, target: torch.Tensor | None = None
) -> float:
    """Mean over examples of the squared output error."""
    wanted = layer.module(x) if target is None else target
    return float((built(x) - wanted).detach().square().sum() / len(x))


def measured_cost(built: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """(parameters, MACs of one example)."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        built(x)
    return sum(p.numel() for p in built.parameters()), counter.get_total_flops() // 2 // len(x)
