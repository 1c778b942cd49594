"""Recoveries by name, all with one signature."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rankwise.errors import UnknownNameError

Layers = Mapping[str, Sequence[int] | None] | Sequence[str]
"""The layers that compression changed; a mapping says which of their outputs are left (None: all)."""


class Changed(dict[str, Sequence[int] | None]):
    """Layers as a mapping, and the names of those that no recovery may change, in ``untouched``."""

    def __init__(self, left: Mapping[str, Sequence[int] | None], untouched: Iterable[str] = ()) -> None:
        super().__init__(left)
        self.untouched = frozenset(untouched)


def untouched_of(layers: Layers) -> frozenset[str]:
    """The layers whose weights and biases must stay what they are."""
    return layers.untouched if isinstance(layers, Changed) else frozenset()


Recovery = Callable[[nn.Module, nn.Module, Iterable[Any], Layers], None]
"""``recover(model, original, batches, layers)`` changes ``model`` in place.

``layers`` are the layers that compression changed, out of :func:`rankwise.compress` a :class:`Changed`;
``batches`` may be iterated over
more than once; no recovery here needs labels. ``original`` is left as it was.
"""


@dataclass(frozen=True, eq=False)
class NamedRecovery:
    """A recovery that is not registered, with the name that plans give it."""

    name: str
    run: Recovery

    def __call__(self, model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers) -> None:
        """Recover ``model``, in place."""
        self.run(model, original, batches, layers)


_registry: dict[str, Recovery] = {}


def register_recovery(name: str) -> Callable[[Recovery], Recovery]:
    """Decorator that makes a recovery known under ``name``.

    Raises:
        ValueError: the name is taken by another function.
    """

    def enter(recovery: Recovery) -> Recovery:
        if _registry.get(name, recovery) is not recovery:
            raise ValueError(f"The recovery name {name!r} is taken.")
        _registry[name] = recovery
        return recovery

    return enter


def recoveries() -> dict[str, Recovery]:
    """Every recovery by name."""
    return dict(sorted(_registry.items()))


def get_recovery(name: str) -> Recovery:
    """The recovery called ``name``.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in _registry:
        raise UnknownNameError("recovery", name, _registry)
    return _registry[name]
