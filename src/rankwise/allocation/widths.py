"""Choosing the widths of channel groups, whose costs do not add up, with allocators that add costs up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rankwise.allocation.base import Allocator, Table
from rankwise.allocation.restrict import apply_overrides, restrict
from rankwise.errors import BudgetError
from rankwise.methods.base import Candidates, Unit
from rankwise.network.cost import Cost

CostOf = Callable[[Sequence[int]], Cost]
"""The whole model's cost for one width per group."""


@dataclass(frozen=True, eq=False)
class WidthCurve:
    """One group: ``error[k]`` when k of its units are kept, k = 0 ... size.

    Errors are relative to each consumer's output and summed over consumers, or measured as a whole, so
    that they can be compared between groups as they are.
    """

    name: str
    error: npt.NDArray[np.float64]  # (size + 1,)

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.error) - 1


def width_tables(
    curves: Sequence[WidthCurve],
    cost: CostOf,
    multiple_of: int = 1,
    min_width: int = 1,
    unit: Unit = "output",
) -> list[Table]:
    """One table per group: option 0 keeps all units, option i keeps ``size - i``.

    The cost of an option is what it costs above width 1 while all other groups are whole. Allowed are
    the whole group and the widths that :func:`rankwise.allocation.restrict` would allow as ranks.
    """
    full = [curve.size for curve in curves]
    tables = []
    for place, curve in enumerate(curves):
        widths = np.arange(curve.size, 0, -1)
        costs = [cost([*full[:place], int(k), *full[place + 1 :]]) for k in widths]
        rows = np.array([[c.params, c.macs, c.bytes, c.latency] for c in costs], dtype=np.int64)
        rows -= rows[-1]
        error = np.maximum.accumulate(curve.error[widths] - curve.error[curve.size])
        candidates = Candidates(rows[:, 0], rows[:, 1], error, {"rank": widths}, unit)
        table = Table(curve.name, candidates, rows[:, 2], latency=rows[:, 3])
        tables.append(restrict(table, multiple_of, min_width))
    return tables


def allowed_widths(
    sizes: Mapping[str, int],
    overrides: Mapping[str, Mapping[str, Any]],
    multiple_of: int = 1,
    min_width: int = 1,
) -> dict[str, list[int]]:
    """Per group of ``sizes`` the widths that it may have, ascending; ``overrides`` may rule out its own.

    Raises:
        UnknownNameError, RankwiseError: as :func:`rankwise.allocation.apply_overrides`.
    """
    curves = [WidthCurve(name, np.zeros(size + 1)) for name, size in sizes.items()]
    tables = apply_overrides(width_tables(curves, lambda _: Cost(0, 0, 0), multiple_of, min_width), overrides)
    return {table.name: [_width(table, int(option)) for option in table.options[::-1]] for table in tables}


def allocate_widths(
    allocator: Allocator, tables: Sequence[Table], cost: CostOf, limits: Mapping[str, int]
) -> list[int]:
    """One width per group so that the whole model keeps within ``limits``.

    The allocator sees costs as if they added up; as long as the true cost is above a limit, the
    allocator's own limit is lowered by the difference (by more where that changes nothing). What is
    left at the end is given back unit by unit, the largest drop of error per cost first.

    Raises:
        BudgetError: the limits cannot be met even with the narrowest groups.
    """
    smallest = narrowest(tables)
    _check(cost(smallest), limits, tables)
    full = cost([len(table) for table in tables])
    whole = {m: sum(int(table.costs([m])[0, 0]) for table in tables) for m in limits}
    saving = {m: getattr(full, m) - limit for m, limit in limits.items()}
    widths, previous, push = smallest, None, 1
    for _ in range(60):
        allowed = {m: max(0, whole[m] - saving[m]) for m in limits}
        try:
            found = allocator.allocate(tables, allowed)
        except BudgetError:
            break
        widths = [_width(table, option) for table, option in zip(tables, found, strict=True)]
        over = {m: getattr(cost(widths), m) - limit for m, limit in limits.items()}
        if all(excess <= 0 for excess in over.values()):
            return _fill(tables, widths, cost, limits)
        push = 2 * push if found == previous else 1
        for m, excess in over.items():
            saving[m] += max(0, push * excess)
        widths, previous = smallest, found
    return _fill(tables, widths, cost, limits)


def narrowest(tables: Sequence[Table]) -> list[int]:
    """The smallest width of every group that may be chosen."""
    return [_width(table, int(table.options[-1])) for table in tables]


def _width(table: Table, option: int) -> int:
    return len(table) - option


def _check(reached: Cost, limits: Mapping[str, int], tables: Sequence[Table]) -> None:
    missed = [m for m, limit in limits.items() if getattr(reached, m) > limit]
    if missed:
        parts = ", ".join(f"{m}: {limits[m]:,} allowed, {getattr(reached, m):,} reachable" for m in missed)
        raise BudgetError(
            f"The budget cannot be met by narrowing {len(tables)} channel groups; {parts}. What remains "
            "is in layers whose channels cannot be removed."
        )


def _fill(tables: Sequence[Table], widths: list[int], cost: CostOf, limits: Mapping[str, int]) -> list[int]:
    """Give units back while they fit, the largest drop of relative error per cost first."""
    widths = list(widths)
    open_ = set(range(len(tables)))
    now = cost(widths)
    while open_:
        best: tuple[float, int, int, Cost] | None = None
        for place in sorted(open_):
            wider = _next_width(tables[place], widths[place])
            if wider is None:
                open_.discard(place)
                continue
            then = cost([*widths[:place], wider, *widths[place + 1 :]])
            if any(getattr(then, m) > limit for m, limit in limits.items()):
                open_.discard(place)
                continue
            error = tables[place].candidates.error
            drop = float(error[len(tables[place]) - widths[place]] - error[len(tables[place]) - wider])
            extra = sum((getattr(then, m) - getattr(now, m)) / max(limit, 1) for m, limit in limits.items())
            gain = drop / max(extra, 1e-12)
            if best is None or gain > best[0]:
                best = (gain, place, wider, then)
        if best is None:
            break
        _, place, widths[place], now = best
    return widths


def _next_width(table: Table, width: int) -> int | None:
    """The next larger width that may be chosen."""
    options = table.options
    wider = options[options < len(table) - width]
    return _width(table, int(wider[-1])) if len(wider) else None
