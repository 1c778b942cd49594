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


def points(size: int, stairs: bool = True, most: int = 8, step: int = 8) -> list[int]:
    """The widths at which a layer of ``size`` channels is timed, ascending, ``size`` the last.

    CPU kernels work on blocks of ``step`` channels, so that time is a staircase. With ``stairs``, up to
    ``most`` steps have both their ends, 8 and 9, 16 and 17, ...; beyond, where a step is small beside
    the whole, or without, about ``most`` multiples of ``step``, evenly spaced.
    """
    if size <= step:
        return sorted({1, (size + 1) // 2, size})
    if stairs and size <= step * most:
        ends = {width for k in range(step, size, step) for width in (k, k + 1)}
        return sorted({1, *ends, size})
    return sorted({max(step, round(size * i / most / step) * step) for i in range(1, most)} | {1, size})
