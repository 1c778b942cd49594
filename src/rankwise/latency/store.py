"""Measured times on disk: one file per machine, versions and target, wholly written or not at all."""

import json
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from rankwise.files import json_text, write_text

FORMAT = "rankwise.latency"
VERSION = 2  # 1 counted taking the batch apart too


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/rankwise/latency``, by default under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "rankwise" / "latency"


class Store:
    """Seconds by name, remembered under ``key``; a file that cannot be read counts as empty."""

    def __init__(self, key: dict[str, Any], folder: Path | None = None) -> None:
        self._key = key
        digest = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (cache_folder() if folder is None else folder) / f"{digest}.json"
        self._known = self._read()

    def get(self, name: str) -> float | None:
        """Seconds, or None where they are not known."""
        return self._known.get(name)

    def add(self, found: dict[str, float]) -> None:
        """Remember ``found``, beside what other processes have written meanwhile."""
        self._known = {**self._read(), **self._known, **found}
        content = {"format": FORMAT, "version": VERSION, "key": self._key, "seconds": self._known}
        with suppress(OSError):  # a folder that cannot be written costs time later, nothing else
            write_text(self.path, json_text(content))

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(self.path.read_text())
            same = (content["format"], content["version"], content["key"]) == (FORMAT, VERSION, self._key)
            found = {str(name): float(value) for name, value in content["seconds"].items()} if same else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {name: value for name, value in found.items() if 0 < value < float("inf")}
