"""The commands of the tutorials run, on a small folder and a small network in the place of VGG."""

import re
import shlex
from pathlib import Path

import pytest
from tests.cli.test_cli import Run, run  # noqa: F401 (the fixture)

from rankwise.data import load_data

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "two_classes.md"
NETWORK = """from torch import nn
def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=8), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(216, 1000),
    )
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Zeros and ones among the digits, as image files."""
    image = pytest.importorskip("PIL.Image")
    data = load_data("digits")
    for name, split, count in (("train", data.training(), 150), ("val", data.testing(), 60)):
        assert split.labels is not None
        pixels = split.fetch(split.indices[:0].new_tensor(range(count)))
        for number, (digit, label) in enumerate(zip(pixels, split.labels[:count].tolist(), strict=True)):
            if label in (0, 1):
                place = tmp_path / "two" / name / ("zero", "one")[label]
                place.mkdir(parents=True, exist_ok=True)
                values = (digit[0].float() / digit.max() * 255).byte().numpy()
                image.fromarray(values).save(place / f"{number}.png")
    return tmp_path / "two"


def test_the_two_classes(
    run: Run,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "two_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    commands = re.findall(r"^\$ rankwise (.*)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        "finetune", "compress", "compress", "finetune", "evaluate"
    ]  # fmt: skip
    for command in commands:
        small = command.replace("torchvision:vgg16@IMAGENET1K_V1#2", "two_net:net#2")
        small = small.replace("hymenoptera_data", str(folder)).replace("macs=0.5", "macs=0.9")
        small = small.replace("--epochs 10", "--epochs 2").replace("evbmf=1.0", "evbmf=0.5")
        done = run(*shlex.split(small))
        assert done.returncode == 0, f"{small}: {done.stderr}"
    block = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    exec(block[1], {})
    assert "tucker-tuned" in capfd.readouterr().out
