"""Output-mean bias correction: each replaced layer's mean output back onto the original's, without labels."""

import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankwise.errors import CalibrationError
from rankwise.network.batches import forward
from rankwise.network.layer import geometry_of
from rankwise.network.state import preserved, unfused
from rankwise.recovery.moments import Moments, channel_moments, merged
from rankwise.recovery.registry import Layers, register_recovery


def biased(module: nn.Module) -> torch.Tensor | None:
    """The bias that is added to the output of ``module``, a layer or what rankwise replaces one by."""
    if isinstance(module, nn.Sequential):
        return biased(module[-1]) if len(module) else None
    if isinstance(module, fx.GraphModule):  # branches whose outputs are added
        return next((b for b in map(biased, module.children()) if b is not None), None)
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


class _Correction:
    """The pass over the batches: what each layer gives in both models, and which BatchNorm reads it."""

    def __init__(self, model: nn.Module, original: nn.Module, layers: Sequence[str]) -> None:
        own, other = dict(model.named_modules()), dict(original.named_modules())
        self.layers: dict[str, tuple[nn.Module, nn.Module, int]] = {}
        for name in layers:
            geometry = geometry_of(other[name]) if name in other and name in own else None
            if geometry is not None:
                self.layers[name] = (own[name], other[name], -1 if geometry.kind == "linear" else 1)
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.own: dict[str, list[Moments]] = {}
        self.expected: dict[str, list[Moments]] = {}
        self.readers: dict[str, _BatchNorm] = {}
        self._outputs: dict[str, weakref.ref[torch.Tensor]] = {}

    def _measure(self, name: str, output: torch.Tensor) -> None:
        moments = channel_moments(output, self.layers[name][2], f"layer {name!r} of the original")
        self.expected.setdefault(name, []).append(moments)

    def _correct(self, name: str, output: torch.Tensor) -> torch.Tensor:
        """Move this call's mean onto the original's, so that later layers see corrected inputs."""
        dim = self.layers[name][2]
        moments = channel_moments(output, dim, f"layer {name!r}")
        calls = self.own.setdefault(name, [])
        calls.append(moments)
        expected = self.expected.get(name, [])
        if len(calls) <= len(expected) and expected[len(calls) - 1].mean.shape == moments.mean.shape:
            shift = (expected[len(calls) - 1].mean - moments.mean).to(output.dtype)
            output = output + (shift if dim == -1 else shift.view(-1, *[1] * (output.ndim - 2)))
        self._outputs[name] = weakref.ref(output)
        return output

    def _read(self, norm: _BatchNorm, values: torch.Tensor) -> None:
        for name, output in self._outputs.items():
            if output() is values:
                self.readers[name] = norm

    def run(self, model: nn.Module, original: nn.Module, batches: Iterable[Any]) -> None:
        """Both models on every batch, the original first."""
        with ExitStack() as stack:
            for name, (own, other, _) in self.layers.items():
                measure = other.register_forward_hook(
                    lambda _, __, output, name=name: self._measure(name, output)
                )
                correct = own.register_forward_hook(
                    lambda _, __, output, name=name: self._correct(name, output)
                )
                stack.callback(measure.remove)
                stack.callback(correct.remove)
            for norm in self.norms:
                stack.callback(
                    norm.register_forward_pre_hook(lambda norm, args: self._read(norm, args[0])).remove
                )
            for batch in batches:
                self._outputs.clear()
                forward(original, batch)
                forward(model, batch)

    def shifts(self) -> dict[str, torch.Tensor]:
        """What each layer's output lacks, per channel: float64 ``(channels,)``."""
        pairs = {n: (merged(self.own[n]), merged(self.expected[n])) for n in self.own if n in self.expected}
        return {n: b.mean - a.mean for n, (a, b) in pairs.items() if a.mean.shape == b.mean.shape}


def correct_bias_(
    model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Sequence[str]
) -> dict[str, str]:
    """Shift the mean output of each of ``layers`` onto that of the same layer in ``original``.

    One pass over ``batches``, in evaluation mode. While a batch runs, each layer is corrected by this
    batch's means, so that later layers are measured behind corrected ones; the shift that stays is
    that of all batches together. It goes into the layer's bias, or else out of the running mean of
    the BatchNorm that reads the layer; a layer with neither stays as it is, since a new bias would
    add parameters. Source: Nagel et al. (arXiv 1906.04721), section 4.2, with measured means.

    Args:
        model: changed in place; ``layers`` may be replaced by other modules of the same output.
        original: the model before compression.
        batches: inputs; labels are not read.
        layers: names of the layers that compression replaced.

    Returns:
        For each of ``layers`` where its shift went: "bias", "batchnorm", or "none".

    Raises:
        CalibrationError: no batches, or NaN or infinite values (names the layer); ``model`` is then
            as it was.
    """
    correction = _Correction(model, original, layers)
    with torch.no_grad(), unfused(), preserved(original) as other, preserved(model) as own:
        own.eval()
        other.eval()
        correction.run(model, original, batches)
    if correction.layers and not correction.expected:
        raise CalibrationError("Bias correction was given no batches, or none of the layers runs.")
    places = dict.fromkeys(layers, "none")
    with torch.no_grad():
        for name, shift in correction.shifts().items():
            bias, reader = biased(correction.layers[name][0]), correction.readers.get(name)
            if bias is not None:
                bias.add_(shift.to(bias.dtype))
                places[name] = "bias"
            elif reader is not None and reader.running_mean is not None:
                reader.running_mean.sub_(shift.to(reader.running_mean.dtype))
                places[name] = "batchnorm"
    return places


@register_recovery("bias")
def _bias(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers) -> None:
    """Output-mean bias correction of the replaced layers."""
    correct_bias_(model, original, batches, list(layers))
