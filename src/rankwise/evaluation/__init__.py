"""Accuracy, agreement, latency and size of a model, beside its original."""

from rankwise.evaluation.evaluate import (
    Change,
    ClassResult,
    Comparison,
    Evaluation,
    Flips,
    compare,
    evaluate,
)
from rankwise.evaluation.intervals import Interval, bootstrap_rates
from rankwise.evaluation.latency import Latency, latency
from rankwise.evaluation.outcomes import Decisions, Outcomes, measure, record_decisions

__all__ = [
    "Change",
    "ClassResult",
    "Comparison",
    "Decisions",
    "Evaluation",
    "Flips",
    "Interval",
    "Latency",
    "Outcomes",
    "bootstrap_rates",
    "compare",
    "evaluate",
    "latency",
    "measure",
    "record_decisions",
]
