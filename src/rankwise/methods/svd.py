"""SVD of the weights in any folding: the closest low-rank kernel, to weights or data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from rankwise.linalg.lowrank import tail_sums
from rankwise.linalg.metric import metric_axes
from rankwise.methods.base import Choice, Statistic, register
from rankwise.methods.folded import Floats, Folded
from rankwise.methods.foldings import Folding, chosen_foldings
from rankwise.methods.metric import gradient_metric, metric_factor, metric_statistics
from rankwise.methods.projection import build_projection, linear_moment
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics


@register("svd")
@dataclass(frozen=True)
class SVD(Folded):
    """Truncated SVD of the folded kernel (Eckart and Young 1936), one per group, as two layers.

    Options: see :class:`rankwise.methods.folded.Folded`. The error for metric="identity" is the squared
    Frobenius norm of what is cut off. In the folding "channel" the other metrics are solved exactly
    through the second moment of the output, as :class:`rankwise.methods.whitened.Whitened` does; in the
    others the encoder comes from the averaged input moment, and the decoder is then fitted.
    """

    summary: ClassVar[str] = "truncated SVD of the weights, in any folding, by energy, error or ratio"
    source: ClassVar[str] = "Eckart and Young 1936; Denton et al. 2014"

    @property
    def requires(self) -> frozenset[Statistic]:
        """What the metric reads; nothing for "identity"."""
        return metric_statistics(self.metric, "output" if self._through_output else "input")

    @property
    def _through_output(self) -> bool:
        return self.folding == "channel" and self.metric != "identity"

    def offered(self, layer: Layer) -> list[tuple[Folding, int]]:
        """The chosen foldings, unsliced."""
        return [(folding, 1) for folding in chosen_foldings(layer.geometry, self.folding)]

    def _axes(self, layer: Layer, statistics: LayerStatistics | None) -> tuple[Tensor, Tensor, Tensor]:
        """Error of each direction at one position, decoder and encoder of the projection."""
        assert statistics is not None
        moment = linear_moment(layer, statistics.output_mean, statistics.output_moment)
        return metric_axes(moment, gradient_metric(statistics) if self.metric == "two_sided" else None)

    def _curves(
        self, layer: Layer, statistics: LayerStatistics | None
    ) -> Iterator[tuple[Folding, int, Floats, float]]:
        if not self._through_output:
            yield from super()._curves(layer, statistics)
            return
        full = min(layer.geometry.rows, layer.geometry.columns)
        error = tail_sums(self._axes(layer, statistics)[0]).sum(0) * metric_factor(self.metric, layer)
        error[full:] = 0.0
        (folding,) = chosen_foldings(layer.geometry, "channel")
        yield folding, 1, error[1 : full + 1].numpy(), float(error[0])

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Encoder and decoder in the layer's own geometry; the decoder has the bias."""
        if not self._through_output:
            return super().build(layer, statistics, choice)
        _, decoder, encoder = self._axes(layer, statistics)
        rank = int(choice["rank"])
        return build_projection(layer, decoder[:, :, :rank], encoder[:, :rank], None)
