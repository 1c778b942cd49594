"""Plots of sweeps, by matplotlib (``pip install rankwise[report]``)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def plot_sweep(
    rows: Iterable[Mapping[str, Any]],
    path: Path,
    measure: str,
    title: str,
    peers: Iterable[Mapping[str, Any]] = (),
    original: float | None = None,
) -> None:
    """Top-1 in percent over the fraction kept, one line per label; peers dashed.

    Args:
        rows: finished rows of :class:`rankwise.experiments.compress_only.CompressOnly`.
        path: of the picture; its ending chooses the format.
        measure: "params" or "macs".
        title: above the plot.
        peers: rows of the same form, from elsewhere.
        original: top-1 of the untouched network, drawn as a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 7))
    for style, group in (("-o", rows), ("--", peers)):
        for label, points in _lines(group, f"{measure}_fraction").items():
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    if original is not None:
        axes.axhline(100 * original, color="black", linewidth=0.8, label="original")
    axes.set_xlabel({"params": "parameters kept", "macs": "MACs kept"}.get(measure, f"{measure} kept"))
    axes.set_ylabel("top-1, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


def _lines(rows: Iterable[Mapping[str, Any]], axis: str) -> dict[str, list[tuple[float, float]]]:
    """Points (fraction kept, top-1 in percent) by label, in ascending order."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "top1" in row:
            lines.setdefault(row["label"], []).append((row[axis], 100 * row["top1"]))
    return {label: sorted(points) for label, points in lines.items()}
