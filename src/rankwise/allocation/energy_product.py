"""The largest product of the layers' kept energies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.allocation.base import Allocator, Table, register_allocator
from rankwise.allocation.knapsack import Knapsack

_LEAST = 1e-12  # share of energy that an option keeps at least: a product has no use for zeros


def log_losses(table: Table) -> Table:
    """``table`` with every error e replaced by -log(1 - e / scale), which adds up where energies multiply.

    A layer without energy (scale 0: a constant output) loses nothing.
    """
    found = table.candidates
    kept = 1.0 - found.error / found.scale if found.scale > 0 else np.ones(len(found))
    error = np.maximum(-np.log(np.clip(kept, _LEAST, 1.0)), 0.0)  # -log(1) is -0.0
    return replace(table, candidates=replace(found, error=error, scale=1.0))


@register_allocator("energy_product")
@dataclass(frozen=True)
class EnergyProduct(Allocator):
    """Maximises the product over layers of the share of energy (1 - relative error) that each keeps.

    The rank selection of Zhang et al., who found the classification accuracy roughly linear in this
    product of accumulated PCA eigenvalues. They remove eigenvalues greedily; the logarithm of the product
    is a sum, so the exact knapsack finds the best choice, under one or several limits. Against the sum
    of relative errors, the product avoids options that lose most of one layer.
    """

    summary = "largest product of the layers' kept energies, exactly"
    source = "Zhang et al. 2015, 1505.06798, section 3.3 (rank selection)"

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        """See :meth:`Allocator.allocate`."""
        return Knapsack("absolute").allocate([log_losses(table) for table in tables], limits)
