"""The choice problem behind every allocator, as flat arrays, and what the allocators share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rankwise.allocation.base import MEASURES, Table, Weighting, normalize, undominated
from rankwise.allocation.milp import choose_one_each
from rankwise.errors import BudgetError, UnknownNameError

Floats = npt.NDArray[np.float64]
Selection = npt.NDArray[np.int64]  # (layers,) position of one option per layer

TOLERANCE = 0.01
"""Share of the dense layers' cost by which a result may stay below a budget without another attempt."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The options of all layers, one after the other, and the limits on their summed costs."""

    names: tuple[str, ...]
    measures: tuple[str, ...]  # the limited ones
    start: npt.NDArray[np.int64]  # (layers + 1,) where each layer's options begin
    option: npt.NDArray[np.int64]  # (options,) index in the layer's own table
    error: Floats  # (options,) comparable between layers
    cost: npt.NDArray[np.int64]  # (options, measures)
    limit: npt.NDArray[np.int64]  # (measures,)
    dense: npt.NDArray[np.int64]  # (measures,) cost of all layers left dense

    @classmethod
    def of(
        cls,
        tables: Sequence[Table],
        limits: Mapping[str, int],
        weighting: Weighting,
        dominated: bool = False,
    ) -> "Problem":
        """The problem that ``tables`` and ``limits`` pose, with the ``dominated`` options or without.

        Raises:
            BudgetError: some limit cannot be met even by the cheapest options.
            UnknownNameError: a limit's name is no measure of cost.
        """
        for measure in limits:
            if measure not in MEASURES:
                raise UnknownNameError("budget", measure, MEASURES)
        measures = tuple(sorted(limits))
        kept = [table.options if dominated else undominated(table, measures) for table in tables]
        errors = [error[k] for error, k in zip(normalize(tables, weighting), kept, strict=True)]
        costs = [table.costs(measures) for table in tables]
        none = np.zeros(0, dtype=np.int64)
        problem = cls(
            tuple(table.name for table in tables),
            measures,
            np.cumsum([0, *map(len, kept)]),
            np.concatenate([none, *kept]),
            np.concatenate([none.astype(np.float64), *errors]),
            np.concatenate(
                [none.reshape(0, len(measures)), *(c[k] for c, k in zip(costs, kept, strict=True))]
            ),
            np.array([int(limits[m]) for m in measures], dtype=np.int64),
            sum((c[0] for c in costs), np.zeros(len(measures), dtype=np.int64)),
        )
        problem._check_each_limit()
        return problem

    @cached_property
    def layer(self) -> npt.NDArray[np.int64]:
        """The layer of every option."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.start))

    @cached_property
    def price(self) -> Floats:
        """One number for the costs of every option: the sum of its shares in the limits."""
        return np.asarray((self.cost / np.maximum(self.limit, 1)).sum(axis=1), dtype=np.float64)

    def best(self, *keys: npt.NDArray[np.generic]) -> Selection:
        """Per layer the option with the smallest ``keys[0]``; among equals, ``keys[1]`` decides, ...."""
        order = np.lexsort((*reversed(keys), self.layer))
        return order[self.start[:-1]]

    def total(self, selection: Selection) -> npt.NDArray[np.int64]:
        """Summed costs of a selection, (measures,)."""
        return np.asarray(self.cost[selection].sum(axis=0))

    def fits(self, selection: Selection) -> bool:
        """Whether a selection keeps within all limits."""
        return bool((self.total(selection) <= self.limit).all())

    def indices(self, selection: Selection) -> list[int]:
        """A selection as indices into the tables."""
        return [int(i) for i in self.option[selection]]

    def selection(self, indices: Sequence[int]) -> Selection:
        """The selection of the options at ``indices`` of the tables: the inverse of :meth:`indices`."""
        asked = np.asarray(indices, dtype=np.int64)[self.layer]
        return np.flatnonzero(self.option == asked)

    @cached_property
    def cheapest(self) -> Selection:
        """A selection within the limits, as cheap as it gets by :attr:`price`.

        Raises:
            BudgetError: each limit can be met alone, but not all together.
        """
        selection = self.best(self.price, self.error)
        if self.fits(selection):
            return selection
        found = choose_one_each(self.price, self.layer, self.cost, self.limit)
        if found is None:
            raise BudgetError(
                "The budgets cannot be met together, though each can alone: "
                + "; ".join(self._describe(column) for column in range(len(self.measures)))
            )
        return found

    def _minima(self) -> npt.NDArray[np.int64]:  # (layers, measures)
        return np.minimum.reduceat(self.cost, self.start[:-1], axis=0)

    def _describe(self, column: int) -> str:
        minima = self._minima()[:, column]
        largest = np.argsort(-minima, kind="stable")[:3]
        holders = ", ".join(f"{self.names[i]} ({minima[i]:,})" for i in largest)
        return (
            f"{self.measures[column]}: at most {self.limit[column]:,} allowed for the "
            f"{len(self.names)} layers together, smallest reachable {minima.sum():,} "
            f"of {self.dense[column]:,}; "
            f"held up most by {holders}"
        )

    def _check_each_limit(self) -> None:
        if not self.names:
            missed = list(np.flatnonzero(self.limit < 0))
            if missed:
                raise BudgetError("The budget cannot be met: there is no layer to compress.")
            return
        missed = list(np.flatnonzero(self._minima().sum(axis=0) > self.limit))
        if missed:
            raise BudgetError(
                "The budget cannot be met. " + ". ".join(self._describe(int(c)) for c in missed) + "."
            )


def first_fitting(problem: Problem, values: Floats, select: Callable[[float], Selection]) -> Selection:
    """The selection of the first of ``values`` that keeps within the limits, by bisection.

    ``values`` go from dear to cheap; where none fits, the cheapest selection is returned.
    """
    low, high, found = 0, len(values), None
    while low < high:
        middle = (low + high) // 2
        selection = select(float(values[middle]))
        if problem.fits(selection):
            high, found = middle, selection
        else:
            low = middle + 1
    return problem.cheapest if found is None else found


def within_error(problem: Problem, bound: float) -> Selection:
    """Every layer's cheapest option with an error up to ``bound`` (or else its most exact one)."""
    return problem.best(np.where(problem.error <= bound, problem.price, np.inf), problem.error)


