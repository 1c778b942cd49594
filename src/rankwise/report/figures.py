"""The page's charts as files for papers, by matplotlib."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report.curves import (
    KEPT,
    QUALITIES,
    Axis,
    Curve,
    Point,
    curves,
    networks_of,
    original_of,
    pareto,
    published_figure,
    published_label,
    published_rows,
)
from rankwise.report.trials import STAGES, Json, Study, number, text

# Okabe and Ito's palette without its yellow, as on the page: distinct for colour-blind eyes, also on white.
COLOURS = ("#0072b2", "#c4510a", "#00855f", "#b0578d", "#a97400", "#2d93cf", "#5f6875")
MARKERS = ("o", "s", "D", "^", "P", "v", "X")
DASHES = ("-", "--", ":")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
}
FORMATS = ("pdf", "png")
FIGURES = ("top1", "change", "agreement")


def write_figures(study: Study, out: Path, form: str) -> list[Path]:
    """Write one trade-off per network, stage, cost and quality (:data:`FIGURES`) that have points.

    Args:
        study: as :func:`rankwise.report.trials.read_study` gives them.
        out: the folder, made if need be.
        form: "pdf" or "png".

    Raises:
        RankwiseError: another format, or no matplotlib.
    """
    if form not in FORMATS:
        raise RankwiseError(f"The format {form!r} was given; allowed are {' and '.join(FORMATS)}.")
    try:
        import matplotlib
    except ImportError as error:
        raise RankwiseError(
            "Figures need matplotlib, which is not installed: pip install 'rankwise[report]'"
        ) from error
    matplotlib.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    networks, drawn = curves(study.trials)
    of_trials = networks_of(study.trials)
    published = published_rows(study.experiments)
    written = []
    with matplotlib.rc_context(STYLE):
        for index, network in enumerate(networks):
            own = [curve for curve in drawn if curve.network == index]
            rows = [row for row in published if text(row.get("model")) in ("", network.model)]
            trials = [trial for trial, its in zip(study.trials, of_trials, strict=True) if its == network]
            original = original_of(trials, "top1")
            for stage in STAGES:
                for kept in KEPT[:2]:
                    for quality in (axis for axis in QUALITIES if axis.name in FIGURES):
                        path = out / _file_name(*network, stage, kept.name, quality.name, form)
                        if _draw(path, own, rows, stage, kept, quality, original):
                            written.append(path)
    return written


def _file_name(*parts: str) -> str:
    *words, form = parts
    return re.sub(r"[^\w.-]+", "-", "_".join(filter(None, words))).strip("-.") + f".{form}"


def _draw(
    path: Path,
    drawn: list[Curve],
    published: list[Json],
    stage: str,
    kept: Axis,
    quality: Axis,
    original: float | None,
) -> bool:
    """Draw one figure, if there is a point for it."""
    from matplotlib import pyplot

    lines = {
        place: [p for p in curve.points[stage] if kept.name in p.figures and quality.name in p.figures]
        for place, curve in enumerate(drawn)
    }
    if not any(lines.values()):
        return False
    names = [*(curve.label for curve in drawn), *map(published_label, published)]
    width = 5.5 + 0.05 * max(0, max(map(len, names)) - 20)  # inches: room for the legend
    figure, axes = pyplot.subplots(figsize=(width, 3.1), layout="constrained")
    for place, points in lines.items():
        _line(axes, place, drawn[place].label, points, kept.name, quality)
    front = pareto(
        (p.figures[kept.name].mean, p.figures[quality.name].mean) for points in lines.values() for p in points
    )
    axes.step(
        [100 * x for x, _ in front], [quality.drawn(y) for _, y in front],
        where="post", color="black", alpha=0.15, linewidth=3.5, zorder=1, label="Pareto front",
    )  # fmt: skip
    _published(axes, published, kept.name, quality)
    level = {"top1": original, "change": 0.0}.get(quality.name)
    if level is not None:
        axes.axhline(quality.drawn(level), color="black", linewidth=0.6, linestyle=":", label="original")
    axes.set_xlabel(f"{kept.label}, %")
    axes.set_ylabel(f"{quality.label}, {quality.unit}")
    axes.grid(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=300)
    pyplot.close(figure)
    return True


def _line(axes: Any, place: int, label: str, points: Sequence[Point], kept: str, quality: Axis) -> None:
    colour = COLOURS[place % len(COLOURS)]
    turn = place // len(COLOURS)
    x = [100 * point.figures[kept].mean for point in points]
    y = [point.figures[quality.name] for point in points]
    axes.plot(
        x, [quality.drawn(value.mean) for value in y], DASHES[turn % len(DASHES)], color=colour, zorder=3,
        marker=MARKERS[(place + turn) % len(MARKERS)], label=_plain(label),
    )  # fmt: skip
    ends = [(value.low, value.high) for value in y if value.low is not None and value.high is not None]
    if len(ends) == len(y):
        band = [[quality.drawn(end) for end in side] for side in zip(*ends, strict=True)]
        axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0, zorder=2)


def _published(axes: Any, rows: Sequence[Json], kept: str, quality: Axis) -> None:
    """Hollow markers, one look per published method."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x, y = number(row.get("kept")), published_figure(row, quality.name)
        if row.get("measure") == kept and x is not None and y is not None:
            groups.setdefault(published_label(row), []).append((100 * x, quality.drawn(y)))
    for place, (name, pairs) in enumerate(groups.items()):
        axes.plot(
            *zip(*sorted(pairs), strict=True), MARKERS[place % len(MARKERS)], linestyle=":", linewidth=0.6,
            color="black", markerfacecolor="none", markersize=4.5, label=_plain(name), zorder=4,
        )  # fmt: skip


def _plain(label: str) -> str:
    """``label`` without the signs that begin formulas."""
    return label.replace("$", r"\$")
