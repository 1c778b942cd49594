"""From a model and what its layers read to what a selection method sees of each channel group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from rankwise.linalg.elimination import Reader, ridged_inverse
from rankwise.methods.selection.base import GroupView
from rankwise.network.channel_group import ChannelGroup, Port, Units
from rankwise.network.layer import Layer
from rankwise.statistics.channels import ChannelMoments, Intake

Tensor = torch.Tensor


def intakes_of(layers: Mapping[str, Layer], groups: Iterable[ChannelGroup]) -> dict[str, Intake]:
    """How every consumer of ``groups`` reads its channels, in the order of ``layers``."""
    ports: dict[str, list[Port]] = {}
    for group in groups:
        for port in group.consumers:
            ports.setdefault(port.name, []).append(port)
    return {
        name: Intake(layer, _slots(ports[name]) if layer.geometry.kind == "linear" else 1)
        for name, layer in layers.items()
        if name in ports
    }


def _slots(ports: Sequence[Port]) -> int:
    """Inputs per channel of a linear consumer: more than 1 where all units are aligned runs of one length."""
    runs = [indices for port in ports for indices in port.units if indices]
    lengths = {len(run) for run in runs}
    if len(lengths) != 1 or ports[0].size % (slots := lengths.pop()):
        return 1
    aligned = all(run[0] % slots == 0 and run[-1] - run[0] == slots - 1 for run in runs)
    return slots if aligned else 1


def channel_units(port: Port, slots: int) -> Units:
    """The units of a consumer's port in terms of its intake's channels."""
    if slots == 1:
        return port.units
    return tuple(tuple(i // slots for i in indices[::slots]) for indices in port.units)


def reader_of(intake: Intake, known: ChannelMoments | None, ridge: float) -> Reader:
    """A consumer in second moments; without ``known`` its channels count as independent and equal."""
    weight = intake.weight()  # (out, n, places)
    loss = torch.einsum("onp,omp->nm", weight, weight)
    moment = torch.eye(len(loss), dtype=torch.float64) if known is None else known.moment
    spread = moment if known is None else moment - torch.outer(known.mean, known.mean)
    loss /= (loss * spread).sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Reader(moment, loss, (), None if known is None else ridged_inverse(moment, ridge))


def view_of(
    model: nn.Module,
    group: ChannelGroup,
    layers: Mapping[str, Layer],
    intakes: Mapping[str, Intake],
    moments: Mapping[str, ChannelMoments],
    consumers: Mapping[str, Reader],
    seed: int = 0,
) -> GroupView:
    """What a method sees of ``group``; ``consumers`` are its :func:`reader_of`, by name."""
    readers, sensitivities = [], []
    for port in group.consumers:
        known = moments.get(port.name)
        units = channel_units(port, intakes[port.name].slots)
        readers.append(replace(consumers[port.name], units=units))
        if known is not None and known.sensitivity is not None:
            sensitivities.append((known.sensitivity, units))
    producers = [(layers[p.name].kernel().flatten(1), p.units) for p in group.producers]
    scales = []
    for port in group.passengers:
        module = model.get_submodule(port.name) if port.role == "both" else None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            scales.append((module.weight.detach().double().cpu(), port.units))
    generator = torch.Generator().manual_seed(seed)
    return GroupView(group, tuple(readers), tuple(producers), tuple(scales), tuple(sensitivities), generator)
