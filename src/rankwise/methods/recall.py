"""A memory for results that are costly and depend on nothing but their arguments."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import sha256
from threading import Lock
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


def digest(values: Iterable[object]) -> bytes:
    """A hash of tensors by their contents and of other values by their ``repr``."""
    state = sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            state.update(repr((value.dtype, tuple(value.shape))).encode())
            state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            state.update(repr(value).encode())
    return state.digest()


class Recall(Generic[T]):
    """Remembers the last ``size`` results by the contents of their arguments.

    ``candidates`` and ``build`` of a method get the same arguments minutes apart; what they share is
    computed once. Whether a result is remembered changes the time it takes and nothing else. Several
    threads may ask at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: OrderedDict[bytes, T] = OrderedDict()
        self._lock = Lock()

    def __call__(self, arguments: Iterable[object], compute: Callable[[], T]) -> T:
        """The result for ``arguments``, from memory or from ``compute``."""
        key = digest(arguments)
        with self._lock:
            known = self._known.get(key)
        found = compute() if known is None else known
        with self._lock:
            self._known[key] = found
            self._known.move_to_end(key)
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        return found
