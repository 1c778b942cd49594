"""Which layers a ReLU reads, alone, directly or through a BatchNorm."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rankwise.network.batches import forward
from rankwise.network.batchnorm import batchnorm_affine, following_batchnorm
from rankwise.network.find import find_layers
from rankwise.network.state import preserved, unfused
from rankwise.network.usage import is_metadata, tensors_in

Tensor = torch.Tensor

_RELU = ("relu", "relu_")


class _Functions(TorchFunctionMode):
    """The names of the functions that read the outputs of some modules."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[str, list[str]] = {}
        self._source: dict[int, str] = {}
        self._held: list[Tensor] = []  # so that no id is given away again

    def hook(self, name: str) -> Any:
        def remember(module: nn.Module, args: Any, output: Any) -> None:
            self._source[id(output)] = name
            self._held.append(output)
            self.readers.setdefault(name, [])

        return remember

    def read(self, tensor: Tensor, function: str, result: Any = None) -> None:
        """Note that ``function`` reads ``tensor``."""
        name = self._source.get(id(tensor))
        if name is not None:
            self.readers[name].append(function)
            if result is tensor:  # in place: what is read from here on is the result
                del self._source[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and note what it reads."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not is_metadata(func, result):
            for tensor in tensors_in((args, kwargs)):
                self.read(tensor, getattr(func, "__name__", ""), result)
        return result


def following_rectifier(model: nn.Module, example: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """``{layer: (scale, shift)}`` wherever only ReLU(scale * y + shift) reads the layer's output y.

    ``scale`` and ``shift`` (out_channels,), in float64, are those of the BatchNorm between the two, or
    ones and zeros. Seen in one forward pass over ``example`` in evaluation mode.
    """
    layers = {found.name: found for found in find_layers(model, example) if found.reason is None}
    pairs = following_batchnorm(model, example)
    last = {name: pairs.get(name, name) for name in layers}  # the module whose output the ReLU reads
    functions = _Functions()
    handles = []
    try:
        for name in set(last.values()):
            handles.append(model.get_submodule(name).register_forward_hook(functions.hook(name)))
        with preserved(model), unfused(), torch.no_grad():
            model.eval()
            with functions:
                output = forward(model, example)
            for tensor in tensors_in(output):
                functions.read(tensor, "output")
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, layer in layers.items():
        readers = functions.readers.get(last[name], [])
        if readers and all(reader in _RELU for reader in readers):
            ones = torch.ones(layer.geometry.out_channels, dtype=torch.float64)
            through = batchnorm_affine(model, pairs[name]) if name in pairs else (ones, 0 * ones)
            found[name] = through
    return found
