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
    """Remembers the last ``size`` results, ``most`` bytes in all, by the contents of their arguments.

    ``weigh`` gives the bytes of a result; the last one is remembered however large it is.

    ``candidates`` and ``build`` of a method get the same arguments minutes apart; what they share is
    computed once. Whether a result is remembered changes the time it takes and nothing else. Several
    threads may ask at once.
    """

    def __init__(self, size: int, most: int = 0, weigh: Callable[[T], int] = lambda _: 0) -> None:
        self._size, self._most, self._weigh = size, most, weigh
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
            held = sum(map(self._weigh, self._known.values()))
            while len(self._known) > self._size or (held > self._most and len(self._known) > 1):
                held -= self._weigh(self._known.popitem(last=False)[1])
        return found
