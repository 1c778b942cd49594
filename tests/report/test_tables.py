"""Tables of sweeps, written out by hand."""

import csv
from pathlib import Path
from typing import Any

from rankwise.report.tables import cell, markdown, pivot, text, write_csv


def row(label: str, target: float, **more: Any) -> dict[str, Any]:
    found = {
        "top1": 0.9025,
        "agreement": 0.957,
        "examples": 100,
        "images": 100,
        "seconds": {"a": 1.0, "b": 2.0},
    }
    kept = {"params_fraction": 0.4996, "macs_fraction": 0.61}
    return {"label": label, "target": target, **found, **kept, "recovered": {}, **more}


def test_a_cell_gives_accuracy_agreement_and_cost() -> None:
    assert cell(row("a", 0.5)) == "90.25 / 95.7 [0.500, 0.610]"
    assert cell(row("a", 0.5, examples=10)).startswith("~")
    assert cell({"label": "a", "target": 0.5, "failed": "BudgetError: no"}) == "cannot"
    assert cell(None) == "" and cell(row("a", 0.5), "batchnorm") == ""
    after = {"batchnorm": {"top1": 0.5, "agreement": 0.25, "examples": 100}}
    assert cell(row("a", 0.5, recovered=after), "batchnorm").startswith("50.00 / 25.0")


def test_one_line_per_label_and_one_column_per_target() -> None:
    lines = pivot([row("b", 0.5), row("a", 0.5), row("b", 0.7)], (0.7, 0.5))
    assert [label for label, _ in lines] == ["b", "a"]
    assert lines[1][1][0] == "" and lines[1][1][1].startswith("90.25") and lines[0][1][2] == "3.0"


def test_markdown_and_text() -> None:
    lines = [("a", ["1", "22"]), ("long", ["3", ""])]
    assert markdown(["m", "x", "y"], lines).splitlines()[1:3] == ["|---|---|---|", "| a | 1 | 22 |"]
    assert text(["m", "x", "y"], lines).splitlines() == ["m     x  y", "a     1  22", "long  3"]


def test_csv_has_a_column_for_every_figure(tmp_path: Path) -> None:
    after = {"batchnorm": {"top1": 0.5}}
    failed = {"label": "c", "target": 0.3, "failed": "BudgetError: no"}
    write_csv([row("a", 0.5), row("b", 0.5, recovered=after), failed], tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [r["label"] for r in read] == ["a", "b", "c"]
    assert read[1]["batchnorm_top1"] == "0.5" and read[0]["seconds"] == "3.0" and read[2]["failed"]
