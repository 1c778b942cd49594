"""Asymmetric reconstruction: fit the original output from the input that the compressed network delivers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from rankwise.linalg.metric import anchored_regression, damped, metric_axes
from rankwise.methods.base import Candidates, Choice, Method, Statistic, Unit, register
from rankwise.methods.low_rank import build_two_factors, too_thin
from rankwise.methods.projection import projection_candidates
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor


@register("asymmetric")
@dataclass(frozen=True)
class Asymmetric(Method):
    """Reduced-rank regression of the original output t on the compressed network's input patches u.

    Layers are built in execution order, each with all earlier ones already compressed, so that a layer
    also makes up for the error that reaches it. Minimised over A of rank r and an offset c:
    E||t - A u - c||^2 + ridge * mean(diag(C)) * ||A - W||^2, C the covariance of u. Without the rank
    the minimiser is A* = W + (K - W C)(C + lambda I)^(-1), K = Cov(t, u); with it, A = U_r U_r^T A*, U
    the eigenvectors of A* (C + lambda I) A*^T, and c = E[t] - A E[u].

    Where nothing before the layer is compressed this is PCA of its output; candidates are computed
    there, from the original network.

    Args:
        regressor: "patch" fits all of A; "response" only an (outputs x outputs) map behind W, as the
            paper does: fewer unknowns, for very few calibration data.
        ridge: weight that holds A at W, relative to the mean variance of an input.
        metric: "identity", or "gradient" to weigh output errors by the second moment G of the loss's
            gradient, as in ``kfac``; the error is then that of a loss.
        damping: added to G, as a fraction of its mean diagonal.
    """

    summary: ClassVar[str] = "regress the original output on the compressed network's input, layer by layer"
    source: ClassVar[str] = "Zhang et al. 2015, 1505.06798, section 3.2.2 (asymmetric reconstruction)"
    sequential: ClassVar[bool] = True

    regressor: Literal["patch", "response"] = "patch"
    ridge: float = 1e-3
    metric: Literal["identity", "gradient"] = "identity"
    damping: float = 1.0

    def __post_init__(self) -> None:
        if self.regressor not in ("patch", "response"):
            raise ValueError(f"regressor={self.regressor!r} was given; allowed are 'patch' and 'response'.")
        if self.metric not in ("identity", "gradient"):
            raise ValueError(f"metric={self.metric!r} was given; allowed are 'identity' and 'gradient'.")
        if not (self.ridge >= 0 and self.damping >= 0):
            raise ValueError(
                f"ridge={self.ridge} and damping={self.damping} were given; neither may be negative."
            )

    @property
    def requires(self) -> frozenset[Statistic]:
        """Input moments, the target's cross moment with them, and the gradient's where it is the metric."""
        needed: set[Statistic] = {"input", "target"}
        return frozenset(needed | {"gradient"} if self.metric == "gradient" else needed)

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers whose matrices are too thin to gain."""
        return too_thin(layer)

    def _regression(self, layer: Layer, moment: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        """A* (G, o, d) and the second moment of A* u, ridge included, (G, o, o)."""
        weight = anchor = layer.matrix()
        if self.regressor == "response":
            moment, cross = weight @ moment @ weight.mT, cross @ weight.mT
            anchor = torch.eye(layer.geometry.rows, dtype=weight.dtype).expand_as(moment)
        fitted = anchored_regression(anchor, moment, cross, self.ridge)
        predicted = fitted @ damped(moment, self.ridge) @ fitted.mT
        return (fitted @ weight if self.regressor == "response" else fitted), predicted

    def _axes(self, predicted: Tensor, statistics: LayerStatistics) -> tuple[Tensor, Tensor]:
        metric = damped(statistics.gradient_moment, self.damping) if self.metric == "gradient" else None
        _, decoder, encoder = metric_axes(predicted, metric)
        return decoder, encoder

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is that of the layer alone, in the network it was calibrated in."""
        assert statistics is not None
        weight, moment = layer.matrix(), statistics.input_covariance
        _, predicted = self._regression(layer, moment, weight @ moment)
        response = weight @ moment @ weight.mT
        _, encoder = self._axes(predicted, statistics)
        values = (encoder @ response @ encoder.mT).diagonal(dim1=1, dim2=2).clamp_min(0.0)  # (G, o)
        unit: Unit = "output"
        if self.metric == "gradient":
            unit, values = "loss", values / 2
        return projection_candidates(layer, values, unit, True)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """The reduced-rank regression on the statistics of the network as compressed so far."""
        assert statistics is not None
        rank, input_mean, target_mean = int(choice["rank"]), statistics.input_mean, statistics.target_mean
        cross = statistics.cross_moment - target_mean[:, :, None] * input_mean[:, None, :]  # (G, o, d)
        fitted, predicted = self._regression(layer, statistics.input_covariance, cross)
        if rank == layer.geometry.columns < layer.geometry.rows:
            basis = torch.linalg.qr(fitted)[0]
            encoder = basis.mT @ fitted
        else:
            decoder, reader = self._axes(predicted, statistics)
            basis, triangle = torch.linalg.qr(decoder[:, :, :rank])  # well scaled whatever the metric
            encoder = triangle @ reader[:, :rank] @ fitted  # (G, r, d)
        bias = target_mean - (basis @ (encoder @ input_mean[:, :, None]))[:, :, 0]
        return build_two_factors(layer, basis, encoder, bias.flatten())
