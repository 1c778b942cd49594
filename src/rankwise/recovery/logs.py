"""The log of a training: one row per epoch in a CSV file, and in TensorBoard where that is installed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.files import write_text

Row = Mapping[str, Any]

LOG_FILE = "log.csv"


class Logs:
    """Writes into ``folder``; with None it writes nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._board: Any = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, rows: Sequence[Row]) -> None:
        """All ``rows`` so far; the last of them is new."""
        if self.folder is None:
            return
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / LOG_FILE, text.getvalue())
        if self._board is not None:
            for name, value in rows[-1].items():
                if name != "epoch" and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, rows[-1]["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()
