"""The whole curve of divergence against budget, from the measurements that ``auto`` makes once."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from rankwise.allocation import get_allocator
from rankwise.auto.effort import get_effort
from rankwise.auto.search import Selection
from rankwise.auto.stage import AutoStage
from rankwise.errors import BudgetError, CalibrationError, RankwiseError, UnknownNameError
from rankwise.factorise import Survey
from rankwise.network import Cost, model_cost
from rankwise.network.batches import first_batch
from rankwise.network.state import check_model, preserved, seeded
from rankwise.progress import Progress, silent
from rankwise.recovery.holdout import hold_out

Share = Literal["params", "macs"]
FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass(frozen=True)
class Point:
    """One budget: what is kept of parameters and MACs, and how far the outputs are from the original's.

    ``predicted`` is the sum of the measured divergences of single layers, ``kl`` the measured divergence
    of the whole network, both in nats per prediction, before any recovery (which lowers it).
    """

    asked: float
    params_fraction: float
    macs_fraction: float
    predicted: float
    kl: float

    def to_json(self) -> dict[str, float]:
        """The fields by name, as ``metrics.json`` holds them under "tradeoff"."""
        return asdict(self)


def tradeoff(
    model: nn.Module,
    calibration: Iterable[Any],
    measure: Share = "macs",
    fractions: Sequence[float] = FRACTIONS,
    *,
    effort: str = "normal",
    example: Any = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Point]:
    """What every budget would cost in divergence, so that a budget can be chosen after seeing it.

    The candidates of all layers are measured once, as in ``compress(..., method="auto")``; every
    fraction is then one exact allocation and one measurement of the network that it gives.

    Args:
        model: any trained module; left as it is.
        calibration: batches of inputs, labels not needed.
        measure: what the fractions are of.
        fractions: of the whole model's cost that is kept; those that cannot be reached are left out.
        effort: "fast", "normal" or "thorough"; with "fast" the predictions are not measured.
        example: one batch to count cost with; by default the first calibration batch.
        seed: for everything drawn at random.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        RankwiseError: no module, one without values, parameters or MACs, or a fraction outside (0, 1].
        UnknownNameError: another measure or effort.
        CalibrationError: no batches, NaN or infinite values.
    """
    check_model(model)
    if measure not in get_args(Share):
        raise UnknownNameError("measure", str(measure), get_args(Share))
    if wrong := [f for f in fractions if not (isinstance(f, (int, float)) and 0 < f <= 1)]:
        raise RankwiseError(f"The fraction {wrong[0]!r} was given; allowed are numbers in (0, 1].")
    level = get_effort(effort)
    if calibration is None:
        raise CalibrationError("The trade-off needs calibration batches to measure with; none were given.")
    points = []
    auto = AutoStage(
        allocator=get_allocator("knapsack"), limits={}, effort=effort, seed=seed, progress=progress
    )
    with torch.inference_mode(False), preserved(model), seeded(seed):
        example = first_batch(calibration) if example is None else example
        cost = model_cost(model, example)
        if not (cost.params and cost.macs):
            raise RankwiseError(
                f"The model has {cost.params:,} parameters and {cost.macs:,} MACs; "
                "allowed are models with both."
            )
        fit, _ = hold_out(calibration)
        stage, survey = auto.surveyed(model, example, fit, level)
        single, joint = auto.measured(stage, survey, level, model, fit)
        for fraction in fractions:
            try:
                limits: dict[str, int] = {measure: int(fraction * getattr(cost, measure))}
                chosen = tuple(stage.allocate([o.table for o in single.options], cost, limits))
            except BudgetError:
                continue
            points.append(_point(fraction, single, chosen, cost, joint.value(chosen)))
    return points


def _point(asked: float, survey: Survey, chosen: Selection, cost: Cost, kl: float) -> Point:
    kept = {"params": cost.params, "macs": cost.macs}
    predicted = 0.0
    for options, index in zip(survey.options, chosen, strict=True):
        costs = options.table.costs(["params", "macs"])
        kept["params"] -= int(costs[0, 0] - costs[index, 0])
        kept["macs"] -= int(costs[0, 1] - costs[index, 1])
        predicted += float(options.table.candidates.error[index])
    return Point(asked, kept["params"] / cost.params, kept["macs"] / cost.macs, predicted, kl)
