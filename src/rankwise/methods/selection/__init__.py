"""Ways to choose the channels of a group that stay."""

from rankwise.methods.selection import baselines, interpolative  # noqa: F401 (registers them)
from rankwise.methods.selection.base import ChannelMethod, GroupView

__all__ = ["ChannelMethod", "GroupView"]
