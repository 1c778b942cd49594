"""Independent work in several threads, with the same results as one after the other."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_MOST = 4  # sixteen took three times as long as two, probably for Python's lock (docs/auto.md)


def in_threads(
    work: Callable[[T], R], items: Sequence[T], done: Callable[[int], None] = lambda count: None
) -> list[R]:
    """``work(item)`` of every item, in order, in as many threads as torch may use, at most four.

    Each thread then computes with one thread of torch's: small matrices gain nothing from more. Whether
    gradients are recorded is as in the caller. With one thread, or one item, nothing is different from
    ``map``. An error stops what has not begun yet.

    Args:
        work: must not draw from torch's global generator, nor depend on the order of items.
        items: what is worked on.
        done: called in the caller's thread with how many of the first items are finished.
    """
    threads = torch.get_num_threads()
    found: list[R] = []
    if min(threads, len(items)) < 2:
        for item in items:
            found.append(work(item))
            done(len(found))
        return found
    recorded = torch.is_grad_enabled()

    def one(item: T) -> R:
        with torch.set_grad_enabled(recorded):
            return work(item)

    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(min(threads, len(items), _MOST))
    try:
        for result in pool.map(one, items):
            found.append(result)
            done(len(found))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return found
