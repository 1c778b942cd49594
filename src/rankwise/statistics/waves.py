"""Sharing out what is summed up over several passes, so that the sums fit into memory."""

from collections.abc import Mapping

from rankwise.errors import CalibrationError


def in_waves(needed: Mapping[str, int], limit: int | None) -> list[list[str]]:
    """The layers named in ``needed``, in order, in passes whose sums take at most ``limit`` bytes.

    Args:
        needed: bytes per layer.
        limit: None puts all into one pass.

    Raises:
        CalibrationError: one layer alone takes more.
    """
    if limit is None:
        return [list(needed)]
    waves: list[list[str]] = [[]]
    used = 0
    for name, size in needed.items():
        if size > limit:
            raise CalibrationError(
                f"The statistics of layer {name!r} take up to {size} bytes, max_memory={limit}; "
                "allow more, or leave the layer out with exclude=[...]."
            )
        if waves[-1] and used + size > limit:
            waves.append([])
            used = 0
        waves[-1].append(name)
        used += size
    return waves
