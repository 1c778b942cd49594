"""Timing forward passes side by side, on the clock that is honest for the target.

One thread of a CPU is timed by the CPU time of the calling thread: all of the work is done there, and
what other processes do meanwhile is not counted. Several threads and GPUs are timed by the wall clock,
a GPU synchronised before and after. All passes of a round follow each other, as layers do in a network,
so that caches are as cold as there and the machine's moods hit all alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankwise.latency.heap import kept_memory
from rankwise.latency.onnx import session_pass
from rankwise.latency.target import Target
from rankwise.network.batches import arguments

Floats = npt.NDArray[np.float64]
_GPU_PASSES = 10  # between two synchronisations, so that waiting for the device is not what is timed


@dataclass(frozen=True, eq=False)
class Job:
    """One forward pass to time: a module in evaluation mode and the batch that it reads."""

    module: nn.Module
    batch: Any


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least ``least`` rounds, then up to ``most`` until ``seconds`` are spent."""

    least: int = 5
    most: int = 40
    seconds: float = 20.0


Timer = Callable[[Sequence[Job], Effort], Floats]
"""Seconds of every job in every round, (rounds, jobs)."""


def timer_for(target: Target) -> Timer:
    """The clock of ``target``."""
    return Clock(target)


@dataclass(frozen=True)
class Clock:
    """Times jobs in turn, round after round, after one round that warms up."""

    target: Target

    @property
    def counts(self) -> str:
        """What is counted, in words."""
        return "CPU time of the thread" if self._own_thread else "wall time"

    @property
    def _on_gpu(self) -> bool:
        return torch.device(self.target.device).type == "cuda"

    @property
    def _own_thread(self) -> bool:
        return self.target.threads == 1 and not self._on_gpu

    def __call__(self, jobs: Sequence[Job], effort: Effort) -> Floats:
        """Seconds, (rounds, jobs)."""
        with self._settled():
            passes = [self._pass(job) for job in jobs]
            rows: list[list[float]] = []
            start = time.monotonic()
            for run in passes:
                run()
            while len(rows) < effort.most:
                if len(rows) >= effort.least and time.monotonic() - start > effort.seconds:
                    break
                rows.append([self._timed(run) for run in passes])
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(jobs))

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """The target's threads, freed memory kept, no gradients, the caller's random numbers afterwards."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.target.threads)
        try:
            with kept_memory(), torch.inference_mode(), torch.random.fork_rng(devices=[]):
                yield
        finally:
            torch.set_num_threads(threads)

    def _pass(self, job: Job) -> Callable[[], object]:
        if self.target.runtime == "onnxruntime":
            return session_pass(job.module, job.batch, self.target.threads)
        args, kwargs = arguments(job.module, job.batch)  # once: what is timed is the module
        return lambda: job.module(*args, **kwargs)

    def _timed(self, run: Callable[[], object]) -> float:
        if self._on_gpu:
            return self._timed_on_gpu(run)
        count = time.thread_time_ns if self._own_thread else time.perf_counter_ns
        start = count()
        run()
        return (count() - start) / 1e9

    def _timed_on_gpu(self, run: Callable[[], object]) -> float:
        torch.cuda.synchronize(self.target.device)
        start = time.perf_counter_ns()
        for _ in range(_GPU_PASSES):
            run()
        torch.cuda.synchronize(self.target.device)
        return (time.perf_counter_ns() - start) / 1e9 / _GPU_PASSES


def typical(seconds: Floats) -> Floats:
    """Seconds of each job, (jobs,), out of (rounds, jobs): the lower quartile, spared by a busy machine."""
    return np.asarray(np.quantile(seconds, 0.25, axis=0), dtype=np.float64)


def ratio(seconds: Floats) -> float:
    """Time of the second job over that of the first: the median of the rounds' own ratios."""
    return float(np.median(seconds[:, 1] / np.maximum(seconds[:, 0], 1e-12)))
