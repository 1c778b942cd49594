"""The smallest largest error of any layer: the problem of ALDS, solved to its global optimum."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.allocation.base import Allocator, Table, Weighting, pareto, register_allocator
from rankwise.allocation.milp import choose_one_each
from rankwise.allocation.problem import Problem, Selection, fill, first_fitting, meet, near, within_error


@register_allocator("minimax")
@dataclass(frozen=True)
class Minimax(Allocator):
    """Minimise the largest (relative) error over the layers, then the next largest, and so on.

    For a bound on the error, each layer's cheapest option within it does not depend on the other
    layers, and the total cost falls as the bound grows; so bisection over the finite set of errors
    finds the global optimum. (Several limits at once are an integer programme at each bound.) ALDS
    (Liebenwein et al., 2021, eq. 8) states this problem and searches it from random starts.
    """

    summary = "smallest largest error, globally; what is left lowers the next largest"
    source = "Liebenwein et al., Compressing Neural Networks: Towards Determining the Optimal Layer-wise \
Decomposition, NeurIPS 2021, eq. 8"
    weighting: Weighting = "relative"

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, self.weighting)
        if not problem.names:
            return []
        chosen = fill(problem, _lower_largest_first(problem, _smallest_bound(problem)))
        bound = problem.error[chosen].max()
        distance = np.where(problem.error <= bound, near(problem, chosen), np.inf)
        return problem.indices(meet(problem, chosen, distance))


def _within(problem: Problem, bound: float) -> Selection | None:
    """A selection within the limits whose errors are all up to ``bound``; None where there is none."""
    if (np.minimum.reduceat(np.where(problem.error <= bound, 0.0, 1.0), problem.start[:-1]) > 0).any():
        return None
    quick = within_error(problem, bound)
    if problem.fits(quick) or len(problem.measures) < 2:
        return quick if problem.fits(quick) else None
    inside = np.flatnonzero(problem.error <= bound)
    cost = problem.cost[inside]
    least = np.full((len(problem.names), cost.shape[1]), np.iinfo(np.int64).max)
    np.minimum.at(least, problem.layer[inside], cost)
    if (least.sum(axis=0) > problem.limit).any():
        return None
    usable = np.concatenate(
        [
            np.flatnonzero(problem.layer[inside] == i)[
                pareto(cost[problem.layer[inside] == i].astype(np.float64))
            ]
            for i in range(len(problem.names))
        ]
    )
    inside = inside[usable]
    found = choose_one_each(problem.price[inside], problem.layer[inside], problem.cost[inside], problem.limit)
    return None if found is None else inside[found]


def _smallest_bound(problem: Problem) -> Selection:
    """The selection at the smallest bound on the errors that any selection within the limits meets."""

    def select(bound: float) -> Selection:
        found = _within(problem, bound)
        return within_error(problem, bound) if found is None else found

    return first_fitting(problem, np.unique(problem.error), select)


def _lower_largest_first(problem: Problem, selection: Selection) -> Selection:
    """Lower the largest error by one step while the limits allow; then the next largest layer's.

    With one limit and distinct errors the result is the lexicographic optimum of the sorted errors.
    """
    selection = selection.copy()
    left = problem.limit - problem.total(selection)
    ladder = [  # each layer's options from the largest error down
        np.arange(first, last)[np.argsort(-problem.error[first:last], kind="stable")]
        for first, last in zip(problem.start[:-1], problem.start[1:], strict=True)
    ]
    waiting = [(-problem.error[chosen], i) for i, chosen in enumerate(selection)]
    heapq.heapify(waiting)
    while waiting:
        _, i = heapq.heappop(waiting)
        now = selection[i]
        lower = ladder[i][problem.error[ladder[i]] < problem.error[now]]
        fitting = lower[(problem.cost[lower] - problem.cost[now] <= left).all(axis=1)]
        if fitting.size:
            left = left - problem.cost[fitting[0]] + problem.cost[now]
            selection[i] = fitting[0]
            heapq.heappush(waiting, (-problem.error[fitting[0]], i))
    return selection
