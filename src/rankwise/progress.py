"""Telling how far long work has come, and how long each part took."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``: ``done`` of ``total`` (0: unknown) items are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """A :data:`Progress` that says nothing."""


class TimeIsUp(Exception):
    """Work was stopped by its :class:`Deadline`."""


class Deadline:
    """A :data:`Progress` that passes on what it is told and stops the work that tells it, once time is up.

    Args:
        progress: what is told.
        seconds: from now on; None for no end.

    ``ready`` is for the caller to set, once the work may be stopped.
    """

    def __init__(self, progress: Progress, seconds: float | None) -> None:
        self._progress = progress
        self._end = float("inf") if seconds is None else time.monotonic() + seconds
        self.ready = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Raises TimeIsUp: it is, and the work may be stopped."""
        self._progress(stage, done, total)
        if self.ready and time.monotonic() > self._end:
            raise TimeIsUp


class Stopwatch:
    """Seconds spent per part: ``with watch("calibrate"): ...`` adds up in ``watch.seconds``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add times measured elsewhere, by part."""
        for part, value in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + value

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``part``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({part: time.perf_counter() - start})
