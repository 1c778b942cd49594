"""What ``--recover`` says, as recoveries that know the data set, and the seconds that each of them took."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.data import Batches, DataSet
from rankwise.errors import RankwiseError
from rankwise.progress import Progress, silent
from rankwise.recovery import NamedRecovery, Recovery, distill_, get_recovery, recoveries
from rankwise.recovery.finetune import finetune

FINETUNE = "finetune"


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
    into ``out``.
    """

    data: DataSet
    calibration: Batches
    seed: int = 0
    out: Path | None = None
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)

    def all(self, names: Sequence[str]) -> list[NamedRecovery]:
        """The recoveries called ``names``, timed."""
        return [NamedRecovery(name, self._timed(name, self._one(name))) for name in names]

    def _one(self, name: str) -> Recovery:
        kind, _, epochs = name.partition(":")
        if kind == FINETUNE:
            return self._finetuning(int(epochs))
        return self._distill if name == "distill" else get_recovery(name)

    def _timed(self, name: str, recovery: Recovery) -> Recovery:
        def run(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
            self.progress(name, 0, 0)
            start = time.perf_counter()
            recovery(model, original, batches, layers)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return run

    def _distill(self, model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
        augmented = self.calibration.split.batches(
            self.calibration.batch_size, shuffle=True, augment=self.data.augmentation, seed=self.seed
        )
        distill_(model, original, augmented, progress=self.progress)

    def _finetuning(self, epochs: int) -> Recovery:
        def run(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
            size = self.calibration.batch_size
            train = self.data.fitting(self.seed).batches(
                size, shuffle=True, augment=self.data.augmentation, seed=self.seed
            )
            validation = self.data.validation(seed=self.seed).batches(size)
            done = finetune(
                model, train, validation, epochs=epochs, seed=self.seed, progress=self.progress,
                out=None if self.out is None else self.out / FINETUNE,
            )  # fmt: skip
            model.load_state_dict(done.model.state_dict())

        return run
