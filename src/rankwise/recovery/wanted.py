"""What a layer of the compressed network should put out, so that what follows is as in the original."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rankwise.network.additions import Sight
from rankwise.network.batchnorm import batchnorm_affine

Tensor = torch.Tensor
Pair = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

_DEAD = 1e-2  # share of the largest BatchNorm scale below which a channel's skip is not corrected for


@dataclass(frozen=True, eq=False)
class Wanted:
    """The target of one layer's regression.

    Args:
        kept: the outputs of the original layer that are left; None for all.
        axis: the channels' dimension of the output.
        residual: correct for what earlier layers did to the skip connection.
    """

    kept: Sequence[int] | None
    axis: int
    residual: bool

    def target(self, original: Sight, own: Sight, pair: Pair | None) -> Tensor:
        """(a y + b + s - s' - b') / a', float64, of the shape of the compressed layer's output.

        y is the original's output, a y + b what the BatchNorm makes of it and s what is added then;
        primes are the compressed network's. Without BatchNorm a is 1 and b 0. ``pair`` is what
        :func:`shared_batchnorm` gives for the two sights.
        """
        y = self._left(original.output)
        lag = self._lag(original, own, y)
        if pair is None:
            alike = original.batchnorm is None and own.batchnorm is None
            return y + lag if alike and lag is not None else y
        (scale, shift), own_affine = pair
        a, b = self._shaped(scale, y, True), self._shaped(shift, y, True)
        a_, b_ = (self._shaped(v, y, False) for v in own_affine)
        wanted = a * y + b - b_ if lag is None else a * y + b + lag - b_
        alive = a_.abs() > _DEAD * a_.abs().max()
        return torch.where(alive, wanted / torch.where(alive, a_, torch.ones_like(a_)), y)

    def _lag(self, original: Sight, own: Sight, y: Tensor) -> Tensor | None:
        """s - s'."""
        if not self.residual or original.skip is None or own.skip is None:
            return None
        skip = self._left(original.skip)
        return skip - own.skip.double() if skip.shape == own.skip.shape == y.shape else None

    def _left(self, tensor: Tensor) -> Tensor:
        if self.kept is not None:
            tensor = tensor.index_select(self.axis, torch.as_tensor(self.kept, device=tensor.device))
        return tensor.double()

    def _shaped(self, vector: Tensor, like: Tensor, select: bool) -> Tensor:
        if select and self.kept is not None:
            vector = vector[torch.as_tensor(self.kept)]
        shape = [1] * like.ndim
        shape[self.axis] = -1
        return vector.to(like.device).view(shape)


def shared_batchnorm(original: nn.Module, model: nn.Module, first: Sight, second: Sight) -> Pair | None:
    """(scale, shift) in both networks of the BatchNorm that reads the layer, where it is the same one."""
    name = first.batchnorm
    if name is None or name != second.batchnorm:
        return None
    if any(network.get_submodule(name).running_mean is None for network in (original, model)):
        return None
    return batchnorm_affine(original, name), batchnorm_affine(model, name)
