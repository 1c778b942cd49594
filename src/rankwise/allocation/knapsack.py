"""The smallest summed error under all budgets at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.allocation.base import Allocator, Table, Weighting, register_allocator
from rankwise.allocation.milp import RELATIVE_GAP, choose_one_each, shadow_prices
from rankwise.allocation.problem import Problem, Selection, at_smallest_price, fill, meet

_CORE = 6  # options per layer in the first programme


@register_allocator("knapsack")
@dataclass(frozen=True)
class Knapsack(Allocator):
    """The exact multiple-choice knapsack over all layers' options, under one or several limits.

    Minimises the summed error to the relative ``gap``. Dominated options are
    dropped; the shadow prices of the linear relaxation then give every option a lower bound on any
    solution that uses it, and those above the best known solution are dropped as well (Pisinger, A
    minimal algorithm for the multiple-choice knapsack problem, 1995), so that HiGHS sees a small core.

    Where coarse options would leave more than 1 % of the cost unused below every limit, the best
    selection that does use it is returned instead, if there is one.
    """

    summary = "smallest summed error, exactly, under one or several budgets"
    source = "Pisinger, European Journal of Operational Research 83, 1995; HiGHS"
    weighting: Weighting = "relative"
    gap: float = RELATIVE_GAP

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, self.weighting)
        return problem.indices(meet(problem, _optimum(problem, self.gap), problem.error))


def _optimum(problem: Problem, gap: float) -> Selection:
    free = problem.best(problem.error, problem.price)
    if problem.fits(free):
        return free
    worth = shadow_prices(problem.error, problem.layer, problem.cost, problem.limit)
    priced = problem.error + problem.cost @ worth
    lowest = problem.best(priced, problem.price)
    above = priced - priced[lowest][problem.layer]  # what an option adds to the bound, (options,)
    bound = float(priced[lowest].sum() - problem.limit @ worth)

    order = np.lexsort((above, problem.layer))
    place = np.empty_like(order)  # of every option in its layer's order of ``above``
    place[order] = np.arange(len(order)) - problem.start[problem.layer]
    core = place < _CORE
    known = fill(problem, at_smallest_price(problem))
    while True:
        core[known] = True
        inside = np.flatnonzero(core)
        size = float(problem.error[known].sum())
        found = choose_one_each(
            problem.error[inside],
            problem.layer[inside],
            problem.cost[inside],
            problem.limit,
            size=size,
            gap=gap,
        )
        if found is not None and problem.error[inside[found]].sum() < size:
            known = inside[found]
        best = float(problem.error[known].sum())
        missing = (bound + above < best - gap * abs(best)) & ~core
        if not missing.any():
            return known
        core |= missing
