"""Leaving a model as it was found (training flags, random generators, gradients, buffers); copying it."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


def _restore_buffers(saved: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor | None]]) -> None:
    with torch.no_grad():
        for module, name, buffer, value in saved:
            if value is not None and not torch.equal(buffer, value):
                buffer.copy_(value)
            module._buffers[name] = buffer


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy of ``model``, also where a module holds a computed tensor.

    ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep the weight they computed in the last
    forward pass; it has a gradient history, which ``copy.deepcopy`` alone refuses. Such tensors are
    copied without their history.
    """
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and value.grad_fn is not None
    ]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


@contextmanager
def preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Restore on exit, whatever happens, what a forward or backward pass may change in ``model``.

    Restored: every module's training flag, every buffer and its values (BatchNorm counts when a
    caller runs in training mode), parameters' ``requires_grad`` and ``grad`` (None inside), and the
    global random number generators of torch (CPU and, when initialised, CUDA).
    """
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer.is_meta else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, grad in gradients:
            if grad is not None:
                parameter.grad = None  # so that a backward pass inside never adds into the caller's gradient
        with torch.random.fork_rng(devices=_cuda_devices()):
            yield model
    finally:
        for module, flag in training:
            module.training = flag
        _restore_buffers(buffers)
        for parameter, requires_grad, grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def seed_(seed: int) -> None:
    """Seed torch's global generators, that of CUDA only where CUDA is initialised.

    ``torch.manual_seed`` would also queue the seed for CUDA's generators, where no ``fork_rng`` takes it
    back: the caller's own seed would be lost.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generators start from ``seed``; on exit they are as they were."""
    with torch.random.fork_rng(devices=_cuda_devices()):
        seed_(seed)
        yield


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run ``model`` in evaluation mode; training flags are restored on exit, nothing else is."""
    training = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, flag in training:
            module.training = flag


@contextmanager
def unfused() -> Iterator[None]:
    """Run every module by itself: no fused inference kernels of transformers, no compiled graphs.

    In evaluation mode ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` hand their raw
    weights to one kernel: modules inside are then neither called nor seen by hooks, and
    ``torch.utils.flop_counter`` counts nothing. A model out of ``torch.compile`` runs eagerly, since
    hooks that come and go would compile it anew each time.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    compiler = "torch._dynamo" in sys.modules  # loaded as soon as anything is compiled; slow to load
    eager = torch.compiler.set_stance("force_eager") if compiler else nullcontext()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
