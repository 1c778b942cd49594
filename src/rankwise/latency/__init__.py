"""Measured times: of single layers and their candidates on a target, and of whole networks side by side."""

from rankwise.latency.clock import Clock, Effort, Job, Timer, ratio, timer_for, typical
from rankwise.latency.correct import Round, Settled, settle
from rankwise.latency.options import Offer, option_times
from rankwise.latency.shapes import shape_of
from rankwise.latency.store import Store
from rankwise.latency.table import LayerTimes, Probe, layer_probes
from rankwise.latency.target import Target
from rankwise.latency.widths import WidthTimes

__all__ = [
    "Clock",
    "Effort",
    "Job",
    "LayerTimes",
    "Offer",
    "Probe",
    "Round",
    "Settled",
    "Store",
    "Target",
    "Timer",
    "WidthTimes",
    "layer_probes",
    "option_times",
    "ratio",
    "settle",
    "shape_of",
    "timer_for",
    "typical",
]
