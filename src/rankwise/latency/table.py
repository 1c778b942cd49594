"""Measured times of single layers on a target, each timed once per machine and remembered."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from rankwise.latency.clock import Effort, Job, Timer, timer_for, typical
from rankwise.latency.store import Store
from rankwise.latency.target import DTYPES, Target
from rankwise.network.layer import Geometry, Layer
from rankwise.network.spec import describe, rebuild
from rankwise.progress import Progress, silent

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """A module, by its description as JSON, and the shape of one example of its input."""

    module: str
    shape: Shape

    @classmethod
    def of(cls, module: nn.Module, shape: Shape) -> "Probe":
        """The probe of a module of plain layers."""
        return cls(json.dumps(describe(module)), shape)

    @property
    def name(self) -> str:
        """What its time is remembered under."""
        return f"{self.module} {list(self.shape)}"


def geometry_spec(geometry: Geometry, bias: bool) -> dict[str, Any]:
    """The description (see :mod:`rankwise.network.spec`) of a plain layer of this geometry."""
    if geometry.kind == "linear":
        return {
            "type": "Linear", "in_features": geometry.in_channels, "out_features": geometry.out_channels,
            "bias": bias,
        }  # fmt: skip
    name = "ConvTranspose" if geometry.kind == "conv_transpose" else "Conv"
    shared = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    found: dict[str, Any] = {"type": f"{name}{geometry.ndim}d", "bias": bias}
    found |= {key: getattr(geometry, key) for key in (*shared, "padding_mode")}
    if geometry.kind == "conv_transpose":
        found["output_padding"] = geometry.output_padding
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def layer_probes(layer: Layer, geometry: Geometry | None = None) -> list[Probe]:
    """One probe per call of ``layer``, with its own geometry or another one in its place."""
    chosen = layer.geometry if geometry is None else geometry
    text = json.dumps(geometry_spec(chosen, getattr(layer.module, "bias", None) is not None))
    last = chosen.kind == "linear"
    return [
        Probe(text, (*shape[:-1], chosen.in_channels) if last else (chosen.in_channels, *shape[1:]))
        for shape in layer.input_shapes
    ]


EFFORT = Effort(least=3, most=25, seconds=6.0)
TOGETHER = 256
"""Probes timed side by side: more shapes than that fall out of oneDNN's cache of compiled kernels."""
_UNCACHED = 2**24  # weights: 64 MiB


class LayerTimes:
    """Seconds of probes on ``target``: out of memory, the disk, or measured side by side."""

    def __init__(
        self,
        target: Target,
        timer: Timer | None = None,
        store: Store | None = None,
        effort: Effort = EFFORT,
        progress: Progress = silent,
    ) -> None:
        self.target, self.progress = target, progress
        self._timer = timer_for(target.on_torch()) if timer is None else timer
        self._store = Store({**target.on_torch().as_dict(), **target.machine()}) if store is None else store
        self._effort = effort

    def measure(self, probes: Iterable[Probe]) -> int:
        """Time those of ``probes`` that are not known yet; how many that were."""
        missing = [probe for probe in dict.fromkeys(probes) if self._store.get(probe.name) is None]
        for start in range(0, len(missing), TOGETHER):
            some = missing[start : start + TOGETHER]
            self.progress("time layers", start, len(missing))
            seconds = typical(self._timer(self._jobs(some), self._effort))
            self._store.add({p.name: float(s) for p, s in zip(some, seconds, strict=True)})
        return len(missing)

    def seconds(self, probes: Sequence[Probe]) -> float:
        """Summed seconds of ``probes``, measured where they are not known yet."""
        self.measure(probes)
        return sum(self._store.get(probe.name) or 0.0 for probe in probes)

    def _jobs(self, probes: Sequence[Probe]) -> list[Job]:
        """The probes as modules and inputs that share one block of numbers each.

        All read the same input, which a layer finds warm in the cache; the weights follow each other
        through a block that no cache holds, and find it cold, as in a network.
        """
        modules = [rebuild(json.loads(probe.module), device="meta").eval() for probe in probes]
        shapes = [(self.target.batch_size, *probe.shape) for probe in probes]
        inputs = self._numbers(max(map(prod, shapes)))
        sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
        weights = self._numbers(max(_UNCACHED, *sizes)) * 0.01
        start = 0
        for module, size in zip(modules, sizes, strict=True):
            start = 0 if start + size > len(weights) else start
            _fill_(module, weights[start : start + size])
            start += size
        return [Job(m, inputs[: prod(s)].view(s)) for m, s in zip(modules, shapes, strict=True)]

    def _numbers(self, count: int) -> torch.Tensor:
        dtype = DTYPES.get(self.target.dtype or "", torch.float32)
        return torch.randn(count, generator=torch.Generator().manual_seed(0)).to(self.target.device, dtype)


def _fill_(module: nn.Module, numbers: torch.Tensor) -> None:
    """Make the parameters of a module on the meta device views of ``numbers``."""
    start = 0
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                view = numbers[start : start + parameter.numel()].view(parameter.shape)
                part._parameters[name] = nn.Parameter(view, requires_grad=False)
                start += parameter.numel()
