"""How long a forward pass takes: several models in turn, so that the machine's moods hit all alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rankwise.errors import RankwiseError
from rankwise.latency import Effort, Job, Target, timer_for, typical
from rankwise.network.batches import batch_size, forward
from rankwise.network.state import preserved

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer


EFFORT = Effort(least=9, most=300, seconds=6.0)


@dataclass(frozen=True)
class Latency:
    """Seconds for one batch: the median over rounds, and the spread from the first to the third quartile."""

    median: float
    spread: float
    rounds: int
    passes: int
    threads: int
    batch_size: int


def latency(
    models: Mapping[str, nn.Module],
    batch: Any,
    *,
    threads: int = 1,
    rounds: int = 15,
    round_seconds: float = 0.1,
) -> dict[str, Latency]:
    """Time each of ``models`` on ``batch``, in evaluation mode without gradients.

    A round times every model once by ``torch.utils.benchmark``, for about ``round_seconds``; the
    model that begins moves on by one each round. ``passes`` is how many forward passes a round
    averages over. The models are left as they were.

    Raises:
        RankwiseError: no models, or fewer than one round or thread.
    """
    if not models or rounds < 1 or threads < 1:
        raise RankwiseError(
            f"{len(models)} models, rounds={rounds}, threads={threads} were given; allowed are at least "
            "one of each."
        )
    names = list(models)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    timers = {name: _timer(model, batch, threads) for name, model in models.items()}
    passes = {name: max(1, ceil(round_seconds / _trial(timers[name], models[name]))) for name in names}
    for start in range(rounds):
        for name in names[start % len(names) :] + names[: start % len(names)]:
            seconds[name].append(_timed(timers[name], models[name], passes[name]))
    results = {}
    for name, values in seconds.items():
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        results[name] = Latency(
            float(median), float(high - low), rounds, passes[name], threads, batch_size(batch)
        )
    return results


def time_on(
    target: Target, models: Mapping[str, nn.Module], example: Any, effort: Effort = EFFORT
) -> dict[str, float]:
    """Seconds of each of ``models`` on ``target``, timed in turn by the clock of latency budgets.

    The batch is made of the examples of ``example``; each number is the lower quartile over rounds.
    """
    batch = target.batch(example)
    jobs = [Job(target.ready(model), batch) for model in models.values()]
    return dict(zip(models, typical(timer_for(target)(jobs, effort)).tolist(), strict=True))


def _timer(model: nn.Module, batch: Any, threads: int) -> "Timer":
    from torch.utils.benchmark import Timer  # here, because importing it can print a warning about CUDA

    scope = {"forward": forward, "model": model, "batch": batch}
    return Timer("forward(model, batch)", globals=scope, num_threads=threads)


def _timed(timer: "Timer", model: nn.Module, passes: int) -> float:
    with preserved(model), torch.no_grad():
        model.eval()
        return float(timer.timeit(passes).mean)


def _trial(timer: "Timer", model: nn.Module) -> float:
    """Seconds of one pass, after one that warms up."""
    _timed(timer, model, 1)
    return max(_timed(timer, model, 1), 1e-9)
