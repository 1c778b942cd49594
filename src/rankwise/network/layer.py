"""A layer as data: geometry, cost, and the matrix view that every method works on."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.cost import Cost

Kind = Literal["linear", "conv", "conv_transpose"]
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Geometry:
    """The shape of a layer, without its weights.

    ``kernel_size``, ``stride``, ``padding``, ``dilation`` and ``output_padding`` have one entry per
    spatial dimension and are empty for a linear layer; ``padding`` may be "same" or "valid".
    """

    kind: Kind
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions (0 for a linear layer)."""
        return len(self.kernel_size)

    @property
    def kernel_elements(self) -> int:
        """Number of kernel positions (1 for a linear layer)."""
        return prod(self.kernel_size)

    @property
    def pointwise(self) -> bool:
        """Whether every output position reads one input position: linear, or kernel 1 without padding."""
        no_padding = self.padding == "valid" or all(p == 0 for p in self.pads())
        return self.kernel_elements == 1 and (self.kind == "linear" or no_padding)

    @property
    def depthwise(self) -> bool:
        """Whether each group reads a single input channel."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def rows(self) -> int:
        """Output channels per group."""
        return self.out_channels // self.groups

    @property
    def columns(self) -> int:
        """Inputs per group and output position: input channels per group times kernel elements."""
        return self.in_channels // self.groups * self.kernel_elements

    def pads(self) -> tuple[int, ...]:
        """Padding before each spatial dimension, with "same" and "valid" resolved."""
        if self.padding == "valid":
            return (0,) * self.ndim
        if self.padding == "same":
            return tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        assert not isinstance(self.padding, str)
        return self.padding

    def pads_after(self) -> tuple[int, ...]:
        """Padding after each spatial dimension; differs from :meth:`pads` for "same" and even kernels."""
        if self.padding == "same":
            total = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
            return tuple(t - t // 2 for t in total)
        return self.pads()


@dataclass(frozen=True, eq=False)
class Layer:
    """One compressible module of a model, found by :func:`rankwise.network.find_layers`.

    The module must not be changed through this object. ``input_shapes`` and ``output_shapes`` hold one
    shape, without the batch dimension, per call in one forward pass; ``positions`` counts the output
    positions of one example over all calls. ``reason`` says why the layer must not be touched.
    """

    name: str
    module: nn.Module = field(repr=False)
    geometry: Geometry
    input_shapes: tuple[tuple[int, ...], ...] = ()
    output_shapes: tuple[tuple[int, ...], ...] = ()
    cost: Cost = field(default_factory=Cost)
    reason: str | None = None
    output_scale: torch.Tensor | None = field(default=None, repr=False)
    """(out_channels,): gamma / sigma of the BatchNorm that alone reads the output, where there is one."""
    rectifier: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)
    """(scale, shift), each (out_channels,), where ReLU(scale * output + shift) alone reads the output."""

    @property
    def calls(self) -> int:
        """How often one forward pass calls the layer."""
        return len(self.input_shapes)

    @property
    def positions(self) -> int:
        """Output positions of one example over all calls: the rows that statistics see per example."""
        return sum(prod(self._spatial(shape)) for shape in self.output_shapes)

    @property
    def spatial_inputs(self) -> tuple[tuple[int, ...], ...]:
        """Spatial size of the input of each call; for a linear layer its leading dimensions."""
        return tuple(self._spatial(shape) for shape in self.input_shapes)

    def _spatial(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:-1] if self.geometry.kind == "linear" else shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weight."""
        return self.weight.dtype

    @property
    def weight(self) -> torch.Tensor:
        """The module's weight tensor as stored, detached."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.detach()

    def kernel(self) -> torch.Tensor:
        """The weight as float64 ``(out_channels, in_channels / groups, *kernel_size)``.

        The layout of ``nn.Conv``; a transposed convolution's ``(in, out / groups, *k)`` and a
        transformers ``Conv1D``'s ``(in, out)`` are brought to it. Kernel positions are not flipped.

        Raises:
            CalibrationError: the weight holds NaN or infinite values.
        """
        weight = self.weight.to("cpu", torch.float64)
        if not torch.isfinite(weight).all():
            raise CalibrationError(
                f"The weight of layer {self.name!r} holds NaN or infinite values; a finite weight is needed. "
                "Repair the checkpoint, or leave the layer out with exclude=[...]."
            )
        geometry = self.geometry
        if geometry.kind == "conv_transpose":
            per_group = weight.reshape(geometry.groups, -1, *weight.shape[1:])  # (G, in/G, out/G, *k)
            return per_group.transpose(1, 2).flatten(0, 1).contiguous()
        if is_hf_conv1d(self.module):
            return weight.t().contiguous()
        return weight

    def matrix(self) -> torch.Tensor:
        """The weight as float64 ``(groups, out / groups, in / groups * kernel_elements)``.

        With ``u`` the input patch of a group at one output position (channel major, then kernel
        position) the output there is ``matrix[g] @ u + bias``. This holds for transposed
        convolutions too, with the patches of :func:`rankwise.statistics.patches`.
        """
        return self.kernel().reshape(self.geometry.groups, self.geometry.rows, self.geometry.columns)

    def renewed(self) -> "Layer":
        """This layer now that its module has other widths than when it was found."""
        geometry = geometry_of(self.module)
        assert geometry is not None
        old, new = (g.out_channels * g.columns for g in (self.geometry, geometry))
        own = list(self.module.parameters())
        size = sum(p.numel() * p.element_size() for p in own)

        def widened(shapes: tuple[tuple[int, ...], ...], channels: int) -> tuple[tuple[int, ...], ...]:
            if geometry.kind == "linear":
                return tuple((*shape[:-1], channels) for shape in shapes)
            return tuple((channels, *shape[1:]) for shape in shapes)

        return replace(
            self,
            geometry=geometry,
            input_shapes=widened(self.input_shapes, geometry.in_channels),
            output_shapes=widened(self.output_shapes, geometry.out_channels),
            cost=Cost(sum(p.numel() for p in own), self.cost.macs // old * new, size),
            output_scale=None,
            rectifier=None,
        )

    def bias(self) -> torch.Tensor | None:
        """The bias as float64 ``(out_channels,)``, or None.

        Raises:
            CalibrationError: the bias holds NaN or infinite values.
        """
        bias = getattr(self.module, "bias", None)
        if not isinstance(bias, torch.Tensor):
            return None
        values = bias.detach().to("cpu", torch.float64)
        if not torch.isfinite(values).all():
            raise CalibrationError(f"The bias of layer {self.name!r} holds NaN or infinite values.")
        return values


def store_kernel_(module: nn.Module, kernel: torch.Tensor) -> None:
    """Copy ``kernel`` into the weight of ``module``: what :meth:`Layer.kernel` reads, back.

    Args:
        module: of a kind that :func:`geometry_of` knows; its data type and device stay.
        kernel: as many elements as ``(out_channels, in_channels / groups, *kernel_size)``, in that order.
    """
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, TRANSPOSED):
        groups = module.groups
        shape = (groups, weight.shape[1], -1, *weight.shape[2:])  # (G, out/G, in/G, *k)
        kernel = kernel.reshape(shape).transpose(1, 2).flatten(0, 1)
    elif is_hf_conv1d(module):
        kernel = kernel.reshape(weight.shape[::-1]).t()
    with torch.no_grad():
        weight.copy_(kernel.reshape(weight.shape))


def is_hf_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is transformers' ``Conv1D`` (a linear layer with a transposed weight)."""
    known = ("transformers.pytorch_utils", "Conv1D")
    return any((base.__module__, base.__name__) == known for base in type(module).__mro__)


def _tuple(value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def geometry_of(module: nn.Module) -> Geometry | None:
    """The geometry of a compressible module, or None where ``module`` is of no such kind.

    Kinds: ``nn.Linear``, ``nn.Conv1d/2d/3d``, ``nn.ConvTranspose1d/2d/3d`` and transformers'
    ``Conv1D``, and their subclasses.
    """
    if is_hf_conv1d(module):
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        return Geometry("linear", int(weight.shape[0]), int(weight.shape[1]))
    if isinstance(module, nn.Linear):
        return Geometry("linear", module.in_features, module.out_features)
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        ndim = len(module.kernel_size)
        return Geometry(
            "conv_transpose" if isinstance(module, TRANSPOSED) else "conv",
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            _tuple(module.stride, ndim),
            module.padding if isinstance(module.padding, str) else _tuple(module.padding, ndim),
            _tuple(module.dilation, ndim),
            _tuple(module.output_padding, ndim),
            module.groups,
            module.padding_mode,
        )
    return None
