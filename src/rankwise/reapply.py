"""Doing again, on a model with weights, what a plan says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
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
from rankwise.recovery import Refit, refit_
from rankwise.recovery.holdout import hold_out


def apply(
    plan: Plan,
    model: nn.Module,
    calibration: Iterable[Any] | None = None,
    *,
    example: Any = None,
    seed: int = 0,
    max_memory: int | None = None,
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
        max_memory: bytes that statistics may take at once, as for :func:`rankwise.compress`. The refit of
            "auto" leaves layers alone that need more, so the same number gives the same network.

    Raises:
        PlanError: the plan does not fit the model.
        CalibrationError: a method of the plan needs calibration batches and none were given.
    """
    edits: list[Edit] = []
    with torch.inference_mode(False), preserved(model):
        example = first_batch(calibration) if example is None else example
        calibration, work = reusable(calibration), duplicate(model)
        for steps in _calls(plan):
            edits += _Call(calibration, example, seed, max_memory).do_(work, steps)
    final = model_cost(work, example).as_dict()
    done = Plan(tuple(edits), model_cost(model, example).as_dict(), final, plan.settings)
    attach_plan_(work, plan_of(model) + done)
    return work


def _calls(plan: Plan) -> list[list[tuple[Edit, ...]]]:
    """The steps of ``plan``, those together after which "auto" refitted once."""
    calls: list[list[tuple[Edit, ...]]] = [[]]
    for step in plan.steps():
        calls[-1].append(step)
        if step[-1].refitted is not False:
            calls.append([])
    return [call for call in calls if call]


@dataclass(frozen=True, eq=False)
class _Call:
    """What the edits of one call are done with."""

    calibration: Iterable[Any] | None
    example: Any
    seed: int
    max_memory: int | None

    def do_(self, work: nn.Module, steps: Sequence[Sequence[Edit]]) -> list[Edit]:
        """Do the edits of a call; returns them as done, in the same order.

        Where the closed-form refit of "auto" followed, it follows again: all is fitted on the batches
        that "auto" does not hold out.
        """
        again = self.calibration is not None and any(edit.refitted for step in steps for edit in step)
        fit = hold_out(self.calibration)[0] if again and self.calibration is not None else None
        doing = self if fit is None else replace(self, calibration=fit)
        reference: nn.Module | None = None
        built: list[Edit] = []
        for step in steps:
            before, done = doing._build_(work, step)
            reference = reference or before
            built += done
        if fit is not None and reference is not None:
            kept = outputs_left(reference, built)
            refit_(work, reference, fit.batches, kept, Refit(max_memory=self.max_memory))
        return built

    def _build_(self, work: nn.Module, step: Sequence[Edit]) -> tuple[nn.Module, list[Edit]]:
        """The network before layers are replaced or narrowed, and the edits as done."""
        reshape_(work, Plan(tuple(edit for edit in step if edit.op == "fold_batchnorm")))
        reference = duplicate(work)
        done = {edit.target: edit for edit in step if edit.op == "replace"}
        selected = [edit for edit in step if edit.op == "select"]
        if done:
            done = self._replace_(work, reference, done)
        if selected:
            done = self._select_(work, reference, selected)
        return reference, [done.get(e.target, e) if e.op in ("replace", "select") else e for e in step]

    def _common(self) -> dict[str, Any]:
        """The settings of stages that allocate nothing."""
        return {
            "allocator": get_allocator("uniform"), "limits": {}, "seed": self.seed,
            "max_memory": self.max_memory,
        }  # fmt: skip

    def _replace_(self, work: nn.Module, reference: nn.Module, edits: dict[str, Edit]) -> dict[str, Edit]:
        asked = {name: get_method(edit.method or "", **edit.config) for name, edit in edits.items()}
        stage = Factorisation(methods=list(asked.values()), **self._common())
        layers = {layer.name: layer for layer in stage.layers(work, self.example)}
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
                raise PlanError(
                    f"The plan changes layer {name!r} by {edit.method!r}, which cannot: {reason}."
                )
            picked.append((layer, asked[name], edit.choice))
        able = {layer.name: [method] for layer, method, _ in picked}
        statistics = stage.collect(work, [layer for layer, _, _ in picked], self.calibration, able)
        built = stage.build_(work, reference, self.calibration, picked, statistics)
        macs = {layer.name: layer.cost.macs for layer in find_layers(work, self.example)}
        return {name: _as_built(edit, built[name], macs) for name, edit in edits.items()}

    def _select_(self, work: nn.Module, reference: nn.Module, edits: Sequence[Edit]) -> dict[str, Edit]:
        """Keep the same channels again, the consumers refitted to the batches where the method does so."""
        done = {}
        for (name, config), alike in groupby(edits, key=lambda edit: (edit.method, edit.config)):
            asked = {edit.target: edit for edit in alike}
            kept = {target: _kept(edit) for target, edit in asked.items()}
            stage = Narrowing(method=get_method(name or "", **config), **self._common())
            cost = model_cost(work, self.example)
            found = stage.redo_(work, reference, self.example, self.calibration, cost, kept)
            for edit in found:
                if edit.target in asked:
                    old = asked[edit.target]
                    same = old.selection == edit.selection
                    done[edit.target] = old if same else replace(edit, error=None, scale=None, unit=None)
        return done


def _kept(edit: Edit) -> list[int]:
    if not isinstance(kept := edit.choice.get("kept"), list):
        raise PlanError(
            f"The plan's edit of {edit.target!r} does not say which units it keeps: its choice is "
            f'{edit.choice}; it needs "kept", a list of their numbers.'
        )
    return kept


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
