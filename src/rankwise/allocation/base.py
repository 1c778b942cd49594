"""What an allocator sees (one table of options per layer), its contract, and the registry that names it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from rankwise.errors import CalibrationError, RankwiseError, UnknownNameError
from rankwise.methods.base import Candidates
from rankwise.methods.options import configured
from rankwise.network.cost import Cost

Measure = Literal["params", "macs", "bytes", "latency"]
MEASURES: tuple[str, ...] = get_args(Measure)
Weighting = Literal["relative", "absolute"]
A = TypeVar("A", bound="type[Allocator]")


@dataclass(frozen=True, eq=False)
class Table:
    """All options of one layer: option 0 leaves it dense (error 0, the layer's own cost).

    ``bytes`` holds the stored size of each option beside the costs in ``candidates``, ``latency`` its
    nanoseconds (None: not measured, all 0). ``allowed`` marks the options that an allocator may choose
    (None: all); narrowing it keeps every index valid.

    Raises:
        CalibrationError: an error or the scale is NaN or infinite.
        RankwiseError: the arrays differ in length, or option 0 is not free of error.
    """

    name: str
    candidates: Candidates
    bytes: npt.NDArray[np.int64]  # (options,)
    allowed: npt.NDArray[np.bool_] | None = None  # (options,)
    latency: npt.NDArray[np.int64] | None = None  # (options,)

    def __post_init__(self) -> None:
        found = self.candidates
        columns = {"params": found.params, "macs": found.macs, "bytes": self.bytes, **found.choices}
        if self.latency is not None:
            columns["latency"] = self.latency
        wrong = {name: len(column) for name, column in columns.items() if len(column) != len(found)}
        if wrong or not len(found):
            raise RankwiseError(
                f"Layer {self.name!r}: {len(found)} errors, but other lengths in {wrong}; "
                "a table has one entry per option, the dense one first."
            )
        bad = np.flatnonzero(~np.isfinite(found.error))
        if bad.size or not np.isfinite(found.scale):
            where = f"option {found.choice(int(bad[0]))}" if bad.size else "the scale"
            raise CalibrationError(f"Layer {self.name!r}: the predicted error of {where} is not finite.")
        if found.error[0] != 0.0:
            raise RankwiseError(
                f"Layer {self.name!r}: option 0 must be dense, but has error {found.error[0]}."
            )

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def options(self) -> npt.NDArray[np.int64]:
        """Indices of the options that may be chosen."""
        return np.arange(len(self)) if self.allowed is None else np.flatnonzero(self.allowed)

    def costs(self, measures: Iterable[str]) -> npt.NDArray[np.int64]:
        """Costs of all options, one column per measure: (options, measures)."""
        columns = {"params": self.candidates.params, "macs": self.candidates.macs, "bytes": self.bytes}
        columns["latency"] = np.zeros(len(self), np.int64) if self.latency is None else self.latency
        chosen = [np.asarray(columns[measure], dtype=np.int64) for measure in measures]
        return np.stack(chosen, axis=1) if chosen else np.zeros((len(self), 0), dtype=np.int64)


def with_dense(name: str, candidates: Candidates, dense: Cost, bytes_per_param: int = 4) -> Table:
    """The table of layer ``name``: what its method offers, with the dense layer put first.

    ``dense`` is the layer's own cost; an option's bytes are its parameters times ``bytes_per_param``.
    Entries of ``choices`` for the dense option are zeros or empty strings.
    """
    found = candidates
    return Table(
        name,
        Candidates(
            params=np.concatenate([[dense.params], found.params]).astype(np.int64),
            macs=np.concatenate([[dense.macs], found.macs]).astype(np.int64),
            error=np.concatenate([[0.0], found.error]).astype(np.float64),
            choices={k: np.concatenate([np.zeros(1, v.dtype), v]) for k, v in found.choices.items()},
            unit=found.unit,
            scale=found.scale,
        ),
        np.concatenate([[dense.bytes], np.asarray(found.params) * bytes_per_param]).astype(np.int64),
    )


def pareto(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the rows of ``points`` (n, d) that no other row is at or below in all columns.

    Of equal rows the first one stays.
    """
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in points.T], axis=1)
    left = np.argsort(ranks.sum(axis=1), kind="stable")
    position = 0
    while position < len(left):
        better = (ranks[left] < ranks[left[position]]).any(axis=1)
        better[position] = True
        left, position = left[better], int(better[:position].sum()) + 1
    return np.sort(left)


def undominated(table: Table, costs: Sequence[str]) -> npt.NDArray[np.int64]:
    """Indices of the allowed options that no other one matches or beats in error and all ``costs``."""
    options = table.options
    points = np.column_stack([table.candidates.error, table.costs(costs)])[options]
    return options[pareto(points)]


def normalize(tables: Sequence[Table], weighting: Weighting = "relative") -> list[npt.NDArray[np.float64]]:
    """Errors of every table, made comparable between layers.

    "relative" divides by the error of replacing the layer by nothing, "absolute" takes them as they
    are. A layer whose scale is 0 (a constant output) keeps its absolute errors.

    Raises:
        RankwiseError: the tables' errors are in different units.
        UnknownNameError: the weighting is neither of the two.
    """
    if weighting not in get_args(Weighting):
        raise UnknownNameError("weighting", weighting, get_args(Weighting))
    by_unit = {table.candidates.unit: table.name for table in tables}
    if len(by_unit) > 1:
        found = ", ".join(f"{unit!r} (layer {name!r})" for unit, name in sorted(by_unit.items()))
        raise RankwiseError(
            f"The layers' errors are in different units: {found}. Errors are only added up or compared "
            "in one unit; give all layers methods with the same unit."
        )
    if weighting == "absolute":
        return [table.candidates.error for table in tables]
    return [table.candidates.error / (table.candidates.scale or 1.0) for table in tables]


@dataclass(frozen=True)
class Allocator(ABC):
    """A way to choose one option per layer under budgets: a frozen configuration with one function.

    Subclasses are frozen dataclasses with JSON-able fields, registered by :func:`register_allocator`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @abstractmethod
    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """The index of the chosen option of each table.

        ``limits`` maps "params", "macs", "bytes" or "latency" to what the chosen options may cost together;
        everything else in the model has been subtracted by the caller. No limit: no cost.

        Raises:
            BudgetError: no choice keeps within the limits.
        """

    def config(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_registry: dict[str, type[Allocator]] = {}


def register_allocator(name: str) -> Callable[[A], A]:
    """Class decorator that makes an allocator known under ``name``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def enter(allocator: A) -> A:
        taken = _registry.setdefault(name, allocator)
        if taken is not allocator:
            raise ValueError(f"The allocator name {name!r} is taken by {taken.__qualname__}.")
        allocator.name = name
        return allocator

    return enter


def allocators() -> dict[str, type[Allocator]]:
    """Every registered allocator by name."""
    return dict(sorted(_registry.items()))


def get_allocator(name: str, **config: Any) -> Allocator:
    """The allocator called ``name`` with the configuration ``config``.

    Raises:
        UnknownNameError: no allocator has that name, or no option has one of the given names.
        OptionError: an option has a value that is not allowed.
    """
    if name not in _registry:
        raise UnknownNameError("allocator", name, _registry)
    allocator: Allocator = configured(f"allocator {name!r}", _registry[name], config)
    return allocator
