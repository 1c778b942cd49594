"""Settings of training with labels: optimizer, learning rate over time, loss."""

from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase

from rankwise.errors import TrainingError
from rankwise.network.predictions import Predictions, Task
from rankwise.recovery.imitation import output_loss

Tensor = torch.Tensor
OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "multistep", "constant"]

RATES: dict[str, tuple[float, ...]] = {
    "sgd": (0.001, 0.003, 0.01, 0.03, 0.1),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3),
}
"""Learning rates that are tried where none is given."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How :func:`rankwise.recovery.finetune.finetune` trains.

    Args:
        epochs: passes over the training batches.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        lr: the highest learning rate. None: each of :data:`RATES` is tried for ``trial`` steps from the
            start, and the one with the lowest loss on validation batches is taken.
        trial: see ``lr``.
        momentum: of "sgd".
        weight_decay: not applied to biases and to the parameters of normalisations.
        warmup: share of the steps in which the rate rises from near zero.
        schedule: "cosine" to zero, "multistep" (times ``gamma`` at each of ``milestones``, shares of
            the steps) or "constant".
        milestones: see ``schedule``.
        gamma: see ``schedule``.
        label_smoothing: of the cross-entropy.
        mix: weight of the divergence from the teacher; the cross-entropy has ``1 - mix``.
        temperature: of the divergence.
        ema: decay per step of an exponential moving average of the weights, which is then what is
            validated and returned; 0 keeps none.
        clip: largest norm of the gradient of all parameters; None does not clip.
        freeze_batchnorm: leave the running statistics of BatchNorm as they are.
        keep_best: return the epoch that does best on the validation data, the start included; otherwise
            the last.
        task: "classification" or "language"; by default by the number of output dimensions.
        seed: of dropout and of everything else drawn from the global generators.

    Raises:
        TrainingError: a value that is not allowed.
    """

    epochs: int
    optimizer: OptimizerName = "sgd"
    lr: float | None = None
    trial: int = 20
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    schedule: ScheduleName = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    label_smoothing: float = 0.0
    mix: float = 0.0
    temperature: float = 2.0
    ema: float = 0.0
    clip: float | None = 2.0
    freeze_batchnorm: bool = False
    keep_best: bool = True
    task: Task | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        fraction, shares = "from 0 to below 1", ("warmup", "ema", "label_smoothing", "momentum")
        checks = [
            ("epochs", self.epochs >= 1, "1 and more"),
            ("optimizer", self.optimizer in get_args(OptimizerName), " or ".join(get_args(OptimizerName))),
            ("schedule", self.schedule in get_args(ScheduleName), ", ".join(get_args(ScheduleName))),
            ("lr", self.lr is None or self.lr > 0, "None or above 0"),
            ("clip", self.clip is None or self.clip > 0, "None or above 0"),
            ("temperature", self.temperature > 0, "above 0"),
            ("mix", 0 <= self.mix <= 1, "from 0 to 1"),
            *((name, 0 <= getattr(self, name) < 1, fraction) for name in shares),
        ]  # fmt: skip
        for name, fits, allowed in checks:
            if not fits:
                raise TrainingError(
                    f"{name}={getattr(self, name)!r} was given for fine-tuning; allowed: {allowed}."
                )

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return asdict(self)

    def factor(self, step: int, steps: int) -> float:
        """Share of the highest learning rate at step number ``step`` (from 0) of ``steps``."""
        warm = int(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        done = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + cos(pi * done))
        if self.schedule == "multistep":
            return self.gamma ** sum(step >= milestone * steps for milestone in self.milestones)
        return 1.0

    def make_optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimizer of the parameters that ``model`` has now and that require gradients."""
        decayed, free = decay_groups(model)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise TrainingError("The model has no parameters that require gradients; nothing can be trained.")
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=lr)
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.momentum > 0)

    def train_mode_(self, model: nn.Module) -> None:
        """Put ``model`` into training mode, but for BatchNorms that are frozen."""
        model.train()
        if self.freeze_batchnorm:
            for module in model.modules():
                if isinstance(module, _NormBase):
                    module.eval()

    def loss(self, found: Predictions, teacher: Tensor | None) -> Tensor:
        """The mean loss over the predictions of a batch; ``teacher`` holds the teacher's logits."""
        total = torch.zeros((), device=found.logits.device)
        if teacher is not None and self.mix > 0:
            total = self.mix * output_loss(teacher, found.logits, "kl", self.temperature)
        if self.mix < 1:
            assert found.target is not None
            own = cross_entropy(found.logits.float(), found.target, label_smoothing=self.label_smoothing)
            total = total + (1 - self.mix) * own
        return total


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay, and those without it: biases and parameters of normalisations.

    A module is a normalisation by its type, or by its name: "norm" in it, as in transformers'
    ``LlamaRMSNorm``. Shared parameters are listed once.
    """
    decayed: dict[int, nn.Parameter] = {}
    free: dict[int, nn.Parameter] = {}
    for module in model.modules():
        norm = isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in decayed:
                (free if norm or "bias" in name else decayed).setdefault(id(parameter), parameter)
    return list(decayed.values()), [p for key, p in free.items() if key not in decayed]
