"""What is done after surgery: bias correction, recalibration, refit, training."""

from rankwise.recovery.batchnorm import recalibrate_batchnorm_
from rankwise.recovery.bias import correct_bias_
from rankwise.recovery.distill import Distillation, Distilled, distill_
from rankwise.recovery.divergence import divergence
from rankwise.recovery.refit import Fitted, Refit, refit_
from rankwise.recovery.registry import (
    Changed,
    NamedRecovery,
    Recovery,
    get_recovery,
    recoveries,
    register_recovery,
)

__all__ = [
    "Changed",
    "Distillation",
    "Distilled",
    "Fitted",
    "NamedRecovery",
    "Recovery",
    "Refit",
    "correct_bias_",
    "distill_",
    "divergence",
    "get_recovery",
    "recalibrate_batchnorm_",
    "recoveries",
    "refit_",
    "register_recovery",
]
