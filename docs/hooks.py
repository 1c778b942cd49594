"""What mkdocs.yml cannot say: a navigation entry for a whole folder, and tables that the code fills."""

from collections.abc import Callable, Iterable, Sequence
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


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def methods_table() -> str:
    """Every registered method, each name leading to its page."""
    from rankwise.methods import methods

    rows = (
        [
            f"[`{name}`]({name}.md)",
            method.summary,
            ", ".join(sorted(method().requires)) or "no data",
            method.source,
        ]
        for name, method in methods().items()
    )
    return table(("method", "what it does", "statistics", "source"), rows)


def allocators_table() -> str:
    """Every registered allocator."""
    from rankwise.allocation import allocators

    rows = ([f"`{name}`", entry.summary, entry.source] for name, entry in allocators().items())
    return table(("allocator", "what it does", "source"), rows)


def models_table() -> str:
    """Every named network."""
    from rankwise.models import MODELS

    rows = ([f"`{name}`", entry.summary, entry.dataset] for name, entry in MODELS.items())
    return table(("network", "what it is", "data"), rows)


def data_table() -> str:
    """Every named data set."""
    from rankwise.data import DATA

    return table(("data", "what it is"), ([f"`{name}`", entry.summary] for name, entry in DATA.items()))


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "allocators": allocators_table,
    "models": models_table,
    "data": data_table,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table where a page says ``<!-- NAME table -->``; the code is asked for its contents."""
    for name, make in TABLES.items():
        marker = f"<!-- {name} table -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown
