"""A latency budget at work: what layers take, what a choice takes, and the correction between the two."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from rankwise.allocation import Allocator
from rankwise.allocation.knapsack import Knapsack
from rankwise.budget import Budget
from rankwise.errors import BudgetError
from rankwise.latency import (
    Clock,
    Effort,
    Job,
    LayerTimes,
    Offer,
    Settled,
    Timer,
    WidthTimes,
    option_times,
    ratio,
    settle,
    timer_for,
    typical,
)
from rankwise.network import Cost, Layer
from rankwise.network.channel_group import ChannelGroup
from rankwise.network.widths import SecondsOf
from rankwise.progress import Progress, silent

T = TypeVar("T")
WHOLE = Effort(least=9, most=300, seconds=6.0)
"""How long the original and one candidate are timed side by side in a round of the correction."""


GAP = 0.01
"""Distance from the optimum at which the exact knapsack may stop: times are no better known."""


def rough(allocator: Allocator) -> Allocator:
    """``allocator`` for measured times: the knapsack needs no proof to the last digit, nine times over."""
    return replace(allocator, gap=max(allocator.gap, GAP)) if isinstance(allocator, Knapsack) else allocator


class Timed:
    """Times of one network on the target of a budget.

    Args:
        budget: with a latency.
        model: the original.
        example: one batch, out of which the batch to time with is made.
        timer: seconds of jobs (:data:`rankwise.latency.Timer`); by default the target's clock.
        times: of single layers; by default those remembered on this machine, or measured.
        progress: called as ``progress(stage, done, total)``.
    """

    def __init__(
        self,
        budget: Budget,
        model: nn.Module,
        example: Any,
        timer: Timer | None = None,
        times: LayerTimes | None = None,
        progress: Progress = silent,
    ) -> None:
        self.target = target = budget.target
        self.timer = timer_for(target) if timer is None else timer
        self.times = (
            LayerTimes(target.typed(model), timer=timer, progress=progress) if times is None else times
        )
        self.progress = progress
        self._batch = target.batch(example)
        self._original = target.ready(model)
        seconds = self.timer([Job(self._original, self._batch)], WHOLE)
        self.original = round(1e9 * float(typical(seconds)[0]))
        self.asked = budget.share(self.original / 1e9)
        self._base = (self.original, 1.0)
        self.settled: Settled[Any] | None = None

    def begin(self, work: nn.Module) -> int:
        """Nanoseconds of ``work``, the network that is compressed: the original, or one folded before."""
        share = self.share(work)
        self._base = (round(self.original * share), share)
        return self._base[0]

    def share(self, model: nn.Module) -> float:
        """Time of ``model`` as a share of the original's, both measured in turn."""
        jobs = [Job(self._original, self._batch), Job(self.target.ready(model), self._batch)]
        return ratio(self.timer(jobs, WHOLE))

    def options(self, offers: Sequence[Offer]) -> list[npt.NDArray[np.int64]]:
        """Nanoseconds of every option of every layer; scaled down where the layers exceed the network."""
        columns = option_times(offers, self.times)
        scale = min(1.0, self._base[0] / 1e9 / max(sum(float(c[0]) for c in columns), 1e-12))
        return [np.round(1e9 * scale * column).astype(np.int64) for column in columns]

    def widths(self, layers: Iterable[Layer], groups: Iterable[ChannelGroup]) -> SecondsOf:
        """Predicted seconds of every layer at any widths."""
        return WidthTimes(layers, groups, self._base[0] / 1e9, self.times).seconds

    def settle(
        self,
        choose: Callable[[Mapping[str, int]], T],
        predict: Callable[[T], int],
        shaped: Callable[[T], nn.Module],
        limits: Mapping[str, int],
        least: int,
    ) -> T:
        """What ``choose`` finds once its limit on predicted time is corrected by measured time.

        Args:
            choose: the best within limits.
            predict: predicted nanoseconds of the whole network under a choice.
            shaped: a network of the shapes of a choice, whatever its weights.
            limits: of all measures; that of latency is replaced.
            least: the smallest predicted nanoseconds of any choice.

        Raises:
            BudgetError: even the fastest choice takes longer; says what it takes.
        """
        done = 0

        def measure(choice: T) -> float:
            nonlocal done
            self.progress("time networks", done, 0)
            done += 1
            return self.share(shaped(choice))

        whole, share = self._base
        self.settled = found = settle(
            lambda limit: choose({**limits, "latency": limit}),
            predict, measure, self.asked, min(least, whole), whole, share,
        )  # fmt: skip
        return found.choice

    def finished(self, model: nn.Module, cost: Cost) -> Cost:
        """``cost`` with the measured time of the finished ``model``.

        Raises:
            BudgetError: it is slower than the original.
        """
        self._final = share = self.share(model)
        if share > 1.0 and self.asked < 1.0:
            raise BudgetError(
                f"The compressed network takes {share:.3f} of the original's time on this target, more than "
                "all of it: what was measured before was disturbed. Try again, on a quieter machine."
            )
        return replace(cost, latency=round(self.original * share))

    def report(self) -> dict[str, Any]:
        """Asked, predicted and measured time as JSON-able values."""
        found: dict[str, Any] = {
            "asked": round(self.asked, 4),
            "measured": round(self._final, 4),
            "original_ms": round(self.original / 1e6, 4),
            "clock": Clock(self.target).counts,
            **self.target.machine(),
        }
        if self.settled is not None:
            found["predicted"] = round(self.settled.last.predicted / self.original, 4)
            found["rounds"] = [
                {
                    "limit": round(trial.limit / self.original, 4),
                    "predicted": round(trial.predicted / self.original, 4),
                    "measured": round(trial.measured, 4),
                }
                for trial in self.settled.rounds
            ]
        return found
