"""Running a network again without computing again what comes before the part that changes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rankwise.network.batches import forward
from rankwise.network.state import evaluating, unfused

Tensor = torch.Tensor

MEMORY = 2 * 2**30  # bytes of outputs that are kept at most


def _cloned(value: Any) -> Any:
    """``value`` with every tensor copied, so that what is kept survives functions that work in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(_cloned, value))
    return value


def _size(value: Any) -> int | None:
    """Bytes of the tensors in ``value``; None where it is something that cannot be kept."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if type(value) in (tuple, list):
        sizes = [_size(v) for v in value]
        return None if None in sizes else sum(s for s in sizes if s is not None)
    return 0 if value is None else None


class Replay:
    """Remembers, for every batch, what the modules before some layer put out.

    A module has finished before a layer where it is called once in a pass and returns before the
    layer is called; the outermost finished ones are kept. A later pass over the same batch answers for them
    with what they put out then, so that only what follows is computed. The functions between modules
    run anew. Whoever changes a module must have moved on to a layer that runs later, or call
    :meth:`forget`. Batches must come in the same order with the same content in every pass.

    Args:
        model: any module; runs in evaluation mode without gradients.
        example: one batch, which shows the order.
        memory: bytes to keep at most; once they are used up, nothing more is kept.
    """

    def __init__(self, model: nn.Module, example: Any, memory: int = MEMORY) -> None:
        self.model, self.memory = model, memory
        self._kept: dict[int, dict[str, Any]] = {}
        self._used = 0
        self._finished, self._started = self._order(example)

    def _order(self, example: Any) -> tuple[dict[str, int], dict[str, int]]:
        """When each module returned, where it is called once, and when it was first called."""
        returned: dict[str, list[int]] = {}
        called: dict[str, int] = {}
        clock = iter(range(10**9))
        with ExitStack() as stack, torch.no_grad(), evaluating(self.model), unfused():
            for name, module in self.model.named_modules():
                if not name:
                    continue

                def enter(_: Any, __: Any, name: str = name) -> None:
                    called.setdefault(name, next(clock))

                def leave(_: Any, __: Any, ___: Any, name: str = name) -> None:
                    returned.setdefault(name, []).append(next(clock))

                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            forward(self.model, example)
        return {name: times[0] for name, times in returned.items() if len(times) == 1}, called

    def before(self, layer: str) -> list[str]:
        """The outermost modules that have finished when ``layer`` is called."""
        start = self._started.get(layer, 0)
        done = {name for name, time in self._finished.items() if time < start}
        return [
            n for n in done if not any(".".join(n.split(".")[:i]) in done for i in range(1, n.count(".") + 1))
        ]

    def forget(self) -> None:
        """Keep nothing any more."""
        self._kept.clear()
        self._used = 0

    @contextmanager
    def until(self, layer: str, index: int) -> Iterator[None]:
        """Inside, ``model`` may be run once on batch ``index`` to see what happens from ``layer`` on."""
        wanted = self.before(layer)
        kept = self._kept.setdefault(index, {})
        fresh: dict[str, Any] = {}
        with ExitStack() as stack:
            for name, output in kept.items():
                stack.enter_context(_answering(self.model.get_submodule(name), output))
            for name in wanted:
                if name not in kept:
                    hook = self.model.get_submodule(name).register_forward_hook(
                        lambda _, __, output, name=name: fresh.__setitem__(name, _cloned(output))
                    )
                    stack.callback(hook.remove)
            yield
        for name in set(kept) - set(wanted):
            self._used -= _size(kept.pop(name)) or 0
        for name, output in fresh.items():
            size = _size(output)
            if size is not None and self._used + size <= self.memory:
                kept[name] = output
                self._used += size


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Inside, ``module`` returns ``output`` without computing it."""
    own = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: _cloned(output)
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own
