"""The methods under the battery, one line each: name, configuration, and what they claim."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class MethodCase:
    """A configured method.

    ``predicts``: its error is the measured expected squared output error on the calibration data.
    ``exact_at_full``: its last candidate reproduces the layer.
    ``monotone``: its candidates are ordered by rank with errors that do not increase.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    predicts: bool = False
    exact_at_full: bool = True
    monotone: bool = True

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.config.items())])


METHOD_CASES = [
    MethodCase("svd"),
    MethodCase("svd", {"folding": "all"}, monotone=False),
    MethodCase("svd", {"folding": "pointwise", "metric": "input"}, predicts=True),
    MethodCase("svd", {"metric": "input"}, predicts=True),
    MethodCase("svd", {"metric": "two_sided"}),
    MethodCase("spatial_svd", monotone=False),
    MethodCase("alds", predicts=True, monotone=False),
    MethodCase("alds", {"metric": "identity"}, monotone=False),
    MethodCase("alds", {"metric": "identity", "bound": "energy", "groups": 2}, monotone=False),
    MethodCase("whitened", predicts=True),
    MethodCase("pca", predicts=True),
    MethodCase("pca", {"centred": False}, predicts=True),
    MethodCase("pca", {"side": "input"}, predicts=True),
    MethodCase("cp", {"effort": 0.01}, exact_at_full=False),
    MethodCase(
        "cp",
        {"metric": "input", "factors": 4, "polish": 0, "effort": 0.01},
        predicts=True,
        exact_at_full=False,
    ),
    MethodCase("tucker2", monotone=False),
    MethodCase("tucker2", {"metric": "input"}, predicts=True, monotone=False),
    MethodCase("asymmetric", predicts=True),
    MethodCase("asymmetric", {"metric": "gradient", "regressor": "response"}),
    MethodCase("relu_aware"),
    MethodCase("hessian"),
    MethodCase("kfac"),
    MethodCase("kfac", {"centred": False}),
    MethodCase("diagonal", predicts=True, monotone=False),
]
