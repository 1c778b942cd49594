"""Hessian projections: keep the output directions whose removal hurts the network's own output most."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.low_rank import too_thin
from rankwise.methods.projection import build_projection, projection_candidates
from rankwise.network.layer import Layer
from rankwise.statistics.curvature import Curvature, Estimate, OutputLoss
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor


@register("hessian")
@dataclass(frozen=True)
class Hessian(Method):
    """y' = m + U_r U_r^T (y - m), U the eigenvectors of H, p^T H p the loss when direction p is removed.

    H is estimated on the running network (:class:`rankwise.statistics.curvature.Curvature`) and is
    projected onto the positive semidefinite matrices: negative eigenvalues are noise, and their
    directions go first. The error adds up single directions, as if their effects were independent.

    Args:
        estimate: "averaged", or "local" (double backward pass along random directions: the same
            expectation, more noise, any loss), or "sampled" (losses of random projections).
            Experiments: "gradient", the first-order change of the labelled loss.
        loss: "mse" on the model's outputs, "kl" (symmetric), or, not for "averaged", a function
            ``loss(old, new)`` of one number per example. Not used by "gradient".
        rounds: random draws per example.
        order: "signed" keeps the largest eigenvalues. Experiment: "absolute" keeps the largest in size.
        seed: of the draws.
    """

    summary: ClassVar[str] = "keep the directions whose removal changes the network's output most"
    source: ClassVar[str] = "pca-compress (Nichol 2020), hessapprox.py, solved by least squares"

    estimate: Estimate = "averaged"
    loss: OutputLoss = "mse"
    rounds: int = 4
    order: Literal["signed", "absolute"] = "signed"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimate not in get_args(Estimate):
            allowed = ", ".join(map(repr, get_args(Estimate)))
            raise ValueError(f"estimate={self.estimate!r} was given; allowed are {allowed}.")
        if callable(self.loss) and self.estimate == "averaged":
            raise ValueError(
                "loss=a function was given; estimate='averaged' takes 'mse' or 'kl', 'local' any."
            )
        if not callable(self.loss) and self.loss not in ("mse", "kl"):
            raise ValueError(f"loss={self.loss!r} was given; allowed are 'mse', 'kl' and functions.")
        if self.order not in ("signed", "absolute"):
            raise ValueError(f"order={self.order!r} was given; allowed are 'signed' and 'absolute'.")
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} was given; it must be at least 1.")

    @property
    def requires(self) -> frozenset[Statistic]:
        """The output's mean and the curvature."""
        return frozenset({"output", "curvature"})

    @property
    def curvature(self) -> Curvature:
        """How the statistic "curvature" is to be estimated."""
        return Curvature(self.estimate, self.loss, self.rounds, self.seed)

    def config(self) -> dict[str, Any]:
        """The configuration as JSON-able values; a function is given by its name."""
        return super().config() | {"loss": getattr(self.loss, "__qualname__", self.loss)}

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers whose matrices are too thin to gain."""
        return too_thin(layer)

    def _axes(self, statistics: LayerStatistics) -> tuple[Tensor, Tensor]:
        """Loss of each direction (G, o), not negative and descending, and the directions (G, o, o)."""
        values, vectors = torch.linalg.eigh(statistics.curvature)
        key = values.abs() if self.order == "absolute" else values
        order = key.argsort(dim=1, descending=True, stable=True)
        kept = key.gather(1, order).clamp_min(0.0)
        return kept, vectors.gather(2, order[:, None, :].expand_as(vectors))

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is the summed loss of the directions left out, for one example."""
        assert statistics is not None
        values, _ = self._axes(statistics)
        return projection_candidates(layer, values / max(layer.positions, 1), "loss", True)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Encoder U_r^T W, decoder U_r; the bias keeps the mean."""
        assert statistics is not None
        basis = self._axes(statistics)[1][:, :, : int(choice["rank"])]
        return build_projection(layer, basis, basis.mT, statistics.output_mean)
