"""A network ready for trials: loaded or trained, with its data, its own figures and what trials share."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from rankwise.data import Batches, DataSet, Split, load_data
from rankwise.errors import DataError
from rankwise.evaluation import Decisions, evaluate, record_decisions
from rankwise.experiments.journal import content_key
from rankwise.experiments.trials import Setting
from rankwise.experiments.workbench import Workbench, digest, locked
from rankwise.files import write_atomically
from rankwise.models import LoadedModel, load_model, load_weights_, train_classifier_
from rankwise.network import find_layers
from rankwise.network.state import seeded
from rankwise.progress import Progress, silent

NETWORKS, STATISTICS = "networks", "statistics"
POINTS = 64  # of a spectrum that are kept


@dataclass(eq=False)
class Context:
    """What :class:`Setting` says, opened; shared results lie in ``out``."""

    setting: Setting
    loaded: LoadedModel
    data: DataSet
    bench: Workbench
    test: Batches

    @classmethod
    def open(cls, setting: Setting, out: Path, progress: Progress = silent) -> "Context":
        """Load the network and its data; a network that is to be trained is trained, once for ``out``.

        Raises:
            RankwiseError: weights or data cannot be had, or lack a split.
        """
        loaded = load_model(setting.model, setting.weights)
        data = load_data(setting.data, transform=loaded.preprocessing)
        if setting.train is not None:
            _train_(loaded.module, setting, data, out / NETWORKS, progress)
        wanted = setting.evaluation
        split = data.testing() if wanted.split == "test" else data.validation(seed=setting.seed)
        split = split if wanted.limit is None else split.take(wanted.limit)
        chosen = setting.calibration
        examples = _without(data.calibration(chosen.examples, setting.seed), chosen.without_classes)
        bench = Workbench(
            loaded.module,
            examples.batches(chosen.batch_size),
            out / STATISTICS,
            setting.identity(),
            setting.seed,
            setting.max_memory,
            progress,
        )
        return cls(setting, loaded, data, bench, split.batches(wanted.batch_size))

    @property
    def model(self) -> nn.Module:
        """The original."""
        return self.bench.model

    @cached_property
    def decisions(self) -> Decisions:
        """The original's decisions on the examples of the figures."""
        return record_decisions(self.model, self.test)

    @cached_property
    def original(self) -> dict[str, Any]:
        """The original's figures."""
        return {**evaluate(self.model, self.test).to_json(), **self.bench.cost.as_dict()}

    @cached_property
    def weights(self) -> str:
        """A short name for the weights."""
        return digest(self.model)

    @property
    def calibration(self) -> dict[str, Any]:
        """How many examples calibration sees, and a short name for which."""
        indices = self.bench.calibration.split.indices
        return {
            "examples": len(indices),
            "ids_hash": sha256(indices.to(torch.int64).numpy().tobytes()).hexdigest()[:16],
        }

    @cached_property
    def spectra(self) -> dict[str, list[float]]:
        """Per layer the singular values of its weight as a matrix, the largest being 1; the first 64.

        Of a layer with groups the largest among the groups.
        """
        found = {}
        for layer in find_layers(self.model, self.bench.example):
            if layer.reason is None:
                values = torch.linalg.svdvals(layer.matrix()).amax(0)[:POINTS]
                found[layer.name] = [
                    float(f"{v:.4g}") for v in (values / values[0].clamp_min(1e-300)).tolist()
                ]
        return found


def _without(split: Split, classes: list[int]) -> Split:
    if not classes:
        return split
    if split.labels is None:
        raise DataError(f"Classes {classes} cannot be left out: the calibration examples have no labels.")
    kept = ~torch.isin(split.labels, torch.tensor(classes))
    if not kept.any():
        raise DataError(f"Without the classes {classes} no calibration example is left.")
    return split.subset(kept.nonzero().flatten())


def _train_(module: nn.Module, setting: Setting, data: DataSet, folder: Path, progress: Progress) -> None:
    """Give ``module`` its trained weights, from ``folder`` or by training, which can be interrupted."""
    how = setting.train
    assert how is not None
    seed = setting.seed if how.each_seed else 0
    name = content_key({"model": setting.model, "data": setting.data, "source": setting.source})
    path = folder / f"{name}.safetensors"
    with locked(folder / f"{name}.lock"):
        if not path.exists():
            with seeded(seed):
                if how.each_seed:
                    module.load_state_dict(load_model(setting.model, seed=seed).module.state_dict())
                split = data.training() if how.examples is None else data.calibration(how.examples, seed)
                batches = split.batches(how.batch_size, shuffle=True, augment=data.augmentation, seed=seed)
                train_classifier_(
                    module, batches, epochs=how.epochs, learning_rate=how.learning_rate,
                    weight_decay=how.weight_decay, label_smoothing=how.label_smoothing,
                    checkpoint=path.with_suffix(".pt"), progress=progress,
                )  # fmt: skip
            state = {key: value.detach().contiguous() for key, value in module.state_dict().items()}
            write_atomically(path, lambda temporary: save_file(state, temporary))
            path.with_suffix(".pt").unlink(missing_ok=True)
    load_weights_(module, path)
