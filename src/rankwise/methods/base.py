"""The contract of a method, its candidates, and the registry that names it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from rankwise.errors import UnknownNameError
from rankwise.methods.options import configured
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics
from rankwise.statistics.record import Statistic as Statistic

Unit = Literal["output", "weight", "operator", "loss"]
Choice = dict[str, Any]
T = TypeVar("T")


def is_rank(name: str) -> bool:
    """Whether the choice called ``name`` is a rank ("rank", "rank_in", "low_rank").

    All else of a choice but floats, which only tell of an option, is its structure.
    """
    return "rank" in name.split("_")


@dataclass(frozen=True, eq=False)
class Candidates:
    """All options of one layer under one method: arrays of one length, one entry per option.

    ``params`` and ``macs`` are exact costs of what ``build`` returns. ``error`` is in ``unit``:
    "output" expected squared error of the layer's output, summed over channels and over the output
    positions of one example; "weight" squared Frobenius error of the weight; "operator" relative
    operator norm; "loss" expected change of a loss. ``scale`` is the error, in the same unit, of
    replacing the layer by nothing (its bias or mean alone), so that ``error / scale`` is relative.
    ``choices`` holds what ``build`` needs to know, by name, one array per name. ``fitted`` says which
    errors were computed; the others are interpolated. None: all were.
    """

    params: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]
    choices: dict[str, npt.NDArray[Any]]
    unit: Unit
    scale: float = 1.0
    fitted: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.error)

    def choice(self, index: int) -> Choice:
        """Option ``index`` as plain Python values, as a plan stores it."""
        return {name: values[index].item() for name, values in self.choices.items()}


@dataclass(frozen=True)
class Method(ABC):
    """A way to approximate one layer: a frozen configuration with three functions.

    Subclasses are frozen dataclasses with JSON-able fields, registered by :func:`register`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    sequential: ClassVar[bool] = False
    """Whether ``build`` wants statistics of the network with all earlier layers already compressed."""

    @property
    def requires(self) -> frozenset[Statistic]:
        """The statistics that candidates and build read; empty for a weight-only method."""
        return frozenset()

    def supports(self, layer: Layer) -> str | None:
        """None where the method can treat ``layer``, otherwise the reason why not."""
        return None

    @abstractmethod
    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Every option for ``layer``; leaving it dense is added by the caller."""

    @abstractmethod
    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """The replacement in plain torch modules; ``layer.module`` is left as it is."""

    def config(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_registry: dict[str, type[Any]] = {}


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that makes a method known under ``name``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def enter(method: type[T]) -> type[T]:
        if _registry.get(name, method) is not method:
            raise ValueError(f"The method name {name!r} is taken by {_registry[name].__qualname__}.")
        method.name = name  # type: ignore[attr-defined] # T is any method class
        _registry[name] = method
        return method

    return enter


@cache
def _load_entry_points() -> None:
    for point in entry_points(group="rankwise.methods"):
        point.load()


def methods() -> dict[str, type[Any]]:
    """Every registered method by name, third parties' (entry-point group ``rankwise.methods``) included."""
    _load_entry_points()
    return dict(sorted(_registry.items()))


def get_method(name: str, **config: Any) -> Any:
    """The method called ``name`` with the configuration ``config``.

    Raises:
        UnknownNameError: no method has that name, or no option has one of the given names.
        OptionError: an option has a value that is not allowed.
    """
    known = methods()
    if name not in known:
        raise UnknownNameError("method", name, known)
    return configured(f"method {name!r}", known[name], config)


def parse_methods(text: str, options: dict[str, Any] | None = None) -> list[Any]:
    """The methods that ``text`` names, separated by commas, each with those of ``options`` that it has.

    Raises:
        UnknownNameError: an unknown method, or an option that none of them has.
        OptionError: an option has a value that is not allowed.
    """
    names = [name.strip() for name in text.split(",")]
    known = {name: {f.name for f in fields(type(get_method(name)))} for name in names}
    given = options or {}
    allowed = set().union(*known.values())
    for option in given:
        if option not in allowed:
            raise UnknownNameError(f"option of method {text!r}", option, allowed)
    return [get_method(name, **{k: v for k, v in given.items() if k in its}) for name, its in known.items()]
