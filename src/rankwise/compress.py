"""The public verb: a model, some calibration batches and a budget in; a smaller plain module out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankwise.budget import Budget
from rankwise.errors import BudgetError, CalibrationError, RankwiseError
from rankwise.folding import fold_following_
from rankwise.network import Cost, model_cost
from rankwise.network.batches import batch_size, first_batch, forward, output_tensor, reusable
from rankwise.network.names import Patterns
from rankwise.network.state import check_model, duplicate, evaluating, preserved, seeded
from rankwise.plan import Edit, Plan, attach_plan_, outputs_left, plan_of
from rankwise.progress import Progress, Stopwatch, silent
from rankwise.recipe import best_split
from rankwise.settings import (
    AllocatorLike,
    MethodLike,
    RecoveryLike,
    Settings,
    methods_of,
    names_of,
    recovery_of,
)
from rankwise.timed import Timed


@dataclass(frozen=True, eq=False)
class Compression:
    """What :func:`compress` did: the smaller model, the plan of this call, costs and times.

    ``seconds`` has the entries calibrate, decompose, allocate, build and recover. ``compressed`` is the
    model before recovery; without recovery it is ``model``.
    """

    model: nn.Module
    plan: Plan
    original: Cost
    final: Cost
    seconds: dict[str, float]
    compressed: nn.Module


def compress(
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    budget: Budget | None = None,
    *,
    method: MethodLike | Sequence[MethodLike] = "auto",
    allocator: AllocatorLike = "knapsack",
    recovery: Sequence[RecoveryLike] = (),
    example: Any = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    multiple_of: int = 1,
    min_rank: int = 1,
    fold_batchnorm: bool | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """A smaller copy of ``model`` that meets ``budget``, in plain torch modules.

    Args:
        model: any trained module; left exactly as it is.
        calibration: batches of inputs (tensors, tuples, dicts), labels not needed; iterated once, or
            several times when it can be; where examples are held out, one pass of a loader whose passes
            differ (it shuffles or augments), or that has no length, is kept in memory. Weight-only methods
            need none, but then ``example``.
        budget: what may be kept of the whole model.
        method: "auto" (or :class:`rankwise.Automatic`), which mixes methods per layer and refits; a name
            out of ``rankwise.methods()``, a configured :class:`Method`, or several, whose
            candidates then compete for every layer; or "FIRST+SECOND": two methods one after the
            other, the budget split between them as agrees most with ``model`` on the calibration data.
        allocator: a name out of ``rankwise.allocation.allocators()`` or a configured one.
        recovery: what is done after surgery, in order: names out of ``rankwise.recovery.recoveries()``, or
            :class:`rankwise.recovery.NamedRecovery`, a function with its name. The
            closed-form refit is a part of "auto" already.
        example: one batch to count cost with; by default the first calibration batch.
        include: globs or regular expressions of the layers that may change; None means all.
        exclude: the same for those that must not; wins over ``include``. Their weights and biases stay
            what they are in the refit, "closed-form" and "distill" too.
        overrides: per glob of layer names, any of ``rank``, ``min_rank``, ``max_rank``,
            ``multiple_of``, ``dense``.
        multiple_of: ranks are multiples of this number, but where the largest of a layer is below it.
        min_rank: the smallest rank.
        fold_batchnorm: first fold each BatchNorm into the layer before it, where nothing else reads that
            layer and it may change, so that errors are those of what the network sees. A folded
            BatchNorm no longer follows the data when the result is trained. None: only where "auto" has a
            budget of time, which folding saves for nothing.
        seed: for everything drawn at random.
        max_memory: bytes that the statistics may take at once; calibration then runs in waves.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        A new module; :func:`rankwise.plan_of` tells what was done to every layer and why.

    Raises:
        BudgetError: the budget cannot be met; says the smallest reachable value.
        CalibrationError: no data where the method needs them, an empty loader, NaN or infinite values.
        UnknownNameError: an unknown method, allocator or recovery.
    """
    return compression(
        model, calibration, budget, method=method, allocator=allocator, recovery=recovery,
        example=example, include=include, exclude=exclude, overrides=overrides,
        multiple_of=multiple_of, min_rank=min_rank,
        fold_batchnorm=fold_batchnorm, seed=seed, max_memory=max_memory, progress=progress,
    ).model  # fmt: skip


@torch.random.fork_rng(devices=[])  # a loader draws from the global generator in each pass
def compression(
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    budget: Budget | None = None,
    *,
    example: Any = None,
    **options: Any,
) -> Compression:
    """As :func:`compress`, returning the plan, the costs and the times beside the model.

    ``options`` are those of :func:`compress`; ``notes``: JSON-able values that the plan's settings
    carry along; ``survey``: that of a :class:`rankwise.factorise.Factorisation` with these methods on this
    model and this calibration, which then need not be made again; and ``moments``: a dict that keeps what
    selections measure of this model and this calibration, for the next call.

    Raises:
        UnknownNameError: an unknown option; otherwise as :func:`compress`.
    """
    settings = Settings.of(options)
    check_model(model)
    if not isinstance(budget, Budget):
        given = "No budget" if budget is None else f"A budget of type {type(budget).__name__}"
        raise BudgetError(f"{given} was given; pass for instance budget=Budget(macs=0.5).")
    example = first_batch(calibration) if example is None else example
    if settings.rereads:
        calibration = reusable(calibration)
    if settings.recipe is not None:
        return _recipe(model, calibration, budget, example, settings, settings.recipe)
    watch = Stopwatch()
    original = cost = model_cost(model, example)
    timed = None
    if budget.latency is not None:
        timed = Timed(budget, model, example, progress=settings.progress)
        original = cost = replace(original, latency=timed.original)
    with torch.inference_mode(False), preserved(model), seeded(settings.seed):
        work, reference = duplicate(model), model
        folded = (
            fold_following_(work, example, original, settings.include, settings.exclude)
            if settings.folds(budget)
            else []
        )
        if folded:
            reference, cost = duplicate(work), model_cost(work, example)
            cost = replace(cost, latency=timed.begin(work) if timed else 0)
        stage = settings.stage(budget.limits(original), watch, timed)
        edits = (*folded, *stage.run_(work, reference, example, calibration, cost))
        compressed = _recover(work, reference, calibration, settings.recovery, edits, watch)
    final = _checked(work, model, example, budget, original, timed)
    notes = settings.as_dict(budget) | ({"latency": timed.report()} if timed else {}) | stage.notes
    step = Plan(edits, original.as_dict(), final.as_dict(), (notes,))
    attach_plan_(work, plan_of(model) + step)
    return Compression(work, step, original, final, watch.seconds, compressed)


def _recipe(
    model: nn.Module,
    calibration: Iterable[Any] | None,
    budget: Budget,
    example: Any,
    settings: Settings,
    recipe: str,
) -> Compression:
    """Two methods, as in "interpolative+pca": the split of the budget that agrees most with ``model``."""
    names = [name.strip() for name in recipe.split("+")]
    if len(names) != 2:
        raise RankwiseError(f"The recipe {recipe!r} was given; allowed are two methods, FIRST+SECOND.")
    if calibration is None:
        raise CalibrationError(f"The recipe {recipe!r} needs calibration batches to split the budget.")
    if budget.latency is not None:
        raise BudgetError(
            f"The recipe {recipe!r} was given with a latency budget, whose split between two methods is not "
            "defined; use one method, or two calls with a latency each."
        )
    first, second = (replace(settings, method=methods_of(name), recovery=()) for name in names)
    second = replace(second, fold_batchnorm=False)
    original = model_cost(model, example)
    whole = Budget.of(budget.limits(original))
    watch = Stopwatch()

    def run(current: nn.Module, limit: Budget, step: Settings) -> nn.Module:
        done = compression(current, calibration, limit, example=example, **vars(step))
        watch.add(done.seconds)
        return done.model

    work, agreement = best_split(
        model, calibration, budget, original, lambda b: run(model, b, first), lambda m: run(m, whole, second)
    )
    before, after = plan_of(model), plan_of(work)
    edits = after.edits[len(before.edits) :]
    reference = duplicate(model)
    if settings.fold_batchnorm:
        fold_following_(reference, example, original, settings.include, settings.exclude)
    compressed = _recover(work, reference, calibration, settings.recovery, edits, watch)
    final = _checked(work, model, example, budget, original)
    tried = {f"{share:g}": round(value, 6) for share, value in agreement.items()}
    note = {
        "recipe": recipe, "budget": budget.as_dict(), "recovery": names_of(settings.recovery),
        "agreement": tried,
    }  # fmt: skip
    step = Plan(edits, original.as_dict(), final.as_dict(), (*after.settings[len(before.settings) :], note))
    attach_plan_(work, before + step)
    return Compression(work, step, original, final, watch.seconds, compressed)


def _recover(
    work: nn.Module,
    reference: nn.Module,
    calibration: Iterable[Any] | None,
    recoveries: Sequence[RecoveryLike],
    edits: Sequence[Edit],
    watch: Stopwatch,
) -> nn.Module:
    """Do all ``recoveries`` on ``work``, in place; returns what it was before."""
    if not recoveries:
        return work
    if calibration is None:
        raise CalibrationError(
            f"Recovery {names_of(recoveries)[0]!r} needs calibration batches; none were given."
        )
    before = duplicate(work)
    changed = outputs_left(reference, edits)
    with watch("recover"):
        for recovery in recoveries:
            recovery_of(recovery)(work, reference, calibration, changed)
    return before


def _checked(
    work: nn.Module,
    model: nn.Module,
    example: Any,
    budget: Budget,
    original: Cost,
    timed: Timed | None = None,
) -> Cost:
    """The cost of the result, after making sure that it runs, is finite and is within the budget.

    Outputs that ``model`` itself makes infinite, as those of classes that it rules out, may be so.

    Its latency was measured when it was chosen; here it is measured once more, and not compared.
    """
    final = model_cost(work, example)
    for name, limit in budget.limits(original).items():
        reached = getattr(final, name)
        if reached > limit:
            raise BudgetError(
                f"The result has {name}={reached}, above the budget of {limit}; "
                "this is a mistake in rankwise: predicted and measured cost differ."
            )
    output = _output(work, example)
    wrong = ~torch.isfinite(output)
    if wrong.any() and not torch.equal(output[wrong], _output(model, example)[wrong]):
        raise CalibrationError(
            "The compressed model gives NaN or infinite outputs "
            f"on the example batch of {batch_size(example)}."
        )
    return final if timed is None else timed.finished(work, final)


def _output(model: nn.Module, example: Any) -> torch.Tensor:
    with preserved(model), evaluating(model), torch.no_grad():
        return output_tensor(forward(model, example))
