"""Outputs of layers kept between passes over the same batches: only what changed is computed again."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rankwise.network.batches import forward, tensors_of
from rankwise.network.state import evaluating, held_by, unfused, version_of
from rankwise.network.usage import tensors_in

Tensor = torch.Tensor

LIMIT = 2**30
"""Bytes of outputs that are kept by default."""


class Replay:
    """Remembers what layers of one network gave, batch by batch, until :meth:`forget`.

    Of a module that is called again in the same pass, only the first call is answered. Whatever is not
    kept, for want of memory say, is computed as usual; so is a module that does more than give a tensor:
    changes what it reads, gives it back, writes attributes, or holds modules with hooks of the user. The
    passes must be over the same batches in the same order; a batch that differs from the one seen at its
    place before is computed anew.
    """

    def __init__(self, names: Iterable[str], limit: int = LIMIT) -> None:
        self._names = list(names)
        self._free = limit
        self._batches: dict[int, list[Tensor]] = {}
        self._outputs: dict[str, dict[int, Tensor]] = {name: {} for name in self._names}
        self._known: set[tuple[Any, ...]] = set()  # modules, with shapes of inputs, that wrote nothing
        self.refused: set[str] = set()
        """Modules that do more than give a tensor."""

    def forget(self, names: Iterable[str]) -> None:
        """Drop the outputs of layers that have changed, or whose inputs have."""
        for name in names:
            for output in self._outputs.get(name, {}).values():
                self._free += _bytes(output)
            if name in self._outputs:
                self._outputs[name] = {}

    def keep_only(self, names: Iterable[str], place: int) -> None:
        """Drop what is kept of the ``place``-th batch for all modules but ``names``."""
        for name in set(self._outputs) - set(names):
            if place in self._outputs[name]:
                self._free += _bytes(self._outputs[name].pop(place))

    @contextmanager
    def batch(
        self, model: nn.Module, place: int, batch: Any, wanted: Collection[str] | None = None
    ) -> Iterator[None]:
        """While open, a pass of ``model`` over the ``place``-th batch uses and adds to what is kept.

        ``wanted`` are the modules to remember in this pass; by default those named in the beginning.
        """
        for name in wanted or ():
            if name not in self._outputs:
                self._names.append(name)
                self._outputs[name] = {}
        self._recognise(place, tensors_of(batch))
        patched: list[Any] = []
        handles = []
        try:
            for name in self._names:
                module: Any = model.get_submodule(name)
                output = self._outputs[name].get(place)
                if name in self.refused or (output is None and wanted is not None and name not in wanted):
                    continue
                if output is None:
                    handles += self._record(model, name, place)
                elif "forward" not in vars(module):  # its forward is that of its class
                    module.forward = _giving(module, output)
                    patched.append(module)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in patched:
                del module.forward

    def _recognise(self, place: int, tensors: list[Tensor]) -> None:
        known = self._batches.get(place)
        if known is not None and len(known) == len(tensors) and all(map(torch.equal, known, tensors)):
            return
        for outputs in self._outputs.values():
            if place in outputs:
                self._free += _bytes(outputs.pop(place))
        self._free -= sum(map(_bytes, tensors)) - sum(map(_bytes, known or []))
        self._batches[place] = tensors

    def _record(self, model: nn.Module, name: str, place: int) -> list[RemovableHandle]:
        """Hooks that keep what a module gives, before hooks of its own, or note that it does more."""
        module = model.get_submodule(name)
        if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules() if m is not module):
            self.refused.add(name)
            return []
        calls: list[_Call] = []

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = list(tensors_in((args, kwargs)))
            shapes = (name, *(tensor.shape for tensor in inputs))
            calls.append(_Call(inputs, None if shapes in self._known else model))
            self._known.add(shapes)

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            if not calls.pop().gave_only(output):
                self.refused.add(name)
                self.forget([name])
            first = name not in self.refused and place not in self._outputs[name]
            if first and _bytes(output) <= self._free:
                self._outputs[name][place] = output.detach().clone()
                self._free -= _bytes(output)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, prepend=True),
        ]


class _Call:
    """One call of a module, seen from outside: its inputs and, given a ``model``, what that holds."""

    def __init__(self, inputs: list[Tensor], model: nn.Module | None) -> None:
        self._inputs, self._model = inputs, model
        self._versions = list(map(version_of, inputs))
        self._held = None if model is None else _versions(model)

    def gave_only(self, output: Any) -> bool:
        """Whether ``output`` is a tensor of its own, and neither inputs nor the model were written to."""
        if not isinstance(output, Tensor) or _storage(output) in map(_storage, self._inputs):
            return False
        if self._versions != list(map(version_of, self._inputs)):
            return False
        if self._held is None or self._model is None:
            return True
        now = _versions(self._model)
        return len(now) == len(self._held) and all(
            a is b and version == new for (a, version), (b, new) in zip(self._held, now, strict=True)
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _versions(model: nn.Module) -> list[tuple[Any, int]]:
    """What the modules hold, with how often tensors were changed in place."""
    return [(v, version_of(v) if isinstance(v, Tensor) else 0) for v in held_by(model)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _giving(module: nn.Module, output: Tensor) -> Any:
    """A forward whose first call gives a copy of ``output``, since what follows may work in place."""
    kept = [output]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return kept.pop().clone() if kept else type(module).forward(module, *args, **kwargs)

    return forward


class Prefix:
    """Lets a network run again on known batches from some layer on.

    A module has finished before a layer where it is called once in a pass and returns before the layer
    is called; of these the outermost that only give a tensor (see :class:`Replay`) are remembered, and a
    later pass over the same batch answers for them, so that only what follows is computed. The functions
    between modules run anew. Whoever changes a module must have moved on to a layer that runs later.

    Args:
        model: any module; runs in evaluation mode without gradients.
        example: one batch, which shows the order.
        memory: bytes to keep at most.
    """

    def __init__(self, model: nn.Module, example: Any, memory: int = 2 * LIMIT) -> None:
        self.model = model
        self._replay = Replay((), memory)
        self._finished, self._started = _order(model, example)

    def before(self, layer: str) -> list[str]:
        """The outermost modules that have finished when ``layer`` is called, and may be answered for."""
        start = self._started.get(layer, 0)
        done = {name for name, time in self._finished.items() if time < start} - self._replay.refused
        return [name for name in done if not any(parent in done for parent in _parents(name))]

    @contextmanager
    def until(self, layer: str, place: int, batch: Any) -> Iterator[None]:
        """While open, ``model`` may be run once on the ``place``-th batch, to see ``layer`` and later."""
        wanted = self.before(layer)
        with self._replay.batch(self.model, place, batch, wanted):
            yield
        self._replay.keep_only(wanted, place)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _order(model: nn.Module, example: Any) -> tuple[dict[str, int], dict[str, int]]:
    """When each module returned, where it is called once, and when it was first called."""
    returned: dict[str, list[int]] = {}
    called: dict[str, int] = {}
    clock = iter(range(10**9))
    with ExitStack() as stack, torch.no_grad(), evaluating(model), unfused():
        for name, module in model.named_modules():
            if not name or isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                continue

            def enter(_: Any, __: Any, name: str = name) -> None:
                called.setdefault(name, next(clock))

            def leave(_: Any, __: Any, ___: Any, name: str = name) -> None:
                returned.setdefault(name, []).append(next(clock))

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        forward(model, example)
    return {name: times[0] for name, times in returned.items() if len(times) == 1}, called
