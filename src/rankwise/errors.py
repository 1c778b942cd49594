"""The errors rankwise raises: each says what was given, what failed and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class RankwiseError(Exception):
    """Base of every error that rankwise raises on purpose."""


class BudgetError(RankwiseError):
    """A budget is malformed or cannot be met."""


class CalibrationError(RankwiseError):
    """Calibration data are missing, empty, or hold NaN or infinite values; or a weight does."""


class UnsupportedLayerError(RankwiseError):
    """A method was asked to build a layer that it does not support."""


class PlanError(RankwiseError):
    """A plan does not fit the model, or its version or contents are not understood."""


class FileFormatError(RankwiseError):
    """A file is truncated, is not a rankwise file, or comes from a newer version."""


class WeightsError(RankwiseError):
    """A weights file does not fit the model it is loaded into."""


class DataError(RankwiseError):
    """A data set cannot be found or read, or lacks the split that was asked for."""


class ExperimentError(RankwiseError):
    """An experiment file is not understood, or its folder is in use; names the file, line and key."""


class TrainingError(RankwiseError):
    """Training diverged, was given settings that do not fit, or a checkpoint cannot be written or resumed."""


class OptionError(RankwiseError, ValueError):
    """An option of a method, an allocator or a training has a value that is not allowed."""


class UnknownNameError(RankwiseError):
    """A name is not registered; the message holds the nearest names and the allowed ones."""

    def __init__(self, kind: str, given: str, allowed: Iterable[str]) -> None:
        names = sorted(allowed)
        near = get_close_matches(given, names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"Unknown {kind} {given!r}.{hint} Allowed: {', '.join(names)}.")
        self.kind, self.given, self.near = kind, given, near
