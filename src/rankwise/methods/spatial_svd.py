"""Spatial SVD: a k1 x k2 convolution as one along one axis, then one along the other."""

from dataclasses import dataclass
from typing import ClassVar

from rankwise.methods.base import register
from rankwise.methods.svd import SVD


@register("spatial_svd")
@dataclass(frozen=True)
class SpatialSVD(SVD):
    """:class:`rankwise.methods.svd.SVD` in the foldings that give both factors spatial axes, in both orders.

    A name of its own for ``svd`` with ``folding="spatial"``; ``folding="axis0"`` or "axis1" fixes the order.
    """

    summary: ClassVar[str] = "a k1 x 1 and a 1 x k2 convolution in either order; no data"
    source: ClassVar[str] = "Jaderberg et al. 2014, 1405.3866, scheme 2; AIMET"

    folding: str = "spatial"
