"""Compressing and retraining in turns: one-shot, iterative, cascade, sweeps, learned rank; resumable."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.allocation.lrank import LearnedRank
from rankwise.budget import Budget
from rankwise.compress import compress
from rankwise.errors import BudgetError, TrainingError
from rankwise.files import json_text, write_text
from rankwise.io import load, save
from rankwise.methods import get_method
from rankwise.network import model_cost
from rankwise.network.batches import first_batch
from rankwise.network.digest import digest
from rankwise.network.recompose import recompose
from rankwise.network.state import duplicate
from rankwise.plan import Plan, attach_plan_, plan_of
from rankwise.progress import Progress, silent
from rankwise.recovery.checkpoint import refuse_changes
from rankwise.recovery.finetune import Adjust, FineTuned, finetune
from rankwise.recovery.training import FineTuning

CONFIGURATION_FILE, COMPRESSED_FILE, TUNED_FILE = (
    "schedule.json",
    "compressed.safetensors",
    "tuned.safetensors",
)


@dataclass(frozen=True)
class Stage:
    """Compress to ``fraction`` of the original (None: not at all), then train for ``epochs``.

    ``after`` is the number of the stage whose result it starts from; None is the original.
    """

    fraction: float | None
    epochs: int
    after: int | None = None


def one_shot(fraction: float, epochs: int) -> list[Stage]:
    """Compress once, then retrain (``retrain`` of ALDS's experiments)."""
    return [Stage(fraction, epochs)]


def cascade(fractions: Sequence[float], epochs: int) -> list[Stage]:
    """Each fraction starts from the retrained network of the one before (ALDS's ``cascade``)."""
    return [Stage(f, epochs, number - 1 if number else None) for number, f in enumerate(fractions)]


def iterative(fraction: float, epochs: int, step: float) -> list[Stage]:
    """Keep the share ``step`` of what is left, retrain, and again, until ``fraction`` is reached.

    As ``--prune-step`` of pca-compress; the last step is as small as it has to be.

    Raises:
        BudgetError: ``step`` is not between 0 and 1, or ``fraction`` not above 0.
    """
    if not 0 < step < 1 or fraction <= 0:
        raise BudgetError(
            f"step={step}, fraction={fraction} were given; allowed are a step between 0 and 1 and a fraction "
            "above 0."
        )
    fractions, left = [], step
    while left > fraction:
        fractions.append(left)
        left *= step
    return cascade([*fractions, fraction], epochs)


def retrain_sweep(fraction: float, epochs: Sequence[int]) -> list[Stage]:
    """Compress once, then retrain that network for each number of ``epochs`` (ALDS's ``retrainsweep``)."""
    return [Stage(fraction, 0), *(Stage(None, count, 0) for count in epochs)]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to run stages.

    Args:
        stages: as :func:`one_shot`, :func:`cascade`, :func:`iterative` and :func:`retrain_sweep` list them.
        measure: what the fractions are of: "params", "macs" or "bytes".
        training: settings of each retraining; its ``epochs`` are those of the stage.
        options: those of :func:`rankwise.compress`, JSON-able.
        merge: multiply factors out before they are compressed again, where that is possible; otherwise the
            factors themselves are compressed.
    """

    stages: Sequence[Stage]
    measure: str = "macs"
    training: FineTuning = field(default_factory=lambda: FineTuning(epochs=1))
    options: Mapping[str, Any] = field(default_factory=dict)
    merge: bool = True

    def run(
        self,
        model: nn.Module,
        calibration: Iterable[Any] | None,
        train: Iterable[Any],
        validation: Iterable[Any],
        *,
        out: Path,
        example: Any = None,
        progress: Progress = silent,
    ) -> list[nn.Module]:
        """The network after each stage; ``model`` is left as it was.

        Everything that is finished is in ``out``: killed at any moment and run again with the same
        arguments, it ends with the same weights. Other arguments are as in :func:`rankwise.compress`
        and :func:`rankwise.recovery.finetune.finetune`.

        Raises:
            TrainingError: ``out`` holds a schedule with other settings; the message says what differs.
        """
        example = first_batch(calibration) if example is None else example
        claim(out, {
            "stages": [asdict(stage) for stage in self.stages], "measure": self.measure,
            "training": self.training.as_dict(), "options": dict(self.options), "merge": self.merge,
            "model": digest(model),
        })  # fmt: skip
        limit = getattr(model_cost(model, example), self.measure)
        done: list[nn.Module] = []
        for number, stage in enumerate(self.stages):
            folder = out / f"stage{number}"
            if not (folder / TUNED_FILE).exists():
                start = model if stage.after is None else done[stage.after]
                small = start
                if stage.fraction is not None:
                    budget = Budget.of({self.measure: int(stage.fraction * limit)})
                    small = self._compressed(start, model, calibration, budget, example, folder, progress)
                if stage.epochs:
                    settings = replace(self.training, epochs=stage.epochs)
                    small = finetune(small, train, validation, settings, out=folder, progress=progress).model
                save(small, folder / TUNED_FILE)
            done.append(load(folder / TUNED_FILE, model))
        return done

    def _compressed(
        self, start: nn.Module, original: nn.Module, calibration: Iterable[Any] | None, budget: Budget,
        example: Any, folder: Path, progress: Progress,
    ) -> nn.Module:  # fmt: skip
        """``start`` within ``budget``, from ``folder`` where it is there."""
        path = folder / COMPRESSED_FILE
        if not path.exists():
            before = plan_of(start)
            merged = recompose(start, original) if self.merge and before.changes() else None
            if merged is not None:
                attach_plan_(merged, Plan(settings=before.settings))
                start = merged
            small = compress(
                start, calibration, budget, example=example, progress=progress, **dict(self.options)
            )
            save(small, path)
        return load(path, original)


def claim(out: Path, configuration: Mapping[str, Any]) -> None:
    """Make ``out`` the folder of a schedule with this ``configuration``, or see that it is.

    Raises:
        TrainingError: it belongs to another one.
    """
    path = out / CONFIGURATION_FILE
    if path.exists():
        refuse_changes(path, json.loads(path.read_text()), json.loads(json_text(dict(configuration))))
    else:
        write_text(path, json_text(dict(configuration)))


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """Learning and compressing in turns for learned ranks.

    In turn: the C step projects the weights onto those of the ranks that minimise
    lambda cost + mu/2 ||W - W_r||^2 at the budget (allocator ``lrank``); the L step trains the dense
    weights on the loss plus mu/2 ||W - W_r||^2. mu grows geometrically. At last the compressed network is
    trained by itself. Source: Idelbayev and Carreira-Perpinan, CVPR 2020, section 4 and algorithm 1.

    Args:
        budget: of the result.
        rounds: L steps.
        epochs: of each L step.
        finish: epochs of the compressed network at the end.
        mu: the first penalty; the learning rate times the last one should stay below 1.
        growth: factor of mu from one round to the next.
        training: settings of all training; ``epochs`` are replaced.
        options: those of :func:`rankwise.compress` beside method and allocator.
    """

    budget: Budget
    rounds: int = 6
    epochs: int = 1
    finish: int = 2
    mu: float = 1e-3
    growth: float = 3.0
    training: FineTuning = field(default_factory=lambda: FineTuning(epochs=1))
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self,
        model: nn.Module,
        train: Iterable[Any],
        validation: Iterable[Any],
        *,
        example: Any,
        out: Path,
        progress: Progress = silent,
    ) -> FineTuned:
        """The compressed network; resumable as :meth:`Schedule.run`.

        Raises:
            TrainingError: ``out`` holds another run, or a layer's factors cannot be multiplied out.
        """
        claim(out, {
            **{name: getattr(self, name) for name in ("rounds", "epochs", "finish", "mu", "growth")},
            "budget": self.budget.as_dict(), "training": self.training.as_dict(),
            "options": dict(self.options), "model": digest(model),
        })  # fmt: skip
        dense = duplicate(model)
        for number in range(self.rounds):
            folder = out / f"round{number}"
            if not (folder / TUNED_FILE).exists():
                adjust = self._pull(dense, self._project(dense, example), self.mu * self.growth**number)
                settings = replace(self.training, epochs=self.epochs, keep_best=False, clip=None)
                tuned = finetune(
                    dense, train, validation, settings, adjust=adjust, out=folder, progress=progress,
                    notes={"round": number},
                )  # fmt: skip
                save(tuned.model, folder / TUNED_FILE)
            dense = load(folder / TUNED_FILE, model)
        small = self._project(dense, example)
        if not self.finish:
            return FineTuned(small, 0, 0.0)
        settings = replace(self.training, epochs=self.finish)
        return finetune(small, train, validation, settings, out=out / "finish", progress=progress)

    def _project(self, dense: nn.Module, example: Any) -> nn.Module:
        return compress(
            dense, None, self.budget, method=get_method("svd"), allocator=LearnedRank(weighting="absolute"),
            example=example, **dict(self.options),
        )  # fmt: skip

    def _pull(self, dense: nn.Module, small: nn.Module, mu: float) -> Adjust:
        """Gradients of mu/2 ||W - W_r||^2 for every weight that compression changed."""
        projected = recompose(small, dense)
        if projected is None:
            raise TrainingError("A layer's factors cannot be multiplied out, which the alternation needs.")
        wanted = dict(projected.named_parameters())
        changed = [f"{edit.target}.weight" for edit in plan_of(small).changes() if edit.op == "replace"]

        def pull(target: torch.Tensor) -> Any:
            return lambda weight, gradient: gradient + mu * (weight - target.to(weight.device))

        return {name: pull(wanted[name].detach()) for name in changed}
