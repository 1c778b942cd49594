"""A channel group as data: channels that must be removed together, and where they live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["out", "in", "both", "parameter"]
Units = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Port:
    """The places that the units of a group have in one module or parameter.

    ``role``: "out" the module's output channels, "in" its input channels (a convolution or a linear
    layer), "both" a passenger with one output per input (BatchNorm, GroupNorm, PReLU, grouped and depthwise
    convolutions), "parameter" dimension ``dim`` of the parameter or buffer called ``name``.
    ``units[u]`` are the indices of unit u, ``()`` where it has none here; for a passenger convolution
    they are input channels. ``size`` is how many channels there are, those outside the group included.
    """

    name: str
    role: Role
    units: Units = field(repr=False)
    size: int
    dim: int = 0

    def kept(self, units: Sequence[int]) -> list[int]:
        """Indices that remain when of this group only ``units`` are kept, ascending."""
        stay = set(units)
        gone = {i for u, indices in enumerate(self.units) if u not in stay for i in indices}
        return [i for i in range(self.size) if i not in gone]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that go together: ``size`` units, each of which can be removed on its own.

    ``producers`` make the channels, ``passengers`` carry per-channel parameters, ``consumers`` read
    them. ``fixed`` counts channels of the first producer that always stay (padded, say). ``reason``
    says why nothing can be removed; then the group has no units.
    """

    name: str
    size: int
    producers: tuple[Port, ...]
    passengers: tuple[Port, ...] = ()
    consumers: tuple[Port, ...] = ()
    fixed: int = 0
    reason: str | None = None

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every place of the group."""
        return self.producers + self.passengers + self.consumers


Kept = Mapping[str, Sequence[int]]
"""By group name, the units that stay."""
