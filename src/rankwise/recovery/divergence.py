"""How far a network's outputs are from another's, without labels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.batches import device_of, forward, output_tensor, to_device
from rankwise.network.state import preserved, unfused
from rankwise.statistics.gradient import class_rows

Tensor = torch.Tensor


def has_classes(logits: Tensor) -> bool:
    """Whether an output can be read as logits of several classes."""
    return logits.ndim >= 2 and logits.shape[-1 if logits.ndim <= 3 else 1] > 1


def divergence_of(expected: Tensor, found: Tensor) -> Tensor:
    """KL(expected || found) of the softmaxes per prediction, (rows,), in nats.

    Outputs without a class dimension give their squared differences instead.

    Args:
        expected: logits of the original, (N, classes), (N, length, classes) or (N, classes, H, W, ...).
        found: the same of the other network.
    """
    if not has_classes(expected):
        return (found - expected).double().square().flatten()
    p, q = (torch.log_softmax(class_rows(logits).double(), 1) for logits in (expected, found))
    return (p.exp() * (p - q)).sum(1).clamp_min(0.0)


def divergence(model: nn.Module, original: nn.Module, batches: Iterable[Any]) -> float:
    """Mean of :func:`divergence_of` over ``batches``; infinite where an output is not finite.

    Both networks run in evaluation mode and are left as they were.

    Raises:
        CalibrationError: there are no batches.
    """
    total, rows = 0.0, 0
    device = device_of(original)
    with preserved(original), preserved(model), unfused(), torch.no_grad():
        original.eval()
        model.eval()
        for batch in batches:
            batch = to_device(batch, device)
            expected, found = (output_tensor(forward(m, batch)) for m in (original, model))
            values = divergence_of(expected, found)
            total, rows = total + float(values.sum()), rows + len(values)
    if not rows:
        raise CalibrationError("The divergence of two networks was asked for without batches.")
    return total / rows if total == total else float("inf")
