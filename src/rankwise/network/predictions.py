"""A model's logits beside the labels of its batch: one prediction per example, or per token."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from rankwise.errors import DataError, RankwiseError
from rankwise.network.batches import (
    batch_size,
    device_of,
    forward,
    output_tensor,
    split_batch,
    tensors_of,
    to_device,
)

Task = Literal["classification", "language"]
IGNORED = -100  # label of predictions that do not count, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True, eq=False)
class Predictions:
    """One batch: P predictions, each of one of ``examples`` examples."""

    task: Task
    logits: torch.Tensor  # (P, classes)
    target: torch.Tensor | None  # (P,) int64
    example: torch.Tensor  # (P,) int64, 0..examples - 1
    examples: int


def predict(model: nn.Module, batch: Any, task: Task | None = None) -> Predictions:
    """Run ``model`` on ``batch``, moved to its device, and put its logits beside the labels.

    Args:
        model: runs in the mode that it is in, with gradients where they are enabled.
        batch: in any form that :func:`rankwise.network.batches.split_batch` takes.
        task: by default "language" where the output has three dimensions.

    Raises:
        DataError: labels of a wrong shape or type, or outside the model's classes.
        RankwiseError: an output of a shape that neither task has.
    """
    batch = to_device(batch, device_of(model))
    return predictions_of(model, batch, output_tensor(forward(model, batch)), task)


def predictions_of(
    model: nn.Module, batch: Any, logits: torch.Tensor, task: Task | None = None
) -> Predictions:
    """The ``logits`` that ``model`` gave on ``batch`` beside its labels; see :func:`predict`."""
    device = logits.device
    language = task == "language" or (task is None and logits.ndim == 3)
    if logits.ndim != (3 if language else 2):
        raise RankwiseError(
            f"The model's output has shape {tuple(logits.shape)}; allowed are (examples, classes) for "
            "classification and (examples, length, vocabulary) for language modelling."
        )
    _, kwargs, target = split_batch(model, batch)
    if target is None and language:
        target = _tokens(batch, logits)
    count = batch_size(batch)
    if not language:
        return _counted("classification", logits, target, torch.arange(count, device=device), count)
    if target is not None and target.shape != logits.shape[:2]:
        raise DataError(
            f"Token labels of shape {tuple(target.shape)} were given for logits {tuple(logits.shape)}; "
            "allowed is one label per position (the shift by one position is made here)."
        )
    mask = kwargs.get("attention_mask")
    if target is not None and isinstance(mask, torch.Tensor):
        target = target.masked_fill(mask == 0, IGNORED)
    example = torch.arange(count, device=device).repeat_interleave(logits.shape[1] - 1)
    shifted = None if target is None else target[:, 1:].flatten()
    return _counted("language", logits[:, :-1].flatten(0, 1), shifted, example, count)


def _tokens(batch: Any, logits: torch.Tensor) -> torch.Tensor | None:
    """The batch's token numbers, which are a language model's own targets."""
    for tensor in tensors_of(batch):
        if not tensor.is_floating_point() and tensor.shape == logits.shape[:2]:
            return tensor
    return None


def _counted(
    task: Task, logits: torch.Tensor, target: torch.Tensor | None, example: torch.Tensor, count: int
) -> Predictions:
    """Without the predictions whose target is ignored."""
    if target is not None:
        if target.shape != example.shape or target.is_floating_point():
            raise DataError(
                f"Labels of shape {tuple(target.shape)} and type {target.dtype} were given for "
                f"{len(example)} predictions; allowed is one integer class per prediction."
            )
        keep = target != IGNORED
        logits, target, example = logits[keep], target[keep], example[keep]
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
            raise DataError(
                f"Labels from {int(target.min())} to {int(target.max())} were given; the model has "
                f"{logits.shape[1]} outputs, so allowed are 0 to {logits.shape[1] - 1}."
            )
    return Predictions(task, logits, target, example, count)
