"""The page's charts as files for papers, by matplotlib."""

import re
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report.curves import (
    KEPT,
    QUALITIES,
    Axis,
    Curve,
    curves,
    pareto,
    published_rate,
    published_rows,
)
from rankwise.report.trials import STAGES, Json, Study, number, text

# Okabe and Ito's palette without its yellow, as on the page: distinct for colour-blind eyes, also on white.
COLOURS = ("#0072b2", "#c4510a", "#00855f", "#b0578d", "#a97400", "#2d93cf", "#5f6875")
MARKERS = ("o", "s", "D", "^", "P")
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


def write_figures(study: Study, out: Path, form: str) -> list[Path]:
    """Write one trade-off per network, stage, cost and quality (top-1, agreement) that have points.

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
    published = published_rows(study.experiments)
    written = []
    with matplotlib.rc_context(STYLE):
        for index, (model, data) in enumerate(networks):
            own = [curve for curve in drawn if curve.network == index]
            rows = [row for row in published if text(row.get("model")) in ("", model)]
            original = _original(study, (model, data))
            for stage in STAGES:
                for kept in KEPT[:2]:
                    for quality in (axis for axis in QUALITIES if axis.name in ("top1", "agreement")):
                        path = out / _file_name(model, data, stage, kept.name, quality.name, form)
                        if _draw(path, own, rows, stage, kept, quality, original):
                            written.append(path)
    return written


def _file_name(*parts: str) -> str:
    *words, form = parts
    return re.sub(r"[^\w.-]+", "-", "_".join(filter(None, words))).strip("-.") + f".{form}"


def _original(study: Study, network: tuple[str, str]) -> float | None:
    found = [
        value
        for trial in study.trials
        if (text(trial.metrics.get("model")), text(trial.metrics.get("data"))) == network
        and (value := number(trial.stage("original").get("top1"))) is not None
    ]
    return sum(found) / len(found) if found else None


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
    figure, axes = pyplot.subplots(figsize=(5.5, 3.1), layout="constrained")
    for place, points in lines.items():
        _line(axes, place, drawn[place].label, points, kept.name, quality.name)
    front = pareto(
        (p.figures[kept.name].mean, p.figures[quality.name].mean) for points in lines.values() for p in points
    )
    axes.step(
        [100 * x for x, _ in front], [100 * y for _, y in front],
        where="post", color="black", alpha=0.15, linewidth=3.5, zorder=1, label="Pareto front",
    )  # fmt: skip
    _published(axes, published, kept.name, quality.name)
    if original is not None and quality.name == "top1":
        axes.axhline(100 * original, color="black", linewidth=0.6, linestyle=":", label="original")
    axes.set_xlabel(f"{kept.label}, %")
    axes.set_ylabel(f"{quality.label}, %")
    axes.grid(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=300)
    pyplot.close(figure)
    return True


def _line(axes: Any, place: int, label: str, points: Any, kept: str, quality: str) -> None:
    colour = COLOURS[place % len(COLOURS)]
    turn = place // len(COLOURS)
    x = [100 * point.figures[kept].mean for point in points]
    y = [point.figures[quality] for point in points]
    axes.plot(
        x, [100 * value.mean for value in y], DASHES[turn % len(DASHES)], color=colour, zorder=3,
        marker=MARKERS[(place + turn) % len(MARKERS)], label=label.replace("$", r"\$"),
    )  # fmt: skip
    if all(value.low is not None for value in y):
        band = [[100 * (value.low, value.high)[end] for value in y] for end in (0, 1)]
        axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0, zorder=2)


def _published(axes: Any, rows: list[Json], kept: str, quality: str) -> None:
    """Hollow markers, one look per work and method."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x, y = number(row.get("kept")), published_rate(row, quality)
        if row.get("measure") == kept and x is not None and y is not None:
            name = f"{text(row.get('method'))}, {text(row.get('work'))}"
            name += ", retrained" if row.get("retrained") is True else ""
            groups.setdefault(name, []).append((100 * x, 100 * y))
    for place, (name, pairs) in enumerate(groups.items()):
        axes.plot(
            *zip(*pairs, strict=True), MARKERS[place % len(MARKERS)], markerfacecolor="none",
            markeredgecolor="black", markersize=5, label=name.replace("$", r"\$"), zorder=4,
        )  # fmt: skip
