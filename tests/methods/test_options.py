"""Options by name: what does not fit a field is told, what fits is taken as it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from rankwise.allocation import get_allocator
from rankwise.errors import OptionError, RankwiseError, UnknownNameError
from rankwise.methods import get_method
from rankwise.methods.options import configured


@dataclass(frozen=True)
class Options:
    """One field of every kind."""

    count: int = 1
    share: float | None = None
    switch: bool = False
    name: str = "a"
    side: Literal["left", "right", 3] = "left"
    several: tuple[float, ...] = ()
    loss: Literal["mse"] | Callable[[Any], Any] = "mse"
    other: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count={self.count}")


@pytest.mark.parametrize(
    "fitting",
    [
        {"count": np.int64(3)},
        {"share": 1},
        {"share": np.float32(0.5)},
        {"share": None},
        {"side": 3},
        {"several": [1, 0.5]},
        {"several": (2.0,)},
        {"loss": abs},
        {"loss": "mse"},
        {"other": "anything"},
    ],
)
def test_what_fits_is_taken(fitting: dict[str, Any]) -> None:
    assert configured("a test", Options, fitting) == Options(**fitting)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 1.5}, "count=1.5 was given as option of a test; allowed: a whole number."),
        ({"count": True}, "a whole number"),
        ({"share": "x"}, "a number, null"),
        ({"switch": "maybe"}, "true, false"),
        ({"switch": 1}, "true, false"),
        ({"name": 3}, "a name"),
        ({"side": "up"}, "'left', 'right', 3"),
        ({"several": [1, "x"]}, "each is a number"),
        ({"loss": "foo"}, "'mse', a function"),
        ({"count": -1}, "Options of a test: count=-1"),
    ],
)
def test_what_does_not_fit_is_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        configured("a test", Options, wrong)
    assert isinstance(raised.value, RankwiseError) and isinstance(raised.value, ValueError)


def test_names_are_checked_first() -> None:
    with pytest.raises(UnknownNameError, match=r"option of a test 'cound'\. Did you mean 'count'"):
        configured("a test", Options, {"cound": "x"})
    assert get_method("pca", centred=False).config()["centred"] is False
    with pytest.raises(OptionError):
        get_method("pca", centred="maybe")
    with pytest.raises(OptionError):
        get_allocator("knapsack", gap="x")
