"""The command ``rankwise``: parse, call, print; exit codes 0 done, 1 failed, 2 not understood."""

import sys

import typer
from rich.text import Text

import rankwise
from rankwise.cli import compression, demo, experiments, inspection, report, training
from rankwise.cli.console import errors
from rankwise.errors import RankwiseError

app = typer.Typer(
    name="rankwise",
    help="Make trained PyTorch networks smaller and faster: any nn.Module in, plain torch modules out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take "[default: ...]" in a help text for markup, and cut long names
)
for command in (
    demo.demo,
    compression.compress,
    training.finetune,
    compression.evaluate,
    compression.compare,
    inspection.inspect,
    inspection.methods,
    inspection.tradeoff,
    compression.plan,
    compression.apply,
    experiments.run,
    experiments.results,
    experiments.schema,
    report.report,
):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(rankwise.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Make trained PyTorch networks smaller and faster: any nn.Module in, plain torch modules out."""


_INTERRUPTED = 130  # the exit code that typer gives to Ctrl-C


def main() -> None:
    """Run the command line; errors of rankwise and of files, and Ctrl-C, are a message and exit code 1."""
    try:
        app()
    except (RankwiseError, OSError) as error:
        errors.print(Text.assemble(("error", "bold red"), f": {type(error).__name__}: {error}"))
        sys.exit(1)
    except SystemExit as stop:
        if stop.code != _INTERRUPTED:
            raise
        errors.print("interrupted; no file is half-written", markup=False)
        sys.exit(1)
