"""Freed memory kept by the process while time is counted, as a server's allocator does.

glibc gives large freed blocks back to the system, and every forward pass then faults its pages in anew.
On a ResNet-20 at batch 32 that was a fifth to a third of the time, and it came and went with what the
process had allocated before, so that no two measurements agreed (docs/latency.md).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_LARGEST = 2**31 - 1
_MIB = 2**20


def _glibc() -> Any:
    """The C library where it has glibc's controls of malloc; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory inside; afterwards the thresholds are those that glibc's own adjustment ends at."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        library.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        library.malloc_trim(0)
