"""A model together with its channel groups and what their consumers read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from rankwise.network.replay import Replay
from rankwise.network.select import Fold, apply_selection_, narrow_, narrowed_groups, selection_of
from rankwise.network.state import duplicate
from rankwise.network.widths import SecondsOf, WidthCost
from rankwise.statistics.channels import ChannelMoments, Intake, collect_channels
from rankwise.statistics.waves import in_waves

Batches = Iterable[Any]
Kept = Mapping[str, Sequence[int]]
Timing = Callable[[Iterable[Layer], Iterable[ChannelGroup]], SecondsOf]


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
    max_memory: int | None = None
    seconds: SecondsOf | None = None
    moments: dict[str, ChannelMoments] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    replay: Replay | None = None
    """What layers gave in earlier passes; None: nothing is kept."""
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
        max_memory: int | None = None,
        timing: Timing | None = None,
    ) -> "Scene":
        """Find the layers and groups of ``model``, whose cost is ``cost``, on one batch.

        ``timing`` gives the predicted times of layers, where they matter.
        """
        layers = {layer.name: layer for layer in find_layers(model, example)}
        groups = _chosen(find_groups(model, example), layers, include, exclude)
        free = [group for group in groups if group.reason is None]
        seconds = None if timing is None else timing(layers.values(), free)
        widths = WidthCost(model, layers.values(), free, cost, seconds)
        intakes = intakes_of(layers, free)
        return cls(model, method, layers, groups, intakes, widths, cost, seed, max_memory, seconds)

    def narrowed_(self, kept: Kept, views: Mapping[str, GroupView]) -> tuple["Scene", set[str]]:
        """Cut the model to ``kept`` in place; returns its scene, and the consumers whose input has changed.

        Nothing is traced or run: groups and layers follow from the cut.
        """
        cost = self.widths.cost(kept)
        selection = selection_of(self.groups, kept)
        apply_selection_(self.model, selection, self.folds(views, kept))
        groups = narrowed_groups(self.groups, kept)
        layers = {n: x.renewed() if n in selection.modules else x for n, x in self.layers.items()}
        order = list(layers)
        if selection.parameters:
            changed = 0  # a parameter may be read anywhere
        else:
            changed = min(order.index(name) for name in selection.modules if name in layers)
        readers = [order.index(p.name) for g in self.free if g.name in kept for p in g.consumers]
        first = min(readers, default=0)
        stale = {name for name in self.intakes if order.index(name) >= first}
        if self.replay is not None:
            self.replay.forget(order[changed:])
        free = [group for group in groups if group.reason is None]
        scene = replace(
            self,
            layers=layers,
            groups=groups,
            intakes=intakes_of(layers, free),
            widths=WidthCost(self.model, layers.values(), free, cost, self.seconds),
            cost=cost,
            moments={n: m for n, m in self.moments.items() if n not in stale},
            readers={n: r for n, r in self.readers.items() if n not in stale},
        )
        return scene, stale & set(scene.intakes)

    def copied(self) -> "Scene":
        """The same with a copy of the model, nothing measured yet."""
        model = duplicate(self.model)
        layers = {n: replace(x, module=model.get_submodule(n)) for n, x in self.layers.items()}
        intakes = intakes_of(layers, self.free)
        return replace(self, model=model, layers=layers, intakes=intakes, moments={}, readers={}, replay=None)

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
        for wave in in_waves(_bytes_needed(wanted, self.method), self.max_memory):
            self.moments |= collect_channels(
                self.model,
                {name: wanted[name] for name in wave},
                batches,
                sensitivity=self.method.needs_sensitivity,
                replays=[] if self.replay is None else [self.replay],
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
    """The groups; those with producers that the patterns leave out are closed, which is the reason then."""
    left_out = filter_names(names, include, exclude)
    chosen = []
    for group in groups:
        reasons = [f"{p.name}: {left_out[p.name]}" for p in group.producers if p.name in left_out]
        chosen.append(replace(group, reason="; ".join(reasons)) if reasons else group)
    return chosen


def _bytes_needed(intakes: Mapping[str, Intake], method: ChannelMethod) -> dict[str, int]:
    """Of the float64 sums that :func:`collect_channels` makes for each consumer."""
    vectors = 2 if method.needs_sensitivity else 1
    return {name: 8 * i.channels * (i.channels + vectors) for name, i in intakes.items()}


def replay_of(layers: Iterable[Layer], max_memory: int | None) -> Replay | None:
    """Keeps outputs of those ``layers`` that are called once; nothing where memory is limited."""
    return None if max_memory is not None else Replay(x.name for x in layers if x.calls == 1)


def refit_(
    work: nn.Module,
    original: nn.Module,
    example: Any,
    batches: Batches,
    method: ChannelMethod,
    narrowed: Mapping[str, tuple[int, list[int] | None]],
    max_memory: int | None = None,
) -> None:
    """Refit consumers one after the other onto what they read in the original network.

    Args:
        work: the narrower network, changed in place.
        original: the network that it comes from; left as it is.
        example: one batch.
        batches: calibration batches, read once per consumer.
        method: for ridge and intercept.
        narrowed: per consumer its slots and the outputs that it has left (None: all).
        max_memory: bytes that the sums of one consumer may take.

    Raises:
        CalibrationError: the sums of one consumer take more than ``max_memory``.
    """
    before = {layer.name: layer for layer in find_layers(original, example)}
    order = list(before)
    replays = [replay_of(before.values(), max_memory) for _ in (work, original)]
    pair = _Pair(work, original, batches, method, max_memory, [r for r in replays if r is not None])
    for name in (n for n in order if n in narrowed):
        slots, outputs = narrowed[name]
        new = pair.refitted(before[name], slots)
        bias = before[name].bias() if new.bias is None else new.bias
        narrow_(work.get_submodule(name), outputs=outputs, fold=Fold(new.weight, bias))
        for replay in pair.replays[:1]:
            replay.forget(order[order.index(name) :])


LARGEST_PATCH = 2304
"""Entries of a patch up to which every kernel position is fitted on its own."""


@dataclass(frozen=True)
class _Pair:
    """A narrower network beside the one it comes from, with the calibration data of both."""

    work: nn.Module
    original: nn.Module
    batches: Batches
    method: ChannelMethod
    max_memory: int | None
    replays: Sequence[Replay]

    def refitted(self, layer: Layer, slots: int) -> Fold:
        """New parameters of one consumer for all its outputs; ``layer`` is the one of ``original``."""
        module = self.work.get_submodule(layer.name)
        geometry = geometry_of(module)
        assert geometry is not None
        now = Intake(replace(layer, module=module, geometry=geometry), slots)
        columns, method = geometry.columns, self.method
        needed = 8 * columns * (columns + layer.geometry.out_channels + 1)
        fits = self.max_memory is None or needed <= self.max_memory
        if method.refit == "patches" and columns <= LARGEST_PATCH and fits:
            found = self._moments(now, by_patch=True)
            if found.rows >= 2 * columns:
                return regressed(Intake(layer), found, method.ridge, method.intercept)
        in_waves(
            {layer.name: 8 * now.channels * (now.channels + Intake(layer, slots).channels + 1)},
            self.max_memory,
        )
        found = self._moments(now, by_patch=False)
        every = range(len(found.total))
        return refitted(Intake(layer, slots), found, every, method.ridge, method.intercept)

    def _moments(self, intake: Intake, by_patch: bool) -> ChannelMoments:
        (found,) = collect_channels(
            self.work,
            {intake.layer.name: intake},
            self.batches,
            reference=self.original,
            by_patch=by_patch,
            replays=self.replays,
        ).values()
        return found
