"""The list of trials that an experiment stands for; each has a key made of what it does."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from rankwise.data import data_root
from rankwise.errors import ExperimentError
from rankwise.experiments.config import (
    Calibration,
    Evaluation,
    Experiment,
    MethodRow,
    Network,
    RecoveryRow,
    Schedule,
    Train,
)
from rankwise.experiments.journal import content_key
from rankwise.experiments.variants import Variant
from rankwise.models import MODELS

FORMAT, VERSION = "rankwise.trial", 1
ONE_SHOT = Schedule()


@dataclass(frozen=True)
class Setting:
    """What trials share that look at the same network through the same examples.

    ``weights`` is the path of a file; ``source`` says which weights these are: the hash of that file, how
    the network is trained, or nothing where the name says it all.
    """

    model: str
    data: str
    weights: str | None
    source: str
    train: Train | None
    calibration: Calibration
    evaluation: Evaluation
    seed: int
    max_memory: int | None = None

    def identity(self) -> dict[str, Any]:
        """What its figures depend on, JSON-able."""
        return {
            "model": self.model,
            "data": self.data,
            "source": self.source,
            "calibration": self.calibration.model_dump(),
            "seed": self.seed,
            **({} if self.max_memory is None else {"max_memory": self.max_memory}),
        }


@dataclass(frozen=True)
class Trial:
    """One compression: how, of what, and the part of the experiment that it is."""

    setting: Setting = field(repr=False)
    variant: Variant
    measure: str
    target: float
    schedule: Schedule = ONE_SHOT
    recovery: tuple[RecoveryRow, ...] = ()
    multiple_of: int = 1
    fold_batchnorm: bool = False
    repetition: int = 0

    @property
    def key(self) -> str:
        """A short name for all that its figures depend on: not the paths, not the place in the list."""
        return content_key({**self._content(), "version": VERSION})

    def _content(self) -> dict[str, Any]:
        done = self.variant.as_dict()
        return {
            **self.setting.identity(),
            "evaluation": self.setting.evaluation.model_dump(),
            "method": done.pop("method"),
            "method_options": done.pop("options"),
            **done,
            "measure": self.measure,
            "target": self.target,
            "schedule": self.schedule.model_dump(),
            "recovery": [row.label for row in self.recovery],
            "recovery_settings": [row.settings for row in self.recovery],
            "multiple_of": self.multiple_of,
            "fold_batchnorm": self.fold_batchnorm,
        }

    def as_dict(self) -> dict[str, Any]:
        """The content of its config.json."""
        train = None if self.setting.train is None else self.setting.train.model_dump()
        return {
            "format": FORMAT,
            "version": VERSION,
            "key": self.key,
            "label": self.label,
            **self._content(),
            "weights": self.setting.weights,
            "train": train,
            "repetition": self.repetition,
        }

    @property
    def label(self) -> str:
        """For tables: the method with its options, the allocator, what is done afterwards."""
        return " + ".join([self.variant.label, *(row.label for row in self.recovery)])

    def describe(self) -> str:
        """One line for people."""
        return f"{self.setting.model} {self.label} {self.measure}={self.target:g} seed {self.setting.seed}"


def trials_of(experiment: Experiment, base: Path) -> list[Trial]:
    """Every trial of ``experiment``, read from a file in ``base``, in an order in which much is shared.

    Raises:
        ExperimentError: a weights file is not there, a network lacks a data set, or two trials are the same.
    """
    found = [
        Trial(
            setting,
            variant,
            experiment.measure,
            target,
            experiment.schedule,
            tuple(recovery),
            experiment.multiple_of,
            experiment.fold_batchnorm,
            repetition,
        )
        for network in experiment.models
        for repetition, seed in enumerate(experiment.all_seeds)
        for setting in [_setting(experiment, network, seed, base)]
        for variant, recovery, target in product(
            _variants(experiment), experiment.all_recoveries, experiment.budgets
        )
    ]
    seen: dict[str, Trial] = {}
    for trial in found:
        if seen.setdefault(trial.key, trial) is not trial:
            raise ExperimentError(f"Two trials are the same: {trial.describe()}.")
    return found


def _variants(experiment: Experiment) -> list[Variant]:
    return [
        Variant(
            row.name,
            row.options,
            allocator.name,
            allocator.options,
            include=tuple(_layers(row, experiment).include),
            exclude=tuple(_layers(row, experiment).exclude),
        )
        for row in experiment.methods
        for allocator in (experiment.allocators if row.allocators is None else row.allocators)
    ]


def _layers(row: MethodRow, experiment: Experiment) -> Any:
    return experiment.layers if row.layers is None else row.layers


def _setting(experiment: Experiment, network: Network, seed: int, base: Path) -> Setting:
    entry = MODELS.get(network.name.partition("#")[0])
    usual = entry.dataset if entry else "imagenet-sample" if network.name.startswith("torchvision:") else None
    data = network.data or experiment.data or usual
    if data is None:
        raise ExperimentError(f"{network.name} has no usual data set: name one with the key 'data'.")
    weights = None if network.weights is None else find_weights(network.weights, base)
    source = ""
    if weights is not None:
        source = f"file {sha256(weights.read_bytes()).hexdigest()[:16]}"
    elif network.train is not None:
        its = seed if network.train.each_seed else 0
        source = f"trained {content_key(network.train.model_dump())} seed {its}"
    memory = None if experiment.max_memory is None else int(experiment.max_memory * 2**30)
    return Setting(
        network.name, data, None if weights is None else str(weights), source, network.train,
        experiment.calibration, experiment.evaluation, seed, memory,
    )  # fmt: skip


def find_weights(name: str, base: Path) -> Path:
    """The weights file ``name``: as it is, beside the experiment file, or in the folder of the data.

    Raises:
        ExperimentError: it is in none of these places.
    """
    given = Path(name).expanduser()
    places = [given, base / given, data_root() / given]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = ", ".join(str(place) for place in dict.fromkeys(places))
        raise ExperimentError(f"The weights file {name!r} is not there: looked for {looked}.")
    return found


def groups(trials: Sequence[Trial], least: int = 1) -> list[list[Trial]]:
    """``trials`` in groups that share the work before the budget, at least ``least`` where it can be."""
    shared: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        how = trial.variant.as_dict()
        for name in ("allocator", "allocator_options"):
            del how[name]
        shared[content_key({**trial.setting.identity(), **how})].append(trial)
    found = list(shared.values())
    while len(found) < min(least, len(trials)):
        largest = max(range(len(found)), key=lambda i: len(found[i]))
        whole = found.pop(largest)
        half = (len(whole) + 1) // 2
        found[largest:largest] = [whole[:half], whole[half:]]
    return found
