"""What the tensor methods share: a layer's kernel and metrics as a tensor problem, one per group."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.methods.metric import Metric, gradient_metric
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics


@dataclass(frozen=True, eq=False)
class TensorProblem:
    """Minimise ``tr(G D M D')`` over approximations of ``tensor``, D the difference as a matrix.

    ``tensor`` is ``(out / groups, in / groups, *axes)``; ``input_metric`` M is ``(columns, columns)`` and
    ``output_metric`` G ``(out / groups, out / groups)``, None where they are the identity.
    """

    tensor: Tensor
    input_metric: Tensor | None
    output_metric: Tensor | None


def tensor_problems(
    layer: Layer, statistics: LayerStatistics | None, metric: Metric, centred: bool, axes: tuple[int, ...]
) -> list[TensorProblem]:
    """One problem per group.

    Args:
        layer: a convolution.
        statistics: what the metric reads.
        metric: "identity" has no metric, "input" M, "two_sided" M and G.
        centred: M is the covariance of the input patches instead of their second moment.
        axes: sizes of the tensor's kernel modes, their product being the kernel's elements.
    """
    geometry = layer.geometry
    matrices = layer.matrix()  # (G, o, d)
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    if metric != "identity":
        assert statistics is not None
        inputs = statistics.input_covariance if centred else statistics.input_moment
    if metric == "two_sided":
        assert statistics is not None
        outputs = gradient_metric(statistics)
    return [
        TensorProblem(
            matrices[group].reshape(geometry.rows, -1, *axes),
            None if inputs is None else inputs[group],
            None if outputs is None else outputs[group],
        )
        for group in range(geometry.groups)
    ]


def mean_keeping_bias(
    layer: Layer, statistics: LayerStatistics | None, approximation: Tensor, centred: bool
) -> Tensor | None:
    """The bias of the replacement: where ``centred``, the one that keeps the mean output exactly.

    Args:
        layer: the layer that is replaced.
        statistics: with the mean input patch where ``centred``.
        approximation: of ``layer.matrix()``, ``(groups, rows, columns)``.
        centred: whether errors are measured about the mean.
    """
    bias = layer.bias()
    if not centred:
        return bias
    assert statistics is not None
    lost = ((layer.matrix() - approximation) @ statistics.input_mean[:, :, None]).flatten()
    return lost if bias is None else bias + lost


def stacked(blocks: list[Tensor]) -> Tensor:
    """Blocks of the groups along dimension 0, which is how grouped convolutions store them."""
    return torch.cat(blocks, dim=0)
