"""Few measured times as a function of all sizes: monotone where it must be, straight in between."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

Floats = npt.NDArray[np.float64]


def monotone(values: Floats) -> Floats:
    """The closest sequence that never falls, in least squares (pool adjacent violators)."""
    return np.asarray(isotonic_regression(values).x, dtype=np.float64)


def monotone_grid(values: Floats) -> Floats:
    """A grid that falls along no axis: in turn the closest such rows and columns, then running maxima."""
    found = values
    for _ in range(3):
        for axis in range(values.ndim):
            found = np.apply_along_axis(monotone, axis, found)
    for axis in range(values.ndim):
        found = np.maximum.accumulate(found, axis=axis)
    return np.asarray(found, dtype=np.float64)


STEP = 8
"""Channels that CPU kernels treat at once: time is a staircase of this width."""
STAIRS = 8
"""Steps up to which every stair of a layer is timed."""


def points(size: int, most: int = STAIRS) -> list[int]:
    """The widths at which a layer of ``size`` channels is timed, ascending, ``size`` the last.

    Up to eight steps have both their ends, 8 and 9, 16 and 17, ...; beyond, where a step is small beside
    the whole, there are about ``most`` multiples of 8, evenly spaced.
    """
    if size <= STEP:
        return sorted({1, (size + 1) // 2, size})
    if size <= STEP * STAIRS:
        ends = {width for k in range(STEP, size, STEP) for width in (k, k + 1)}
        return sorted({1, *ends, size})
    return sorted({max(STEP, round(size * i / most / STEP) * STEP) for i in range(1, most)} | {1, size})


def stair(width: int, size: int) -> int:
    """The top of the stair that ``width`` lies on, where not every stair of ``size`` channels is timed."""
    return width if size <= STEP * STAIRS else min(-(-width // STEP) * STEP, size)
