"""Results are read as they lie on disk; what cannot be read is named and counted."""

from pathlib import Path

import pytest

from rankwise.errors import FileFormatError
from rankwise.report.trials import number, read_results, result_files, text
from tests.report.synthetic import write_json, write_results


def test_folders_copied_together_are_one_result(tmp_path: Path) -> None:
    write_results(tmp_path / "a", ["svd"], [0.5], 2)
    write_results(tmp_path / "b", ["pca"], [0.5, 0.8], 1)
    found = read_results(tmp_path)
    assert len(found.trials) == 4 and len(found.experiments) == 2 and found.unreadable == ()
    assert [trial.metrics["method"] for trial in found.trials] == ["svd", "svd", "pca", "pca"]
    assert len(list(result_files(tmp_path))) == 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "not a JSON object"),
        ('{"format": "other"}', "'other'"),
        ('{"version": 7, "failed": "x"}', "version is 7"),
        ('{"model": "m"}', "neither 'compressed' nor 'failed'"),
        ("[" * 100_000, "RecursionError"),
        ("\udcff", "Decode"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    bad = tmp_path / "trials" / "bad" / "metrics.json"
    bad.parent.mkdir()
    bad.write_bytes(content.encode(errors="surrogateescape"))
    found = read_results(tmp_path)
    assert len(found.trials) == 1
    ((path, why),) = found.unreadable
    assert path == bad and reason in why


def test_a_trial_without_metrics_is_unfinished_and_hidden_folders_are_not_read(tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    write_json(tmp_path / "trials" / "next" / "config.json", {})
    write_json(tmp_path / "trials" / ".part" / "metrics.json", {})
    found = read_results(tmp_path)
    assert found.unfinished == 1 and found.unreadable == ()


def test_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match=r"holds no metrics\.json"):
        read_results(tmp_path)


def test_texts_and_numbers_of_anything() -> None:
    assert text({"rank": 3, "side": None, "axes": [1, 2]}) == "rank=3, axes=1, 2"
    assert [text(value) for value in (None, {}, [], True, 0.5, "a")] == ["", "", "", "yes", "0.5", "a"]
    assert len(text("x" * 10_000)) < 5000
    assert [number(value) for value in (1, 0.5, True, "1", None, float("nan"))] == [1, 0.5] + [None] * 4
