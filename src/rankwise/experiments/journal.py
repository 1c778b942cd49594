"""Finished work on disk, one JSON line each, so that the same command goes on where it stopped."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any


def content_key(content: Mapping[str, Any]) -> str:
    """A short name for what ``content`` (JSON-able) says, the same for the same content."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """Records by key in the file ``path``; a later record of the same key takes the earlier one's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that an interruption cut short; its work is done again
            self._records[record["key"]] = record

    def get(self, key: str) -> dict[str, Any] | None:
        """The record ``key``, if there is one."""
        return self._records.get(key)

    def add(self, key: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Append a record and flush it to disk; returns it with its key."""
        self._records[key] = {"key": key, **record}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        broken = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a") as file:
            file.write(("\n" if broken else "") + json.dumps(self._records[key]) + "\n")
        return self._records[key]

    def records(self) -> list[dict[str, Any]]:
        """All records, in the order in which their keys first came."""
        return list(self._records.values())
