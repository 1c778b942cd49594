"""A chain of plain layers as one linear map of input patches, and the same map by better scaled factors."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from rankwise.network.layer import CONVS, Geometry, geometry_of
from rankwise.network.state import duplicate

Tensor = torch.Tensor
Weights = dict[str, Tensor]


def leaves(chain: nn.Module) -> list[nn.Module]:
    """The layers with weights of ``chain``, in order; itself where it is one."""
    return [m for m in chain.modules() if isinstance(m, (nn.Linear, *CONVS))]


def linear_map(
    chain: nn.Module, geometry: Geometry
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], Weights]:
    """What ``chain`` computes as a matrix per group, as a function of its weights.

    Every layer slides over its input; seen from one output position the chain multiplies the patch
    that the layer of ``geometry`` would read. So the matrix is the chain's answer to unit patches, with
    strides, paddings and dilations taken off.

    Args:
        chain: ``nn.Linear`` or ``nn.Conv`` layers, in ``nn.Sequential``s or as branches that are added;
            left as it is.
        geometry: of the layer that the chain replaces; not transposed.

    Returns:
        A differentiable function from weights by name (those of ``chain``, float64) to the matrix
        ``(groups, rows, columns)``, and the weights that the chain has now.
    """
    shadow = duplicate(chain).double().to("cpu").eval()
    for module in leaves(shadow):
        if isinstance(module, CONVS):
            axes = len(module.kernel_size)
            module.stride, module.dilation = (1,) * axes, (1,) * axes
            module.padding, module.padding_mode = (0,) * axes, "zeros"
    weights = {name: p.detach().clone() for name, p in shadow.named_parameters() if name.endswith("weight")}
    nothing = {name: torch.zeros_like(p) for name, p in shadow.named_parameters() if name.endswith("bias")}
    inputs = geometry.columns
    units = torch.eye(inputs, dtype=torch.float64).repeat(1, geometry.groups)
    if geometry.kind != "linear":
        units = units.reshape(inputs, geometry.in_channels, *geometry.kernel_size)

    def matrix(values: Mapping[str, Tensor]) -> Tensor:
        answers = functional_call(shadow, {**nothing, **values}, (units,))
        by_group: Tensor = answers.reshape(inputs, geometry.groups, geometry.rows).permute(1, 2, 0)
        return by_group

    return matrix, weights


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
