"""What the whole model may keep."""

from dataclasses import dataclass, fields

from rankwise.errors import BudgetError
from rankwise.network.cost import Cost


@dataclass(frozen=True)
class Budget:
    """What may be kept of the original whole model, in one or several measures at once.

    A float in (0, 1] is the fraction KEPT; an integer above 1 is an absolute number. ``params``
    counts all parameters, ``macs`` the multiply-accumulates of one example, ``bytes`` the stored
    state.

    Example:
        >>> Budget(params=0.5, macs=2_000_000)
        Budget(params=0.5, macs=2000000, bytes=None)
    """

    params: float | int | None = None
    macs: float | int | None = None
    bytes: float | int | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if all(value is None for value in given.values()):
            raise BudgetError(f"An empty budget was given; set at least one of {', '.join(given)}.")
        for name, value in given.items():
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            absolute = number and float(value).is_integer() and value > 1
            if not (absolute or (number and 0 < value <= 1)):
                raise BudgetError(
                    f"Budget {name}={value!r} was given; allowed is the fraction kept, in (0, 1], "
                    "or an absolute whole number above 1."
                )

    def limits(self, original: Cost) -> dict[str, int]:
        """The absolute limits for a model of cost ``original``, rounded down."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: int(value * getattr(original, name)) if value <= 1 else int(value)
            for name, value in given.items()
            if value is not None
        }

    def as_dict(self) -> dict[str, float | int]:
        """What was set, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget from text such as ``"params=0.5,macs=0.6"``.

        Raises:
            BudgetError: the text is malformed or names an unknown measure.
        """
        allowed = [f.name for f in fields(cls)]
        values: dict[str, float | int] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in allowed or name in values:
                raise BudgetError(
                    f"Budget {text!r} was given, and {part.strip()!r} of it is not understood; allowed is "
                    f"NAME=VALUE[,NAME=VALUE] with each NAME once out of {', '.join(allowed)}."
                )
            try:
                values[name] = int(value) if value.isdigit() and int(value) > 1 else float(value)
            except ValueError as error:
                raise BudgetError(f"Budget {name}={value!r} was given; a number is needed.") from error
        return cls(**values)
