"""The public verb: a model, some calibration batches and a budget in; a smaller plain module out."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankwise.allocation import Allocator, get_allocator
from rankwise.budget import Budget
from rankwise.errors import BudgetError, CalibrationError, RankwiseError
from rankwise.factorise import Factorisation
from rankwise.methods import Method, get_method
from rankwise.methods.selection import ChannelMethod
from rankwise.narrow import Narrowing
from rankwise.network import Cost, model_cost
from rankwise.network.batches import batch_size, first_batch, forward, output_tensor
from rankwise.network.names import Patterns
from rankwise.network.state import preserved
from rankwise.plan import Edit, Plan, attach_plan_, plan_of
from rankwise.progress import Progress, Stopwatch, silent
from rankwise.recipe import best_split
from rankwise.recovery import get_recovery

MethodLike = str | Method | ChannelMethod
AllocatorLike = str | Allocator


@dataclass(frozen=True, eq=False)
class Compression:
    """What :func:`compress` did: the smaller model, the plan of this call, costs and times.

    ``seconds`` has the entries calibrate, decompose, allocate, build and recover.
    """

    model: nn.Module
    plan: Plan
    original: Cost
    final: Cost
    seconds: dict[str, float]


def compress(
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    budget: Budget | None = None,
    *,
    method: MethodLike | Sequence[MethodLike] = "whitened",
    allocator: AllocatorLike = "knapsack",
    recovery: Sequence[str] = (),
    example: Any = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    multiple_of: int = 1,
    min_rank: int = 1,
    seed: int = 0,
    max_memory: int | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """A smaller copy of ``model`` that meets ``budget``, in plain torch modules.

    Args:
        model: any trained module; left exactly as it is.
        calibration: batches of inputs (tensors, tuples, dicts), labels not needed; iterated once, or
            several times when it can be. Weight-only methods need none, but then ``example``.
        budget: what may be kept of the whole model.
        method: a name out of ``rankwise.methods.methods()``, a configured :class:`Method`, or several,
            whose candidates then compete for every layer; or "FIRST+SECOND": two methods one after the
            other, the budget split between them as agrees most with ``model`` on the calibration data.
        allocator: a name out of ``rankwise.allocation.allocators()`` or a configured one.
        recovery: names of label-free recoveries done after surgery, in order.
        example: one batch to count cost with; by default the first calibration batch.
        include: globs or regular expressions of the layers that may change; None means all.
        exclude: the same for those that must not; wins over ``include``.
        overrides: per glob of layer names, any of ``rank``, ``min_rank``, ``max_rank``,
            ``multiple_of``, ``dense``.
        multiple_of: ranks are multiples of this number.
        min_rank: the smallest rank.
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
        model, calibration, budget, method=method, allocator=allocator, recovery=recovery, example=example,
        include=include, exclude=exclude, overrides=overrides, multiple_of=multiple_of, min_rank=min_rank,
        seed=seed, max_memory=max_memory, progress=progress,
    ).model  # fmt: skip


