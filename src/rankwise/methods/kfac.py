"""Kronecker-factored projection: the low-rank layer with the least second-order change of a loss."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from rankwise.linalg.metric import damped, metric_axes
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.low_rank import too_thin
from rankwise.methods.projection import build_projection, linear_moment, projection_candidates
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor


@register("kfac")
@dataclass(frozen=True)
class KFAC(Method):
    """argmin over rank-r matrices A of tr(G (W - A) M (W - A)^T): errors weighed at both ends.

    M = E[u u^T] is the second moment of the input patches and G = E[g g^T] that of the gradient g of
    the loss with respect to the output; 1/2 G (x) M is the Kronecker-factored approximation of the
    loss's curvature. With U the eigenvectors of G^(1/2) (W M W^T) G^(1/2) the minimiser is
    A = G^(-1/2) U_r U_r^T G^(1/2) W: W M W^T is the second moment of the output, so that M itself is
    never formed or inverted.

    Args:
        centred: use the covariance of the output and keep its mean in the bias.
        damping: added to G, as a fraction of its mean diagonal, so that directions in which the
            gradients seen in calibration vanish still count a little.
        labels: whose loss: "sampled" draws labels from the model's own predictions (the Fisher information,
            no labels needed), "targets" takes those of the calibration batches (the empirical Fisher).
    """

    summary: ClassVar[str] = "least second-order loss change: input moment and output-gradient moment"
    source: ClassVar[str] = "K-FAC, Martens and Grosse 2015, 1503.05671; two-sided whitened SVD"

    centred: bool = True
    damping: float = 1.0
    labels: Literal["sampled", "targets"] = "sampled"

    def __post_init__(self) -> None:
        if self.labels not in ("sampled", "targets"):
            raise ValueError(f"labels={self.labels!r} was given; allowed are 'sampled' and 'targets'.")
        if not self.damping >= 0:
            raise ValueError(f"damping={self.damping} was given; it must not be negative.")

    @property
    def requires(self) -> frozenset[Statistic]:
        """Output mean and second moment, second moment of the output's gradient."""
        return frozenset({"output", "gradient"})

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers whose matrices are too thin to gain."""
        return too_thin(layer)

    def _axes(self, layer: Layer, statistics: LayerStatistics) -> tuple[Tensor, Tensor, Tensor]:
        if self.centred:
            moment = statistics.output_covariance
        else:
            moment = linear_moment(layer, statistics.output_mean, statistics.output_moment)
        return metric_axes(moment, damped(statistics.gradient_moment, self.damping))

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is 1/2 tr(G E[(y - y')(y - y')^T]) over the positions of one example."""
        assert statistics is not None
        values = self._axes(layer, statistics)[0]
        return projection_candidates(layer, values / 2, "loss", self.centred or layer.bias() is not None)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """The projection with the least error in the metric, folded into W."""
        assert statistics is not None
        _, decoder, encoder = self._axes(layer, statistics)
        rank = int(choice["rank"])
        mean = statistics.output_mean if self.centred else None
        return build_projection(layer, decoder[:, :, :rank], encoder[:, :rank], mean)
