"""One file: a compressed model's tensors with its plan in the header; no pickle."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rankwise.errors import FileFormatError, PlanError, WeightsError
from rankwise.files import write_atomically
from rankwise.network.state import duplicate
from rankwise.plan import Plan, attach_plan_, plan_of, reshape_

_PLAN, _ALIASES, _EXTRA = "rankwise.plan", "rankwise.aliases", "rankwise.extra"


def save(model: nn.Module, path: str | Path) -> None:
    """Write ``model`` to ``path`` as safetensors, its plan in the header metadata.

    Shared tensors are stored once, with their other names in the metadata, where modules' extra state
    (``get_extra_state``) goes too. The file appears whole or not at all.

    Raises:
        FileFormatError: an extra state is neither a tensor nor what JSON gives back as it is.
        OSError: it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            extra[name] = _storable(name, tensor)
            continue
        where = (id(tensor) if tensor.is_meta or tensor.numel() == 0 else tensor.data_ptr(),)
        key = (*where, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first_name:
            aliases[name] = first_name[key]
        else:
            first_name[key] = name
            tensors[name] = tensor.detach().contiguous().clone()
    metadata = {"format": "pt", _PLAN: plan_of(model).to_json(), _ALIASES: json.dumps(aliases)}
    if extra:
        metadata[_EXTRA] = json.dumps(extra)
    try:
        write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata))
    except SafetensorError as error:
        raise OSError(f"{str(path)!r} could not be written: {error}.") from error


def _storable(name: str, state: Any) -> Any:
    try:
        same = json.loads(json.dumps(state)) == state
    except (TypeError, ValueError):
        same = False
    if not same:
        module = name.rpartition(".")[0]
        raise FileFormatError(
            f"The extra state of module {module!r}, a {type(state).__name__}, cannot be stored; allowed are "
            "tensors and what JSON gives back as it is: numbers, text, None, lists, dicts with text as keys."
        )
    return state


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileFormatError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is not a whole safetensors file ({error}); it may be truncated: write it again."
        ) from error
    if _PLAN not in metadata:
        raise FileFormatError(
            f"{str(path)!r} has no rankwise plan in its header; allowed are files written by rankwise.save."
        )
    return tensors, metadata


def _aliases(metadata: dict[str, str], state: Container[str], source: str) -> dict[str, str]:
    """Other names of shared tensors, and the names under which they are stored."""
    what = "list of shared tensors"
    aliases = _entries(metadata, _ALIASES, what, source)
    if not all(isinstance(name, str) and name in state for name in aliases.values()):
        raise _malformed(what, source)
    return aliases


def _entries(metadata: dict[str, str], key: str, what: str, source: str) -> dict[str, Any]:
    try:
        entries = json.loads(metadata.get(key, "{}"))
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise _malformed(what, source)
    return entries


def _malformed(what: str, source: str) -> FileFormatError:
    return FileFormatError(f"{source!r} has a malformed {what} in its header.")


def read_plan(path: str | Path) -> Plan:
    """The plan in the header of a file that :func:`save` wrote, without the tensors.

    Raises:
        FileFormatError: the file is missing, truncated, or not rankwise's.
        PlanError: its plan is malformed or from a newer version.
    """
    return Plan.from_json(_read(Path(path))[1][_PLAN])


def load(path: str | Path, skeleton: nn.Module) -> nn.Module:
    """A new model: ``skeleton`` reshaped by the plan in the file and filled with its tensors.

    Args:
        path: a file that :func:`save` wrote.
        skeleton: the original, uncompressed architecture, with any weights, or on the meta device; it
            is not changed.

    Raises:
        FileFormatError: the file is missing, truncated, or not rankwise's.
        PlanError: the plan is from a newer version or does not fit the skeleton.
        UnknownNameError: the plan names an unknown method.
        WeightsError: the tensors do not fit the reshaped skeleton.
    """
    tensors, metadata = _read(Path(path))
    plan = Plan.from_json(metadata[_PLAN])
    model = duplicate(skeleton)
    try:
        reshape_(model, plan)
    except PlanError as error:
        raise PlanError(f"The plan in {str(path)!r} does not fit the skeleton: {error}") from error
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state: dict[str, Any] = {
        name: nn.Parameter(tensor, requires_grad=parameters[name].requires_grad)
        if name in parameters
        else tensor
        for name, tensor in tensors.items()
    }
    state |= {alias: state[name] for alias, name in _aliases(metadata, state, str(path)).items()}
    state = _entries(metadata, _EXTRA, "list of extra states", str(path)) | state
    _check_fit(model, state, str(path))
    model.load_state_dict(state, strict=True, assign=True)
    attach_plan_(model, plan)
    return model


def _check_fit(model: nn.Module, state: dict[str, Any], source: str) -> None:
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the skeleton needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if isinstance(tensor, torch.Tensor) and name in state and state[name].shape != tensor.shape
    ]
    if problems:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightsError(f"{source!r} does not fit the skeleton: {listed}.")
