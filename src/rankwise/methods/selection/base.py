"""The contract of a method that keeps some channels of a group, and what it sees of the group."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import torch

from rankwise.errors import UnknownNameError
from rankwise.linalg.elimination import Reader, refitted_losses, sliced_losses
from rankwise.network.channel_group import ChannelGroup, Units
from rankwise.network.layer import Layer
from rankwise.statistics.record import Statistic

Tensor = torch.Tensor
Refit = Literal["once", "anchored", "patches"]


@dataclass(frozen=True, eq=False)
class GroupView:
    """One channel group with what is known of its members.

    ``readers`` are its consumers in terms of second moments; ``producers`` the producers' weights as
    rows per output channel; ``scales`` the BatchNorm scales of its passengers; ``sensitivities`` the
    consumers' largest shares per channel (empty where no method asked for them). The second entry of
    each pair says which channels of the first belong to which unit.
    """

    group: ChannelGroup
    readers: tuple[Reader, ...]
    producers: tuple[tuple[Tensor, Units], ...] = ()
    scales: tuple[tuple[Tensor, Units], ...] = ()
    sensitivities: tuple[tuple[Tensor, Units], ...] = ()
    generator: torch.Generator = field(default_factory=torch.Generator)
    curves: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)
    """Orders whose error curve, with the readers refitted, came out when they were chosen."""

    def total(self, values: Sequence[tuple[Tensor, Units]]) -> Tensor:
        """Per-channel values summed over the channels and members of each unit, (units,)."""
        sums = torch.zeros(self.group.size, dtype=torch.float64)
        for vector, units in values:
            for u, indices in enumerate(units):
                sums[u] += vector[list(indices)].double().sum()
        return sums

    def moment(self) -> Tensor:
        """Second moment of the units, (units, units): summed over readers, each scaled to unit trace."""
        n = self.group.size
        total = torch.zeros(n, n, dtype=torch.float64)
        for reader in self.readers:
            part = torch.zeros_like(total)
            for slot in range(max(map(len, reader.units))):
                units = [u for u in range(n) if len(reader.units[u]) > slot]
                channels = torch.tensor([reader.units[u][slot] for u in units])
                index = torch.tensor(units)
                part[index[:, None], index] += reader.moment[channels[:, None], channels]
            total += part / part.trace().clamp_min(torch.finfo(torch.float64).tiny)
        return total


@dataclass(frozen=True)
class ChannelMethod(ABC):
    """A way to choose which units of a channel group stay: a frozen configuration.

    ``reconstruct`` refits the consumers' weights to what they can still read (the T of the
    interpolative decomposition); otherwise they are only sliced. ``refit`` says on which
    activations: "once" on the original network's alone; "anchored" layer after layer from the
    narrower network's inputs onto the original's; "patches" the same from whole patches onto the
    original's outputs, so that every kernel position is fitted on its own (channels as in "anchored"
    where patches have more than 2304 entries or rows are few). ``ridge`` is relative to the mean
    second moment.
    ``intercept`` moves what the kept channels predict on average into the consumer's bias, where
    that is exact (a bias, and no zero padding).
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_data: ClassVar[bool] = False
    needs_sensitivity: ClassVar[bool] = False

    reconstruct: bool = False
    refit: Refit = "patches"
    ridge: float = 1e-4
    intercept: bool = True

    def __post_init__(self) -> None:
        if self.refit not in get_args(Refit):
            raise UnknownNameError("refit", self.refit, get_args(Refit))

    @property
    def requires(self) -> frozenset[Statistic]:
        """The statistics that the choice and the reconstruction read; empty for a weight-only method."""
        wanted = self.needs_data or self.needs_sensitivity or self.reconstruct
        return frozenset({"input"}) if wanted else frozenset()

    def supports(self, layer: Layer) -> str | None:
        """None: whether channels can go is a question of their group, not of the layer."""
        return None

    @abstractmethod
    def order(self, view: GroupView) -> Tensor:
        """The units (units,), those to keep first."""

    def kept(self, view: GroupView, order: Tensor, count: int) -> list[int]:
        """The ``count`` units that stay, ascending; by default the first of ``order``."""
        return sorted(order[:count].tolist())

    def factors(self, view: GroupView, kept: Sequence[int]) -> Tensor | None:
        """What the kept units are multiplied with at their consumers, (kept,); None for 1."""
        return None

    def errors(self, view: GroupView, order: Tensor) -> Tensor:
        """Expected squared error of the consumers' outputs by units kept, (units + 1,)."""
        if self.reconstruct:
            for known, errors in view.curves:
                if torch.equal(known, order):
                    return errors
            return refitted_losses(view.readers, order, self.ridge)
        return sliced_losses(view.readers, order)

    def config(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
