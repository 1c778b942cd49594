"""How much work ``auto`` does: the methods that compete, what is measured, and when the search ends."""

from dataclasses import dataclass
from typing import Literal

from rankwise.errors import UnknownNameError
from rankwise.methods import Method, get_method


@dataclass(frozen=True)
class Effort:
    """One level of effort.

    Args:
        cp: work on CP decompositions per layer, in 1e9 floating-point operations.
        factors: of CP: 3, 4 or 0 for both.
        polish: Gauss-Newton steps on the CP that is chosen.
        others: further methods that compete.
        points: candidates per layer and method whose effect on the output is measured; 0 for none.
        examples: calibration examples that measurements and the search look at.
        rounds: rounds of the local search on the joint divergence.
        finalists: allocations that are refitted, of which held-out examples choose one.
    """

    cp: float
    factors: int
    polish: int
    others: tuple[str, ...]
    points: int
    examples: int
    rounds: int
    finalists: int

    def methods(self, metric: Literal["two_sided", "input"]) -> list[Method]:
        """The competing methods, with errors in one unit: loss for "two_sided", output for "input"."""
        matrix = "kfac" if metric == "two_sided" else "whitened"
        others = [get_method(name, metric=metric) for name in self.others]
        cp = get_method("cp", metric=metric, effort=self.cp, factors=self.factors, polish=self.polish)
        return [cp, get_method(matrix), *others]


EFFORTS = {
    "fast": Effort(5.0, 3, 2, (), points=0, examples=256, rounds=0, finalists=1),
    "normal": Effort(20.0, 0, 5, ("tucker2",), points=3, examples=256, rounds=2, finalists=2),
    "thorough": Effort(100.0, 0, 30, ("tucker2", "alds"), points=5, examples=512, rounds=8, finalists=3),
}


def get_effort(name: str) -> Effort:
    """The level called ``name``.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in EFFORTS:
        raise UnknownNameError("effort", name, EFFORTS)
    return EFFORTS[name]
