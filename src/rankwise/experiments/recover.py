"""The recoveries of a trial, with the settings of its file and the data that they train on."""

import time
from pathlib import Path

from torch import nn

from rankwise.data import Batches
from rankwise.experiments.config import RecoveryRow
from rankwise.experiments.context import Context
from rankwise.network.state import duplicate
from rankwise.plan import outputs_left, plan_of
from rankwise.recovery import Recovery, distill_, get_recovery
from rankwise.recovery.finetune import CHECKPOINT_FILE, finetune


def recovered(
    rows: tuple[RecoveryRow, ...], compressed: nn.Module, context: Context, folder: Path
) -> tuple[nn.Module, dict[str, float]]:
    """A copy of ``compressed`` after all recoveries, and the seconds of each.

    Distillation sees the calibration examples augmented as the data set says, fine-tuning the training
    split without the validation examples that choose its epoch. Training leaves its logs in ``folder``.
    """
    model = duplicate(compressed)
    known = {name for name, _ in context.model.named_modules()}
    left = outputs_left(context.model, plan_of(model).edits)
    changed = {name: kept for name, kept in left.items() if name in known}
    seconds: dict[str, float] = {}
    for number, row in enumerate(rows):
        start = time.perf_counter()
        place = folder / f"recovery{number}" if number else folder
        _recovery_of(row, context, place)(model, context.model, context.bench.calibration, changed)
        seconds[row.label] = seconds.get(row.label, 0.0) + time.perf_counter() - start
    return model, seconds


def _recovery_of(row: RecoveryRow, context: Context, folder: Path) -> Recovery:
    data, seed, size = context.data, context.setting.seed, context.bench.calibration.batch_size

    def shuffled(batches: Batches) -> Batches:
        return batches.split.batches(size, shuffle=True, augment=data.augmentation, seed=seed)

    def distil(model: nn.Module, original: nn.Module, *_: object) -> None:
        distill_(model, original, shuffled(context.bench.calibration), **row.settings)

    def train(model: nn.Module, original: nn.Module, *_: object) -> None:
        fitting, validation = data.fitting(seed).batches(size), data.validation(seed=seed).batches(size)
        done = finetune(
            model,
            shuffled(fitting),
            validation,
            teacher=original,
            out=folder,
            **{"seed": seed, **row.settings},
        )
        model.load_state_dict(done.model.state_dict())
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)

    own: dict[str, Recovery] = {"distill": distil, "finetune": train}
    return own.get(row.name) or get_recovery(row.name)
