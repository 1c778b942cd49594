"""Trade-off curves: repetitions averaged with t intervals, the Pareto front, the table at fixed loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, NamedTuple

from scipy.stats import t as student

from rankwise.report.labels import Setting, labels
from rankwise.report.trials import STAGES, Json, Trial, number, rows, table, text

CONFIDENCE = 0.95
DELTAS = (0.5, 1.0, 2.0, 3.0)  # points of accuracy lost that the table may allow


@dataclass(frozen=True)
class Axis:
    """What an axis shows: a figure's name, its words, its unit ("%": fractions), whether more is better."""

    name: str
    label: str
    unit: str = "%"
    more_is_better: bool = True
    low: float | None = None  # the values it can have at all
    high: float | None = None

    def drawn(self, value: float) -> float:
        """``value`` as a chart shows it: fractions in percent."""
        return 100 * value if self.unit == "%" else value


KEPT = (
    Axis("params", "parameters kept", more_is_better=False),
    Axis("macs", "MACs kept", more_is_better=False),
    Axis("bytes", "size kept", more_is_better=False),
    Axis("latency", "latency kept", more_is_better=False),
)
QUALITIES = (
    Axis("top1", "top-1", low=0.0, high=1.0),
    Axis("change", "change of top-1", unit="points", low=-100.0, high=100.0),
    Axis("agreement", "agreement with the original", low=0.0, high=1.0),
    Axis("top5", "top-5", low=0.0, high=1.0),
    Axis("kl", "KL(original ‖ compressed)", unit="nats", more_is_better=False, low=0.0),
    Axis("perplexity", "perplexity", unit="", more_is_better=False, low=1.0),
)


@dataclass(frozen=True)
class Mean:
    """A mean over repetitions with its confidence interval; both ends are None for a single one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """The repetitions of one configuration at one target: means by axis name, and which trials they are."""

    figures: Mapping[str, Mean]
    trials: tuple[int, ...]

    def at(self, name: str) -> float | None:
        """The mean on the axis ``name``; None where no trial has it."""
        return self.figures[name].mean if name in self.figures else None


@dataclass(frozen=True)
class Curve:
    """One configuration of one network over its targets, by stage, in the order of the costs kept."""

    network: int
    label: str
    method: str
    points: Mapping[str, tuple[Point, ...]]
    trials: tuple[int, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)  # mean per trial
    peak_bytes: float | None = None  # largest


def mean(values: Sequence[float], low: float | None = None, high: float | None = None) -> Mean:
    """The mean of repetitions and its 95 % interval by Student's t: mean ± t(n - 1) s / √n.

    The interval is cut at ``low`` and ``high``, the values that the figure can have at all.
    """
    n = len(values)
    middle = sum(values) / n
    if n == 1:
        return Mean(middle)
    deviation = sqrt(sum((value - middle) ** 2 for value in values) / (n - 1))
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / sqrt(n)
    bottom, top = middle - half, middle + half
    return Mean(middle, bottom if low is None else max(bottom, low), top if high is None else min(top, high))


def figures_of(trial: Trial, stage: str) -> dict[str, float]:
    """Every axis's figure of ``trial`` after ``stage``, where it is known."""
    before, after = trial.stage("original"), trial.stage(stage)
    found: dict[str, float] = {}
    for axis in KEPT:
        kept = number(after.get(f"{axis.name}_fraction"))
        if kept is None:
            old, new = _cost(before.get(axis.name)), _cost(after.get(axis.name))
            kept = new / old if old and new is not None else None
        if kept is not None:
            found[axis.name] = kept
    for axis in QUALITIES:
        value = number(after.get(axis.name))
        if value is not None:
            found[axis.name] = value
    original = number(before.get("top1"))
    if original is not None and "top1" in found:
        found["change"] = 100 * (found["top1"] - original)
    return found


def _cost(value: Any) -> float | None:
    """A number, or the median of what :class:`rankwise.evaluation.latency.Latency` holds."""
    return number(value.get("median") if isinstance(value, dict) else value)


class Network(NamedTuple):
    """The names of the model and of the data, and the hash of the weights where these have several."""

    model: str
    data: str
    weights: str = ""

    @property
    def label(self) -> str:
        """All that is known of it, for people."""
        named = " on ".join(filter(None, (self.model, self.data))) or "unnamed network"
        return f"{named}, weights {self.weights}" if self.weights else named


def networks_of(trials: Sequence[Trial]) -> list[Network]:
    """The network of each trial; a failed one that does not say its weights counts to the first it fits."""
    named = [(text(t.metrics.get("model")), text(t.metrics.get("data")), _weights(t)) for t in trials]
    hashes: dict[tuple[str, str], list[str]] = {}
    for trial, (model, data, weights) in zip(trials, named, strict=True):
        if weights or trial.failed is None:
            hashes.setdefault((model, data), []).append(weights)
    found = []
    for trial, (model, data, weights) in zip(trials, named, strict=True):
        known = hashes.get((model, data), [weights])
        own = weights if weights or trial.failed is None else known[0]
        found.append(Network(model, data, own if len(set(known)) > 1 else ""))
    return found


