"""Choosing one candidate per layer under a budget."""

from rankwise.allocation.base import (
    Allocator,
    Table,
    allocators,
    get_allocator,
    normalize,
    register_allocator,
    undominated,
    with_dense,
)
from rankwise.allocation.energy import Energy
from rankwise.allocation.energy_product import EnergyProduct
from rankwise.allocation.iterative import Iterative
from rankwise.allocation.knapsack import Knapsack
from rankwise.allocation.lrank import LearnedRank, c_step
from rankwise.allocation.minimax import Minimax
from rankwise.allocation.restrict import apply_overrides, restrict
from rankwise.allocation.uniform import Uniform

__all__ = [
    "Allocator",
    "Energy",
    "EnergyProduct",
    "Iterative",
    "Knapsack",
    "LearnedRank",
    "Minimax",
    "Table",
    "Uniform",
    "allocators",
    "apply_overrides",
    "c_step",
    "get_allocator",
    "normalize",
    "register_allocator",
    "restrict",
    "undominated",
    "with_dense",
]
