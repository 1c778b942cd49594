"""Outputs of layers kept between passes over the same batches: only what changed is computed again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rankwise.network.batches import tensors_of

Tensor = torch.Tensor

LIMIT = 2**30
"""Bytes of outputs that are kept by default."""


class Replay:
    """Remembers what layers of one network gave, batch by batch, until :meth:`forget`.

    Only for layers that one forward pass calls once. Whatever is not kept, for want of memory say, is
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

    @contextmanager
    def batch(self, model: nn.Module, place: int, batch: Any) -> Iterator[None]:
        """While open, a pass of ``model`` over the ``place``-th batch uses and adds to what is kept."""
        self._recognise(place, tensors_of(batch))
        patched: list[Any] = []
        handles = []
        try:
            for name in self._names:
                module: Any = model.get_submodule(name)
                output = self._outputs[name].get(place)
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
