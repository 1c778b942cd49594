"""What mkdocs.yml cannot say: a navigation entry for a whole folder, and the table of methods."""

from pathlib import Path
from typing import Any


def _expand(entry: Any, docs: Path) -> list[Any]:
    """The navigation entries that ``entry`` stands for."""
    if isinstance(entry, dict):
        return [
            {title: [page for e in value for page in _expand(e, docs)] if isinstance(value, list) else value}
            for title, value in entry.items()
        ]
    if isinstance(entry, str) and entry.endswith("/*"):
        pages = sorted((docs / entry).parent.glob("*.md"))
        return [page.relative_to(docs).as_posix() for page in pages if page.name != "index.md"]
    return [entry]


def on_config(config: Any) -> Any:
    """Replace each "FOLDER/*" of the navigation by the folder's pages."""
    docs = Path(config.docs_dir)
    config.nav = [page for entry in config.nav for page in _expand(entry, docs)]
    return config


def methods_table() -> str:
    """A Markdown table of every registered method, each name leading to its page."""
    from rankwise.methods.base import methods

    rows = ["| method | what it does | needs | source |", "|---|---|---|---|"]
    for name, method in methods().items():
        needs = ", ".join(sorted(method().requires)) or "no data"
        rows.append(f"| [`{name}`]({name}.md) | {method.summary} | {needs} | {method.source} |")
    return "\n".join(rows)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table where a page says ``<!-- methods table -->``."""
    marker = "<!-- methods table -->"
    return markdown.replace(marker, methods_table()) if marker in markdown else markdown
