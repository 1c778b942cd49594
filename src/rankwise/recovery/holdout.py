"""Batches held out from a recovery, and recoveries that are undone where these speak against them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.batches import first_batch, length_of
from rankwise.network.state import stored
from rankwise.recovery.divergence import divergence

SHARE = 0.125
"""Share of the batches that is held out."""
_FEWEST = 4  # batches below which none is held out
_COMPARED = 4  # batches by which two passes are told apart


@runtime_checkable
class Divisible(Protocol):
    """Batches that can set some of their examples aside, as :class:`rankwise.data.Batches` can.

    Where ``shuffle`` is true, each pass has its examples in another order.
    """

    shuffle: bool

    def divide(self, share: float) -> tuple[Iterable[Any], Iterable[Any]]:
        """Batches without the last ``share`` of the examples, and those."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """The batches ``start`` to ``stop`` of ``batches``, which may be iterated over any number of times."""

    batches: Iterable[Any]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Any]:
        given = 0
        for batch in islice(iter(self.batches), self.start, self.stop):
            given += 1
            yield batch
        if given < len(self):
            raise CalibrationError(
                f"The calibration loader says that it has {length_of(self.batches)} batches, but gave fewer; "
                "pass one whose length is right, or a list of batches."
            )


def settled(batches: Iterable[Any]) -> Iterable[Any]:
    """``batches`` whose passes all give the same examples at the same place, and which have a length.

    Others are those of one pass, kept in memory: of an iterator, of a loader that shuffles or does not
    tell its length. Batches that are augmented in each pass are left as they are where they are
    :class:`Divisible`.

    Raises:
        CalibrationError: a tensor or a mapping, or no batch.
    """
    if isinstance(batches, (list, tuple)):
        return batches
    if iter(batches) is batches or length_of(batches) is None:
        return list(batches)
    if isinstance(batches, Divisible):
        return list(batches) if batches.shuffle else batches
    first_batch(batches)
    first, second = (list(islice(iter(batches), _COMPARED)) for _ in range(2))
    return batches if _same(first, second) else list(batches)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and bool(torch.equal(first, second))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(
            _same(value, second[key]) for key, value in first.items()
        )
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
    return True


def hold_out(batches: Iterable[Any], share: float = SHARE) -> tuple[Part, Part]:
    """The batches to fit on, and the last ones, to judge on.

    Of fewer than four batches none is held out: both parts are then all of them. Batches that are not
    the same in each pass are read into memory (:func:`settled`).
    """
    batches = settled(batches)
    count = length_of(batches) or 0
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
