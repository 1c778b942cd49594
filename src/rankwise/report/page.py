"""The page: one HTML file that opens from disk, with plotly and the figures packed inside."""

import base64
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.files import write_text
from rankwise.report.content import DETAILS, content
from rankwise.report.curves import target_of
from rankwise.report.trials import Study, read_study, text

PAGE_FILE = "report.html"
SIZE_LIMIT = 4_900_000  # bytes of a page
_SCRIPTS = ("common.js", "tradeoff.js", "trial.js", "tables.js", "main.js")  # in the order in which they run
_HERE = Path(__file__).parent / "page"


def write_page(study: Study, out: Path | None = None) -> Path:
    """Write the page of ``study`` to ``out``, by default beside them; returns where it is.

    Raises:
        MissingExtra: the extra ``report`` is not installed.
    """
    out = study.path / PAGE_FILE if out is None else out
    write_text(out, render(study))
    return out


def write_page_beside(folder: Path) -> str:
    """Write the page of one compression into its folder; returns one line that says so, or why not."""
    try:
        return f"page: {write_page(read_study(folder))}"
    except MissingExtra as missing:
        return f"no page: {missing}"


class MissingExtra(RankwiseError):
    """Packages of an extra are not installed."""


def render(study: Study, watch: bool = False) -> str:
    """The page as HTML text.

    With ``watch`` it asks the server that it came from for changes; otherwise it never asks anyone.
    """
    template, plotly = _template(), _plotly()
    title = _title(study)

    def made(packed: str) -> str:
        return str(template.render(title=title, data=packed, plotly=plotly, watch=watch, **_assets()))

    return made(packed_content(study, room=SIZE_LIMIT - len(made("").encode())))


def packed_content(study: Study, room: int = SIZE_LIMIT) -> str:
    """The content as base64 text of gzipped JSON, details of trials left out until it fits into ``room``."""
    packed = ""
    for count in range(len(DETAILS) + 1):
        shown = content(study, without=DETAILS[:count])
        packed = _pack(json.dumps(shown, separators=(",", ":"), allow_nan=False).encode())
        if len(packed) <= room:
            break
    return packed


def _title(study: Study) -> str:
    titles = list(dict.fromkeys(filter(None, (text(e.get("title")) for e in study.experiments))))
    if titles:
        return "; ".join(titles[:3]) + (f"; and {len(titles) - 3} more" if len(titles) > 3 else "")
    if len(study.trials) == 1:
        trial = study.trials[0]
        model, method = (text(trial.metrics.get(name)) for name in ("model", "method"))
        kept = target_of(trial)
        parts = [model or "A network", f" by {method}" if method else "", f", {kept} kept" if kept else ""]
        return "".join(parts)
    return study.path.resolve().name


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


@cache
def _plotly() -> str:
    """plotly.js of the installed plotly, packed: 4.8 MB become 2."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise _missing(error) from error
    return _pack(get_plotlyjs().encode())


@cache
def _template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise _missing(error) from error
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html")


def _missing(error: ImportError) -> MissingExtra:
    return MissingExtra(
        f"the page needs the package {error.name!r}, which is not installed: pip install 'rankwise[report]'"
    )


@cache
def _assets() -> dict[str, str]:
    scripts = "\n".join((_HERE / name).read_text() for name in _SCRIPTS)
    return {"style": (_HERE / "style.css").read_text(), "script": scripts}
