"""One threshold of relative error for all layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rankwise.allocation.base import Allocator, Table, register_allocator
from rankwise.allocation.problem import Problem, fill, first_fitting, meet, near, within_error


@register_allocator("energy")
@dataclass(frozen=True)
class Energy(Allocator):
    """Every layer keeps the same share of its energy: the cheapest option whose relative error is in bound.

    The smallest bound that meets the limits is found by bisection; the rest of the budget goes to the
    best single changes.
    """

    summary = "the same bound on the relative error of every layer"
    source = "common practice, e.g. Zhang et al., 2015, section 3.3 for one layer"

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, "relative")
        chosen = first_fitting(problem, np.unique(problem.error), partial(within_error, problem))
        chosen = fill(problem, chosen)
        return problem.indices(meet(problem, chosen, near(problem, chosen)))
