"""What the page shows, as one JSON object of plain numbers and texts; the page's scripts only draw it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rankwise.report.curves import (
    CONFIDENCE,
    DELTAS,
    KEPT,
    QUALITIES,
    Curve,
    Mean,
    Network,
    Point,
    curves,
    figures_of,
    networks_of,
    original_of,
    published_figure,
    published_label,
    published_rows,
    target_of,
    within,
)
from rankwise.report.layers import Names, layers_of, spectra_of
from rankwise.report.trials import STAGES, Json, Study, Trial, keys_of, number, rows, table, text

DIGITS = 6  # significant digits of every number on the page
DETAILS = ("spectra", "classes", "layers")  # what a page too large leaves out, in this order
_COSTS = ("params", "macs", "bytes")


def content(study: Study, without: Sequence[str] = ()) -> dict[str, Any]:
    """Everything on the page of ``study``, JSON-able.

    ``without`` names the :data:`DETAILS` of trials to leave out.
    """
    networks, drawn = curves(study.trials)
    of_trials = networks_of(study.trials)
    titles = _distinct(experiment.get("title") for experiment in study.experiments)
    first: Json = study.experiments[0] if len(titles) == 1 else {}
    names = Names()  # of layers, choices and classes
    curve_of = {member: at for at, curve in enumerate(drawn) for member in curve.trials}
    return {
        **{name: text(first.get(name)) for name in ("title", "description", "created")},
        "confidence": CONFIDENCE,
        "deltas": DELTAS,
        "kept": [vars(axis) for axis in KEPT],
        "qualities": [vars(axis) for axis in QUALITIES],
        "networks": [
            _network(one, [trial for trial, its in zip(study.trials, of_trials, strict=True) if its == one])
            for one in networks
        ],
        "curves": [_curve(curve) for curve in drawn],
        "published": [_published(row, networks) for row in published_rows(study.experiments)],
        "trials": [
            _trial(trial, curve_of.get(index), study.path, networks.index(of_trials[index]), names, without)
            for index, trial in enumerate(study.trials)
        ],
        "names": list(names),
        "unreadable": [[_beside(path, study.path), text(why)] for path, why in study.unreadable],
        "expected": _expected(study.experiments),
        "made": _made(study),
        "without": list(without),
    }


def _expected(experiments: Iterable[Json]) -> int:
    """How many trials the experiments stand for; copies of one experiment count once."""
    keys: set[str] = set()
    others = 0
    for experiment in experiments:
        own = keys_of(experiment)
        keys |= set(own)
        others += 0 if own else int(number(experiment.get("trials")) or 0)
    return len(keys) + others


def _distinct(values: Iterable[Any]) -> list[str]:
    """What ``values`` say, each once."""
    return list(dict.fromkeys(filter(None, map(text, values))))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _beside(path: Path, root: Path) -> str:
    """``path`` as seen from ``root``."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _network(network: Network, trials: Sequence[Trial]) -> dict[str, Any]:
    figures = ("top1", "top5", "perplexity", *_COSTS)
    original = {name: _rounded(original_of(trials, name)) for name in figures}
    return {"model": network.model, "data": network.data, "label": network.label, "original": original}


def _mean(value: Mean) -> list[float | None]:
    found = [value.mean] if value.low is None else [value.mean, value.low, value.high]
    return [_rounded(figure) for figure in found]


def _point(point: Point) -> dict[str, Any]:
    means = {name: _mean(value) for name, value in point.figures.items()}
    return {"figures": means, "trials": point.trials}


def _curve(curve: Curve) -> dict[str, Any]:
    best = {
        stage: {axis.name: [within(points, delta, axis.name) for delta in DELTAS] for axis in KEPT}
        for stage, points in curve.points.items()
    }
    return {
        "network": curve.network,
        "label": curve.label,
        "method": curve.method,
        "points": {stage: [_point(point) for point in points] for stage, points in curve.points.items()},
        "best": best,
        "seconds": {name: _rounded(value) for name, value in curve.seconds.items()},
        "peak_bytes": curve.peak_bytes,
        "trials": curve.trials,
    }


def _published(row: Json, networks: Sequence[Network]) -> dict[str, Any]:
    model = text(row.get("model"))
    return {
        **{name: text(row.get(name)) for name in ("method", "measure", "source")},
        "label": published_label(row),
        "networks": [index for index, one in enumerate(networks) if one.model == model or not model],
        **{name: _rounded(number(row.get(name))) for name in ("kept", "loss")},
        **{name: _rounded(published_figure(row, name)) for name in ("top1", "agreement")},
        "retrained": row.get("retrained") if isinstance(row.get("retrained"), bool) else None,
    }


