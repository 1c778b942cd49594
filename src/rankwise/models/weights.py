"""Weights files: plain state_dicts in ``.pt`` (read without running code) or ``.safetensors``."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from rankwise.errors import WeightsError

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
SHOWN = 8


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors in a weights file by name.

    A checkpoint that holds the state_dict under "state_dict", "model_state_dict" or "model" is
    unwrapped, and the prefixes that DataParallel and torch.compile put before every name are removed.

    Raises:
        WeightsError: the file is absent, truncated, or does not hold a state_dict.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder; allowed is a file" if path.is_dir() else "is not there"
        raise WeightsError(f"The weights file {path} {found}.")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything on bytes that are no pickle
        raise WeightsError(
            f"{path} is not a readable weights file ({type(error).__name__}: {str(error)[:200]}). "
            "Allowed are a state_dict saved by torch.save, read with weights_only=True, and safetensors."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {type(content).__name__}, not a state_dict with tensors in it.")
    wrong = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise WeightsError(f"{path} is not a state_dict: these entries are no tensors: {_listed(wrong)}.")
    state = {str(key): value for key, value in content.items()}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _missing(module: nn.Module, given: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that the file lacks; neither BatchNorm's counts nor names tied to a given one are missed."""
    own = module.state_dict(keep_vars=True)
    loaded = {id(own[name]) for name in given if name in own}
    return [
        name
        for name, tensor in own.items()
        if name not in given and id(tensor) not in loaded and not name.endswith("num_batches_tracked")
    ]


def load_weights_(module: nn.Module, path: str | Path) -> None:
    """Copy the weights in the file ``path`` into ``module``, or change nothing.

    Raises:
        WeightsError: the file cannot be read, or its names or shapes differ from the module's.
    """
    given = read_weights(path)
    own = module.state_dict()
    missing = _missing(module, given)
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in given
        if name in own and given[name].shape != own[name].shape
    ]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(
            f"The weights in {path} do not fit {type(module).__name__}. {'; '.join(problems)}. "
            f"({len(given)} tensors in the file, {len(own)} in the model.)"
        )
    module.load_state_dict(given, strict=False)
