"""What ``--recover`` says, as recoveries that know the data set, and the seconds that each of them took."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.data import Batches, DataSet, Split
from rankwise.errors import RankwiseError
from rankwise.progress import Progress, silent
from rankwise.recovery import Distillation, NamedRecovery, Recovery, distill_, get_recovery, recoveries
from rankwise.recovery.finetune import finetune
from rankwise.recovery.training import FineTuning

FINETUNE, DISTILL = "finetune", "distill"
SETTINGS: dict[str, type[Any]] = {DISTILL: Distillation, FINETUNE: FineTuning}
"""Per recovery with settings the dataclass that holds them."""


def parse_recovery(text: str) -> tuple[str, ...]:
    """The recoveries in ``text``, several by commas: names, "finetune:EPOCHS", or "none" alone.

    Raises:
        RankwiseError: anything else.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if names in ((), ("none",)):
        return ()
    for name in names:
        kind, colon, epochs = name.partition(":")
        if kind != FINETUNE:
            if name == "none":
                raise RankwiseError(f"The recovery {text!r} was given; 'none' stands alone.")
            get_recovery(name)
        elif not (colon and epochs.isdigit() and int(epochs) > 0):
            allowed = ", ".join(["none", *recoveries(), "finetune:EPOCHS"])
            raise RankwiseError(
                f"The recovery {name!r} was given; allowed, by commas: {allowed} (1 and more)."
            )
    return names


@dataclass(eq=False)
class Recovering:
    """Recoveries with the data of one run behind them; ``seconds`` tells what each of them took.

    Distillation and fine-tuning draw augmented examples, where the data set says how networks on it were
    trained; the others see the calibration examples as they are. Fine-tuning uses the training split,
    without the validation examples that choose its epoch and learning rate; its checkpoint is written
    into ``out``. Before fine-tuning, distillation has no time limit, so that the same command starts it
    from the same weights again.
    """

    data: DataSet
    calibration: Batches
    seed: int = 0
    out: Path | None = None
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)
    _resumes: bool = field(default=False, init=False, repr=False)

    def all(self, names: Sequence[str]) -> list[NamedRecovery]:
        """The recoveries called ``names``, timed."""
        self._resumes = any(name.startswith(FINETUNE) for name in names)
        parted = [name.partition(":") for name in names]
        given = [(name, {"epochs": int(epochs)} if epochs else {}) for name, _, epochs in parted]
        found = [self.one(name, settings) for name, settings in given]
        return [
            NamedRecovery(name, self.timed(name, recovery))
            for name, recovery in zip(names, found, strict=True)
        ]

    def one(self, name: str, settings: Mapping[str, Any]) -> Recovery:
        """The recovery ``name``, or "finetune"; ``settings`` are those of :data:`SETTINGS`."""
        if name == FINETUNE:
            return self._finetuning(settings)
        return self._distillation(settings) if name == DISTILL else get_recovery(name)

    def timed(self, name: str, recovery: Recovery) -> Recovery:
        """``recovery``, its seconds added up under ``name``."""

        def run(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
            self.progress(name, 0, 0)
            start = time.perf_counter()
            recovery(model, original, batches, layers)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return run

    def _distillation(self, settings: Mapping[str, Any]) -> Recovery:
        def run(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
            augmented = self._augmented(self.calibration.split)
            limit = {"seconds": None} if self._resumes else {}
            distill_(
                model, original, augmented, layers=layers, progress=self.progress, **{**limit, **settings}
            )

        return run

    def _augmented(self, split: Split) -> Batches:
        size, augment = self.calibration.batch_size, self.data.augmentation
        return split.batches(size, shuffle=True, augment=augment, seed=self.seed)

    def _finetuning(self, settings: Mapping[str, Any]) -> Recovery:
        def run(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
            size = self.calibration.batch_size
            train = self._augmented(self.data.fitting(self.seed))
            validation = self.data.validation(seed=self.seed).batches(size)
            done = finetune(
                model, train, validation, teacher=original, progress=self.progress,
                out=None if self.out is None else self.out / FINETUNE, **{"seed": self.seed, **settings},
            )  # fmt: skip
            model.load_state_dict(done.model.state_dict())

        return run
