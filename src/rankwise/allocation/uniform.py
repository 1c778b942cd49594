"""One fraction for all layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.allocation.base import Allocator, Table, Weighting, register_allocator
from rankwise.allocation.problem import Problem, Selection, fill, first_fitting, meet, near


@register_allocator("uniform")
@dataclass(frozen=True)
class Uniform(Allocator):
    """Every layer keeps the same fraction of its own cost.

    The largest fraction that meets the limits is found by bisection; a layer takes its most exact
    option within the fraction of each limited cost, or its cheapest where none is. The rest of the
    budget goes to the best single changes.
    """

    summary = "the same fraction of its own cost for every layer"
    weighting: Weighting = "relative"

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, self.weighting)
        dense = np.array([table.costs(problem.measures)[0] for table in tables]).reshape(
            len(tables), len(limits)
        )
        share = (problem.cost / np.maximum(dense, 1)[problem.layer]).max(axis=1, initial=0.0)
        floor = problem.cheapest

        def select(fraction: float) -> Selection:
            inside = share <= fraction
            best = problem.best(np.where(inside, problem.error, np.inf), problem.price)
            return np.where(inside[best], best, floor)

        chosen = fill(problem, first_fitting(problem, np.unique(share)[::-1], select))
        return problem.indices(meet(problem, chosen, near(problem, chosen)))
