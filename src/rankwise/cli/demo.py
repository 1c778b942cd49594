"""The command ``demo``: the main job on embedded data, from training to the reloaded file."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli import options
from rankwise.cli.compression import print_metrics
from rankwise.cli.console import print_json, progress_bars
from rankwise.experiments.demo import run_demo


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for what is written [default: a temporary one].", callback=options.folder),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Train a small network on handwritten digits, keep half its MACs, recover, save and reload it."""
    with tempfile.TemporaryDirectory() as temporary, progress_bars(quiet=json) as progress:
        metrics = run_demo(out or Path(temporary), seed, progress)
    if json:
        print_json(metrics)
    else:
        print_metrics("digits CNN, half its MACs", metrics)
        typer.echo(f"reloaded in a new process: outputs identical: {metrics['reloaded_identical']}")
    if not metrics["reloaded_identical"]:
        raise typer.Exit(1)
