"""Ways to approximate one layer or one channel group."""

from rankwise.methods import (  # noqa: F401 (registers them)
    alds,
    asymmetric,
    cp,
    diagonal,
    hessian,
    kfac,
    pca,
    relu_aware,
    selection,
    spatial_svd,
    svd,
    tucker2,
    whitened,
)
from rankwise.methods.base import (
    Candidates,
    Choice,
    Method,
    Statistic,
    Unit,
    get_method,
    methods,
    parse_methods,
    register,
)

__all__ = [
    "Candidates",
    "Choice",
    "Method",
    "Statistic",
    "Unit",
    "get_method",
    "methods",
    "parse_methods",
    "register",
]