def at_smallest_price(problem: Problem) -> Selection:
    """Every layer's minimum of error + lambda price, at the smallest lambda (by bisection) that fits."""

    def select(exponent: float) -> Selection:
        return problem.best(problem.error + scale * 2.0**exponent * problem.price, problem.price)

    scale = float(np.abs(problem.error).max(initial=0.0)) or 1.0
    low, high = -100.0, 100.0
    if not problem.fits(select(high)):
        return problem.cheapest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.fits(select(middle)) else (middle, high)
    return select(high)


def fill(problem: Problem, selection: Selection) -> Selection:
    """Spend what is left of the limits: one change at a time, the largest drop of error per cost that fits.

    Afterwards no single layer can be improved within the limits.
    """
    selection = selection.copy()
    open_ = np.arange(len(problem.error))
    while True:
        here = selection[problem.layer[open_]]
        drop = problem.error[here] - problem.error[open_]
        extra = problem.cost[open_] - problem.cost[here]
        fits = (extra <= problem.limit - problem.total(selection)).all(axis=1)
        better = np.flatnonzero((drop > 0) & fits)
        if not better.size:
            return selection
        dearer = np.maximum(problem.price[open_] - problem.price[here], 1e-300)[better]
        chosen = open_[better[np.argmax(drop[better] / dearer)]]
        selection[problem.layer[chosen]] = chosen
        if len(problem.measures) < 2:  # with one limit what does not fit now never fits again
            open_ = open_[better]


def is_filled(problem: Problem, selection: Selection) -> bool:
    """Whether some limit is used up to :data:`TOLERANCE` of the dense cost (or all is dense anyway)."""
    gap = np.minimum(problem.limit, problem.dense) - problem.total(selection)
    return bool((gap <= TOLERANCE * problem.dense).any()) or not len(problem.measures)


def meet(problem: Problem, selection: Selection, objective: Floats) -> Selection:
    """The selection, or where coarse options leave too much of every limit unused, one that uses it.

    Among the selections that come within :data:`TOLERANCE` of a limit, the one with the smallest
    summed ``objective`` (per option; infinite: not to be chosen) is taken; without one, nothing changes.
    """
    least = problem.error[problem.best(problem.error)].sum()
    if is_filled(problem, selection) or problem.error[selection].sum() <= least:
        return selection
    usable = np.flatnonzero(np.isfinite(objective))
    found: list[Selection] = []
    for column in range(len(problem.measures)):
        floor = np.zeros_like(problem.limit)
        target = min(problem.limit[column], problem.dense[column])
        floor[column] = np.ceil(target - TOLERANCE * problem.dense[column])
        picked = choose_one_each(
            objective[usable], problem.layer[usable], problem.cost[usable], problem.limit, floor
        )
        if picked is not None:
            found.append(usable[picked])
    return min(found, key=lambda s: float(objective[s].sum()), default=selection)


def near(problem: Problem, selection: Selection) -> Floats:
    """An objective for :func:`meet`: how far each option's costs are from the selected one's."""
    away = np.abs(problem.cost - problem.cost[selection][problem.layer])
    return np.asarray((away / np.maximum(problem.dense, 1)).sum(axis=1), dtype=np.float64)
