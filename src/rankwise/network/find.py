"""Finding every compressible layer of a model, and why some of them must be left alone."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from rankwise.network.batches import batch_size, forward
from rankwise.network.cost import Cost
from rankwise.network.layer import Geometry, Layer, geometry_of, is_hf_conv1d
from rankwise.network.names import Patterns, filter_names
from rankwise.network.state import attributes_of, duplicate, leaves_in, preserved, unfused
from rankwise.network.usage import Usage, watching

Shape = tuple[int, ...]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BASES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip


def _is_lazy(module: nn.Module) -> bool:
    has_uninitialized = getattr(module, "has_uninitialized_params", None)
    return has_uninitialized is not None and bool(has_uninitialized())


def _own_forward(module: nn.Module) -> bool:
    """Whether the module computes something else than its base class."""
    instance = module.__dict__.get("forward")
    if instance is not None and getattr(instance, "__func__", None) is not type(module).forward:
        return True
    if is_hf_conv1d(module):
        base = next(c for c in type(module).__mro__ if c.__name__ == "Conv1D")
    else:
        base = next(c for c in _BASES if isinstance(module, c))
    methods = ("forward", "_conv_forward", "__call__")
    return any(getattr(type(module), m, None) is not getattr(base, m, None) for m in methods)


def _sharers(model: nn.Module) -> dict[int, list[str]]:
    """For every parameter, by id, the names of all modules that hold it; one name per module."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    return owners


def _holders(model: nn.Module) -> dict[int, str]:
    """For modules kept beside their registration, in a list or dict say, by id: the attribute."""
    return {
        id(leaf): f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        for key, value in attributes_of(module)
        for leaf in leaves_in(value)
        if isinstance(leaf, nn.Module)
    }


def _static_reason(
    name: str, module: nn.Module, owners: dict[int, list[str]], holder: str | None, parent: nn.Module
) -> str | None:
    """Why ``module`` must not be touched, as far as can be told without running it."""
    if _is_lazy(module):
        return "its lazy parameters are not initialised: run the model once first"
    if parametrize.is_parametrized(module):
        return f"parametrised: {', '.join(module.parametrizations)}"  # type: ignore[arg-type] # a ModuleDict
    weight = module._parameters.get("weight")
    if weight is None:
        held = ", ".join(key for key in (*module._parameters, *module._buffers) if key.startswith("weight"))
        return f"parametrised: its weight is computed from {held or 'elsewhere'}"
    if isinstance(parent, nn.MultiheadAttention):
        return "read by the fused attention of nn.MultiheadAttention"
    if _own_forward(module):
        return f"a {type(module).__qualname__} with its own forward"
    if weight.dtype not in _DTYPES:
        return f"its weight is of type {weight.dtype}"
    if type(weight) is not nn.Parameter or type(weight.data) is not torch.Tensor:
        return f"its weight is a {type(weight.data).__qualname__}, not a plain tensor"
    for key, parameter in module._parameters.items():
        others = [other for other in owners.get(id(parameter), []) if other != f"{name}.{key}"]
        if parameter is not None and name and others:
            return f"{key} tied with {', '.join(others)}"
    if holder is not None:
        return f"also kept in the attribute {holder!r}, where it would not be replaced"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which its replacement would lack"
    return None


