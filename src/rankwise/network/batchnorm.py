"""BatchNorm after a layer: which one reads the layer's output alone, its scales, and folding it in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rankwise.errors import PlanError
from rankwise.network.batches import forward
from rankwise.network.find import find_layers
from rankwise.network.layer import Geometry, geometry_of, is_hf_conv1d
from rankwise.network.state import preserved, unfused
from rankwise.network.surgery import get_module, replace_
from rankwise.network.usage import is_metadata, tensors_in

Tensor = torch.Tensor
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

_OTHER = ""  # the reader of a tensor that is not a BatchNorm


def _is_foldable(module: nn.Module) -> bool:
    known = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return known and module.running_mean is not None and module.running_var is not None


class _Readers(TorchFunctionMode):
    """Who reads the outputs of some layers: names of BatchNorms, or ``_OTHER``."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[Tensor]] = {}  # held, so that no id is given away again
        self.readers: dict[str, list[str]] = {}
        self.calls: dict[str, int] = {}
        self._source: dict[int, str] = {}
        self._running: str = _OTHER

    def layer_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs.setdefault(name, []).append(output)
            self._source[id(output)] = name

        return hook

    def batchnorm_hooks(self, name: str) -> tuple[Any, Any]:
        def enter(module: nn.Module, args: Any) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            self._running = name

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._running = _OTHER

        return enter, leave

    def read(self, tensor: Tensor) -> None:
        """Note a reader of ``tensor``."""
        name = self._source.get(id(tensor))
        if name is not None:
            self.readers.setdefault(name, []).append(self._running)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and note what it reads."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not is_metadata(func, result):
            for tensor in tensors_in((args, kwargs)):
                self.read(tensor)
        return result


def following_batchnorm(model: nn.Module, example: Any) -> dict[str, str]:
    """``{layer: BatchNorm}`` wherever a BatchNorm, and nothing else, reads what the layer puts out.

    Seen in one forward pass over ``example`` in evaluation mode. Layers and BatchNorms that are
    called more than once, layers that must not be touched, and BatchNorms without running statistics
    are left out. The result is plain JSON, so that a plan can repeat the folding.
    """
    layers = {found.name: found for found in find_layers(model, example) if found.reason is None}
    readers = _Readers()
    handles = []
    try:
        for name, module in model.named_modules():
            if name in layers:
                handles.append(module.register_forward_hook(readers.layer_hook(name)))
            elif _is_foldable(module):
                enter, leave = readers.batchnorm_hooks(name)
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave))
        with preserved(model), unfused(), torch.no_grad():
            model.eval()
            with readers:
                output = forward(model, example)
            for tensor in tensors_in(output):
                readers.read(tensor)
    finally:
        for handle in handles:
            handle.remove()
    pairs = {}
    for name, outputs in readers.outputs.items():
        read = readers.readers.get(name, [])
        if len(outputs) != 1 or len(read) != 1 or read[0] == _OTHER or readers.calls[read[0]] != 1:
            continue
        if outputs[0].ndim == layers[name].geometry.ndim + 2:  # channels are dimension 1, as BatchNorm has it
            pairs[name] = read[0]
    return pairs


def _batchnorm(model: nn.Module, name: str) -> Any:
    module = get_module(model, name)
    if not _is_foldable(module):
        raise PlanError(
            f"{name!r} is a {type(module).__qualname__}; allowed is a BatchNorm with running statistics."
        )
    return module


def _affine(batchnorm: Any) -> tuple[Tensor, Tensor]:
    """``(scale, shift)`` in float64: in evaluation a BatchNorm computes ``scale * y + shift``."""
    mean, variance = batchnorm.running_mean.double(), batchnorm.running_var.double()
    scale = (variance + batchnorm.eps).rsqrt()
    if batchnorm.weight is not None:
        scale = scale * batchnorm.weight.detach().double()
    shift = -mean * scale
    if batchnorm.bias is not None:
        shift = shift + batchnorm.bias.detach().double()
    return scale, shift


def batchnorm_affine(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """``(scale, shift)``, each (channels,) in float64, of the BatchNorm ``name`` in evaluation mode.

    Raises:
        PlanError: there is no such BatchNorm, or it has no running statistics.
    """
    scale, shift = _affine(_batchnorm(model, name))
    return scale.cpu(), shift.cpu()


def following_scales(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """What the following BatchNorm multiplies each output channel with, ``(out_channels,)`` in float64.

    Only for the layers of :func:`following_batchnorm`. An error of the weight, its rows times these
    scales, is an error of what the network sees.
    """
    pairs = following_batchnorm(model, example)
    return {layer: batchnorm_affine(model, name)[0] for layer, name in pairs.items()}


def _scaled_weight(module: nn.Module, geometry: Geometry, scale: Tensor) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    values = weight.detach().double()
    if geometry.kind == "conv_transpose":
        per_group: Tensor = values.unflatten(0, (geometry.groups, -1))  # (G, in / G, out / G, *k)
        factors = scale.view(geometry.groups, 1, -1, *(1,) * geometry.ndim)
        return (per_group * factors).flatten(0, 1)
    if is_hf_conv1d(module):
        return values * scale
    return values * scale.view(-1, *(1,) * (values.ndim - 1))


def fold_batchnorm_(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold each BatchNorm into the layer before it and put ``nn.Identity`` in its place.

    ``pairs`` is ``{layer: BatchNorm}`` as :func:`following_batchnorm` gives it. In evaluation mode the
    model computes what it did before. A layer without bias gets one.

    Raises:
        PlanError: a name is unknown, is of another kind, or channels differ; nothing is changed then.
    """
    found = []
    for name, batchnorm_name in pairs.items():
        module, batchnorm = get_module(model, name), _batchnorm(model, batchnorm_name)
        geometry = geometry_of(module)
        if geometry is None or geometry.out_channels != batchnorm.num_features:
            raise PlanError(
                f"BatchNorm {batchnorm_name!r} of {batchnorm.num_features} channels does not fit "
                f"{name!r}, a {type(module).__qualname__}."
            )
        found.append((module, geometry, batchnorm, batchnorm_name))
    for module, geometry, batchnorm, batchnorm_name in found:
        _fold(module, geometry, batchnorm)
        identity = nn.Identity()
        identity.train(batchnorm.training)
        replace_(model, batchnorm_name, identity)


def _fold(module: Any, geometry: Geometry, batchnorm: Any) -> None:
    scale, shift = _affine(batchnorm)
    weight = module.weight
    if module.bias is None:
        empty = torch.zeros(geometry.out_channels, dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(empty, requires_grad=weight.requires_grad)
    with torch.no_grad():
        weight.copy_(_scaled_weight(module, geometry, scale))
        module.bias.copy_(module.bias.double() * scale + shift)
