"""Leaving a model as it was found: training flags, random number generators, gradients, hooks, buffers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Restore on exit, whatever happens, what a forward pass may change in ``model``.

    Restored: every module's training flag, every buffer's values (BatchNorm counts when a caller
    runs in training mode), parameters' ``requires_grad`` and ``grad``, and the global random
    number generators of torch (CPU and, when initialised, CUDA).
    """
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield model
    finally:
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for parameter, requires_grad, grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
