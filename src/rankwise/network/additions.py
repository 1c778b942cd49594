"""What is added to a layer's output: the skip connection, seen while a network runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from rankwise.network.batches import forward
from rankwise.network.usage import is_metadata, tensors_in

Tensor = torch.Tensor

_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_UNCHANGED = frozenset({"dropout", "dropout_"})  # in evaluation mode


@dataclass(eq=False)
class Sight:
    """One call of a layer: what it reads and puts out, the BatchNorm that reads that, and what is added.

    ``skip`` has the shape of ``output``; None where the output, normalised or not, is not an operand
    of an addition.
    """

    input: Tensor
    output: Tensor
    batchnorm: str | None = None
    skip: Tensor | None = None


class _Seen(Exception):
    """Nothing more of this pass is wanted."""


class _Watch(TorchFunctionMode):
    """Follows the output of one layer to the first function outside a BatchNorm that reads it."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.sights: list[Sight] = []
        self._branch: Tensor | None = None
        self._inside = False
        self._last = last

    def layer(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        """Forward hook of the layer."""
        read = args[0] if args else next(iter(kwargs.values()))
        self.sights.append(Sight(read if self._last else read.clone(), output.clone()))
        self._branch = output

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of every BatchNorm."""
        self._inside = self._branch is not None and args[0] is self._branch

    def leave(self, name: str, output: Tensor) -> None:
        """Forward hook of every BatchNorm."""
        if self._inside:
            self.sights[-1].batchnorm = name
            self._branch, self._inside = output, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; note the other operand where it adds something to the branch."""
        kwargs = kwargs or {}
        branch = None if self._inside else self._branch
        reads = branch is not None and any(t is branch for t in tensors_in((args, kwargs)))
        name = getattr(func, "__name__", "")
        other = self._other(name, args, kwargs) if reads else None
        if other is not None and name.endswith(("add_", "__iadd__")) and args[0] is other:
            other = other.clone()
        result = func(*args, **kwargs)
        if not reads or is_metadata(func, result):
            return result
        if name in _UNCHANGED:
            self._branch = result
            return result
        self._branch = None
        if other is not None:
            self.sights[-1].skip = other
        if self._last:
            raise _Seen
        return result

    def _other(self, name: str, args: Any, kwargs: Any) -> Tensor | None:
        if name not in _ADDITIONS or kwargs or len(args) != 2:
            return None
        first, second = args
        other = second if first is self._branch else first
        same = isinstance(other, Tensor) and other is not self._branch
        return other if same and other.shape == self.sights[-1].output.shape else None


@contextmanager
def _hooked(model: nn.Module, name: str, watch: _Watch) -> Iterator[None]:
    with ExitStack() as stack:
        handle = model.get_submodule(name).register_forward_hook(watch.layer, with_kwargs=True)
        stack.callback(handle.remove)
        for norm, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                stack.callback(module.register_forward_pre_hook(watch.enter).remove)
                leave = module.register_forward_hook(lambda _, __, y, norm=norm: watch.leave(norm, y))
                stack.callback(leave.remove)
        yield


def sights(model: nn.Module, batch: Any, name: str, calls: int = 1) -> list[Sight]:
    """What the layer ``name`` reads, puts out and is added to while ``model`` runs on ``batch``.

    The pass ends as soon as the last of the ``calls`` has been followed. The model should be in
    evaluation mode; tensors are those of the pass, not copies.

    Args:
        model: any module.
        batch: in any form that :func:`rankwise.network.batches.forward` takes.
        name: a layer, or what replaced it: one tensor in, one tensor out.
        calls: how often the layer is called.

    Returns:
        One entry per call.
    """
    watch = _Watch(last=calls == 1)
    with _hooked(model, name, watch), torch.no_grad():
        try:
            with watch:
                forward(model, batch)
        except _Seen:
            pass
    return watch.sights
