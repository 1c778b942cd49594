"""Results are read as they lie on disk; what cannot be read is named and counted."""

from pathlib import Path

import pytest

from rankwise.errors import FileFormatError
from rankwise.report.trials import number, read_study, text
from tests.report.synthetic import write_json, write_results


def test_folders_copied_together_are_one_study(tmp_path: Path) -> None:
    write_results(tmp_path / "a", ["svd"], [0.5], 2)
    write_results(tmp_path / "b", ["pca"], [0.5, 0.8], 1)
    found = read_study(tmp_path)
    assert len(found.trials) == 4 and len(found.experiments) == 2 and found.unreadable == ()
    assert [trial.metrics["method"] for trial in found.trials] == ["svd", "svd", "pca", "pca"]


def test_one_metrics_file_is_a_study(tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5], 2)
    found = read_study(tmp_path / "trials" / "0001" / "metrics.json")
    assert len(found.trials) == 1 and found.path == tmp_path / "trials" / "0001"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"format": "other"}', "format"),
        ('{"version": 7, "failed": "x"}', "version 7"),
        ('{"model": "m"}', "neither figures nor the reason"),
        ('{"compressed": 3}', "neither figures nor the reason"),
        ("[" * 100_000, "no JSON"),
        ("\udcff", "no JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    bad = tmp_path / "trials" / "bad" / "metrics.json"
    bad.parent.mkdir()
    bad.write_bytes(content.encode(errors="surrogateescape"))
    found = read_study(tmp_path)
    assert len(found.trials) == 1
    ((path, why),) = found.unreadable
    assert path == bad and reason in why


def test_no_results_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileFormatError, match=str(folder)):
            read_study(folder)


def test_an_experiment_that_has_just_begun_is_a_study(tmp_path: Path) -> None:
    write_json(tmp_path / "experiment.json", {"title": "t"})
    assert read_study(tmp_path).trials == ()


def test_texts_and_numbers_of_anything() -> None:
    assert text({"rank": 3, "side": None, "axes": [1, 2]}) == "rank=3, axes=1, 2"
    assert text([{"name": "bias"}, {"name": "tune", "epochs": 3}]) == "bias, tune (epochs=3)"
    assert [text(value) for value in (None, {}, [], True, 0.5, "a")] == ["", "", "", "yes", "0.5", "a"]
    assert len(text("x" * 10_000)) < 5000
    assert [number(value) for value in (1, 0.5, True, "1", None, float("nan"))] == [1, 0.5] + [None] * 4
