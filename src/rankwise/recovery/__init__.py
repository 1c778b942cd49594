"""What is done after surgery: bias correction, recalibration, refit, training."""

from rankwise.recovery.batchnorm import recalibrate_batchnorm_
from rankwise.recovery.bias import correct_bias_
from rankwise.recovery.registry import Recovery, get_recovery, recoveries, register_recovery

__all__ = [
    "Recovery",
    "correct_bias_",
    "get_recovery",
    "recalibrate_batchnorm_",
    "recoveries",
    "register_recovery",
]
