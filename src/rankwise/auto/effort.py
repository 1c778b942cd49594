"""How much work ``auto`` does: the methods that compete, what is measured, and when the search ends."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.methods import Method, get_method
from rankwise.methods.cp import CP

_STEP = 1.4  # 1e9 operations, of one Gauss-Newton step on a layer of 64 channels and 3 x 3
_RIDGE = 1e-4  # of CP: a tenth of its default lowers the errors of narrow layers by 5 to 9 % on ResNet-20


@dataclass(frozen=True)
class Effort:
    """One level of effort.

    Args:
        cp: work on the CP decompositions that are compared, per layer, in 1e9 floating-point operations.
        factors: of CP: 3, 4 or 0 for both.
        ranks: of CP, evenly spaced, fitted per layer and factor count, and a half and a quarter of the
            smallest; those between them are offered too.
        draft: most Gauss-Newton steps on the CPs that are measured, within ``cp``.
        polish: the same on the CP that is chosen, which gets work in proportion.
        others: further methods that compete.
        points: candidates per layer and method whose effect on the output is measured; 0 for none.
        examples: calibration examples that measurements and the search look at.
        rounds: rounds of the local search on the joint divergence.
        finalists: allocations that are refitted, of which held-out examples choose one; with 1 there is
            no search, and the measured one is taken.
        narrow: whether narrower channels compete with them; under a latency budget they always do.
        besides: a level whose finalists compete too, so that this one is not worse on held-out examples.
    """

    cp: float
    factors: int
    ranks: int
    draft: int
    polish: int
    others: tuple[str, ...]
    points: int
    examples: int
    rounds: int
    finalists: int
    narrow: bool = False
    besides: str | None = None

    def methods(self, metric: Literal["two_sided", "input"]) -> list[Method]:
        """The competing methods, with errors in one unit: loss for "two_sided", output for "input"."""
        matrix = "kfac" if metric == "two_sided" else "whitened"
        others = [get_method(name, metric=metric) for name in self.others]
        cp = get_method(
            "cp", metric=metric, effort=self.cp, factors=self.factors, points=self.ranks, polish=self.draft,
            ridge=_RIDGE, interpolated=True,
        )  # fmt: skip
        return [cp, get_method(matrix), *others]

    def finished(self, method: Method) -> Method:
        """``method`` as it builds what was chosen: with more work than what was only compared."""
        if not isinstance(method, CP) or self.polish == self.draft:
            return method
        return replace(method, polish=self.polish, effort=max(self.cp, _STEP * self.polish))


EFFORTS = {
    "fast": Effort(20.0, 3, 5, 20, 20, (), points=0, examples=256, rounds=0, finalists=1),
    "normal": Effort(40.0, 3, 5, 40, 150, (), points=3, examples=512, rounds=0, finalists=1),
    "thorough": Effort(
        400.0, 0, 10, 150, 300, ("tucker2", "alds"), points=5, examples=512, rounds=8, finalists=3,
        narrow=True, besides="normal",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Automatic:
    """``method="auto"`` with its settings: what :func:`rankwise.compress` takes in the place of a method.

    Args:
        effort: "fast", "normal" or "thorough".
        seconds: with a number, the levels are gone through from "fast" up to ``effort``, and the best result
            that is finished when the time is over is taken. "fast" is always finished. Without
            calibration batches it means nothing.

    Raises:
        UnknownNameError: an unknown effort.
        RankwiseError: a number of seconds that is not positive.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "methods mixed per layer, chosen by what the network's output really does"

    effort: str = "normal"
    seconds: float | None = None

    def __post_init__(self) -> None:
        get_effort(self.effort)
        given = self.seconds
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if given is not None and not (number and 0 < given < float("inf")):
            raise RankwiseError(
                f"seconds={given!r} was given to method 'auto'; allowed are positive numbers."
            )

    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        limit = {} if self.seconds is None else {"seconds": self.seconds}
        return {"effort": self.effort, **limit}


def get_effort(name: str) -> Effort:
    """The level called ``name``.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if not isinstance(name, str) or name not in EFFORTS:
        raise UnknownNameError("effort", str(name), EFFORTS)
    return EFFORTS[name]


def levels(name: str, hurried: bool) -> list[tuple[str, Effort]]:
    """What is gone through for the level called ``name``, with its own name "".

    The level it competes with first; where time may run out, all that are smaller, the smallest first.
    """
    level = get_effort(name)
    smaller = list(EFFORTS)[: list(EFFORTS).index(name)] if hurried else filter(None, [level.besides])
    return [*((other, EFFORTS[other]) for other in smaller), ("", level)]
