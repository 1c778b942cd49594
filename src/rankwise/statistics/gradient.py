"""The losses whose gradient at a layer's output calibration can collect."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional

from rankwise.errors import CalibrationError
from rankwise.network.batches import output_tensor

Tensor = torch.Tensor
Loss = Literal["sampled", "targets"] | Callable[[Any, Any], Tensor]
SummedLoss = Callable[[Any, Any, int], Tensor]


def loss_function(loss: Loss | None, seed: int) -> SummedLoss:
    """``f(output, target, batch size)``: the loss summed over the examples of a batch.

    ``None`` and "sampled" draw every label from the model's own softmax with a generator seeded by
    ``seed``, so that the gradients' second moment is the Fisher information; "targets" is
    cross-entropy with the batch's target; a function gives one number (the mean over the batch, which
    is multiplied by the batch size) or one per example.

    Raises:
        CalibrationError: the loss is none of these.
    """
    if loss is None or loss == "sampled":
        generator = torch.Generator().manual_seed(seed)
        return lambda output, target, size: sampled_loss(output, generator)
    if loss == "targets":
        return lambda output, target, size: target_loss(output, target, size)
    if not callable(loss):
        raise CalibrationError(f"loss={loss!r} was given; allowed: None, 'sampled', 'targets', a function.")
    given = loss

    def summed(output: Any, target: Any, size: int) -> Tensor:
        value = given(output, target)
        return value * size if value.ndim == 0 else value.sum()

    return summed


def class_rows(output: Any) -> Tensor:
    """The logits of ``output`` as ``(rows, classes)``.

    Classes are the last dimension of ``(N, C)`` and ``(N, T, C)``, and dimension 1 of maps
    ``(N, C, H, W, ...)``.
    """
    logits = output_tensor(output)
    if logits.ndim < 2:
        raise CalibrationError(
            f"the model's output has shape {tuple(logits.shape)}; a class dimension is needed"
        )
    if logits.ndim > 3:
        logits = logits.movedim(1, -1)
    return logits.flatten(0, -2)


def sampled_loss(output: Any, generator: torch.Generator) -> Tensor:
    """Cross-entropy, summed, with labels drawn from the softmax of ``output`` itself."""
    rows = class_rows(output)
    chances = torch.softmax(rows.detach().to("cpu", torch.float64), 1)
    if not torch.isfinite(chances).all():
        raise CalibrationError("the model's output holds NaN or infinite values")
    labels = torch.multinomial(chances, 1, generator=generator).squeeze(1)
    return functional.cross_entropy(rows, labels.to(rows.device), reduction="sum")


def target_loss(output: Any, target: Any, size: int) -> Tensor:
    """Cross-entropy, summed, with the given labels; a Hugging Face output's own loss where it has one."""
    own = getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own * size
    if not isinstance(target, torch.Tensor):
        raise CalibrationError("loss='targets' needs batches that hold targets: tuples (input, target)")
    rows = class_rows(output)
    labels = target.to(rows.device)
    wanted = labels.flatten() if labels.numel() == len(rows) else labels.flatten(0, -2)
    return functional.cross_entropy(rows, wanted, reduction="sum")
