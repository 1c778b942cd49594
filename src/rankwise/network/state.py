"""Leaving a model as it was found (training flags, random generators, gradients, buffers); copying it."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from rankwise.errors import RankwiseError

_BOOKKEEPING = frozenset(vars(nn.Module())) - {"_buffers"}


def attributes_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of ``module`` that not every module has, and its buffers as one of them."""
    return ((key, value) for key, value in vars(module).items() if key not in _BOOKKEEPING)


def leaves_in(value: Any, opened: tuple[int, ...] = ()) -> Iterator[Any]:
    """Everything inside nested tuples, lists and dicts that is none of these, or holds itself."""
    if isinstance(value, (tuple, list, dict)) and id(value) not in opened:
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_in(item, (*opened, id(value)))
    else:
        yield value


def version_of(tensor: torch.Tensor) -> int:
    """How often ``tensor``, or what shares its memory, was changed in place; 0 where that is not counted."""
    return 0 if tensor.is_inference() else tensor._version


def held_by(model: nn.Module) -> Iterator[Any]:
    """Every buffer and every attribute of every module, with tuples, lists and dicts opened."""
    for module in model.modules():
        for _, value in attributes_of(module):
            yield from leaves_in(value)


def _restore_buffers(
    saved: list[tuple[nn.Module, dict[str, torch.Tensor | None], dict[str, torch.Tensor]]],
) -> None:
    with torch.no_grad():
        for module, buffers, values in saved:
            for name, value in values.items():
                held = buffers[name]
                if held is not None and not torch.equal(held, value):
                    held.copy_(value)
            for name in dict(module._buffers).keys() - buffers.keys():
                delattr(module, name)  # also its mark as one that is not stored
            for name, buffer in buffers.items():
                module._buffers[name] = buffer


def check_model(model: nn.Module) -> None:
    """Make sure that ``model`` is a module with values.

    Raises:
        RankwiseError: it is something else, or has parameters on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise RankwiseError(f"A model of type {type(model).__name__} was given; allowed is an nn.Module.")
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RankwiseError(
            f"The model's {missing[0]!r} and {len(missing) - 1} other parameters are on the meta device, "
            "without values; allowed is a model with its weights."
        )


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors in ``model.state_dict()``, without extra states of other types."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy of ``model``, also where a module holds a computed tensor, in a list or dict say.

    ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep the weight they computed in the last
    forward pass, other modules activations; these have a gradient history, which ``copy.deepcopy``
    alone refuses. Such tensors are copied without their history.
    """
    tensors = (value for value in held_by(model) if isinstance(value, torch.Tensor))
    computed = [tensor for tensor in tensors if tensor.grad_fn is not None]
    with torch.no_grad():  # or the parameters of a TorchScript module would be copied with a history
        copied = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    for parameter, own in zip(model.parameters(), copied.parameters(), strict=True):
        if own.requires_grad is not parameter.requires_grad:
            own.requires_grad_(parameter.requires_grad)
    return copied


@contextmanager
def preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Restore on exit, whatever happens, what a forward or backward pass may change in ``model``.

    Restored: every module's training flag, every buffer and its values (BatchNorm counts when a
    caller runs in training mode; a buffer that a pass made is removed), parameters' ``requires_grad``
    and ``grad`` (None inside), and the global random number generators of torch (CPU and, when
    initialised, CUDA).
    """
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (
            module,
            dict(module._buffers),
            {n: b.detach().clone() for n, b in module._buffers.items() if b is not None and not b.is_meta},
        )
        for module in model.modules()
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
