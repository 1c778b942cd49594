"""The smallest summed error under all budgets at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.allocation.base import Allocator, Table, Weighting, register_allocator
from rankwise.allocation.milp import RELATIVE_GAP, choose_one_each, shadow_prices
from rankwise.allocation.problem import Problem, Selection, at_smallest_price, fill, is_filled, meet

_CORE = 4  # options per layer in the first programme
_ROUGH = 1e-3  # relative gap of all programmes but the last


@register_allocator("knapsack")
@dataclass(frozen=True)
class Knapsack(Allocator):
    """The exact multiple-choice knapsack over all layers' options, under one or several limits.

    Minimises the summed error to the relative ``gap``. Dominated options are
    dropped; the shadow prices of the linear relaxation then give every option a lower bound on any
    solution that uses it. Programmes over a growing core of promising options improve the best known
    solution; options whose bound is above it are dropped, and the last programme has all others in it
    (after Pisinger, A minimal algorithm for the multiple-choice knapsack problem, 1995). A programme whose
    search tree grows beyond :data:`rankwise.allocation.milp.NODES` ends with the best that it has.

    Where coarse options would leave more than 1 % of the cost unused below every limit, the best
    selection that does use it is returned instead, if there is one. Dominated options take part in it:
    one that costs more at the same error uses a budget at no loss.
    """

    summary = "smallest summed error, exactly, under one or several budgets"
    source = "Pisinger, European Journal of Operational Research 83, 1995; HiGHS"
    weighting: Weighting = "relative"
    gap: float = RELATIVE_GAP

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, self.weighting)
        chosen = _optimum(problem, self.gap)
        if is_filled(problem, chosen):
            return problem.indices(chosen)
        every = Problem.of(tables, limits, self.weighting, dominated=True)
        return every.indices(meet(every, every.selection(problem.indices(chosen)), every.error))


def _optimum(problem: Problem, gap: float) -> Selection:
    free = problem.best(problem.error, problem.price)
    if problem.fits(free):
        return free
    worth = shadow_prices(problem.error, problem.layer, problem.cost, problem.limit)
    priced = problem.error + problem.cost @ worth
    lowest = problem.best(priced, problem.price)
    above = priced - priced[lowest][problem.layer]  # what an option adds to the bound, (options,)
    bound = float(priced[lowest].sum() - problem.limit @ worth)

    nearest = np.argsort(above, kind="stable")
    known = fill(problem, at_smallest_price(problem))
    size = _CORE * len(problem.names)
    while True:
        best = float(problem.error[known].sum())
        needed = np.flatnonzero(bound + above < best - gap * abs(best))
        last = len(needed) <= 1.5 * size
        core = np.union1d(needed if last else nearest[:size], known)
        found = choose_one_each(
            problem.error[core],
            problem.layer[core],
            problem.cost[core],
            problem.limit,
            size=best,
            gap=gap if last else max(gap, _ROUGH),
        )
        if found is not None and problem.error[core[found]].sum() < best:
            known = core[found]
        if last:
            return known
        size *= 2
