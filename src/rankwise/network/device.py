"""Devices by name."""

import torch

from rankwise.errors import RankwiseError


def device_named(name: str, error: type[RankwiseError] = RankwiseError) -> torch.device:
    """The device that torch calls ``name``: "cpu", "cuda", "cuda:1", ...

    Raises:
        RankwiseError: torch does not know it, it is neither a CPU nor a CUDA device, or it is not here; of
            the kind ``error``.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as failure:
        raise error(f"device={name!r} was given, which torch does not know.") from failure
    if device.type not in ("cpu", "cuda"):
        raise error(f"device={name!r} was given; allowed are cpu and cuda.")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = "1 CUDA device" if count == 1 else f"{count or 'no'} CUDA devices"
        raise error(f"device={name!r} was given, but torch finds {found} here.")
    return device
