"""Predicted errors scaled to what was measured of a few of them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_FLOOR = 1e-12
_HOPELESS = 1e6


def scaled_to(predicted: Floats, known: Mapping[int, float], scale: float = 1.0) -> Floats:
    """``predicted`` times the factor measured / predicted, which is known at some indices.

    The factor is interpolated linearly in the logarithm of the predicted error, on a log scale itself,
    between the known ones, and constant outside them. Errors of 0 stay 0.

    Args:
        predicted: errors of options, in any unit.
        known: measured errors, in the wanted unit, by index; what is not finite counts as 1e6.
        scale: an error at which nothing is left, which says what is as good as 0.
    """
    tiny = _FLOOR * max(scale, _FLOOR)
    above = np.maximum(predicted, tiny)
    indices = sorted(known, key=lambda i: above[i])
    levels = np.log(above[indices])
    measured = np.nan_to_num([known[i] for i in indices], nan=_HOPELESS, posinf=_HOPELESS)
    off = np.log(np.maximum(measured, _FLOOR)) - levels
    found = above * np.exp(np.interp(np.log(above), levels, off))
    return np.where(predicted > 0, found, 0.0)
