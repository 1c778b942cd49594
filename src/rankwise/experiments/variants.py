"""The configurations that the compress-only benchmark compares: method, options and allocator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rankwise.allocation import Allocator, get_allocator
from rankwise.auto import Automatic
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.methods import get_method, methods, parse_methods
from rankwise.methods.options import configured

Role = Literal["default", "paper", "variant"]


@dataclass(frozen=True)
class Variant:
    """One row of the benchmark. ``role``: our default, the allocator of the paper, or a named variant.

    ``include`` are the layers that may change, empty means all; ``exclude`` those that must not.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    allocator: str = "knapsack"
    allocator_options: Mapping[str, Any] = field(default_factory=dict)
    role: Role = "default"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What identifies the configuration, JSON-able, options that were not given included."""
        return {
            "method": self.method,
            "options": _configured(get_method, self.method, self.options),
            "allocator": self.allocator,
            "allocator_options": _configured(get_allocator, self.allocator, self.allocator_options),
            **({"include": list(self.include)} if self.include else {}),
            **({"exclude": list(self.exclude)} if self.exclude else {}),
        }

    def built_allocator(self) -> Allocator:
        """The allocator with its options."""
        return get_allocator(self.allocator, **self.allocator_options)

    @property
    def label(self) -> str:
        """For tables: ``method option=value / allocator``, and the layers where not all are meant."""
        parts = [_named(self.method, self.options), _named(self.allocator, self.allocator_options)]
        return " / ".join([*parts, ",".join(self.include)] if self.include else parts)


def methods_of(name: str, options: Mapping[str, Any]) -> str | list[Any]:
    """What :func:`rankwise.compress` takes as ``method``: the recipe's name, or the methods it names.

    Raises:
        RankwiseError: options for a recipe, which takes none.
        UnknownNameError: an unknown method or option.
        OptionError: an option has a value that is not allowed.
    """
    if name == Automatic.name:
        return [configured("method 'auto'", Automatic, options)]
    if "+" not in name:
        names = [one.strip() for one in name.split(",")]
        if Automatic.name in names:
            raise RankwiseError(f"{name!r} was given; 'auto' itself brings the methods that compete.")
        known = methods()
        for one in names:
            if one not in known:
                raise UnknownNameError("method", one, [*known, Automatic.name])
        return parse_methods(name, dict(options))
    if options:
        raise RankwiseError(f"The recipe {name!r} takes no method options; give them to single methods.")
    return name


def _configured(get: Callable[..., Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of what is called ``name``; those given alone where it is not ours."""
    if name == Automatic.name:
        return Automatic(**options).config()
    try:
        return dict(get(name, **options).config())
    except UnknownNameError:
        return dict(options)


def _named(name: str, options: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def _paper(method: str, allocator: str, **options: Any) -> Variant:
    return Variant(method, options, allocator, role="paper")


def _variant(method: str, allocator: str = "knapsack", **options: Any) -> Variant:
    return Variant(method, options, allocator, role="variant")


INNER = ("layer?.*.conv1",)
"""The channels inside the blocks of a CIFAR ResNet, where some published codes stop."""

STRIDE_1 = ("conv1", "layer1.*", "layer?.[12].*", "layer?.0.conv2")
"""The convolutions of ResNet-20 without stride: those that pca-compress treats."""

NAMED: tuple[Variant, ...] = (
    _variant("auto", effort="thorough"),
    _paper("svd", "uniform"),
    _paper("svd", "energy"),
    _paper("svd", "lrank"),
    _variant("svd", batchnorm=True),
    _variant("svd", folding="all"),
    _variant("svd", metric="input"),
    _variant("svd", metric="input", folding="all"),
    _variant("svd", metric="two_sided"),
    _variant("spatial_svd", metric="input"),
    _paper("alds", "minimax", metric="identity"),
    _paper("alds", "minimax", metric="identity", folding="channel"),
    _variant("alds", "minimax"),
    _variant("alds", "minimax", metric="identity", bound="theorem"),
    _variant("alds", "minimax", metric="identity", bound="operator"),
    _variant("alds", metric="identity", bound="energy"),
    _variant("alds", metric="two_sided"),
    _paper("whitened", "energy"),
    _paper("pca", "uniform"),
    Variant("pca", {}, "uniform", role="paper", include=STRIDE_1),
    _paper("pca", "energy"),
    _paper("pca", "energy_product"),
    _variant("pca", centred=False),
    _variant("pca", side="input"),
    _paper("asymmetric", "energy_product"),
    _variant("asymmetric", metric="gradient"),
    _variant("asymmetric", regressor="response"),
    _paper("relu_aware", "energy_product"),
    _variant("kfac", centred=False),
    _paper("hessian", "uniform"),
    _variant("hessian", loss="kl"),
    _variant("hessian", estimate="sampled"),
    _paper("tucker2", "uniform"),
    _variant("tucker2", metric="input"),
    _variant("tucker2", metric="two_sided"),
    _paper("cp", "uniform", factors=4),
    _variant("cp", "uniform"),
    _variant("cp", factors=4),
    _variant("cp", metric="input"),
    _variant("cp", metric="two_sided"),
    Variant(
        "interpolative",
        {"selector": "cholesky", "refit": "once", "ridge": 0.0, "intercept": False},
        "iterative",
        {"published": True},
        "paper",
    ),
    _variant("interpolative", "iterative", selector="cholesky", refit="once"),
    _paper("interpolative", "uniform", selector="cholesky", refit="once"),
    Variant(
        "interpolative", {"selector": "cholesky", "refit": "once"}, "uniform", role="paper", include=INNER
    ),
    Variant("l2", {}, "uniform", role="paper", include=INNER),
    _variant("interpolative", "iterative"),
    _variant("interpolative", selector="cholesky"),
    *(
        variant
        for name in ("l1", "l2", "bn_scale", "random", "thinet", "pfp")
        for variant in (_paper(name, "uniform"), _variant(name, "uniform", reconstruct=True))
    ),
)
"""Variants beside the default of every registered method, which the benchmark always has."""

_ORDER: tuple[Role, ...] = ("default", "paper", "variant")


def variants(
    names: Sequence[str] | None = None,
    roles: Iterable[str] = _ORDER,
    allocators: Iterable[str] | None = None,
) -> list[Variant]:
    """The variants of the methods ``names`` (by default all registered ones, not "auto"), defaults first.

    Args:
        names: methods.
        roles: which of "default", "paper" and "variant".
        allocators: those that exist; named variants with another one are left out. None: no check.

    Raises:
        UnknownNameError: a name is not registered.
    """
    known = [*methods(), Automatic.name]
    for name in names or ():
        if name not in known:
            raise UnknownNameError("method", name, known)
    chosen = list(methods()) if names is None else list(dict.fromkeys(names))
    wanted = set(roles)
    table = [*(Variant(name) for name in chosen), *(v for v in NAMED if v.method in chosen)]
    usable = None if allocators is None else set(allocators)
    return sorted(
        (v for v in table if v.role in wanted and (usable is None or v.allocator in usable)),
        key=lambda v: _ORDER.index(v.role),
    )
