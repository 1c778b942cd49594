"""Plain torch modules as JSON, and back: an allow-list of types and their constructor arguments."""

from typing import Any

import torch
from torch import fx, nn

from rankwise.errors import PlanError

_CONV_ARGUMENTS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Identity": (),
    "Linear": ("in_features", "out_features"),
    "Flatten": ("start_dim", "end_dim"),
    "Unflatten": ("dim", "unflattened_size"),
    "ConstantPad1d": ("padding", "value"),
    **{f"Conv{n}d": _CONV_ARGUMENTS for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": (*_CONV_ARGUMENTS, "output_padding") for n in (1, 2, 3)},
}
_BIASED = {name for name in _ARGUMENTS if name == "Linear" or name.startswith("Conv")}


def parallel(*branches: nn.Module) -> fx.GraphModule:
    """A module that adds up the outputs of ``branches`` on one input: a ``torch.fx.GraphModule``.

    It is plain torch: it runs, exports and pickles without rankwise.
    """
    root = nn.Module()
    graph = fx.Graph()
    source = graph.placeholder("input")
    total = None
    for index, branch in enumerate(branches):
        root.add_module(f"branch{index}", branch)
        value = graph.call_module(f"branch{index}", (source,))
        total = value if total is None else graph.call_function(torch.add, (total, value))
    graph.output(total)
    module = fx.GraphModule(root, graph, class_name="Parallel")
    return module


def describe(module: nn.Module) -> dict[str, Any]:
    """The JSON description of a replacement module.

    Raises:
        PlanError: the module is of a type that is not on the allow-list.
    """
    if isinstance(module, nn.Sequential):
        return {"type": "Sequential", "modules": [describe(child) for child in module]}
    if isinstance(module, fx.GraphModule) and all(n.startswith("branch") for n, _ in module.named_children()):
        return {"type": "Parallel", "modules": [describe(child) for child in module.children()]}
    name = type(module).__name__
    if name not in _ARGUMENTS or type(module) is not getattr(nn, name):
        raise PlanError(
            f"A replacement of type {type(module).__qualname__} cannot be saved; allowed are "
            f"Sequential, Parallel, {', '.join(_ARGUMENTS)}."
        )
    arguments = {key: getattr(module, key) for key in _ARGUMENTS[name]}
    described = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    if name in _BIASED:
        described["bias"] = module.bias is not None
    return {"type": name, **described}


def rebuild(
    description: dict[str, Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The module that ``description`` describes, with unset weights, on ``device`` (may be "meta").

    Raises:
        PlanError: the description is malformed or names a type that is not on the allow-list.
    """
    try:
        kind = description["type"]
        if kind in ("Sequential", "Parallel"):
            children = [rebuild(d, device=device, dtype=dtype) for d in description["modules"]]
            return nn.Sequential(*children) if kind == "Sequential" else parallel(*children)
        if kind not in _ARGUMENTS:
            raise PlanError(f"The plan names a module of type {kind!r}; allowed: {', '.join(_ARGUMENTS)}.")
        arguments = {
            k: tuple(v) if isinstance(v, list) else v for k, v in description.items() if k in _ARGUMENTS[kind]
        }
        if kind in _BIASED:
            arguments |= {"bias": bool(description["bias"]), "device": device, "dtype": dtype}
        with torch.random.fork_rng(devices=[]):
            module: nn.Module = getattr(nn, kind)(**arguments)
        return module
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise PlanError(f"The plan holds a module description that cannot be built: {error}.") from error
