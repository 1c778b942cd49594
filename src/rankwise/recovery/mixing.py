"""Blends of calibration examples: more inputs to fit on, for networks that read numbers, not tokens."""

from typing import Any

import torch
from torch import nn

from rankwise.network.batches import batch_size, split_batch

Tensor = torch.Tensor


def mixed(model: nn.Module, batch: Any, share: float) -> Any:
    """A batch of as many blends: every example with ``share`` of the one half a batch further on.

    After mixup (Zhang et al. 2018, arXiv 1710.09412), of inputs only: what the original network makes of
    the blends is the target, so that no labels are mixed.

    Args:
        model: tells the inputs of ``batch`` from its labels.
        batch: in any form that :func:`rankwise.network.batches.forward` takes.
        share: of the other example, between 0 and 1.

    Returns:
        The inputs, blended, as a batch without labels; None where a tensor among them does not hold finite
        floating-point numbers, such as tokens or a mask, or there is only one example.
    """
    args, kwargs, _ = split_batch(model, batch)
    count = batch_size(batch)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if count < 2 or not all(t.is_floating_point() and t.ndim > 0 and len(t) == count for t in tensors):
        return None
    if not all(torch.isfinite(t).all() for t in tensors):  # a mask of 0 and -inf has no blends
        return None

    def blend(value: Any) -> Any:
        return torch.lerp(value, value.roll(count // 2, 0), share) if isinstance(value, Tensor) else value

    if isinstance(batch, Tensor):
        return blend(batch)
    return {k: blend(v) for k, v in kwargs.items()} if kwargs else tuple(map(blend, args))
