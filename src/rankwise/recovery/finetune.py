"""Fine-tuning with labels: one process, DDP or FSDP, resumable at any step."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from rankwise.errors import DataError, TrainingError
from rankwise.network.batches import call, forward, length_of, output_tensor, to_device
from rankwise.network.digest import digest
from rankwise.network.predictions import predictions_of
from rankwise.network.state import duplicate
from rankwise.progress import Progress, silent
from rankwise.recovery.checkpoint import (
    State,
    load_checkpoint,
    own_randomness,
    random_state,
    restore_random_state_,
    save_checkpoint,
    seed_all,
)
from rankwise.recovery.logs import Logs
from rankwise.recovery.parallel import (
    Processes,
    copy_,
    description,
    load_optimizer_state_,
    make_fabric,
    optimizer_state,
    set_epoch,
    whole,
)
from rankwise.recovery.training import RATES, FineTuning
from rankwise.recovery.validation import labelled, validate

Tensor = torch.Tensor
Adjust = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
"""Per parameter name a function of the parameter and its gradient that gives the gradient to step along."""

CHECKPOINT_FILE = "checkpoint.pt"
_TRIAL_EXAMPLES = 1024  # of the validation data, on which learning rates are compared


@dataclass(eq=False)
class FineTuned:
    """What :func:`finetune` did: the model of the best epoch, and a row per epoch.

    ``best`` is the number of that epoch; 0 is the model as it was given. Each row of ``history`` has
    epoch, lr, train_loss, loss and top1 (on the validation data), and seconds.
    """

    model: nn.Module
    best: int
    lr: float
    history: list[dict[str, Any]] = field(default_factory=list)


def finetune(
    model: nn.Module,
    train: Iterable[Any],
    validation: Iterable[Any],
    settings: FineTuning | None = None,
    *,
    teacher: nn.Module | None = None,
    out: Path | None = None,
    adjust: Adjust | None = None,
    accelerator: str = "auto",
    strategy: str = "auto",
    precision: str | None = None,
    checkpoint_seconds: float = 60.0,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> FineTuned:
    """A copy of ``model``, trained with labels; of all epochs and the start, the best on ``validation``.

    The optimizer is made here, after compression. Started by ``torchrun``, the processes share every
    pass over ``train``, each on its own examples, and the result is the same on all of them. The same
    seed, data and number of processes give the same weights, also when the run was interrupted.

    Args:
        model: the network to train; it is left as it was.
        train: batches with labels, iterated over once per epoch. Where they, or their sampler, have
            ``set_epoch``, it is called first.
        validation: batches with labels, out of the training split; they choose the epoch and, where no
            ``lr`` is given, the learning rate. Best is the highest top-1, or in language modelling the
            lowest loss.
        settings: see :class:`FineTuning`; ``changes`` replace single ones, and ``epochs`` has to be given.
        teacher: the network whose outputs ``settings.mix`` weighs in.
        out: folder for the checkpoint, written after every epoch and every ``checkpoint_seconds``, and
            for the logs. Where a checkpoint of the same run is there, it goes on from it.
        adjust: changes to single gradients, see :data:`Adjust`.
        accelerator: as Lightning Fabric takes it.
        strategy: "auto" (one process, or DDP), "fsdp", or a name that Fabric takes.
        precision: as Fabric takes it, but for "16-mixed"; by default bfloat16 where a GPU has it.
        checkpoint_seconds: see ``out``.
        notes: JSON-able values that have to be the same when the run is resumed.
        progress: called after every step.

    Raises:
        TrainingError: a loss or gradient that is not finite (names the step and the learning rate; the
            last checkpoint is kept), settings that do not fit, or a checkpoint of another run.
        DataError: batches without labels, or labels that the model has no output for.
    """
    chosen = FineTuning(**changes) if settings is None else replace(settings, **changes)
    if chosen.mix > 0 and teacher is None:
        raise TrainingError(f"mix={chosen.mix} was given without a teacher; allowed is teacher=a network.")
    if precision == "16-mixed":
        raise TrainingError("precision='16-mixed' was given; allowed: 'bf16-mixed', '32-true', 'bf16-true'.")
    with own_randomness(), torch.inference_mode(False), torch.enable_grad():
        run = _Run(
            model, train, validation, chosen, Processes(make_fabric(accelerator, strategy, precision)),
            None if teacher is None else duplicate(teacher), out, adjust or {}, checkpoint_seconds, progress,
        )  # fmt: skip
        return run.run({**(notes or {}), "strategy": strategy, "precision": precision})


class _Diverged(TrainingError):
    pass


class _Run:
    """One fine-tuning."""

    def __init__(
        self, model: nn.Module, train: Iterable[Any], validation: Iterable[Any], settings: FineTuning,
        processes: Processes, teacher: nn.Module | None, out: Path | None, adjust: Adjust,
        checkpoint_seconds: float, progress: Progress,
    ) -> None:  # fmt: skip
        self.model, self.given, self.validation = model, train, validation
        self.settings, self.processes, self.out = settings, processes, out
        self.adjust, self.checkpoint_seconds, self.progress = adjust, checkpoint_seconds, progress
        self.fabric = processes.fabric
        self.train = processes.own(train)
        self.per_epoch = length_of(self.train) or 0
        if self.per_epoch == 0:
            raise DataError("Fine-tuning was given no training batches.")
        self.steps = self.per_epoch * settings.epochs
        self.plain = duplicate(model)
        self.settings.train_mode_(self.plain)
        self.wrapped = self.fabric.setup_module(self.plain)
        self.parameters = [p for p in self.plain.parameters() if p.requires_grad]
        self.tensors = [*self.plain.parameters(), *self.plain.buffers()]
        self.teacher = None
        if teacher is not None:
            self.teacher = teacher.to(processes.device).eval().requires_grad_(False)
        self.optimizer: Any = None
        self.rate = settings.lr or 0.0
        self.epoch, self.index, self.skip = 0, 0, 0
        self.sums = [0.0, 0.0]  # training loss times predictions, predictions, of this epoch
        self.history: list[dict[str, Any]] = []
        self.best, self.best_tensors = 0, self._values()
        self.average: list[Tensor] = []
        self.epoch_random: State = {}

    # --- the whole run

    def run(self, notes: Mapping[str, Any]) -> FineTuned:
        self.configuration = self._configuration(notes)
        path = None if self.out is None else self.out / CHECKPOINT_FILE
        state = None if path is None else load_checkpoint(path, self.configuration)
        logs = Logs(self.out if self.processes.rank == 0 else None)
        try:
            if state is None:
                self._begin()
                logs.write(self.history)
            else:
                self._resume_(state)
            while self.epoch < self.settings.epochs:
                self._train_epoch()
                self._end_epoch()
                logs.write(self.history)
        finally:
            logs.close()
        result = self._result()
        self.processes.wait()
        return result

    def _configuration(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **self.settings.as_dict(),
            **{f"train {name}": value for name, value in description(self.given).items()},
            **{f"validation {name}": value for name, value in description(self.validation).items()},
            "model": digest(self.model),
            "teacher": None if self.teacher is None else digest(self.teacher),
            "processes": self.processes.ranks,
            **notes,
        }

    def _begin(self) -> None:
        seed_all(self.settings.seed + self.processes.rank)
        first = self._validate()
        if self.settings.lr is None:
            self.rate = self._find_rate()
            seed_all(self.settings.seed + self.processes.rank)
        self.optimizer = self._make_optimizer(self.rate)
        if self.settings.ema:
            self.average = [p.detach().clone() for p in self.parameters]
        self.history = [{"epoch": 0, "lr": self.rate, "train_loss": None, **first, "seconds": 0.0}]
        self.clock = self.checkpoint_clock = time.monotonic()
        self._open_epoch()

    def _result(self) -> FineTuned:
        result = duplicate(self.model)
        copy_([*result.parameters(), *result.buffers()], whole(self.best_tensors))
        return FineTuned(result, self.best, self.rate, self.history)

    # --- epochs and steps

    def _open_epoch(self) -> None:
        self.index, self.skip, self.sums = 0, 0, [0.0, 0.0]
        self.epoch_random = random_state()

    def _train_epoch(self) -> None:
        """The batches of this epoch from ``self.skip`` on."""
        later = random_state() if self.skip else None
        if later is not None:
            restore_random_state_(self.epoch_random)
        set_epoch(self.train, self.epoch)
        self.settings.train_mode_(self.plain)
        for index, batch in enumerate(self.train):
            if index < self.skip:
                continue
            if later is not None:
                restore_random_state_(later)
                later = None
            self._scheduled_step(batch)
            self.index = index + 1
            due = time.monotonic() - self.checkpoint_clock > self.checkpoint_seconds
            if self.out is not None and self.processes.summed(float(due and self.processes.rank == 0))[0]:
                self._save()

    def _scheduled_step(self, batch: Any) -> None:
        step = self.epoch * self.per_epoch + self.index
        rate = self.rate * self.settings.factor(step, self.steps)
        total, count = self._step(batch, self.optimizer, rate, step)
        self.sums = [self.sums[0] + total, self.sums[1] + count]
        if self.average:
            decay = min(self.settings.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.progress("finetune", step + 1, self.steps)

    def _end_epoch(self) -> None:
        with self._averaged():
            found = self._validate()
            self.epoch += 1
            now = time.monotonic()
            row = {"epoch": self.epoch, "lr": self.optimizer.param_groups[0]["lr"],
                   "train_loss": self.sums[0] / max(1.0, self.sums[1]), **found,
                   "seconds": now - self.clock}  # fmt: skip
            self.clock = now
            better = self._goodness(row) > self._goodness(self.history[self.best])
            if better or not self.settings.keep_best:
                self.best, self.best_tensors = self.epoch, self._values()
        self.history.append(row)
        self._open_epoch()
        if self.out is not None:
            self._save()

    def _goodness(self, row: Mapping[str, Any]) -> tuple[float, float]:
        return (-inf if row["top1"] is None else row["top1"], -row["loss"])

    def _step(self, batch: Any, optimizer: Any, rate: float, step: int) -> tuple[float, float]:
        """One step; returns the loss times the predictions, and the predictions, of all ranks together."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = to_device(batch, self.processes.device)
        output = output_tensor(call(self.plain, batch, self.wrapped))
        found = labelled(self.plain, batch, output, self.settings.task)
        teacher = None
        if self.teacher is not None and self.settings.mix > 0:
            with torch.no_grad(), self.processes.autocast():
                logits = output_tensor(forward(self.teacher, batch))
            teacher = predictions_of(self.teacher, batch, logits, self.settings.task).logits
        count = float(len(found.logits))
        loss = self.settings.loss(found, teacher) if count else found.logits.sum() * 0.0
        total, everyone = self.processes.summed(loss.item() * count, count)
        if not isfinite(total):
            raise self._diverged("loss", total / max(1.0, everyone), rate, step)
        optimizer.zero_grad()
        self.fabric.backward(loss * (count * self.processes.ranks / max(1.0, everyone)))
        for name, parameter in self.plain.named_parameters() if self.adjust else ():
            if name in self.adjust and parameter.grad is not None:
                parameter.grad = self.adjust[name](parameter.detach(), parameter.grad)
        limit = self.settings.clip or inf
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, limit)))
        if not isfinite(norm):
            raise self._diverged("gradient", norm, rate, step)
        optimizer.step()
        return total, everyone

    def _diverged(self, what: str, value: float, rate: float, step: int) -> TrainingError:
        kept = ""
        if self.out is not None and (self.out / CHECKPOINT_FILE).exists():
            kept = f" The last good checkpoint is kept: {str(self.out / CHECKPOINT_FILE)!r}."
        return _Diverged(
            f"The {what} became {value} at step {step + 1} of {self.steps} (epoch {self.epoch + 1}), at "
            f"learning rate {rate:g}. Allowed are finite values: lower the learning rate, or look at the "
            f"batch.{kept}"
        )

    # --- validation, learning rate

    def _validate(self, examples: float = inf) -> dict[str, float | None]:
        found = validate(self.plain, self.validation, self.processes, self.settings.task, examples)
        self.settings.train_mode_(self.plain)
        return found

    def _find_rate(self) -> float:
        """The learning rate with the lowest validation loss after a few steps from the start."""
        start, tried = self._values(), {}
        trial = max(1, min(self.settings.trial, self.steps))
        for rate in RATES[self.settings.optimizer]:
            optimizer = self._make_optimizer(rate)
            set_epoch(self.train, 0)
            self.settings.train_mode_(self.plain)
            try:
                for step, batch in enumerate(islice(self.train, trial)):
                    self._step(batch, optimizer, rate * min(1.0, 3 * (step + 1) / trial), step)
                loss = self._validate(_TRIAL_EXAMPLES)["loss"]
            except _Diverged:
                loss = None
            tried[rate] = loss if loss is not None and isfinite(loss) else inf
            optimizer.zero_grad()
            copy_(self.tensors, start)
        best = min(tried, key=lambda rate: tried[rate])
        if not isfinite(tried[best]):
            raise TrainingError(f"Training diverged at every learning rate that was tried: {list(tried)}.")
        return best

    def _make_optimizer(self, rate: float) -> Any:
        return self.fabric.setup_optimizers(self.settings.make_optimizer(self.plain, rate))

    # --- state

    def _values(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors]

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the average of the weights in the model's place, where one is kept."""
        if not self.average:
            yield
            return
        current = [p.detach().clone() for p in self.parameters]
        copy_(self.parameters, self.average)
        try:
            yield
        finally:
            copy_(self.parameters, current)

    def _save(self) -> None:
        assert self.out is not None
        values = whole(self._values())
        if not all(bool(torch.isfinite(v).all()) for v in values if v.is_floating_point()):
            raise self._diverged("weights", float("nan"), self.optimizer.param_groups[0]["lr"],
                                 self.epoch * self.per_epoch + self.index - 1)  # fmt: skip
        draws = [random_state(), self.epoch_random]
        everyone = [draws]
        if self.processes.ranks > 1:
            everyone = [draws] * self.processes.ranks
            distributed.all_gather_object(everyone, draws)
        state = {
            "tensors": values, "optimizer": optimizer_state(self.optimizer), "average": whole(self.average),
            "best": self.best, "best_tensors": whole(self.best_tensors), "rate": self.rate,
            "epoch": self.epoch, "index": self.index, "sums": self.sums, "history": self.history,
            "random": everyone,
        }  # fmt: skip
        if self.processes.rank == 0:
            save_checkpoint(self.out / CHECKPOINT_FILE, self.configuration, state)
        self.checkpoint_clock = time.monotonic()

    def _resume_(self, state: State) -> None:
        copy_(self.tensors, state["tensors"])
        self.best, self.rate, self.history = state["best"], state["rate"], state["history"]
        self.best_tensors = self._values()
        copy_(self.best_tensors, state["best_tensors"])
        self.optimizer = self._make_optimizer(self.rate)
        load_optimizer_state_(self.optimizer, state["optimizer"])
        if state["average"]:
            self.average = [p.detach().clone() for p in self.parameters]
            copy_(self.average, state["average"])
        self.epoch, self.index, self.sums = state["epoch"], state["index"], state["sums"]
        self.skip = self.index
        now, self.epoch_random = state["random"][self.processes.rank]
        restore_random_state_(now)
        self.clock = self.checkpoint_clock = time.monotonic()
