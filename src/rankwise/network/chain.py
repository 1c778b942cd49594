"""A chain of plain layers as one linear map of input patches, and the same map by better scaled factors."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rankwise.network.layer import CONVS, Geometry, geometry_of

Tensor = torch.Tensor
Weights = dict[str, Tensor]
Compose = Callable[[Mapping[str, Tensor]], Tensor]


def leaves(chain: nn.Module) -> list[nn.Module]:
    """The layers with weights of ``chain``, in order; itself where it is one."""
    return [m for m in chain.modules() if isinstance(m, (nn.Linear, *CONVS))]


def linear_map(chain: nn.Module, geometry: Geometry) -> tuple[Compose, Weights] | None:
    """What ``chain`` computes as a matrix per group, as a function of its weights.

    Every layer slides over its input; seen from one output position the chain multiplies the patch that
    the layer of ``geometry`` would read.

    Args:
        chain: ``nn.Linear`` or ``nn.Conv`` layers in (nested) ``nn.Sequential``s, each axis of the kernel
            carried by one of them.
        geometry: of the layer that the chain replaces.

    Returns:
        A differentiable function from weights by name (those of ``chain``, float64) to the matrix
        ``(groups, rows, columns)``, and the weights that the chain has now. None for another chain.
    """
    parts = leaves(chain)
    if not parts or not _only_layers(chain) or geometry.kind == "conv_transpose":
        return None
    shapes = [_spatial(part, geometry.ndim) for part in parts]
    carried = [max(sizes) for sizes in zip(*shapes, strict=True)] if geometry.ndim else []
    once = all(sum(s > 1 for s in sizes) <= 1 for sizes in zip(*shapes, strict=True))
    if not once or tuple(carried) != geometry.kernel_size:
        return None
    names = {id(module): f"{name}.weight" if name else "weight" for name, module in chain.named_modules()}
    order = [(names[id(part)], getattr(part, "groups", 1), k) for part, k in zip(parts, shapes, strict=True)]
    weights = {
        name: _weight(part).detach().to("cpu", torch.float64)
        for (name, _, _), part in zip(order, parts, strict=True)
    }
    inputs = geometry.in_channels // geometry.groups

    def matrix(values: Mapping[str, Tensor]) -> Tensor:
        ones = (1,) * geometry.ndim
        seen = torch.eye(inputs, dtype=torch.float64).repeat(
            geometry.groups, 1
        )  # (channels, inputs, *kernel)
        seen = seen.reshape(geometry.in_channels, inputs, *ones)
        for name, groups, kernel in order:
            weight = values[name].reshape(groups, -1, seen.shape[0] // groups, *kernel)
            seen = _after(seen, weight, geometry.ndim)
        return seen.reshape(geometry.groups, geometry.rows, geometry.columns)

    return matrix, weights


def _after(seen: Tensor, weight: Tensor, ndim: int) -> Tensor:
    """The kernel (out, inputs, *k) of a layer ``weight`` (groups, out, in, *k) behind the kernel ``seen``."""
    groups, outputs, each = weight.shape[:3]
    if each == 1:  # depthwise: products, no sum
        product = weight.squeeze(2)[:, :, None] * seen[:, None]  # (groups, out, inputs, *k)
        return product.flatten(0, 1)
    inputs, kernel = seen.shape[1:], weight.shape[3:]
    left = (
        weight.reshape(groups, outputs, each, -1).permute(0, 1, 3, 2).flatten(1, 2)
    )  # (groups, out * k, in)
    product = left @ seen.reshape(groups, each, -1)  # (groups, out * k, inputs * k')
    product = product.reshape(groups * outputs, *kernel, *inputs)
    axes = [0, 1 + ndim]
    sizes = [groups * outputs, inputs[0]]
    for axis in range(ndim):
        axes += [1 + axis, 2 + ndim + axis]
        sizes.append(kernel[axis] * inputs[1 + axis])
    return product.permute(axes).reshape(sizes)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _only_layers(chain: nn.Module) -> bool:
    known = (nn.Sequential, nn.Linear, nn.Flatten, nn.Unflatten, *CONVS)
    return all(type(module) in known for module in chain.modules())


def _spatial(module: nn.Module, ndim: int) -> tuple[int, ...]:
    """The kernel of a layer; for a linear one, or one that stands in for it, ones."""
    size = module.kernel_size if isinstance(module, CONVS) else ()
    return size if len(size) == ndim else (1,) * ndim


def two_factor_rank(chain: nn.Module, geometry: Geometry) -> int | None:
    """The rank per group where ``chain`` is any two matrices per group after one another, else None.

    The first layer reads whole patches, the second single positions, both in the groups of ``geometry``.
    """
    if not isinstance(chain, nn.Sequential) or len(chain) != 2:
        return None
    first, second = (geometry_of(part) for part in chain)
    if first is None or second is None or {first.groups, second.groups} != {geometry.groups}:
        return None
    whole = first.kernel_size == geometry.kernel_size and second.kernel_elements == 1
    rank = first.out_channels // geometry.groups
    return rank if whole and rank <= min(geometry.rows, geometry.columns) else None


def _input_norms(weight: Tensor, groups: int) -> Tensor:
    """Norm of what each input channel of a layer is multiplied with, (in_channels,)."""
    matrices = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    return matrices.square().sum((1, 3)).sqrt().flatten()


def balance_(chain: nn.Sequential) -> None:
    """Scale the channels between the layers of ``chain``, so that those on both sides have equal norms.

    The chain computes what it did before, up to rounding; its weights become fit for gradient descent.
    Pairs with something between them, or with a bias there, stay as they are.
    """
    for first, second in pairwise(chain):
        known = isinstance(first, (nn.Linear, *CONVS)) and type(first) is type(second)
        if known and getattr(first, "bias", None) is None:
            _balance_pair_(first, second)


def _balance_pair_(first: Any, second: Any) -> None:
    groups = getattr(second, "groups", 1)
    left, right = first.weight.detach().double(), second.weight.detach().double()
    out, into = left.flatten(1).norm(dim=1), _input_norms(right, groups)
    if len(out) != len(into):
        return
    alive = (out > 0) & (into > 0)
    scale = torch.where(alive, into / out.clamp_min(1e-300), 1.0).sqrt().clamp(1e-6, 1e6)
    by_group = (1 / scale).view(groups, 1, -1, *(1,) * (right.ndim - 2))
    with torch.no_grad():
        first.weight.copy_(left * scale.view(-1, *(1,) * (left.ndim - 1)))
        second.weight.copy_((right.unflatten(0, (groups, -1)) * by_group).flatten(0, 1))
