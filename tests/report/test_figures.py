"""Figures are files of their format, one per network, stage, cost and quality that has points."""

from pathlib import Path

import pytest

from rankwise.errors import RankwiseError
from rankwise.report.figures import write_figures
from rankwise.report.trials import read_study
from tests.report.synthetic import write_results

pytest.importorskip("matplotlib")
START = {"pdf": b"%PDF-", "png": b"\x89PNG\r\n\x1a\n"}


@pytest.mark.parametrize("form", START)
def test_one_figure_per_pair_of_axes(tmp_path: Path, form: str) -> None:
    write_results(tmp_path / "r", ["svd", "$a_b"], [0.3, 0.6], 2)
    written = write_figures(read_study(tmp_path / "r"), tmp_path / "out", form)
    assert sorted(path.name for path in written) == [
        f"cifar10_resnet20_cifar10_compressed_{kept}_{quality}.{form}"
        for kept in ("macs", "params")
        for quality in ("agreement", "change", "top1")
    ]
    assert all(path.read_bytes().startswith(START[form]) for path in written)


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    write_results(tmp_path / "r", ["svd"], [0.3], 1, model="../../x:y", recovered=True)
    written = write_figures(read_study(tmp_path / "r"), tmp_path / "out", "png")
    assert len(written) == 12 and {path.parent for path in written} == {tmp_path / "out"}


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.3], 1)
    with pytest.raises(RankwiseError, match=r"'gif'.*pdf and png"):
        write_figures(read_study(tmp_path), tmp_path, "gif")
