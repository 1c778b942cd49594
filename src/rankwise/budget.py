"""What the whole model may keep."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rankwise.errors import BudgetError, UnknownNameError
from rankwise.latency import Target
from rankwise.latency.target import Runtime
from rankwise.network.cost import Cost

COUNTED = ("params", "macs", "bytes")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Budget:
    """What may be kept of the original whole model, in one or several measures at once.

    A float in (0, 1] is the fraction KEPT; an integer above 1 is an absolute number. ``params``
    counts all parameters, ``macs`` the multiply-accumulates of one example, ``bytes`` the stored
    state. ``latency`` is time: a number in (0, 1] the fraction of the original's, a number above 1
    milliseconds for one batch, text with a unit ("0.8ms", "350us", "1.5s") that time. It is measured on
    the target that the other fields name (see :class:`rankwise.latency.Target`); they mean nothing
    without ``latency``.

    Example:
        >>> Budget(params=0.5, macs=2_000_000)
        Budget(params=0.5, macs=2000000)
        >>> Budget(latency=0.6, batch_size=32)
        Budget(latency=0.6, device='cpu', batch_size=32, threads=1, runtime='torch')
    """

    params: float | int | None = None
    macs: float | int | None = None
    bytes: float | int | None = None
    latency: float | str | None = None
    device: str = "cpu"
    batch_size: int = 1
    threads: int = 1
    runtime: Runtime = "torch"
    dtype: str | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in (*COUNTED, "latency")}
        if all(value is None for value in given.values()):
            raise BudgetError(f"An empty budget was given; set at least one of {', '.join(given)}.")
        for name in COUNTED:
            value = given[name]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            absolute = number and float(value).is_integer() and value > 1
            if value is not None and not (absolute or (number and 0 < value <= 1)):
                raise BudgetError(
                    f"Budget {name}={value!r} was given; allowed is the fraction kept, in (0, 1], "
                    "or an absolute whole number above 1."
                )
        if self.latency is None:
            self._check_no_target()
        else:
            self.share(1.0)
            self.target  # noqa: B018 - checks it

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def _check_no_target(self) -> None:
        for f in fields(self):
            if f.name not in (*COUNTED, "latency") and getattr(self, f.name) != f.default:
                raise BudgetError(
                    f"Budget {f.name}={getattr(self, f.name)!r} was given without a latency; it says where "
                    "latency is measured."
                )

    @property
    def target(self) -> Target:
        """Where ``latency`` is measured."""
        return Target(self.device, self.batch_size, self.threads, self.runtime, self.dtype)

    def share(self, seconds: float) -> float:
        """The asked share of the time of an original that takes ``seconds``; above 1 it is met already.

        Raises:
            BudgetError: ``latency`` is not understood.
        """
        value = self.latency
        if isinstance(value, str):
            found = re.fullmatch(r"\s*(\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(us|ms|s)\s*", value)
            wanted = float(found[1]) * _UNITS[found[2]] if found else 0.0
            if 0 < wanted < float("inf"):
                return wanted / seconds
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"):
            return value if value <= 1 else value / 1e3 / seconds
        raise BudgetError(
            f"Budget latency={value!r} was given; allowed is the fraction kept, in (0, 1], a number of "
            "milliseconds above 1, or a time with its unit, such as '0.8ms', '350us' or '1.5s'."
        )

    def limits(self, original: Cost) -> dict[str, int]:
        """The absolute limits for a model of cost ``original``, rounded down; of latency in nanoseconds."""
        given = {name: value for name in COUNTED if (value := getattr(self, name)) is not None}
        found = {
            name: int(value * getattr(original, name)) if value <= 1 else int(value)
            for name, value in given.items()
        }
        if self.latency is not None:
            found["latency"] = int(min(1.0, self.share(original.latency / 1e9)) * original.latency)
        return found

    def as_dict(self) -> dict[str, Any]:
        """What was set, by name; with a latency also where it is measured."""
        given = {name: getattr(self, name) for name in (*COUNTED, "latency")}
        found = {name: value for name, value in given.items() if value is not None}
        return found if self.latency is None else {**found, **self.target.as_dict()}

    @classmethod
    def of(cls, kept: Mapping[str, float | int]) -> "Budget":
        """A budget of counted measures by name."""
        for name in kept:
            if name not in COUNTED:
                raise UnknownNameError("budget", name, COUNTED)
        return cls(params=kept.get("params"), macs=kept.get("macs"), bytes=kept.get("bytes"))

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget from text such as ``"params=0.5,macs=0.6"`` or ``"latency=0.6,batch_size=32"``.

        Raises:
            BudgetError: the text is malformed or names an unknown measure.
        """
        allowed = [f.name for f in fields(cls)]
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in allowed or name in values:
                raise BudgetError(
                    f"Budget {text!r} was given, and {part.strip()!r} of it is not understood; allowed is "
                    f"NAME=VALUE[,NAME=VALUE] with each NAME once out of {', '.join(allowed)}."
                )
            values[name] = _value(name, value)
        return cls(**values)


def _value(name: str, text: str) -> Any:
    """The value of one part of a budget given as text."""
    if name in ("device", "runtime", "dtype") or (name == "latency" and text.endswith("s")):
        return text
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        unit = ", or a time with its unit, such as 0.8ms" if name == "latency" else ""
        raise BudgetError(f"Budget {name}={text!r} was given; allowed is a number{unit}.") from error
