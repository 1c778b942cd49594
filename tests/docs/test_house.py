"""What the README, the documentation and the package's metadata say about each other stays true."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from rankwise.allocation import allocators
from rankwise.auto import Automatic
from rankwise.cli.main import app
from rankwise.methods import methods
from rankwise.methods.selection import ChannelMethod

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _links(page: Path) -> list[str]:
    return re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text())


def test_make_help_lists_the_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make (\w+)", shown, re.MULTILINE)
    assert {"help", "demo", "test", "check", "bench", "docs"} <= set(targets)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
def test_make_targets_that_pages_name_exist(page: Path) -> None:
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^\$ |`)make (\w+)", page.read_text(), re.MULTILINE))
    assert named <= rules


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = _links(page)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_one_version_everywhere() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == METADATA["project"]["version"]


def test_extras_that_pages_name_exist() -> None:
    extras = set(METADATA["project"]["optional-dependencies"])
    pages = README + (ROOT / "docs" / "install.md").read_text()
    named = {
        name for group in re.findall(r"pip install[^\n]*\[([\w,]+)\]", pages) for name in group.split(",")
    }
    assert named and named <= extras


def test_documented_extras_are_all_extras() -> None:
    table = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    documented = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(METADATA["project"]["optional-dependencies"])


def test_documented_commands_are_all_commands() -> None:
    commands = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    table = re.findall(r"^\| `rankwise (\w+)", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert set(table) == commands
    assert set(re.findall(r"^\$ rankwise (\w+)", README, re.MULTILINE)) <= commands


def test_the_readme_names_every_command() -> None:
    commands = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    (line,) = re.findall(r"describes them all: (.+)\.$", README, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == commands


def test_the_front_page_lists_every_page() -> None:
    listed = set(_links(ROOT / "docs" / "index.md"))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages | {"methods/index.md", "tutorials/two_classes.md", "decisions/index.md"} <= listed


def test_methods_and_allocators_in_shown_commands_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        named = {name for group in re.findall(r"--method (\S+)", text) for name in re.split(r"[+,]", group)}
        assert named <= {*methods(), Automatic.name}, page
        assert set(re.findall(r"--allocator (\w+)", text)) <= set(allocators()), page


def test_readme_lists_every_method_as_the_registry_describes_it() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(docs/methods/(\w+)\.md\) \| (\w+) \| (.+) \|$", README, re.MULTILINE)
    found = {(name, page, kind, summary) for name, page, kind, summary in rows}
    kinds = {True: "selection", False: "factorisation"}
    assert found == {
        (name, name, kinds[issubclass(method, ChannelMethod)], method.summary)
        for name, method in methods().items()
    }
