"""Writing files so that an interruption never leaves a broken one, and JSON that every reader takes."""

import json
import os
import tempfile
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError


def check_writable(path: Path, *, folder: bool) -> None:
    """Make sure that ``path``, a folder for files or a file, can be written; nothing is made.

    Raises:
        RankwiseError: it is the other of the two, or lies where nothing may be written.
    """
    if not folder and path.is_dir():
        raise RankwiseError(f"{path} was given to write to, and is a folder; allowed is the name of a file.")
    start = path if folder else path.parent
    place = next(found for found in (start, *start.parents) if found.exists())
    if not place.is_dir():
        raise RankwiseError(f"{path} was given to write to, and {place} is a file; allowed is a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RankwiseError(
            f"{path} was given to write to, and {place} does not let you; allowed is a folder that does."
        )


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it onto ``path``.

    On any failure, also Ctrl-C, the temporary file is removed and what was at ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, wholly or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text))


def json_text(content: Any) -> str:
    """``content`` as JSON text with a final newline; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content
