"""The recoveries of a trial, with the settings of its file; fine-tuning also in several processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.errors import TrainingError
from rankwise.experiments.config import RecoveryRow
from rankwise.experiments.context import Context
from rankwise.experiments.recovering import FINETUNE, Recovering
from rankwise.experiments.single import MODEL_FILE
from rankwise.experiments.trials import Trial
from rankwise.io import load, save
from rankwise.network.state import duplicate
from rankwise.plan import outputs_left, plan_of
from rankwise.recovery import Changed, Recovery
from rankwise.recovery.finetune import CHECKPOINT_FILE

SAID = 2000  # characters of what failed processes said that are repeated


def recovered(
    trial: Trial, compressed: nn.Module, context: Context, folder: Path
) -> tuple[nn.Module, dict[str, float]]:
    """A copy of ``compressed`` after all recoveries, and the seconds of each; logs go into ``folder``."""
    model = duplicate(compressed)
    known = {name for name, _ in context.model.named_modules()}
    left = outputs_left(context.model, plan_of(model).edits)
    changed = Changed({name: kept for name, kept in left.items() if name in known}, left.untouched)
    calibration = context.bench.calibration
    seconds: dict[str, float] = {}
    for number, row in enumerate(trial.recovery):
        place = folder / f"recovery{number}" if number else folder
        recovering = Recovering(context.data, calibration, trial.setting.seed, place, seconds=seconds)
        recovery = recovering.one(row.name, row.settings)
        if row.processes > 1:
            recovery = _in_processes(row, context, place / FINETUNE)
        recovering.timed(row.label, recovery)(model, context.model, calibration, changed)
        (place / FINETUNE / CHECKPOINT_FILE).unlink(missing_ok=True)
    return model, seconds


def _in_processes(row: RecoveryRow, context: Context, folder: Path) -> Recovery:
    """Fine-tuning by torchrun: each process has its share of every batch and of this one's threads."""
    setting = context.setting
    size = max(1, context.bench.calibration.batch_size // row.processes)
    options = [f"{name}={json.dumps(value)}" for name, value in row.settings.items() if name != "epochs"]
    start, teacher = folder / "start.safetensors", folder / "original.safetensors"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={row.processes}"]
    command = [
        *(sys.executable, *torchrun, "-m", "rankwise", "finetune", str(start)),
        *("--data", setting.data, "--epochs", str(row.settings["epochs"]), "--out", str(folder)),
        *("--batch-size", str(size), "--seed", str(setting.seed)),
        *(part for option in options for part in ("--option", option)),
    ]
    if row.settings.get("mix"):
        command += ["--teacher", setting.model, "--teacher-weights", str(teacher)]

    def run(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Any) -> None:
        save(model, start)
        save(original, teacher)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
        if done.returncode:
            raise TrainingError(f"{row.processes} processes failed: {done.stderr[-SAID:]}")
        model.load_state_dict(load(folder / MODEL_FILE, original).state_dict())
        for path in (start, teacher):
            path.unlink()

    return run
