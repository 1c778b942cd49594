"""Hooks on named modules that always come off."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


@contextmanager
def hooked(
    model: nn.Module, names: Iterable[str], seen: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call ``seen(name, input, output)`` whenever a named module has run; its result replaces the output."""

    def hook_for(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Tensor | None:
            x = args[0] if args else next(iter(kwargs.values()))
            return seen(name, x, y)

        return hook

    handles = []
    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_hook(hook_for(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
