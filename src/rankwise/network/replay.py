"""Outputs of layers kept between passes over the same batches: only what changed is computed again."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rankwise.network.batches import forward, tensors_of
from rankwise.network.state import evaluating, unfused

Tensor = torch.Tensor

LIMIT = 2**30
"""Bytes of outputs that are kept by default."""


class Replay:
    """Remembers what layers of one network gave, batch by batch, until :meth:`forget`.

    Only for modules that one forward pass calls once. Whatever is not kept, for want of memory say, is
    computed as usual. The passes must be over the same batches in the same order; a batch that differs
    from the one seen at its place before is computed anew.
    """

    def __init__(self, names: Iterable[str], limit: int = LIMIT) -> None:
        self._names = list(names)
        self._free = limit
        self._batches: dict[int, list[Tensor]] = {}
        self._outputs: dict[str, dict[int, Tensor]] = {name: {} for name in self._names}

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
                if output is None and wanted is not None and name not in wanted:
                    continue
                if output is None:
                    handles.append(module.register_forward_hook(self._recorder(name, place)))
                elif "forward" not in vars(module):  # its forward is that of its class
                    module.forward = _giving(output)
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

    def _recorder(self, name: str, place: int) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and _bytes(output) <= self._free:
                self._outputs[name][place] = output.detach().clone()
                self._free -= _bytes(output)

        return hook


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _giving(output: Tensor) -> Any:
    """A forward that gives a copy, since what follows may work in place."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return output.clone()

    return forward


class Prefix:
    """Lets a network run again on known batches from some layer on.

    A module has finished before a layer where it is called once in a pass and returns before the layer
    is called; of these the outermost are remembered, and a later pass over the same batch answers for
    them, so that only what follows is computed. The functions between modules run anew. Whoever changes a
    module must have moved on to a layer that runs later.

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
        """The outermost modules that have finished when ``layer`` is called."""
        start = self._started.get(layer, 0)
        done = {name for name, time in self._finished.items() if time < start}
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
            if not name:
                continue

            def enter(_: Any, __: Any, name: str = name) -> None:
                called.setdefault(name, next(clock))

            def leave(_: Any, __: Any, ___: Any, name: str = name) -> None:
                returned.setdefault(name, []).append(next(clock))

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        forward(model, example)
    return {name: times[0] for name, times in returned.items() if len(times) == 1}, called
