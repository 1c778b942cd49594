"""Two methods one after the other under one budget, the split between them chosen by agreement."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from rankwise.budget import Budget
from rankwise.errors import BudgetError
from rankwise.evaluation import evaluate, record_decisions
from rankwise.network import Cost

SHARES = (0.25, 0.5, 0.75)


def intermediate(budget: Budget, original: Cost, share: float) -> Budget:
    """What the first of two methods may keep when it does ``share`` of the way to ``budget``.

    The way is counted in factors: of a total reduction by f the first method does f ** share, so that
    two halves of a reduction to 0.25 are 0.5 and 0.5.
    """
    limits = budget.limits(original)
    kept = {
        name: max(2, round(getattr(original, name) * (limit / getattr(original, name)) ** share))
        for name, limit in limits.items()
    }
    return Budget.of(kept)


def best_split(
    model: nn.Module,
    batches: Iterable[Any],
    budget: Budget,
    original: Cost,
    first: Callable[[Budget], nn.Module],
    second: Callable[[nn.Module], nn.Module],
    shares: Sequence[float] = SHARES,
) -> tuple[nn.Module, dict[float, float]]:
    """The split between two methods whose result agrees most with ``model`` on the calibration batches.

    Args:
        model: the original.
        batches: calibration batches; no labels are used.
        budget: of the whole.
        original: cost of ``model``.
        first: compresses ``model`` to a budget.
        second: compresses what ``first`` gave to the whole budget.
        shares: the candidates.

    Returns:
        The compressed model, and the agreement of every feasible share of the first method; the model
        is that of the highest one (of equal ones: the smallest share).

    Raises:
        BudgetError: no share is feasible; the message of the last failure.
    """
    decisions = record_decisions(model, batches)
    results: dict[float, nn.Module] = {}
    agreement: dict[float, float] = {}
    failure: BudgetError | None = None
    for share in shares:
        try:
            results[share] = second(first(intermediate(budget, original, share)))
        except BudgetError as error:
            failure = error
            continue
        agreement[share] = evaluate(results[share], batches, decisions, resamples=1).agreement or 0.0
    if not results:
        assert failure is not None
        raise failure
    return results[max(agreement, key=lambda share: (agreement[share], -share))], agreement
