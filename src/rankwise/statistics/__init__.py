"""Streaming, mergeable, weighted accumulators of what calibration asks for."""

from rankwise.statistics.collect import collect
from rankwise.statistics.files import load_statistics, save_statistics
from rankwise.statistics.patches import patches
from rankwise.statistics.record import LayerStatistics, Statistic

__all__ = ["LayerStatistics", "Statistic", "collect", "load_statistics", "patches", "save_statistics"]
