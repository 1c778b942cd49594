"""Finished work on disk: found again, also after an interruption in the middle of a line."""

from pathlib import Path

from rankwise.experiments.journal import Journal, content_key


def test_records_are_found_again_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(path)
    journal.add("a", {"value": 1})
    journal.add("b", {"value": 2})
    journal.add("a", {"value": 3})
    again = Journal(path)
    assert again.get("a") == {"key": "a", "value": 3} and again.get("c") is None
    assert [record["key"] for record in again.records()] == ["a", "b"]


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add("a", {"value": 1})
    path.write_text(path.read_text() + '{"key": "b", "va')
    journal = Journal(path)
    assert journal.get("b") is None
    journal.add("c", {"value": 3})
    assert [record["key"] for record in Journal(path).records()] == ["a", "c"]


def test_keys_follow_the_content_and_not_its_order() -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
