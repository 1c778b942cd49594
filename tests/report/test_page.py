"""The page holds all that it shows, in one file, and nothing that a user wrote can act in it."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rankwise.report import page as page_module
from rankwise.report.page import PAGE_FILE, SIZE_LIMIT, write_page, write_page_beside
from rankwise.report.trials import read_study
from tests.report.synthetic import METHODS, experiment, write_json, write_results

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


def content_of(page: Path) -> dict[str, Any]:
    """What the page's scripts will unpack."""
    packed = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', page.read_text())
    assert packed
    found = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert isinstance(found, dict)
    return found


def test_every_trial_is_in_the_page(tmp_path: Path) -> None:
    write_results(tmp_path, METHODS[:3], [0.3, 0.6], 2)
    page = write_page(read_study(tmp_path))
    assert page == tmp_path / PAGE_FILE
    content = content_of(page)
    assert content["title"] == "Made-up sweep" and len(content["trials"]) == 12
    assert [curve["label"] for curve in content["curves"]] == list(METHODS[:3])
    assert [[len(p["trials"]) for p in c["points"]["compressed"]] for c in content["curves"]] == [[2, 2]] * 3
    assert [row["networks"] for row in content["published"]] == [[0]] * 4
    assert content["made"]["versions"]["torch"] == ["2.14.1"]
    layers = content["trials"][0]["layers"]
    assert content["names"][layers[0][0]] == "conv1" and layers[0][6] == pytest.approx(
        (1 - layers[0][3] / layers[0][2]) * 0.3, abs=1e-4
    )


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    html = write_page(read_study(tmp_path)).read_text()
    assert "connect-src 'none'" in html and "default-src 'none'" in html
    tags = re.sub(r"(?s)<script[ >].*?</script>", "", html)
    assert re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', tags) == [] and "url(" not in tags
    assert "https://" not in tags and "@import" not in tags


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"


def test_what_users_wrote_is_only_text(tmp_path: Path) -> None:
    write_results(tmp_path, [HOSTILE], [0.5], 1, command=HOSTILE)
    write_json(tmp_path / "experiment.json", experiment(1, title=HOSTILE, description=HOSTILE))
    html = write_page(read_study(tmp_path)).read_text()
    assert "alert(" not in re.sub(r"(?s)<(title|h1)>.*?</\1>", "", html)
    assert html.count("&lt;/script&gt;&lt;script&gt;alert(1)") == 2  # title and heading
    assert html.count("<script") == html.count("</script>") == 3


def test_failed_and_unreadable_are_told(tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    write_json(tmp_path / "trials" / "f" / "metrics.json", {"method": "svd", "failed": "BudgetError: no"})
    write_json(tmp_path / "trials" / "u" / "metrics.json", 3)
    content = content_of(write_page(read_study(tmp_path)))
    assert [trial.get("failed") for trial in content["trials"]] == [None, "BudgetError: no"]
    assert content["unreadable"] == [["trials/u/metrics.json", "it holds no JSON object"]]
    assert content["networks"][1]["label"] == "unnamed network"


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 3, "seconds": [1], "memory": "much", "versions": 2, "calibration": [[]], "hardware": {}},
        {"layers": [1, {"name": ["a"], "before": 3, "choice": 4}], "seconds": {"evaluate": "long"}},
        {"original": {}, "spectra": {"a": [1, None, "x"], "b": [], "c": 3}, "tradeoff": [1, {"kl": None}]},
        {"compressed": {"top1": "high", "per_class": [{"label": None}, 4], "flips": {"a": None}}},
        {
            "target": {"macs": 0.5},
            "method_options": [1],
            "model": None,
            "seed": 1e400,
            "recovered": {"params": []},
        },
    ],
)
def test_metrics_of_wrong_types_leave_gaps_not_errors(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1, **wrong)
    content = content_of(write_page(read_study(tmp_path)))
    assert len(content["trials"]) == 1 and len(content["curves"]) == 1


def test_a_thousand_trials_fit_into_five_megabytes(tmp_path: Path) -> None:
    write_results(tmp_path, METHODS, [0.1 * i for i in range(1, 11)], 10)
    page = write_page(read_study(tmp_path))
    assert page.stat().st_size < 5_000_000
    content = content_of(page)
    assert len(content["trials"]) == 1000 and content["without"] == []
    assert all(trial["layers"] and trial["classes"] for trial in content["trials"])


def test_a_page_too_large_leaves_details_out_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, ["svd"], [0.3, 0.5, 0.8], 2, spectra={"conv1": [3.0, 2.0, 1.0]})
    results = read_study(tmp_path)
    whole = write_page(results)
    assert content_of(whole)["trials"][0]["spectra"]
    monkeypatch.setattr(page_module, "SIZE_LIMIT", whole.stat().st_size - 1)
    content = content_of(write_page(results))
    assert content["without"] == ["spectra"] and "spectra" not in content["trials"][0]
    assert content["trials"][0]["layers"] and SIZE_LIMIT < 5_000_000


def test_layers_come_from_the_plan_where_metrics_have_none(tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1, layers=None)
    edit = {
        "op": "replace", "target": "fc", "choice": {"rank": 2}, "error": 1.0, "scale": 4.0,
        "before": {"params": 8}, "after": {"params": 4},
    }  # fmt: skip
    kept = {"op": "keep", "target": "head", "before": {"params": 3}, "after": {"params": 3}}
    write_json(tmp_path / "trials" / "0000" / "plan.json", {"edits": [edit, kept]})
    content = content_of(write_page(read_study(tmp_path)))
    named = [[content["names"][i] for i in row[:2]] + row[2:] for row in content["trials"][0]["layers"]]
    assert named == [["fc", "rank 2", 8, 4, None, None, 0.25], ["head", "kept whole", 3, 3, None, None, None]]


def test_without_the_extra_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    missing = page_module.MissingExtra("the page needs the package 'plotly', which is not installed")
    monkeypatch.setattr(page_module, "_plotly", lambda: (_ for _ in ()).throw(missing))
    line = write_page_beside(tmp_path)
    assert line.startswith("no page: ") and "plotly" in line and not (tmp_path / PAGE_FILE).exists()
