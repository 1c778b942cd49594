"""Doing again, on a model with weights, what a plan says."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from torch import nn

from rankwise.allocation import get_allocator
from rankwise.errors import PlanError
from rankwise.factorise import Factorisation
from rankwise.methods import get_method
from rankwise.narrow import Narrowing
from rankwise.network import find_layers, model_cost
from rankwise.network.batches import first_batch, reusable
from rankwise.network.spec import describe
from rankwise.network.state import duplicate, preserved
from rankwise.plan import Edit, Plan, attach_plan_, outputs_left, plan_of, reshape_
from rankwise.recovery import refit_
from rankwise.recovery.holdout import hold_out


def apply(
    plan: Plan,
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    *,
    example: Any = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of ``model`` with every edit of ``plan`` done to it, the factors computed from its weights.

    The plan of the result says what was built: where an edit asks for another shape than the one it
    describes, because it was edited by hand, its description and cost are new and its error is left
    out. Recoveries in the plan's settings are not repeated; the closed-form refit that is a part of
    "auto" is, where there are calibration batches.

    Args:
        plan: from :func:`rankwise.plan_of`, a file, or edited by hand.
        model: the uncompressed model, with its weights; not changed.
        calibration: batches, as for :func:`rankwise.compress`; needed where a method of the plan does.
        example: one batch; by default the first of ``calibration``.
        seed: for statistics that are drawn at random.

    Raises:
        PlanError: the plan does not fit the model.
        CalibrationError: a method of the plan needs calibration batches and none were given.
    """
    example = first_batch(calibration) if example is None else example
    calibration = reusable(calibration)
    work = duplicate(model)
    edits: list[Edit] = []
    with preserved(model):
        for step in plan.steps():
            edits += _step_(work, step, calibration, example, seed)
    final = model_cost(work, example).as_dict()
    done = Plan(tuple(edits), model_cost(model, example).as_dict(), final, plan.settings)
    attach_plan_(work, plan_of(model) + done)
    return work


def _step_(
    work: nn.Module, step: Sequence[Edit], calibration: Iterable[Any] | None, example: Any, seed: int
) -> list[Edit]:
    """Do the edits of one step; returns them as done, in the same order.

    Where the closed-form refit of "auto" followed, it follows again: all is fitted on the batches that
    "auto" does not hold out.
    """
    fit = hold_out(calibration)[0] if calibration is not None and any(e.refitted for e in step) else None
    reshape_(work, Plan(tuple(edit for edit in step if edit.op == "fold_batchnorm")))
    reference = duplicate(work)
    done = {edit.target: edit for edit in step if edit.op == "replace"}
    selected = [edit for edit in step if edit.op == "select"]
    if done:
        done = _replace_(work, reference, done, fit or calibration, example, seed)
    if selected:
        done = _select_(work, reference, selected, fit or calibration, example, seed)
    built = [done.get(e.target, e) if e.op in ("replace", "select") else e for e in step]
    if fit is not None:
        refit_(work, reference, fit.batches, outputs_left(reference, built))
    return built


def _replace_(
    work: nn.Module,
    reference: nn.Module,
    edits: dict[str, Edit],
    calibration: Iterable[Any] | None,
    example: Any,
    seed: int,
) -> dict[str, Edit]:
    asked = {name: get_method(edit.method or "", **edit.config) for name, edit in edits.items()}
    stage = Factorisation(
        methods=list(asked.values()), allocator=get_allocator("uniform"), limits={}, seed=seed
    )
    layers = {layer.name: layer for layer in stage.layers(work, example)}
    picked = []
    for name, edit in edits.items():
        if name not in layers:
            raise PlanError(
                f"The plan changes layer {name!r}, which the model does not have as a compressible "
                f"layer; it has {', '.join(layers)}."
            )
        layer = layers[name]
        if layer.reason is not None:
            raise PlanError(f"The plan changes layer {name!r}, which must be left alone: {layer.reason}.")
        reason = asked[name].supports(layer)
        if reason is not None:
            raise PlanError(f"The plan changes layer {name!r} by {edit.method!r}, which cannot: {reason}.")
        picked.append((layer, asked[name], edit.choice))
    able = {layer.name: [method] for layer, method, _ in picked}
    statistics = stage.collect(work, [layer for layer, _, _ in picked], calibration, able)
    built = stage.build_(work, reference, calibration, picked, statistics)
    macs = {layer.name: layer.cost.macs for layer in find_layers(work, example)}
    return {name: _as_built(edit, built[name], macs) for name, edit in edits.items()}


def _as_built(edit: Edit, module: nn.Module, macs: dict[str, int]) -> Edit:
    """``edit`` with what was built for it; unchanged where that is what it describes."""
    if any(parameter.numel() == 0 for parameter in module.parameters()):
        raise PlanError(
            f"The plan's choice {edit.choice} for layer {edit.target!r} leaves nothing of it; allowed are "
            "positive ranks."
        )
    description = describe(module)
    if description == edit.module:
        return edit
    after = {
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "macs": sum(value for name, value in macs.items() if f"{name}.".startswith(f"{edit.target}.")),
    }
    return replace(edit, module=description, after=after, error=None, scale=None, unit=None)


def _select_(
    work: nn.Module,
    reference: nn.Module,
    edits: Sequence[Edit],
    calibration: Iterable[Any] | None,
    example: Any,
    seed: int,
) -> dict[str, Edit]:
    """Keep the same channels again, the consumers refitted to ``calibration`` where the method does so."""
    done = {}
    for (name, config), same in groupby(edits, key=lambda edit: (edit.method, edit.config)):
        asked = {edit.target: edit for edit in same}
        kept = {target: edit.choice["kept"] for target, edit in asked.items()}
        stage = Narrowing(
            method=get_method(name or "", **config), allocator=get_allocator("uniform"), limits={}, seed=seed
        )
        found = stage.redo_(work, reference, example, calibration, model_cost(work, example), kept)
        for edit in found:
            if edit.target in asked:
                old = asked[edit.target]
                same_channels = old.selection == edit.selection
                done[edit.target] = old if same_channels else replace(edit, error=None, scale=None, unit=None)
    return done
