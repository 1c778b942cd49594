"""Surgery that makes layers narrower: keep some channels of producers, passengers and consumers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rankwise.errors import PlanError
from rankwise.network.channel_group import ChannelGroup, Kept, Port
from rankwise.network.layer import geometry_of, is_hf_conv1d

Tensor = torch.Tensor
Indices = list[int]


@dataclass(frozen=True)
class Fold:
    """New parameters of a consumer, for its kept inputs and all its outputs, in the module's own layout."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """What stays, as index lists: per module its "in" and "out" channels, per parameter its dimensions."""

    modules: dict[str, dict[str, Indices]] = field(default_factory=dict)
    parameters: dict[str, dict[int, Indices]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-able values; :func:`selection_from_json` reads them back."""
        modules = {n: {side: _ranges(i) for side, i in sides.items()} for n, sides in self.modules.items()}
        parameters = {n: {str(d): _ranges(i) for d, i in dims.items()} for n, dims in self.parameters.items()}
        return {"modules": modules, "parameters": parameters}


def _ranges(indices: Indices) -> list[list[int]]:
    """Ascending indices as half-open runs [start, stop]."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and runs[-1][1] == i:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    return runs


def _indices(ranges: Sequence[Sequence[int]]) -> Indices:
    if any(start < 0 for start, _ in ranges):
        raise ValueError("a channel below 0")
    return [i for start, stop in ranges for i in range(start, stop)]


def selection_from_json(data: Mapping[str, Any]) -> Selection:
    """The :class:`Selection` that :meth:`Selection.to_json` wrote.

    Raises:
        PlanError: ``data`` is malformed.
    """
    try:
        modules = {
            n: {side: _indices(r) for side, r in sides.items()} for n, sides in data["modules"].items()
        }
        parameters = {
            n: {int(d): _indices(r) for d, r in dims.items()} for n, dims in data["parameters"].items()
        }
        return Selection(modules, parameters)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"The plan holds a channel selection that cannot be read: {error!r}.") from error


def selection_of(groups: Iterable[ChannelGroup], kept: Kept) -> Selection:
    """What stays in every module when of each group in ``kept`` only those units stay.

    Raises:
        PlanError: an unknown group, a group that cannot be touched, a unit out of range, or a module
            that would lose all its channels.
    """
    by_name = {group.name: group for group in groups}
    modules: dict[str, dict[str, set[int]]] = {}
    parameters: dict[str, dict[int, set[int]]] = {}
    for name, units in kept.items():
        if name not in by_name:
            raise PlanError(f"There is no channel group {name!r}; there are: {', '.join(by_name)}.")
        group = by_name[name]
        if group.reason is not None:
            raise PlanError(f"Channel group {name!r} cannot be touched: {group.reason}.")
        if not units or min(units) < 0 or max(units) >= group.size:
            raise PlanError(
                f"Units {list(units)} were given for group {name!r}; allowed are 1 to {group.size} "
                f"units out of 0 ... {group.size - 1}."
            )
        for port in group.ports:
            stay = set(port.kept(units))
            if port.role == "parameter":
                dims = parameters.setdefault(port.name, {})
                dims[port.dim] = dims.get(port.dim, stay) & stay
            else:
                sides = modules.setdefault(port.name, {})
                side = "in" if port.role == "both" else port.role
                sides[side] = sides.get(side, stay) & stay
    empty = [f"{n} ({side})" for n, sides in modules.items() for side, stay in sides.items() if not stay]
    if empty:
        raise PlanError(f"The selection leaves no channel in {', '.join(empty)}; keep at least one.")
    return Selection(
        {n: {side: sorted(stay) for side, stay in sides.items()} for n, sides in modules.items()},
        {n: {d: sorted(stay) for d, stay in dims.items()} for n, dims in parameters.items()},
    )


def one_by_one(groups: Iterable[ChannelGroup], kept: Kept) -> dict[str, Selection]:
    """Per group of ``kept`` the selection that does its part after those of the groups before it.

    Done one after the other they come to the same as :func:`selection_of` all at once.
    """
    groups = list(groups)
    modules: dict[tuple[str, str], Indices] = {}  # what is still there, by module and side
    parameters: dict[tuple[str, int], Indices] = {}
    steps = {}
    for name, units in kept.items():
        whole = selection_of(groups, {name: units})
        steps[name] = Selection(
            {n: {side: _remaining(modules, (n, side), i) for side, i in sides.items()}
             for n, sides in whole.modules.items()},
            {n: {d: _remaining(parameters, (n, d), i) for d, i in dims.items()}
             for n, dims in whole.parameters.items()},
        )  # fmt: skip
    return steps


def _remaining(there: dict[Any, Indices], key: Any, stay: Indices) -> Indices:
    """Places in what is there of those that stay; ``there`` is brought up to date."""
    wanted = set(stay)
    old = there.get(key)
    if old is None:
        there[key] = stay
        return stay
    there[key] = [i for i in old if i in wanted]
    return [place for place, i in enumerate(old) if i in wanted]


def narrowed_groups(groups: Iterable[ChannelGroup], kept: Kept) -> list[ChannelGroup]:
    """The groups of the model that :func:`selection_of` the same arguments leaves, without tracing it.

    Raises:
        PlanError: see :func:`selection_of`.
    """
    groups = list(groups)
    selection = selection_of(groups, kept)

    def left(group: ChannelGroup, port: Port) -> Port:
        if port.role == "parameter":
            stay = selection.parameters.get(port.name, {}).get(port.dim)
        else:
            side = "in" if port.role == "both" else port.role
            stay = selection.modules.get(port.name, {}).get(side)
        units = [port.units[u] for u in sorted(kept.get(group.name, range(group.size)))]
        if stay is None:
            return port
        place = {index: new for new, index in enumerate(stay)}
        return replace(port, units=tuple(tuple(place[i] for i in unit) for unit in units), size=len(stay))

    def after(group: ChannelGroup) -> ChannelGroup:
        producers, passengers, consumers = (
            tuple(left(group, port) for port in ports)
            for ports in (group.producers, group.passengers, group.consumers)
        )
        size = len(kept.get(group.name, range(group.size)))
        return replace(group, size=size, producers=producers, passengers=passengers, consumers=consumers)

    return [after(group) for group in groups]


