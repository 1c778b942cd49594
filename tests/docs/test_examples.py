"""Every Python example of the README and the documentation runs, in the order of its page.

The blocks of one page share their names, as a reader who types them one after another would have it.
A comment just before a block changes what happens to it: ``<!-- not run: WHY -->`` leaves it out,
``<!-- needs RANKWISE_DATA -->`` skips the page from there on where the real data are missing.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.network import count_macs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- *(?P<note>not run: [^\n]+?|needs RANKWISE_DATA) *-->\n+)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """(line number, note, code) of each Python block of ``page``."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start("code")), match["note"] or "", match["code"])
        for match in BLOCK.finditer(text)
    ]


def run(page: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Run the blocks of ``page`` one after another; returns the names that they define."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, note, code in blocks(page):
        if note.startswith("not run"):
            continue
        if note:
            request.getfixturevalue("data_dir")
        exec(compile("\n" * line + code, str(page), "exec"), names)  # line numbers as in the page
    return names


WITH_EXAMPLES = [page for page in PAGES[1:] if any(not n.startswith("not run") for _, n, _ in blocks(page))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_a_page_run(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run(page, request)) > 1


def test_readme_gives_a_plain_module_within_its_budget(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "README.md", request)
    small, original, batch = names["small"], names["model"], names["batches"][0]
    kept = count_macs(small, batch) / count_macs(original, batch)
    assert 0.49 <= kept <= 0.5
    assert {type(m).__module__.split(".")[0] for m in small.modules()} <= {"torch", "torchvision"}
    small.train()(batch).square().mean().backward()
    gradients = [parameter.grad for parameter in small.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    program = names["program"].module()
    torch.testing.assert_close(program(batch), names["again"].eval()(batch))


def test_every_fence_is_seen() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```(?:python|py)\b.*$", page.read_text(), re.MULTILINE)
        assert len(fences) == len(blocks(page)), f"{page}: a Python block is not in the form that is run"
