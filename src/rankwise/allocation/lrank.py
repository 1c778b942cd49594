"""Learned rank: the compression step of Idelbayev and Carreira-Perpinan as an allocator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.allocation.base import Allocator, Table, Weighting, normalize, register_allocator
from rankwise.allocation.problem import Problem, at_smallest_price, fill, meet, near


def c_step(
    tables: Sequence[Table], prices: Mapping[str, float], weighting: Weighting = "absolute"
) -> list[int]:
    """The option of each table that minimises its error plus the price of its cost, by enumeration.

    ``prices`` maps "params", "macs" or "bytes" to lambda, in units of error per unit of cost. In an
    alternation with training at penalty mu, whose step minimises lambda cost + mu/2 ||W - W_r||^2,
    pass 2 lambda / mu. Of equal options the cheaper one is taken.

    Source: Idelbayev and Carreira-Perpinan, Low-Rank Compression of Neural Nets: Learning the Rank of
    Each Layer, CVPR 2020, section 4 (C step).
    """
    chosen = []
    for table, error in zip(tables, normalize(tables, weighting), strict=True):
        price = table.costs(prices) @ np.array(list(prices.values()), dtype=np.float64)
        options = table.options
        order = np.lexsort((price[options], (error + price)[options]))
        chosen.append(int(options[order[0]]))
    return chosen


@register_allocator("lrank")
@dataclass(frozen=True)
class LearnedRank(Allocator):
    """Minimise error + lambda cost in every layer, with the smallest lambda that meets the limits.

    lambda is found by bisection; several limits share it, each cost counted in shares of its limit.
    Only options on the lower convex hull of (cost, error) can win, so the rest of the budget goes to
    the best single changes.
    """

    summary = "one price of cost for all layers, as in the C step of learned-rank compression"
    source = "Idelbayev and Carreira-Perpinan, CVPR 2020"
    weighting: Weighting = "absolute"

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, self.weighting)
        chosen = fill(problem, at_smallest_price(problem))
        return problem.indices(meet(problem, chosen, near(problem, chosen)))