def _per_example(shape: Shape, batch: int, geometry: Geometry) -> list[Shape] | None:
    """Shapes that one example contributes to a tensor of ``shape``; None where it cannot be told.

    A leading dimension that is a multiple of the batch (frames, windows) splits into several entries
    for a convolution and into rows for a linear layer; sequence-first tensors count rows.
    """
    if geometry.kind == "linear":
        if len(shape) > 1 and shape[0] == batch:
            return [shape[1:]]
        rows = prod(shape[:-1])
        return None if rows % batch else [(rows // batch, shape[-1])]
    if len(shape) != geometry.ndim + 2 or shape[0] % batch:
        return None
    return [shape[1:]] * (shape[0] // batch)


def _with_usage(layer: Layer, usage: Usage | None, batch: int) -> Layer:
    """``layer`` with the shapes and cost that one forward pass showed."""
    if usage is None or not (usage.inputs or usage.reasons):
        return replace(layer, reason=layer.reason or "never reached by the example")
    inputs: list[Shape] = []
    outputs: list[Shape] = []
    reasons = list(usage.reasons)
    for input_shape, output_shape in zip(usage.inputs, usage.outputs, strict=True):
        first = _per_example(input_shape, batch, layer.geometry)
        second = _per_example(output_shape, batch, layer.geometry)
        if first is None or second is None:
            reasons.append(f"its input of shape {input_shape} does not split into {batch} examples")
            continue
        inputs += first
        outputs += second
    found = replace(layer, input_shapes=tuple(inputs), output_shapes=tuple(outputs))
    read = found.input_shapes if layer.geometry.kind == "conv_transpose" else found.output_shapes
    skip = slice(0, -1) if layer.geometry.kind == "linear" else slice(1, None)
    positions = sum(prod(shape[skip]) for shape in read)
    elements = layer.geometry.out_channels * (layer.geometry.in_channels // layer.geometry.groups)
    macs = elements * layer.geometry.kernel_elements * positions
    cost = Cost(layer.cost.params, macs, layer.cost.bytes)
    return replace(found, cost=cost, reason=layer.reason or (reasons[0] if reasons else None))


def _own_cost(module: nn.Module) -> Cost:
    if _is_lazy(module):
        return Cost()
    held = [p for p in module.parameters(recurse=True)]
    return Cost(sum(p.numel() for p in held), 0, sum(p.numel() * p.element_size() for p in held))


def find_layers(
    model: nn.Module,
    example: Any,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> list[Layer]:
    """Every compressible layer of ``model``, in the order in which one forward pass reaches them.

    Kinds: ``nn.Linear``, ``nn.Conv1d/2d/3d``, ``nn.ConvTranspose1d/2d/3d`` and transformers'
    ``Conv1D``. A layer that must not be replaced comes back too, with its ``reason``: its weight is
    tied, parametrised, read outside its own forward, quantised, or not initialised; it is a subclass
    with its own forward, is called with more than its input, belongs to a fused attention, has forward
    hooks, is kept in a list or attribute beside its registration, has an attribute that other modules
    read, was never reached (such layers come last), or its name is left out by ``include`` /
    ``exclude``. A layer called several times is allowed; every call counts in its cost.

    Args:
        model: any module; run in evaluation mode without gradients, left as it was found.
        example: one batch in any form that :func:`rankwise.network.batches.forward` takes.
        include: globs or regular expressions (:func:`rankwise.network.names.matcher`); None takes all.
        exclude: the same; wins over ``include``.

    Raises:
        UnknownNameError: a pattern matches no layer.
    """
    geometries = {name: (m, geometry_of(m)) for name, m in model.named_modules()}
    layers = {
        name: Layer(name, module, geometry, cost=_own_cost(module))
        for name, (module, geometry) in geometries.items()
        if geometry is not None
    }
    left_out = filter_names(layers, include, exclude)
    owners, holders = _sharers(model), _holders(model)
    running = duplicate(model) if any(map(_is_lazy, model.modules())) else model
    modules = {name: running.get_submodule(name) for name in layers}
    with preserved(running), unfused(), torch.no_grad(), watching(modules) as watch:
        running.eval()
        forward(running, example)
    batch = batch_size(example)
    order = [*watch.usage, *(name for name in layers if name not in watch.usage)]
    found = []
    for name in order:
        layer = layers[name]
        parent = model.get_submodule(name.rpartition(".")[0])
        holder = holders.get(id(layer.module))
        reason = left_out.get(name) or _static_reason(name, layer.module, owners, holder, parent)
        found.append(_with_usage(replace(layer, reason=reason), watch.usage.get(name), batch))
    return found
