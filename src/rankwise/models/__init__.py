"""Reference networks by name."""

from rankwise.models.registry import MODELS, LoadedModel, load_model
from rankwise.models.train import train_classifier_, train_digits, trapezoid
from rankwise.models.weights import load_weights_, read_weights

__all__ = [
    "MODELS",
    "LoadedModel",
    "load_model",
    "load_weights_",
    "read_weights",
    "train_classifier_",
    "train_digits",
    "trapezoid",
]
