"""Doing again, on a model with weights, what a plan says."""

import copy
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from rankwise.allocation import get_allocator
from rankwise.errors import PlanError
from rankwise.factorise import Factorisation
from rankwise.methods import get_method
from rankwise.narrow import Narrowing
from rankwise.network import find_layers, model_cost
from rankwise.network.batches import first_batch
from rankwise.network.state import preserved
from rankwise.plan import Edit, Plan, attach_plan_, plan_of, reshape_


def apply(
    plan: Plan,
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    *,
    example: Any = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of ``model`` with every edit of ``plan`` done to it, the factors computed from its weights.

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
    work = copy.deepcopy(model)
    with preserved(model):
        for operation, edits in groupby(plan.changes(), key=lambda edit: edit.op):
            if operation == "replace":
                _replace_(work, model, list(edits), calibration, example, seed)
            elif operation == "select":
                _select_(work, list(edits), calibration, example, seed)
            else:
                reshape_(work, Plan(tuple(edits)))
    final = model_cost(work, example).as_dict()
    done = Plan(plan.edits, model_cost(model, example).as_dict(), final, plan.settings)
    attach_plan_(work, plan_of(model) + done)
    return work


def _replace_(
    work: nn.Module,
    original: nn.Module,
    edits: Sequence[Edit],
    calibration: Iterable[Any] | None,
    example: Any,
    seed: int,
) -> None:
    layers = {layer.name: layer for layer in find_layers(work, example)}
    picked = []
    for edit in edits:
        if edit.target not in layers:
            raise PlanError(
                f"The plan changes layer {edit.target!r}, which the model does not have as a compressible "
                f"layer; it has {', '.join(layers)}."
            )
        layer = layers[edit.target]
        if layer.reason is not None:
            raise PlanError(
                f"The plan changes layer {edit.target!r}, which must be left alone: {layer.reason}."
            )
        picked.append((layer, get_method(edit.method or "", **edit.config), edit.choice))
    methods = [method for _, method, _ in picked]
    stage = Factorisation(methods, get_allocator("uniform"), {}, seed=seed)
    able = {layer.name: [method] for layer, method, _ in picked}
    statistics = stage.collect(work, [layer for layer, _, _ in picked], calibration, able)
    stage.build_(work, original, calibration, picked, statistics)


def _select_(
    work: nn.Module,
    edits: Sequence[Edit],
    calibration: Iterable[Any] | None,
    example: Any,
    seed: int,
) -> None:
    """Keep the same channels again, the consumers refitted to ``calibration`` where the method does so."""
    for (name, config), same in groupby(edits, key=lambda edit: (edit.method, edit.config)):
        kept = {edit.target: edit.choice["kept"] for edit in same}
        stage = Narrowing(get_method(name or "", **config), get_allocator("uniform"), {}, seed=seed)
        source = copy.deepcopy(work)
        stage.redo_(work, source, example, calibration, model_cost(work, example), kept)
