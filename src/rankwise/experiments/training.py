"""Fine-tuning one network on one data set. The command line calls it."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rankwise.data import DataSet
from rankwise.errors import DataError, RankwiseError
from rankwise.evaluation import evaluate
from rankwise.experiments.single import METRICS_FILE, MODEL_FILE, PLAN_FILE, data_for, is_file, load_any
from rankwise.files import json_text, write_text
from rankwise.io import read_plan, save
from rankwise.methods.options import configured
from rankwise.models import LoadedModel
from rankwise.network.batches import output_tensor
from rankwise.network.state import preserved
from rankwise.plan import Plan, attach_plan_, plan_of
from rankwise.progress import Progress, silent
from rankwise.recovery.finetune import finetune
from rankwise.recovery.training import FineTuning


@dataclass(frozen=True)
class TrainingRun:
    """What is fine-tuned, how, and on which data.

    ``settings`` are those of :class:`rankwise.recovery.training.FineTuning`. ``teacher`` is a file or a
    network; with ``distill`` and without it, it is what the file's plan says the original was.
    """

    model: str
    data: str
    settings: Mapping[str, Any]
    weights: str | None = None
    distill: bool = False
    teacher: str | None = None
    teacher_weights: str | None = None
    batch_size: int = 128
    seed: int = 0
    strategy: str = "auto"
    precision: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def check_classes(loaded: LoadedModel, data: DataSet) -> None:
    """Make sure that the network has as many outputs as the data set has classes, where both say.

    Raises:
        DataError: it has not.
    """
    if loaded.example is None or not data.classes or data.task != "classification":
        return
    with preserved(loaded.module), torch.no_grad():
        outputs = output_tensor(loaded.module.eval()(loaded.example)).shape[-1]
    if outputs != len(data.classes):
        raise DataError(
            f"{data.name!r} has {len(data.classes)} classes, {loaded.spec!r} has {outputs} outputs; allowed "
            f"is a network with as many: NAME#{len(data.classes)} gives a network a fresh last layer."
        )


def original_of(file: str) -> tuple[str, str | None]:
    """The network that was compressed into ``file``, and its weights, as the file's plan says.

    Raises:
        RankwiseError: it does not say.
    """
    notes = [s for s in read_plan(file).settings if "model" in s] if is_file(file) else []
    if not notes or not notes[0].get("weights"):
        raise RankwiseError(
            f"{file!r} does not say which network with which weights it was made of; give it with --teacher "
            "(a file or a network) and, for a network by name, --teacher-weights."
        )
    return notes[0]["model"], notes[0]["weights"]


def train(run: TrainingRun, out: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Fine-tune and evaluate before and after; with ``out`` save the model, its plan and the metrics.

    The validation part of the training split chooses the epoch, and the learning rate where none is
    given; the test split is looked at afterwards. Resumes from the checkpoint in ``out``. Of several
    processes only the first evaluates and saves; the others return an empty dict.
    """
    loaded = load_any(run.model, run.weights, seed=run.seed)
    data = data_for(loaded, run.data)
    check_classes(loaded, data)
    settings: FineTuning = configured("fine-tuning", FineTuning, {"seed": run.seed, **run.settings})
    teacher = _teacher(run)
    start = time.perf_counter()
    done = finetune(
        loaded.module,
        data.fitting(run.seed).batches(
            run.batch_size, shuffle=True, augment=data.augmentation, seed=run.seed
        ),
        data.validation(seed=run.seed).batches(run.batch_size),
        settings,
        teacher=None if teacher is None else teacher.module,
        out=out,
        strategy=run.strategy,
        precision=run.precision,
        notes={"data": run.data, **run.notes},
        progress=progress,
    )
    seconds = {"finetune": time.perf_counter() - start}
    if int(os.environ.get("RANK", "0")) != 0:
        return {}
    model = done.model.eval()
    start = time.perf_counter()
    progress("evaluate", 0, 2)
    test = data.testing().batches(run.batch_size)
    before = evaluate(loaded.module, test, None if teacher is None else teacher.module).to_json()
    progress("evaluate", 1, 2)
    after = evaluate(model, test, (teacher or loaded).module).to_json()
    seconds["evaluate"] = time.perf_counter() - start
    metrics: dict[str, Any] = {
        "model": run.model, "data": run.data, "epochs": settings.epochs, "best": done.best, "lr": done.lr,
        "seed": run.seed, "before": before, "after": after, "history": done.history, "seconds": seconds,
    }  # fmt: skip
    if out is not None:
        note = {"finetune": settings.as_dict(), "best": done.best, "lr": done.lr, "data": run.data}
        first = {} if is_file(run.model) else {"model": run.model}
        attach_plan_(model, plan_of(loaded.module) + Plan(settings=({**first, **note},)))
        save(model, out / MODEL_FILE)
        plan_of(model).save(out / PLAN_FILE)
        metrics["after"]["file_bytes"] = (out / MODEL_FILE).stat().st_size
        write_text(out / METRICS_FILE, json_text(metrics))
    return metrics


def _teacher(run: TrainingRun) -> LoadedModel | None:
    if not run.distill and run.teacher is None:
        return None
    if run.teacher is not None:
        return load_any(run.teacher, run.teacher_weights)
    return load_any(*original_of(run.model))
