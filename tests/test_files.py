import json
from math import inf, nan

import pytest

from rankwise.files import json_text


def test_what_json_lacks_becomes_null_at_every_depth() -> None:
    content = {"loss": inf, "list": [1.5, -inf, (nan, 2)], "text": "inf", "none": None, "flag": True}
    text = json_text(content)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert found == {"loss": None, "list": [1.5, None, [None, 2]], "text": "inf", "none": None, "flag": True}
    assert text.endswith("}\n")
    assert content["loss"] == inf


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        json_text({"value": object()})
