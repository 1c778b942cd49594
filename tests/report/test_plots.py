"""The plot of a sweep is a picture, whatever is missing."""

from pathlib import Path

import pytest

from rankwise.report.plots import plot_sweep

pytest.importorskip("matplotlib")


def test_a_picture_is_written(tmp_path: Path) -> None:
    rows = [{"label": "a", "params_fraction": f, "top1": f} for f in (0.5, 0.3)]
    rows += [{"label": "b", "failed": "no"}]
    path = tmp_path / "plot.png"
    plot_sweep(rows, path, "params", "title", peers=[{**rows[0], "label": "other"}], original=0.9)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
