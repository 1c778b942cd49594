"""Watching one forward pass: which layers are called on what, and which weights are read from outside."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_METADATA = frozenset(
    (
        "__get__", "size", "dim", "numel", "nelement", "stride", "element_size", "is_floating_point",
        "is_complex", "is_contiguous", "get_device", "ndimension", "__len__", "__hash__",
        "storage_offset", "data_ptr", "untyped_storage", "__repr__", "is_shared", "is_pinned",
    )
)  # fmt: skip
_EVERYWHERE = frozenset(dir(nn.Sequential()))


def is_metadata(func: Any, result: Any) -> bool:
    """Whether a torch function read no values: a shape, a data type and the like."""
    return getattr(func, "__name__", "") in _METADATA and not any(True for _ in tensors_in(result))


@dataclass
class Usage:
    """What one forward pass did with one layer."""

    inputs: list[tuple[int, ...]] = field(default_factory=list)
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def object(self, reason: str) -> None:
        """Note a reason against replacing the layer, once."""
        if reason not in self.reasons:
            self.reasons.append(reason)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor inside nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


class Watch(TorchFunctionMode):
    """Records :class:`Usage` of ``layers`` (by name) while it is active and its hooks are on."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.usage: dict[str, Usage] = {}  # in the order of first calls
        self._names = {id(module): name for name, module in layers.items()}
        self._owners: dict[int, list[int]] = {}
        for module in layers.values():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._owners.setdefault(id(parameter), []).append(id(module))
        self._stack: list[int] = []

    def _note(self, module: int) -> Usage:
        return self.usage.setdefault(self._names[module], Usage())

    def _running(self, module: int) -> bool:
        return bool(self._stack) and self._stack[-1] == module

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``; a weight among its arguments, read while its owner is not running, is noted."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in tensors_in((args, kwargs)):
            owners = self._owners.get(id(tensor), [])
            if not owners or any(map(self._running, owners)):
                continue
            if is_metadata(func, result):
                continue
            name = getattr(func, "__name__", str(func))
            for owner in owners:
                self._note(owner).object(f"its weight is used functionally (by torch's {name!r})")
        return result

    def read(self, module: nn.Module, attribute: str) -> None:
        """Note that ``module.attribute``, which not every module has, was looked up."""
        key = id(module)
        if key in self._names and attribute not in _EVERYWHERE and not self._running(key):
            self._note(key).object(f"its {attribute} is read outside its own forward")

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook (with keyword arguments) of a watched layer."""
        self._stack.append(id(module))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook (with keyword arguments) of a watched layer."""
        while self._stack and self._stack.pop() != id(module):
            pass  # a forward that raised, and whose caller went on, left its entry behind
        usage = self._note(id(module))
        if not usage.inputs:  # it may have been noted before, when an attribute was read
            name = self._names[id(module)]
            self.usage[name] = self.usage.pop(name)
        values = [*args, *kwargs.values()]
        if len(values) != 1 or (kwargs and "input" not in kwargs):
            usage.object("it is called with more than its input")
        if not values or not isinstance(values[0], torch.Tensor) or not isinstance(output, torch.Tensor):
            usage.object("it is called on something other than a tensor")
            return
        usage.inputs.append(tuple(values[0].shape))
        usage.outputs.append(tuple(output.shape))


_ONE_AT_A_TIME = RLock()
"""Of all threads: the spies are on the class of all modules."""


@contextmanager
def watching(layers: Mapping[str, nn.Module]) -> Iterator[Watch]:
    """Watch ``layers`` inside the block; hooks and the attribute spies come off whatever happens."""
    with _ONE_AT_A_TIME:
        yield from _watching(Watch(layers), layers)


def _watching(watch: Watch, layers: Mapping[str, nn.Module]) -> Iterator[Watch]:
    plain_getattr = nn.Module.__getattr__
    own_getattribute = vars(nn.Module).get("__getattribute__")
    plain_getattribute = nn.Module.__getattribute__

    def spying_getattr(module: nn.Module, attribute: str) -> Any:  # of parameters, buffers and submodules
        value = plain_getattr(module, attribute)
        watch.read(module, attribute)
        return value

    def spying_getattribute(module: nn.Module, attribute: str) -> Any:  # of all that Python itself finds
        value = plain_getattribute(module, attribute)
        watch.read(module, attribute)
        return value

    handles = []
    nn.Module.__getattr__ = spying_getattr  # type: ignore[method-assign] # undone on exit
    nn.Module.__getattribute__ = spying_getattribute  # type: ignore[method-assign, assignment] # also
    try:
        for module in layers.values():
            handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(watch.leave, with_kwargs=True))
        with watch:
            yield watch
    finally:
        for handle in handles:
            handle.remove()
        nn.Module.__getattr__ = plain_getattr  # type: ignore[method-assign] # undone on exit
        if own_getattribute is None:
            del nn.Module.__getattribute__
        else:
            nn.Module.__getattribute__ = own_getattribute  # type: ignore[method-assign] # also