def compression(
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    budget: Budget | None = None,
    *,
    method: MethodLike | Sequence[MethodLike] = "whitened",
    allocator: AllocatorLike = "knapsack",
    recovery: Sequence[str] = (),
    example: Any = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    multiple_of: int = 1,
    min_rank: int = 1,
    seed: int = 0,
    max_memory: int | None = None,
    progress: Progress = silent,
    notes: Mapping[str, Any] | None = None,
) -> Compression:
    """As :func:`compress`, returning the plan, the costs and the times beside the model.

    ``notes`` are JSON-able values that the plan's settings carry along.
    """
    if isinstance(method, str) and "+" in method:
        common = {
            "allocator": allocator, "include": include, "exclude": exclude, "overrides": overrides,
            "multiple_of": multiple_of, "min_rank": min_rank, "seed": seed, "max_memory": max_memory,
            "progress": progress, "notes": notes,
        }  # fmt: skip
        return _recipe(model, calibration, budget, method, recovery, example, common)
    chosen = [_method(m) for m in ([method] if isinstance(method, (str, Method, ChannelMethod)) else method)]
    solver = get_allocator(allocator) if isinstance(allocator, str) else allocator
    recoveries = [(name, get_recovery(name)) for name in recovery]
    example = first_batch(calibration) if example is None else example
    watch = Stopwatch()
    original = model_cost(model, example)
    if budget is None:
        raise BudgetError("No budget was given; pass for instance budget=Budget(macs=0.5).")
    with preserved(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        work = copy.deepcopy(model)
        common: dict[str, Any] = {
            "allocator": solver, "limits": budget.limits(original), "include": include, "exclude": exclude,
            "overrides": overrides or {}, "multiple_of": multiple_of, "min_rank": min_rank, "seed": seed,
            "progress": progress, "watch": watch,
        }  # fmt: skip
        stage = _stage(chosen, common, max_memory)
        edits = stage.run_(work, model, example, calibration, original)
        _recover(work, model, calibration, recoveries, edits, watch)
    final = _checked(work, example, budget, original)
    settings = {
        **(notes or {}),
        "methods": [{"name": m.name, **m.config()} for m in chosen],
        "allocator": {"name": solver.name, **solver.config()},
        "budget": budget.as_dict(),
        "recovery": list(recovery),
        "seed": seed,
    }
    step = Plan(tuple(edits), original.as_dict(), final.as_dict(), (settings,))
    attach_plan_(work, plan_of(model) + step)
    return Compression(work, step, original, final, watch.seconds)


def _recipe(
    model: nn.Module,
    calibration: Iterable[Any] | None,
    budget: Budget | None,
    method: str,
    recovery: Sequence[str],
    example: Any,
    common: dict[str, Any],
) -> Compression:
    """Two methods, as in "interpolative+pca": the split of the budget that agrees most with ``model``."""
    names = [name.strip() for name in method.split("+")]
    if len(names) != 2:
        raise RankwiseError(f"The recipe {method!r} was given; allowed are two methods, FIRST+SECOND.")
    if budget is None or calibration is None:
        raise CalibrationError(f"The recipe {method!r} needs a budget, and calibration batches to split it.")
    first, second = (_method(name) for name in names)
    example = first_batch(calibration) if example is None else example
    original = model_cost(model, example)
    whole = Budget(**budget.limits(original))
    watch = Stopwatch()

    def run(current: nn.Module, limit: Budget, chosen: Method | ChannelMethod) -> nn.Module:
        done = compression(current, calibration, limit, method=chosen, example=example, **common)
        watch.add(done.seconds)
        return done.model

    work, agreement = best_split(
        model, calibration, budget, original, lambda b: run(model, b, first), lambda m: run(m, whole, second)
    )
    before, after = plan_of(model), plan_of(work)
    edits = after.edits[len(before.edits) :]
    recoveries = [(name, get_recovery(name)) for name in recovery]
    _recover(work, model, calibration, recoveries, edits, watch)
    final = _checked(work, example, budget, original)
    tried = {f"{share:g}": round(value, 6) for share, value in agreement.items()}
    note = {"recipe": method, "budget": budget.as_dict(), "recovery": list(recovery), "agreement": tried}
    settings = (*after.settings[len(before.settings) :], note)
    step = Plan(edits, original.as_dict(), final.as_dict(), settings)
    attach_plan_(work, before + step)
    return Compression(work, step, original, final, watch.seconds)


def _stage(
    chosen: Sequence[Method | ChannelMethod], common: dict[str, Any], max_memory: int | None
) -> Factorisation | Narrowing:
    """What does the work: single layers are factorised, channel groups are narrowed."""
    channels = [method for method in chosen if isinstance(method, ChannelMethod)]
    if channels and len(chosen) > 1:
        raise RankwiseError(
            f"Method {channels[0].name!r} chooses channels and cannot compete with other methods for a "
            "layer; use it in a call of its own: the second call compresses what the first one leaves."
        )
    if channels:
        return Narrowing(method=channels[0], **common)
    layerwise = [method for method in chosen if isinstance(method, Method)]
    return Factorisation(methods=layerwise, max_memory=max_memory, **common)


def _method(method: MethodLike) -> Method | ChannelMethod:
    found = get_method(method) if isinstance(method, str) else method
    if not isinstance(found, (Method, ChannelMethod)):
        raise CalibrationError(f"A method of type {type(found).__name__} was given; allowed: name or Method.")
    return found


def _recover(
    work: nn.Module,
    model: nn.Module,
    calibration: Iterable[Any] | None,
    recoveries: Sequence[tuple[str, Any]],
    edits: Sequence[Edit],
    watch: Stopwatch,
) -> None:
    if recoveries and calibration is None:
        raise CalibrationError(f"Recovery {recoveries[0][0]!r} needs calibration batches; none were given.")
    changed = [edit.target for edit in edits if edit.op == "replace"]
    with watch("recover"):
        for _, recover in recoveries:
            recover(work, model, calibration, changed)


def _checked(work: nn.Module, example: Any, budget: Budget, original: Cost) -> Cost:
    """The cost of the result, after making sure that it runs, is finite and is within the budget."""
    final = model_cost(work, example)
    for name, limit in budget.limits(original).items():
        reached = getattr(final, name)
        if reached > limit:
            raise BudgetError(
                f"The result has {name}={reached}, above the budget of {limit}; "
                "this is a mistake in rankwise: predicted and measured cost differ."
            )
    with preserved(work), torch.no_grad():
        output = output_tensor(forward(work, example))
    if not torch.isfinite(output).all():
        raise CalibrationError(
            "The compressed model gives NaN or infinite outputs "
            f"on the example batch of {batch_size(example)}."
        )
    return final