def _weights(trial: Trial) -> str:
    """What tells a network from others of its name: the hash, but not between repetitions trained alike."""
    alike = table(trial.metrics.get("train")).get("each_seed") is True
    return "of each repetition" if alike else text(trial.metrics.get("weights"))


def original_of(trials: Iterable[Trial], name: str) -> float | None:
    """The mean of the figure ``name`` of the original network; None where no trial has it."""
    values = [v for t in trials if (v := number(t.stage("original").get(name))) is not None]
    return sum(values) / len(values) if values else None


def target_of(trial: Trial) -> str:
    """What was asked for, as ``macs=0.5``: repetitions share it."""
    metrics = trial.metrics
    if metrics.get("target") is None:
        return text(metrics.get("budget"))
    return "=".join(filter(None, (text(metrics.get("measure")), text(metrics["target"]))))


def curves(trials: Sequence[Trial]) -> tuple[list[Network], list[Curve]]:
    """The networks and their curves, both in the order in which their trials come.

    Failed trials belong to their network and have no curve.
    """
    of_trials = networks_of(trials)
    networks = list(dict.fromkeys(of_trials))
    groups: dict[tuple[int, Setting], list[int]] = {}
    for index, (trial, network) in enumerate(zip(trials, of_trials, strict=True)):
        if trial.failed is None:
            groups.setdefault((networks.index(network), Setting.of(trial)), []).append(index)
    names = [labels(s for at, s in groups if at == place) for place in range(len(networks))]
    return networks, [
        _curve(place, names[place][setting], setting.method, trials, members)
        for (place, setting), members in groups.items()
    ]


def _curve(network: int, label: str, method: str, trials: Sequence[Trial], members: Sequence[int]) -> Curve:
    by_target: dict[str, list[int]] = {}
    for index in members:
        by_target.setdefault(target_of(trials[index]), []).append(index)
    points = {
        stage: tuple(
            sorted(
                filter(None, (_point(trials, group, stage) for group in by_target.values())),
                key=lambda point: [point.at(axis.name) or 0.0 for axis in KEPT],
            )
        )
        for stage in STAGES
    }
    seconds: dict[str, list[float]] = {}
    peaks = []
    for index in members:
        for name, value in table(trials[index].metrics.get("seconds")).items():
            if (spent := number(value)) is not None:
                seconds.setdefault(text(name), []).append(spent)
        peaks.append(number(table(trials[index].metrics.get("memory")).get("peak_bytes")))
    means = {name: sum(values) / len(members) for name, values in seconds.items()}
    peak = max((value for value in peaks if value is not None), default=None)
    return Curve(network, label, method, points, tuple(members), means, peak)


def _point(trials: Sequence[Trial], group: Sequence[int], stage: str) -> Point | None:
    found = [(index, figures_of(trials[index], stage)) for index in group]
    members = tuple(index for index, figures in found if figures)
    if not members:
        return None
    means = {}
    for axis in (*KEPT, *QUALITIES):
        values = [figures[axis.name] for _, figures in found if axis.name in figures]
        if values:
            means[axis.name] = mean(values, axis.low, axis.high)
    return Point(means, members)


def within(points: Sequence[Point], delta: float, measure: str) -> int | None:
    """The point that keeps least of ``measure`` and loses at most ``delta`` points of top-1, by its means.

    Only measured points count; nothing is interpolated. None where no point does.
    """
    fitting = [
        (kept, index)
        for index, point in enumerate(points)
        if (kept := point.at(measure)) is not None
        and kept < 1
        and (change := point.at("change")) is not None
        and -change <= delta + 1e-9
    ]
    return min(fitting)[1] if fitting else None


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (kept, quality) pairs those that no other beats: less or equal kept, at least the quality."""
    front: list[tuple[float, float]] = []
    for kept, quality in sorted(points, key=lambda pair: (pair[0], -pair[1])):
        if not front or quality > front[-1][1]:
            front.append((kept, quality))
    return front


def published_label(row: Json) -> str:
    """The name of the published method, the work where it is another name, and whether it was retrained."""
    method, work = text(row.get("method")), text(row.get("work"))
    parts = [method, work if work != method else "", "retrained" if row.get("retrained") is True else ""]
    return ", ".join(filter(None, parts)) or "published"


def published_figure(row: Json, name: str) -> float | None:
    """A published "top1" or "agreement" (written in percent) as a fraction, or the "change" in points."""
    if name == "change":
        loss = number(row.get("loss"))
        return None if loss is None else -loss
    value = number(row.get(name))
    return None if value is None else value / 100


def published_rows(experiments: Iterable[Json]) -> list[Json]:
    """The published figures that the experiments hold, each once."""
    found: dict[str, Json] = {}
    for experiment in experiments:
        for row in rows(experiment.get("published")):
            found.setdefault(text(dict(sorted(row.items(), key=str))), row)
    return list(found.values())
