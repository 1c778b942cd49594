"""The decision as data: an ordered list of edits, JSON, versioned, readable, editable, re-appliable."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from rankwise.errors import PlanError, UnknownNameError
from rankwise.files import json_text, write_text
from rankwise.methods import methods
from rankwise.network.batchnorm import fold_batchnorm_
from rankwise.network.layer import geometry_of
from rankwise.network.names import EXCLUDED, NOT_INCLUDED
from rankwise.network.select import apply_selection_, selection_from_json
from rankwise.network.spec import rebuild
from rankwise.network.state import duplicate
from rankwise.network.surgery import get_module, replace_
from rankwise.recovery import Changed

FORMAT = "rankwise.plan"
VERSION = 1
_ATTRIBUTE = "rankwise_plan"

Operation = Literal["keep", "replace", "select", "fold_batchnorm"]
_OPERATIONS = get_args(Operation)


@dataclass(frozen=True)
class Edit:
    """One step: what was done to one layer or channel group, and why.

    ``target`` is the qualified name of the layer (or of the channel group) in the model as the
    earlier edits left it. ``before`` and ``after`` hold params and macs: of a layer that is replaced or
    kept; of the whole model where channels are selected, which several layers share, or a BatchNorm is
    folded; a channel group that is kept has none. ``error`` is in ``unit``, and ``error / scale`` is
    relative (see :class:`rankwise.methods.Candidates`).
    ``module`` describes the replacement, ``selection`` the channels kept in each module. ``refitted``
    says that the closed-form refit of "auto" followed, which is repeated where the plan is applied; False
    that it followed once for this edit and later ones, the first of which it is not False for is the last.
    """

    op: Operation
    target: str
    method: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    error: float | None = None
    scale: float | None = None
    unit: str | None = None
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    module: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None
    reason: str | None = None
    refitted: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is set, by name."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class Plan:
    """An ordered list of edits with the costs before and after, and the settings that led to it."""

    edits: tuple[Edit, ...] = ()
    original: dict[str, int] = field(default_factory=dict)
    final: dict[str, int] = field(default_factory=dict)
    settings: tuple[dict[str, Any], ...] = ()

    def __add__(self, later: "Plan") -> "Plan":
        """This plan followed by ``later``, as one."""
        original = self.original or later.original
        return Plan(
            self.edits + later.edits, original, later.final or self.final, self.settings + later.settings
        )

    def changes(self) -> list[Edit]:
        """The edits that change the model."""
        return [edit for edit in self.edits if edit.op != "keep"]

    def steps(self) -> list[tuple[Edit, ...]]:
        """The edits of each call that compressed, in order: none of them depends on another of its step.

        Every step names each of its layers or groups once, after the foldings that it begins with; what
        a later step names is the same again, or lies inside what an earlier step replaced.
        """
        steps: list[list[Edit]] = []
        seen: set[str] = set()
        kind = ""
        for edit in self.edits:
            again = any(
                ".".join(edit.target.split(".")[:n]) in seen for n in range(edit.target.count(".") + 2)
            )
            changed = edit.op != "keep" and kind not in ("", edit.op)
            fold = edit.op == "fold_batchnorm"
            if not steps or (seen and (again or changed or fold)):
                steps.append([])
                seen, kind = set(), ""
            steps[-1].append(edit)
            if not fold:
                seen.add(edit.target)
                kind = kind if edit.op == "keep" else edit.op
        return [tuple(step) for step in steps]

    def to_json(self) -> str:
        """The plan as JSON text, the same text for the same plan."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "original": self.original,
            "final": self.final,
            "settings": list(self.settings),
            "edits": [edit.as_dict() for edit in self.edits],
        }
        return json_text(content)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan.

        Raises:
            PlanError: the text is not a plan, or comes from a newer version.
            UnknownNameError: it names a method that is not registered.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise PlanError(f"The plan is not JSON: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise PlanError(f"The text is not a plan: its 'format' should be {FORMAT!r}.")
        version = content.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise PlanError(
                f"The plan has version {version!r}; this rankwise reads versions up to {VERSION}. "
                "Install a newer rankwise."
            )
        names = {f.name for f in fields(Edit)}
        try:
            edits = []
            for entry in content["edits"]:
                if unknown := set(entry) - names:
                    raise PlanError(f"An edit of the plan has unknown entries: {', '.join(sorted(unknown))}.")
                edits.append(_checked(Edit(**entry)))
            return cls(
                tuple(edits), dict(content["original"]), dict(content["final"]), tuple(content["settings"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"The plan is incomplete or malformed: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path``, wholly or not at all."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read the plan at ``path``; errors as in :meth:`from_json`."""
        try:
            return cls.from_json(Path(path).read_text())
        except OSError as error:
            raise PlanError(f"The plan {str(path)!r} cannot be read: {error.strerror}.") from error


def _checked(edit: Edit) -> Edit:
    if edit.op not in _OPERATIONS:
        raise UnknownNameError("plan operation", edit.op, _OPERATIONS)
    tables = (edit.config, edit.choice, edit.before, edit.after, edit.module or {}, edit.selection or {})
    if not isinstance(edit.target, str) or not all(isinstance(table, dict) for table in tables):
        raise PlanError(f"The plan's edit of {edit.target!r} has an entry of the wrong type.")
    if edit.method is not None and edit.method not in methods():
        raise UnknownNameError("method", edit.method, methods())
    return edit


def plan_of(model: nn.Module) -> Plan:
    """The plan that led to ``model``; an empty one for a model that rankwise has not changed."""
    text = getattr(model, _ATTRIBUTE, None)
    return Plan.from_json(text) if isinstance(text, str) else Plan()


def attach_plan_(model: nn.Module, plan: Plan) -> None:
    """Remember ``plan`` on ``model``, as plain text, so that saving needs nothing else."""
    setattr(model, _ATTRIBUTE, plan.to_json())


def reshape_(model: nn.Module, plan: Plan) -> None:
    """Give ``model`` the modules and shapes that ``plan`` describes, with unset weights.

    Works on the meta device too.

    Raises:
        PlanError: the plan does not fit the model.
    """
    for edit in plan.changes():
        if edit.op == "replace":
            _reshape_layer_(model, edit)
        elif edit.op == "fold_batchnorm":
            if set(edit.choice) != {"batchnorm"}:
                raise PlanError(f"The plan's folding into {edit.target!r} does not name one BatchNorm.")
            fold_batchnorm_(model, {edit.target: edit.choice["batchnorm"]})
        elif edit.selection is None:
            raise PlanError(f"The plan's edit of {edit.target!r} does not say which channels are kept.")
        else:
            apply_selection_(model, selection_from_json(edit.selection))


def outputs_left(original: nn.Module, edits: Iterable[Edit]) -> Changed:
    """For every layer that ``edits`` change: which outputs of ``original`` it still has, None for all.

    Found by doing the selections on a copy whose biases count the channels. Layers that were left out by
    name and that no edit changes are ``untouched``.
    """
    edits = list(edits)
    left = _left(original, edits)
    return Changed(left, _left_out(edits) - left.keys())


def _left_out(edits: Iterable[Edit]) -> set[str]:
    """The layers that the user's patterns left out; those of a channel group are named in its reason."""
    found = set()
    for edit in edits:
        for reason in (edit.reason or "").split("; ") if edit.op == "keep" else ():
            name, _, why = reason.rpartition(": ")
            if why in (EXCLUDED, NOT_INCLUDED):
                found.add(name or edit.target)
    return found


def _left(original: nn.Module, edits: Iterable[Edit]) -> dict[str, Sequence[int] | None]:
    edits = [edit for edit in edits if edit.op in ("replace", "select")]
    left: dict[str, Sequence[int] | None] = {edit.target: None for edit in edits if edit.op == "replace"}
    chosen = [edit.selection for edit in edits if edit.op == "select" and edit.selection is not None]
    if not chosen:
        return left
    counting = duplicate(original)
    layers = {n: m for n, m in counting.named_modules() if geometry_of(m) is not None and n}
    for module in layers.values():
        geometry = geometry_of(module)
        assert geometry is not None
        module.bias = nn.Parameter(torch.arange(geometry.out_channels), requires_grad=False)
    whole = {name: module.bias for name, module in layers.items()}
    for selection in chosen:
        apply_selection_(counting, selection_from_json(selection))
    for name, module in layers.items():
        if module.bias is not whole[name]:
            left[name] = module.bias.tolist()
    return left


def _reshape_layer_(model: nn.Module, edit: Edit) -> None:
    old = get_module(model, edit.target)
    parameter = next(old.parameters(), None)
    if edit.module is None or parameter is None:
        raise PlanError(f"The plan's edit of {edit.target!r} does not describe a replacement.")
    new = rebuild(edit.module, device=parameter.device, dtype=parameter.dtype)
    new.train(old.training)
    new.requires_grad_(parameter.requires_grad)
    replace_(model, edit.target, new)
