"""How a network in training does on validation data, over all ranks."""

from collections.abc import Iterable
from math import inf
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rankwise.errors import DataError
from rankwise.network.batches import batch_size, forward, output_tensor, to_device
from rankwise.network.predictions import Predictions, Task, predictions_of
from rankwise.recovery.parallel import Processes


def labelled(model: nn.Module, batch: Any, logits: torch.Tensor, task: Task | None) -> Predictions:
    """The predictions of ``model`` beside the labels of its batch.

    Raises:
        DataError: the batch has no labels, or labels that the model has no output for.
    """
    found = predictions_of(model, batch, logits, task)
    if found.target is None:
        raise DataError("Fine-tuning was given batches without labels; allowed are (inputs, labels).")
    return found


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Any],
    processes: Processes,
    task: Task | None = None,
    examples: float = inf,
) -> dict[str, float | None]:
    """Mean loss and top-1 of ``model`` on ``batches``, or on the first ones up to ``examples``.

    The ranks take the batches in turn; where parameters are sharded all compute all of them. ``model``
    is left in evaluation mode, with the buffers of rank 0. top1 is None in language modelling.

    Raises:
        DataError: there are no labels, or no examples.
    """
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    first, stride = (0, 1) if sharded else (processes.rank, processes.ranks)
    processes.align_([b for b in model.buffers() if not hasattr(b, "full_tensor")])
    loss = right = count = 0.0
    seen, language = 0, False
    model.eval()
    for index, batch in enumerate(batches):
        if seen >= examples:
            break
        seen += batch_size(batch)
        if (index - first) % stride:
            continue
        batch = to_device(batch, processes.device)
        with processes.autocast():
            logits = output_tensor(forward(model, batch))
        found = labelled(model, batch, logits, task)
        language = found.task == "language"
        assert found.target is not None
        loss += float(cross_entropy(found.logits.float(), found.target, reduction="sum"))
        right += float((found.logits.argmax(1) == found.target).sum())
        count += len(found.target)
    loss, right, count, languages = processes.summed(loss, right, count, float(language))
    if count == 0:
        raise DataError("Fine-tuning was given no validation examples.")
    return {"loss": loss / count, "top1": None if languages else right / count}
