"""A model together with its channel groups and what their consumers read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.linalg.elimination import Reader
from rankwise.methods.selection import ChannelMethod, GroupView
from rankwise.methods.selection.folding import refitted, regressed, sliced
from rankwise.methods.selection.views import channel_units, intakes_of, reader_of, view_of
from rankwise.network import Cost, Layer, find_layers
from rankwise.network.channel_group import ChannelGroup
from rankwise.network.channels import find_groups
from rankwise.network.layer import geometry_of
from rankwise.network.names import Patterns, filter_names
from rankwise.network.select import Fold, narrow_, selection_of
from rankwise.network.widths import WidthCost
from rankwise.statistics.channels import ChannelMoments, Intake, collect_channels

Batches = Iterable[Any]
Kept = Mapping[str, Sequence[int]]


@dataclass(eq=False)
class Scene:
    """The model as it is now. ``moments`` holds what is known of the consumers' inputs, by name."""

    model: nn.Module
    method: ChannelMethod
    layers: dict[str, Layer]
    groups: list[ChannelGroup]
    intakes: dict[str, Intake]
    widths: WidthCost
    cost: Cost
    seed: int = 0
    moments: dict[str, ChannelMoments] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    collected: int = 0
    """How often the input of a consumer was measured."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Any,
        method: ChannelMethod,
        cost: Cost,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        seed: int = 0,
    ) -> "Scene":
        """Find the layers and groups of ``model``, whose cost is ``cost``, on one batch."""
        layers = {layer.name: layer for layer in find_layers(model, example)}
        groups = _chosen(find_groups(model, example), layers, include, exclude)
        free = [group for group in groups if group.reason is None]
        widths = WidthCost(model, layers.values(), free, cost)
        return cls(model, method, layers, groups, intakes_of(layers, free), widths, cost, seed)

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that may be narrowed."""
        return [group for group in self.groups if group.reason is None]

    def measure(self, batches: Batches | None, names: Iterable[str] | None = None) -> None:
        """Collect what the consumers ``names`` (all by default) read now, if the method asks for it.

        Raises:
            CalibrationError: the method needs data and there are none.
        """
        wanted = {n: i for n, i in self.intakes.items() if names is None or n in set(names)}
        if not self.method.requires or not wanted:
            return
        if batches is None:
            raise CalibrationError(
                f"Method {self.method.name!r} needs calibration batches and none were given; pass some, or "
                "use a weight-only selection such as 'l2' with reconstruct=False."
            )
        self.moments |= collect_channels(
            self.model, wanted, batches, sensitivity=self.method.needs_sensitivity
        )
        self.collected += len(wanted)
        for name in wanted:
            self.readers.pop(name, None)

    def view(self, group: ChannelGroup) -> GroupView:
        """What the method sees of a group."""
        for name in (port.name for port in group.consumers):
            if name not in self.readers:
                known = self.moments.get(name)
                self.readers[name] = reader_of(self.intakes[name], known, self.method.ridge)
        return view_of(self.model, group, self.layers, self.intakes, self.moments, self.readers, self.seed)

    def folds(self, views: Mapping[str, GroupView], kept: Kept) -> dict[str, Fold]:
        """New weights for every consumer of the groups in ``kept``; none where slicing is all there is."""
        selection = selection_of(self.groups, kept)
        folds = {}
        for name, sides in selection.modules.items():
            if "in" not in sides or name not in self.intakes:
                continue
            intake = self.intakes[name]
            stay = [i // intake.slots for i in sides["in"][:: intake.slots]]
            if self.method.reconstruct:
                folds[name] = refitted(
                    intake, self.moments[name], stay, self.method.ridge, self.method.intercept
                )
            else:
                factors = self._factors(name, views, kept, intake)
                if factors is not None:
                    folds[name] = sliced(intake, stay, factors[stay])
        return folds

    def _factors(
        self, name: str, views: Mapping[str, GroupView], kept: Kept, intake: Intake
    ) -> torch.Tensor | None:
        """What each channel that a consumer reads is multiplied with; None for 1."""
        factors = None
        for group, units in kept.items():
            scale = self.method.factors(views[group], units)
            port = next((p for p in views[group].group.consumers if p.name == name), None)
            if scale is None or port is None:
                continue
            factors = torch.ones(intake.channels, dtype=torch.float64) if factors is None else factors
            channels = channel_units(port, intake.slots)
            for unit, value in zip(units, scale.tolist(), strict=True):
                factors[list(channels[unit])] = value
        return factors


def _chosen(
    groups: Sequence[ChannelGroup], names: Iterable[str], include: Patterns | None, exclude: Patterns | None
) -> list[ChannelGroup]:
    """The groups; those with a producer that the patterns leave out are closed with that reason."""
    left_out = filter_names(names, include, exclude)
    chosen = []
    for group in groups:
        reasons = [f"{p.name}: {left_out[p.name]}" for p in group.producers if p.name in left_out]
        chosen.append(replace(group, reason=group.reason or reasons[0]) if reasons else group)
    return chosen


def refit_(
    work: nn.Module,
    original: nn.Module,
    example: Any,
    batches: Batches,
    method: ChannelMethod,
    narrowed: Mapping[str, tuple[int, list[int] | None]],
) -> None:
    """Refit consumers one after the other onto what they read in the original network.

    Args:
        work: the narrower network, changed in place.
        original: the network that it comes from; left as it is.
        example: one batch.
        batches: calibration batches, read once per consumer.
        method: for ridge and intercept.
        narrowed: per consumer its slots and the outputs that it has left (None: all).
    """
    before = {layer.name: layer for layer in find_layers(original, example)}
    for name in (n for n in before if n in narrowed):
        slots, outputs = narrowed[name]
        module = work.get_submodule(name)
        new = _refitted(work, original, before[name], slots, batches, method)
        bias = before[name].bias() if new.bias is None else new.bias
        narrow_(module, outputs=outputs, fold=Fold(new.weight, bias))


LARGEST_PATCH = 2304
"""Entries of a patch up to which every kernel position is fitted on its own."""


def _refitted(
    work: nn.Module, original: nn.Module, layer: Layer, slots: int, batches: Batches, method: ChannelMethod
) -> Fold:
    """New parameters of one consumer for all its outputs; ``layer`` is the one of ``original``."""
    module = work.get_submodule(layer.name)
    geometry = geometry_of(module)
    assert geometry is not None
    now = {layer.name: Intake(replace(layer, module=module, geometry=geometry), slots)}
    if method.refit == "patches" and geometry.columns <= LARGEST_PATCH:
        (found,) = collect_channels(work, now, batches, reference=original, by_patch=True).values()
        if found.rows >= 2 * geometry.columns:
            return regressed(Intake(layer), found, method.ridge, method.intercept)
    (found,) = collect_channels(work, now, batches, reference=original).values()
    every = range(len(found.total))
    return refitted(Intake(layer, slots), found, every, method.ridge, method.intercept)
