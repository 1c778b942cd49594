import re

import pytest

from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.network.names import as_patterns, filter_names, matches

NAMES = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "fc"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv1", ["conv1"]),
        ("*conv1", ["conv1", "layer1.0.conv1", "layer2.0.conv1"]),
        ("layer1.*", ["layer1.0.conv1", "layer1.0.conv2"]),
        ("layer?.0.conv[1]", ["layer1.0.conv1", "layer2.0.conv1"]),
        (r"re:layer\d\.0\.conv1", ["layer1.0.conv1", "layer2.0.conv1"]),
        ("re:conv", []),
        (re.compile("f.|conv1"), ["conv1", "fc"]),
        (["fc", "conv1"], ["conv1", "fc"]),
        (None, []),
    ],
)
def test_matches(pattern: object, expected: list[str]) -> None:
    assert [name for name in NAMES if matches(name, pattern)] == expected  # type: ignore[arg-type]


def test_exclude_wins_over_include() -> None:
    left_out = filter_names(NAMES, include="layer1.*", exclude=["*conv2"])
    assert set(NAMES) - set(left_out) == {"layer1.0.conv1"}
    assert left_out["layer1.0.conv2"] == "excluded by name"
    assert left_out["fc"] == "not among the included names"


def test_no_patterns_take_all() -> None:
    assert filter_names(NAMES) == {}
    assert as_patterns(None) == ()


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"layr1.*Did you mean"):
        filter_names(NAMES, exclude="layr1.0.conv1")
    with pytest.raises(UnknownNameError, match="nothing_like_it"):
        filter_names(NAMES, include=["fc", "nothing_like_it*"])


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(RankwiseError, match=r"re:\(.*not a regular expression"):
        filter_names(NAMES, include="re:(")
