"""The command ``report``: the page of one compression, a sweep, or many folders copied together."""

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli import options
from rankwise.cli.console import counted, print_json
from rankwise.errors import RankwiseError
from rankwise.report.figures import write_figures
from rankwise.report.page import write_page
from rankwise.report.serve import Server
from rankwise.report.trials import read_study


def report(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of study, or one metrics.json.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="The page [default: PATH/report.html].", callback=options.file
        ),
    ] = None,
    pdf: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also the charts as PDF files, for papers.", callback=options.folder
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also the charts as PNG files.", callback=options.folder),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine, renewed as trials finish.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of --watch; 0 takes a free one.", min=0, max=65535)] = 0,
    json: options.Json = False,
) -> None:
    """Write the page of the results at PATH: one HTML file that opens without a network."""
    if watch:
        if out or pdf or png or json:
            raise RankwiseError(
                "--watch was given together with what writes files; allowed is one or the other."
            )
        _serve(path, port)
        return
    study = read_study(path)
    page = write_page(study, out)
    written = [page]
    for form, folder in (("pdf", pdf), ("png", png)):
        if folder is not None:
            written += write_figures(study, folder, form)
    failed = sum(trial.failed is not None for trial in study.trials)
    counts = {
        "trials": len(study.trials) - failed,
        "failed": failed,
        "unreadable": [f"{file}: {why}" for file, why in study.unreadable],
    }
    if json:
        print_json({"page": str(page), "written": list(map(str, written)), **counts})
        return
    unreadable = counted(len(study.unreadable), "file")
    typer.echo(f"{counted(len(study.trials) - failed, 'trial')}, {failed} failed, unreadable: {unreadable}")
    for file, why in study.unreadable:
        typer.echo(f"unreadable: {file}: {why}", err=True)
    typer.echo("written: " + ", ".join(map(str, written)))


def _serve(path: Path, port: int) -> None:
    try:
        server = Server(path, port)
    except OSError as error:
        raise RankwiseError(
            f"--port {port} was given, and cannot be had: {error.strerror}; allowed is a free port, or 0."
        ) from error
    with server:
        typer.echo(f"the page is at {server.url} until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")
