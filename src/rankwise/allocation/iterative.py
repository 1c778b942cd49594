"""Step by step: always the change that loses least for what it saves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.allocation.base import Allocator, Table, Weighting, register_allocator
from rankwise.allocation.problem import Problem, fill
from rankwise.errors import OptionError


@register_allocator("iterative")
@dataclass(frozen=True)
class Iterative(Allocator):
    """Automatic per-layer ratios: again and again shrink the layer with the smallest error per cost saved.

    For channel groups each step keeps the share ``step`` of a group's width, narrows up to ``several``
    groups at once, and measures again what changed (see :mod:`rankwise.iterate`). ``published=True``
    is the original: one layer per step, score |r_k+1,k+1 / r_11| of the pivoted QR over the MACs of
    producer and consumer before the step. For tables of single layers the same greedy walk is done on
    the tables.
    """

    summary = "again and again the smallest error per cost saved, measured anew"
    source = "Chee, Flynn, Damle, De Sa, NeurIPS 2022, section 4 (iditer)"
    weighting: Weighting = "relative"
    step: float = 0.95
    several: int = 4
    published: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.step < 1 or self.several < 1:
            raise OptionError(
                f"step={self.step} and several={self.several} were given; allowed are a step above 0 and "
                "below 1, and 1 and more at once."
            )

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        problem = Problem.of(tables, limits, self.weighting)
        selection = problem.best(problem.error, problem.price)
        while not problem.fits(selection):
            here = selection[problem.layer]
            saved = problem.price[here] - problem.price
            lost = problem.error - problem.error[here]
            score = np.where(saved > 0, lost / np.where(saved > 0, saved, 1.0), np.inf)
            best = int(np.argmin(score))
            if not np.isfinite(score[best]):
                return problem.indices(problem.cheapest)
            selection[problem.layer[best]] = best
        return problem.indices(fill(problem, selection))