def select_(
    model: nn.Module, groups: Iterable[ChannelGroup], kept: Kept, folds: Mapping[str, Fold] | None = None
) -> Selection:
    """Keep, in place, only the units ``kept`` of each group named there; returns what stays where.

    ``folds`` gives consumers new weights (for their kept inputs) in place of a mere slice.

    Raises:
        PlanError: see :func:`selection_of`; or the model has no such module or parameter.
    """
    selection = selection_of(groups, kept)
    apply_selection_(model, selection, folds)
    return selection


def apply_selection_(model: nn.Module, selection: Selection, folds: Mapping[str, Fold] | None = None) -> None:
    """Keep, in place, what ``selection`` names. Works on a "meta" skeleton, where only shapes matter.

    Raises:
        PlanError: the model has no such module or parameter, or an index is out of range.
    """
    folds = folds or {}
    try:
        for name in {*selection.modules, *folds}:
            sides = selection.modules.get(name, {})
            narrow_(model.get_submodule(name), sides.get("in"), sides.get("out"), folds.get(name))
        for name, dims in selection.parameters.items():
            owner, _, leaf = name.rpartition(".")
            for dim, indices in dims.items():
                _keep(model.get_submodule(owner), leaf, dim, indices)
    except (AttributeError, IndexError) as error:
        raise PlanError(f"The channel selection does not fit the model: {error}.") from error


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` in place of a parameter or buffer."""
    old = module._parameters.get(name)
    if name in module._buffers:
        module._buffers[name] = value
    else:
        requires_grad = old.requires_grad if old is not None else True
        module._parameters[name] = nn.Parameter(value, requires_grad=requires_grad)


def _keep(module: nn.Module, name: str, dim: int, indices: Indices) -> None:
    """Keep ``indices`` along ``dim`` of a parameter or buffer, where the module has it."""
    value = getattr(module, name, None)
    if isinstance(value, Tensor):
        index = torch.tensor(indices, dtype=torch.int64, device=value.device)
        _replace(module, name, value.detach().index_select(dim, index))


def narrow_(
    module: nn.Module,
    inputs: Indices | None = None,
    outputs: Indices | None = None,
    fold: Fold | None = None,
) -> None:
    """Keep, in place, the given input and output channels of one module, and its attributes in step.

    For a passenger (normalisation, PReLU, grouped convolution) ``inputs`` alone is given; a grouped
    convolution and a GroupNorm keep whole groups.

    Raises:
        PlanError: the module is of a kind that cannot be narrowed.
    """
    geometry = geometry_of(module)
    if geometry is None:
        _narrow_passenger(module, inputs or [])
        return
    if geometry.groups > 1:
        _narrow_grouped(module, inputs or [])
        return
    weight_in = input_dim(module)
    if fold is not None:
        like: Any = module.weight
        _replace(module, "weight", fold.weight.to(like.device, like.dtype))
        if fold.bias is not None:
            _replace(module, "bias", fold.bias.to(like.device, like.dtype))
    elif inputs is not None:
        _keep(module, "weight", weight_in, inputs)
    if outputs is not None:
        _keep(module, "weight", 1 - weight_in, outputs)
        _keep(module, "bias", 0, outputs)
    _set_widths(module, inputs, outputs)


def input_dim(module: nn.Module) -> int:
    """Dimension of the weight of a convolution or linear layer that runs over its input channels."""
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    return 0 if transposed or is_hf_conv1d(module) else 1


def _set_widths(module: Any, inputs: Indices | None, outputs: Indices | None) -> None:
    names = (
        ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
    )
    if is_hf_conv1d(module):
        names = ("nx", "nf")
    for name, indices in zip(names, (inputs, outputs), strict=True):
        if indices is not None:
            setattr(module, name, len(indices))


def _narrow_grouped(module: Any, inputs: Indices) -> None:
    """Keep whole groups of a grouped or depthwise convolution, transposed or not."""
    per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
    groups = sorted({i // per_in for i in inputs})
    if len(groups) * per_in != len(inputs):
        raise PlanError(
            f"{len(inputs)} input channels of a grouped convolution were to stay, which are not whole "
            f"groups of {per_in}."
        )
    outputs = [g * per_out + o for g in groups for o in range(per_out)]
    _keep(module, "weight", 0, inputs if input_dim(module) == 0 else outputs)
    _keep(module, "bias", 0, outputs)
    module.groups, module.in_channels, module.out_channels = len(groups), len(inputs), len(outputs)


def passenger_width(module: nn.Module) -> str | None:
    """Name of the attribute that holds the width of a per-channel module; None for any other module."""
    known = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.PReLU)
    if not isinstance(module, known):
        return None
    return (
        "num_parameters"
        if isinstance(module, nn.PReLU)
        else ("num_channels" if isinstance(module, nn.GroupNorm) else "num_features")
    )


def _narrow_passenger(module: Any, inputs: Indices) -> None:
    width = passenger_width(module)
    if width is None:
        raise PlanError(f"A module of type {type(module).__name__} cannot be made narrower.")
    if isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        module.num_groups = len({i // per_group for i in inputs})
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(module, name, 0, inputs)
    setattr(module, width, len(inputs))
