"""A small trainer for the reference networks: the same result each time, resumable."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from rankwise.errors import DataError
from rankwise.files import write_atomically
from rankwise.models.small import DigitsCNN
from rankwise.network.state import seeded
from rankwise.progress import Progress, silent

Schedule = Callable[[Optimizer, int], LRScheduler]
SAVED_EVERY = 100  # steps between two checkpoints


def _one_cycle(learning_rate: float, optimizer: Optimizer, total: int) -> OneCycleLR:
    return OneCycleLR(optimizer, learning_rate, total)


def trapezoid(warm: int, cool: int) -> Schedule:
    """A learning rate that rises for ``warm`` steps, stays, and falls to 0 over the last ``cool``.

    The number of steps may be another one when training goes on from a checkpoint: only the fall moves.
    """

    def schedule(optimizer: Optimizer, total: int) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: max(0.0, min(1.0, (step + 1) / warm, (total - step) / cool)))

    return schedule


def train_classifier_(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    steps: int | None = None,
    schedule: Schedule | None = None,
    precision: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Train ``module`` in place by AdamW on ``(inputs, labels)`` batches.

    ``batches`` is iterated over once per epoch and has a length. The module is left in evaluation
    mode. Deterministic on one thread when the batches are (dropout draws from the global generator).

    Args:
        module: what is trained.
        batches: the training data.
        epochs: passes over them.
        learning_rate: the highest of the schedule.
        steps: batches in all, where training is to end before ``epochs`` passes are over.
        schedule: of the learning rate, from the optimizer and the number of steps; one cycle by default.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        precision: ``torch.bfloat16`` runs the forward pass under autocast.
        checkpoint: a file written after every hundred steps and every epoch; when it is there,
            training goes on from it.
        progress: called after every epoch.

    Raises:
        DataError: there are no batches.
    """
    count = len(batches)  # type: ignore[arg-type] # a sized iterable, as the docstring asks
    if count == 0:
        raise DataError("Training was given no batches.")
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, weight_decay=weight_decay)
    total = epochs * count if steps is None else min(steps, epochs * count)
    rate: Any = (
        OneCycleLR(optimizer, learning_rate, total) if schedule is None else schedule(optimizer, total)
    )
    parts: dict[str, Any] = {"module": module, "optimizer": optimizer, "schedule": rate}
    done = _resume_(parts, batches, count, checkpoint)
    mixed = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
    module.train()
    for epoch in range(done // count, epochs):
        for step, (inputs, labels) in enumerate(batches, start=epoch * count + 1):
            if step <= done:
                continue
            if step > total:
                break
            with mixed:
                outputs = module(inputs)
            loss = cross_entropy(outputs.float(), labels, label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            if checkpoint is not None and (step % SAVED_EVERY == 0 or step in (total, (epoch + 1) * count)):
                state = {name: part.state_dict() for name, part in parts.items()} | {"step": step}
                write_atomically(checkpoint, partial(torch.save, state))
        progress("train", epoch + 1, epochs)
    module.eval()


def _resume_(parts: dict[str, Any], batches: Iterable[Any], count: int, checkpoint: Path | None) -> int:
    """Load what the checkpoint holds, if there is one; returns the steps already done."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    done = int(state["step"])
    parts["schedule"].last_epoch = done - 1
    parts["schedule"].step()  # the rate that this schedule has here, which may be longer than that before
    for _ in range(done // count):  # passes already made draw their random numbers
        next(iter(batches), None)
    return done


def train_digits(batches: Iterable[Any], seed: int = 0, epochs: int = 15) -> DigitsCNN:
    """A :class:`DigitsCNN` trained on ``batches`` of the digits, over 97 % on the test split.

    ``load_data("digits").train.batches(64, shuffle=True, seed=seed)`` is what it is made for; a few
    seconds. Uses one thread and leaves the global generator and the number of threads as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with seeded(seed):
            module = DigitsCNN()
            train_classifier_(module, batches, epochs=epochs, learning_rate=4e-3)
    finally:
        torch.set_num_threads(threads)
    return module
