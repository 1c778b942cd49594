"""``method="auto"``: methods mixed per layer, chosen by what the network's output really does."""

from rankwise.auto.effort import EFFORTS, Automatic, Effort, get_effort
from rankwise.auto.stage import AutoStage
from rankwise.auto.tradeoff import Point, tradeoff

__all__ = ["EFFORTS", "AutoStage", "Automatic", "Effort", "Point", "get_effort", "tradeoff"]
