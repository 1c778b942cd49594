"""Results on disk as a table, a thousand of them, several folders of them, and broken ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise import results
from rankwise.errors import FileFormatError, RankwiseError


def put(root: Path, key: str, **changes: Any) -> Path:
    """Write the metrics of one synthetic trial."""
    figures = {
        "top1": 0.9,
        "agreement": 0.95,
        "params": 50,
        "params_fraction": 0.5,
        "per_class": [{"label": 0}],
    }
    content: dict[str, Any] = {
        "format": "rankwise.metrics",
        "version": 1,
        "key": key,
        "model": "digits_cnn",
        "method": "svd",
        "method_options": {"folding": "all"},
        "label": "svd folding=all / knapsack",
        "measure": "params",
        "target": 0.5,
        "original": {"top1": 0.99, "params": 100},
        "compressed": figures,
        "seconds": {"build": 1.0, "evaluate": 2.0},
        "memory": {"peak_bytes": 1000},
        "hardware": {"cpu": "AMD"},
    }
    folder = root / "trials" / key
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content | changes))
    return folder


def test_a_trial_is_a_row(tmp_path: Path) -> None:
    folder = put(tmp_path, "a")
    put(tmp_path, "b", recovered={"top1": 0.97, "params": 50})
    table = results.load(tmp_path).set_index("key")
    a = table.loc["a"]
    assert (a.top1, a.compressed_top1, a.original_top1, a.params_fraction) == (0.9, 0.9, 0.99, 0.5)
    assert (a.seconds, a.seconds_build, a.peak_bytes, a.hardware_cpu) == (3.0, 1.0, 1000, "AMD")
    assert json.loads(a.method_options) == {"folding": "all"} and a.folder == str(folder)
    assert (table.loc["b"].top1, table.loc["b"].compressed_top1) == (0.97, 0.9)


def test_folders_are_merged_by_copying_and_a_trial_counts_once(tmp_path: Path) -> None:
    put(tmp_path / "one", "a", failed="BudgetError: no", compressed={})
    put(tmp_path / "one", "b")
    put(tmp_path / "two", "a")
    for paths in (tmp_path, [tmp_path / "one", tmp_path / "two"], [tmp_path / "two", tmp_path / "one"]):
        table = results.load(paths).set_index("key")
        assert sorted(table.index) == ["a", "b"] and table.failed.isna().all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": "rankwise.met', "no JSON"),
        ("[1]", "no JSON object"),
        ('{"format": "other"}', "its format is not"),
        ('{"format": "rankwise.metrics", "version": 9, "key": "c"}', "version 9"),
        ('{"format": "rankwise.metrics", "version": 1, "key": "c"}', "neither figures nor"),
        ('{"format": "rankwise.metrics", "version": 1, "key": "c", "compressed": 3}', "neither figures nor"),
    ],
)
def test_what_cannot_be_read_is_named_and_left_out(text: str, reason: str, tmp_path: Path) -> None:
    put(tmp_path, "a")
    broken = put(tmp_path, "c") / "metrics.json"
    broken.write_text(text)
    found = results.read(tmp_path)
    assert [trial["key"] for trial in found.trials] == ["a"]
    assert list(found.unreadable) == [broken] and reason in found.unreadable[broken]
    assert list(results.load(tmp_path).attrs["unreadable"]) == [str(broken)]
    assert results.read_metrics(broken.parent) is None


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no folder"):
        results.load(tmp_path / "nothing")
    with pytest.raises(FileFormatError, match="No trials under"):
        results.load(tmp_path)


def test_only_finished_trials_have_a_network(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="not the directory of a finished trial"):
        results.load_network(tmp_path)
    with pytest.raises(FileFormatError, match="it failed with BudgetError"):
        results.load_network(put(tmp_path, "a", failed="BudgetError: no"))


def test_without_pandas_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(RankwiseError, match=r"rankwise\[report\]"):
        results.load(tmp_path)
