"""A clock that never looks at the time: seconds from what a module's layers would compute."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from rankwise.latency import Effort, Job
from rankwise.latency.clock import Floats
from rankwise.network.cost import count_macs

OVERHEAD = 2e-5  # seconds per layer
PER_MAC = 1e-9


def by_macs(module: nn.Module, macs: int) -> float:
    """Seconds: an overhead for every layer, and for every multiply-accumulate."""
    layers = sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())
    return OVERHEAD * layers + PER_MAC * macs


class FakeTimer:
    """Takes the place of a clock; ``seconds`` says how long a module with those MACs takes."""

    def __init__(self, seconds: Callable[[nn.Module, int], float] = by_macs) -> None:
        self.seconds = seconds
        self.jobs = 0

    def __call__(self, jobs: Sequence[Job], effort: Effort) -> Floats:
        self.jobs += len(jobs)
        row = [self.seconds(job.module, count_macs(job.module, job.batch)) for job in jobs]
        return np.array([row, row])
