from pathlib import Path

import pytest

from rankwise.latency import Store
from rankwise.latency.store import cache_folder

KEY = {"device": "cpu", "batch_size": 1}


def test_times_come_back_and_two_writers_do_not_lose_each_other(tmp_path: Path) -> None:
    first, second = Store(KEY, tmp_path), Store(KEY, tmp_path)
    first.add({"a": 0.25})
    second.add({"b": 0.5})
    again = Store(KEY, tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (0.25, 0.5, None)
    assert Store({**KEY, "batch_size": 2}, tmp_path).get("a") is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": "other"}', '{"seconds": {"a": 1}}', b"\xff\xfe"]
)
def test_a_broken_file_counts_as_empty_and_is_replaced(tmp_path: Path, content: str | bytes) -> None:
    store = Store(KEY, tmp_path)
    store.path.write_bytes(content if isinstance(content, bytes) else content.encode())
    store = Store(KEY, tmp_path)
    assert store.get("a") is None
    store.add({"a": 0.5})
    assert Store(KEY, tmp_path).get("a") == 0.5


def test_senseless_times_are_not_believed(tmp_path: Path) -> None:
    store = Store(KEY, tmp_path)
    store.add({"a": -1.0, "b": 0.0, "c": 2.0})
    again = Store(KEY, tmp_path)
    assert [again.get(name) for name in "abc"] == [None, None, 2.0]


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = Store(KEY, blocked / "folder")
    store.add({"a": 0.5})
    assert store.get("a") == 0.5


def test_the_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rankwise" / "latency"
