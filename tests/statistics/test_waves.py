import pytest

from rankwise.errors import CalibrationError
from rankwise.statistics.waves import in_waves


def test_waves_are_in_order_and_within_the_limit() -> None:
    needed = {"a": 4, "b": 5, "c": 3, "d": 9}
    assert in_waves(needed, None) == [["a", "b", "c", "d"]]
    assert in_waves(needed, 9) == [["a", "b"], ["c"], ["d"]]
    with pytest.raises(CalibrationError, match="'d' take up to 9 bytes, max_memory=8"):
        in_waves(needed, 8)