def _trial(
    trial: Trial,
    curve: int | None,
    root: Path,
    network: int,
    names: Names,
    without: Sequence[str],
) -> dict[str, Any]:
    metrics = trial.metrics
    found: dict[str, Any] = {
        "folder": _beside(trial.folder, root),
        "network": network,
        "curve": curve,
        "target": target_of(trial),
        **{name: text(metrics.get(name)) for name in ("seed", "repetition", "command")},
        "method": text(metrics.get("label") or metrics.get("method")),
    }
    if trial.failed is not None:
        return found | {"failed": trial.failed}
    details: dict[str, Callable[[], Any]] = {
        "layers": lambda: layers_of(trial, names, _rounded),
        "classes": lambda: _classes(trial, names),
        "spectra": lambda: spectra_of(trial, names, _rounded),
    }
    return {
        **found,
        "stages": {stage: _stage(trial, stage) for stage in ("original", *STAGES) if trial.stage(stage)},
        "seconds": {
            text(name): _rounded(number(value)) for name, value in table(metrics.get("seconds")).items()
        },
        "peak_bytes": number(table(metrics.get("memory")).get("peak_bytes")),
        **{name: made for name, make in details.items() if name not in without and (made := make())},
        **({"tradeoff": tradeoff} if (tradeoff := _tradeoff(metrics)) else {}),
    }


def _stage(trial: Trial, stage: str) -> dict[str, Any]:
    """Counts, rates and what is kept, of one stage of a trial."""
    figures = trial.stage(stage)
    found: dict[str, Any] = {
        name: _rounded(value)
        for name in (*(axis.name for axis in QUALITIES), "loss", "examples", "file_bytes", *_COSTS)
        if (value := number(figures.get(name))) is not None
    }
    if stage != "original":
        found |= {
            f"{name}_kept": _rounded(value)
            for name, value in figures_of(trial, stage).items()
            if name in {axis.name for axis in KEPT}
        }
    flips = [number(value) for value in table(figures.get("flips")).values()]
    if flips and None not in flips:
        found["flips"] = sum(value or 0 for value in flips)
    for name, interval in table(figures.get("intervals")).items():
        low, high = (number(table(interval).get(end)) for end in ("low", "high"))
        if low is not None and high is not None:
            found[f"{text(name)}_interval"] = [_rounded(low), _rounded(high)]
    return found


def _classes(trial: Trial, names: Names) -> list[list[Any]]:
    """Per class: its name's place, examples, the original's accuracy; accuracy and agreement by stage."""
    before = {text(row.get("label")): row for row in rows(trial.stage("original").get("per_class"))}
    after = {
        stage: {text(row.get("label")): row for row in rows(trial.stage(stage).get("per_class"))}
        for stage in STAGES
    }
    found = []
    for label in dict.fromkeys(label for stage in (before, *after.values()) for label in stage):
        line: list[Any] = [names.place(label)]
        first = before.get(label) or next(found[label] for found in after.values() if label in found)
        line += [number(first.get("examples")), _rounded(number(before.get(label, {}).get("accuracy")))]
        for stage in STAGES:
            row = after[stage].get(label, {})
            line += [_rounded(number(row.get(name))) for name in ("accuracy", "agreement")]
        found.append(line)
    return found


def _tradeoff(metrics: Json) -> list[list[float | None]]:
    """Predicted (params kept, MACs kept, KL in nats), as far as they are known."""
    found = [
        [_rounded(number(row.get(name))) for name in ("params_fraction", "macs_fraction", "kl")]
        for row in rows(metrics.get("tradeoff"))
    ]
    return [row for row in found if row[2] is not None]


def _machine(hardware: Json) -> dict[str, Any]:
    """``hardware`` with its sizes in GiB."""
    sizes = {key: f"{value / 2**30:.3g} GiB" for key in hardware if (value := number(hardware[key]))}
    return {
        key.removesuffix("_bytes"): sizes.get(key, value) if key.endswith("_bytes") else value
        for key, value in hardware.items()
    }


def _made(study: Study) -> dict[str, Any]:
    """How the results came to be: commands, and every version and machine that took part."""
    sources = [*study.experiments, *(trial.metrics for trial in study.trials)]

    versions: dict[str, list[str]] = {}
    for source in sources:
        for name, value in table(source.get("versions")).items():
            versions.setdefault(text(name), []).append(text(value))
    commands = _distinct(e.get("command") for e in study.experiments)
    if not commands:
        commands = _distinct(trial.metrics.get("command") for trial in study.trials)
    times = sorted(
        filter(None, (text(t.metrics.get(name)) for t in study.trials for name in ("started", "finished")))
    )
    return {
        "commands": commands,
        "versions": {name: _distinct(values) for name, values in versions.items()},
        "hardware": _distinct(_machine(table(source.get("hardware"))) for source in sources),
        "weights": _distinct(trial.metrics.get("weights") for trial in study.trials),
        "calibration": _distinct(trial.metrics.get("calibration") for trial in study.trials),
        "times": [times[0], times[-1]] if times else [],
    }
