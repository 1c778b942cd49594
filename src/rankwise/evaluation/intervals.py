"""Confidence intervals of rates by the bootstrap over examples."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


def bootstrap_rates(
    counts: torch.Tensor,  # (examples, 1 + rates) int64: predictions of each example, then events per rate
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Percentile intervals of ``sum(events) / sum(predictions)``, one per rate column of ``counts``.

    Examples are drawn with replacement. Examples with equal rows are interchangeable, so a resample
    is one multinomial draw over the distinct rows. Source: Efron and Tibshirani, An introduction to
    the bootstrap (1993), section 13.3; for tokens, whole examples are drawn (section 8.4).
    """
    rows, multiplicities = np.unique(counts.numpy(), axis=0, return_counts=True)
    total = int(multiplicities.sum())
    draws = np.random.default_rng(seed).multinomial(total, multiplicities / total, size=resamples)
    sums = draws @ rows  # (resamples, 1 + rates)
    rates = sums[:, 1:] / np.maximum(sums[:, :1], 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
