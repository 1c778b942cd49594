"""Batches held out from a recovery, and recoveries that are undone where these speak against them."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from rankwise.network.state import stored
from rankwise.recovery.divergence import divergence

SHARE = 0.125
"""Share of the batches that is held out."""
_FEWEST = 4  # batches below which none is held out


@dataclass(frozen=True, eq=False)
class Part:
    """The batches ``start`` to ``stop`` of ``batches``, which may be iterated over any number of times."""

    batches: Iterable[Any]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.start, self.stop)


def hold_out(batches: Iterable[Any], share: float = SHARE) -> tuple[Part, Part]:
    """The batches to fit on, and the last ones, to judge on.

    Of fewer than four batches none is held out: both parts are then all of them. Batches out of a
    one-shot iterator are read into memory.
    """
    if iter(batches) is batches or not isinstance(batches, Sized):
        batches = list(batches)
    count = len(batches)
    held = max(1, round(count * share)) if count >= _FEWEST else 0
    whole = Part(batches, 0, count)
    return (
        (whole, whole) if held == 0 else (Part(batches, 0, count - held), Part(batches, count - held, count))
    )


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer of ``model``."""
    return {name: value.detach().clone() for name, value in stored(model).items()}


def restore_(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`snapshot` copied, in place."""
    with torch.no_grad():
        for name, value in stored(model).items():
            value.copy_(state[name])


def unless_harmful_(
    model: nn.Module, original: nn.Module, held: Iterable[Any], recover: Callable[[], Any]
) -> bool:
    """Do ``recover()``, which changes ``model``, and undo it where the outputs are then further away.

    Args:
        model: changed in place.
        original: the network that the outputs are compared with.
        held: batches that ``recover`` does not use.
        recover: keeps every shape of ``model``.

    Returns:
        Whether the recovery stayed.
    """
    before, state = divergence(model, original, held), snapshot(model)
    try:
        recover()
        good = divergence(model, original, held) <= before
    except BaseException:
        restore_(model, state)
        raise
    if not good:
        restore_(model, state)
    return good
